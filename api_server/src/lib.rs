//! JSON documents to the VMM's own types.
//!
//! The way of a request is one line: JSON bytes, parsed here, a value of the `vmm` crate. So far there is one
//! document, the configuration file ([`config`]); requests over a socket are to join it and share its errors.
//! This crate knows no KVM, and `vmm` knows no JSON text.

pub mod config;
