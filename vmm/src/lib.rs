//! Configuration to machine to lifecycle.

pub mod bzimage;
pub mod probe;
