//! Why a bzImage gave no vmlinux.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::HeaderError;

/// Errors of [`super::KernelCache::vmlinux`], each about the kernel file `path`.
///
/// A cache directory that cannot be used is not among them: the kernel then goes to anonymous memory.
#[derive(Debug, Error)]
pub enum BzImageError {
    /// The file could not be opened.
    #[error("cannot open kernel {path}: check the path and its permissions")]
    Open {
        /// The kernel file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read kernel {path}")]
    Read {
        /// The kernel file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's header does not lead to a vmlinux.
    #[error("cannot find the vmlinux in kernel {path}")]
    Header {
        /// The kernel file.
        path: PathBuf,
        /// What is wrong with the header.
        source: HeaderError,
    },
    /// The payload is damaged.
    #[error("cannot decompress kernel {path} ({compression}): the file is damaged, fetch it again")]
    Decompress {
        /// The kernel file.
        path: PathBuf,
        /// Name of the compression.
        compression: &'static str,
        /// What the decoder said.
        source: io::Error,
    },
    /// The payload decompresses to another size than it declares.
    #[error(
        "kernel {path} ({compression}) declares a vmlinux of {declared} bytes and holds {actual}: the file is damaged, fetch it again"
    )]
    WrongSize {
        /// The kernel file.
        path: PathBuf,
        /// Name of the compression.
        compression: &'static str,
        /// Size declared at the payload's end, in bytes.
        declared: u64,
        /// What came out, in words: `more`, or a number of bytes.
        actual: String,
    },
    /// The payload is no 64-bit x86 ELF file.
    #[error(
        "kernel {path} does not hold an x86-64 ELF vmlinux: use an x86-64 kernel, or in-guest decompression"
    )]
    NotVmlinux {
        /// The kernel file.
        path: PathBuf,
    },
    /// The file was written to while it was read.
    #[error("kernel {path} changed while it was read: start again once it is complete")]
    Changed {
        /// The kernel file.
        path: PathBuf,
    },
    /// Neither the cache nor anonymous memory could take the vmlinux.
    #[error(
        "cannot keep the vmlinux of kernel {path} ({bytes} bytes) in memory: make the cache directory writable or free memory"
    )]
    Memory {
        /// The kernel file.
        path: PathBuf,
        /// Size of the vmlinux, in bytes.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
}
