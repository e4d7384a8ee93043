//! bzImage kernels: decompression on the host, and the cache that makes it happen once.
//!
//! A bzImage carries its vmlinux (an ELF file) compressed. Decompressing it in the guest costs every boot hundreds of
//! milliseconds and private memory; here it happens once per kernel, and all VMs then map the same cached file.
//!
//! - `header`: where the payload is (boot protocol), all fields checked.
//! - `decode`: gzip, bzip2, lzma, xz, lz4 (in `lz4`), zstd and none, streaming into a sink, all in Rust.
//! - `cache`: [`KernelCache`], the way in. `store` has the rules of its directory, `memfd` the way out when it cannot be used.
//!
//! This module reads and writes files, and knows nothing of guests: the loader maps what comes out of here.

mod cache;
mod decode;
mod error;
mod header;
mod identity;
mod lz4;
mod memfd;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use cache::{CacheOutcome, KernelCache, default_cache_dir};
pub use decode::Compression;
pub use error::BzImageError;
pub use header::{
    BzImageHeader, HEADER_BYTES, HeaderError, MAX_PAYLOAD_BYTES, MAX_VMLINUX_BYTES, Payload,
};

/// Whether `file` is a kernel with an x86 boot header (`0xAA55` at 0x1fe and `HdrS` at 0x202; Linux boot.rst,
/// "Details of Header Fields"). A file too short to hold one is not. The file's position is left alone.
///
/// # Errors
/// Any error of reading the file.
pub fn is_bzimage(file: &File) -> io::Result<bool> {
    Ok(header::has_boot_header(&read_head(file)?))
}

/// The first [`HEADER_BYTES`] of `file`, or all of a shorter one.
fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEADER_BYTES];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    head.truncate(filled);
    Ok(head)
}
