//! Stock kernels, where `/dev/kvm` is complete: run this through `tools/lab`.
// Test code throughout: what is broken ends in a panic that says so.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "../micro/guest.rs"]
mod guest;
mod lost;
