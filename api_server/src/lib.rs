//! JSON documents to the VMM's own types.
