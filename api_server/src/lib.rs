//! JSON documents to the VMM's own types.
//!
//! The way of a request is one line: JSON bytes, parsed here, a value of the `vmm` crate. There are the configuration
//! document ([`config`]), a server for requests over a Unix socket ([`http`]), and what it is asked ([`routes`]).
//! All JSON that comes in is read by [`json::parse`], which names the field that is wrong.
//! This crate knows no KVM, and `vmm` knows no JSON text.

pub mod config;
pub mod http;
pub mod json;
pub mod routes;

/// The OpenAPI document of the control socket, in YAML (`resources/openapi.yaml`).
pub const OPENAPI: &str = include_str!("../../resources/openapi.yaml");
