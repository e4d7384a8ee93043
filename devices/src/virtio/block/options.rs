//! What a block device is made from, and why there is none.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::rate_limiter::RateLimiterConfig;
use super::disk::{DiskOptions, OpenError};

/// When a write is safe, as Firecracker has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// When the host gets to it: there are no flushes.
    #[default]
    Unsafe,
    /// When the guest has flushed.
    Writeback,
}

/// How system calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// One after the other.
    Sync,
    /// Many at once, by io_uring.
    Async,
}

/// What a device is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// What the guest sees as its serial number: the first 20 bytes.
    pub id: String,
    /// The disk.
    pub disk: DiskOptions,
    /// When a write is safe.
    pub cache: CacheType,
    /// How calls are made; `None` for io_uring where it can be had.
    pub engine: Option<Engine>,
    /// Number of queues, at least one.
    pub queues: u16,
    /// Limits of bytes and requests.
    pub limits: RateLimiterConfig,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// io_uring was asked for and cannot be had.
    #[error(
        "Async needs io_uring, which this process cannot have here: {0}; leave io_engine out or give Sync, or look at kernel.io_uring_disabled and the seccomp filter"
    )]
    Engine(io::Error),
}

impl BlockError {
    /// The field of a drive's configuration that is to blame.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Disk(error) => error.field(),
            Self::Engine(_) => "io_engine",
        }
    }
}

/// What is to be changed in a device; the disk's size is looked at again in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockUpdate {
    /// The disk's file. If that is another path than before, and another file, it takes its place, opened in the same way.
    pub path: Option<PathBuf>,
    /// Whether a file that is new at the path of before takes the place too. Who only wants other limits does not want that.
    pub reopen: bool,
    /// Other limits. A bucket that is not given stays as it is; one of size 0 is no limit.
    pub limits: RateLimiterConfig,
}
