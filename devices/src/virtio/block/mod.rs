//! Block device (5.2): a disk of the host's for the guest.
//!
//! | file        | what lives there                                                       |
//! |-------------|------------------------------------------------------------------------|
//! | [`request`] | a chain of buffers to a checked request                                  |
//! | [`disk`]    | what the bytes are kept in: files as they are                             |
//! | `options`   | what a device is made from, and what may be changed                       |
//! | `device`    | the device as the transport and the loop know it                          |
//! | `take`      | taking requests, and beginning what they need                             |
//! | `answer`    | answering them, and queues that wait for a job to be free                 |
//! | `replace`   | another size, or another disk                                             |
//! | `counts`    | counters                                                                  |
//! | `job`       | a request under way, as a series of system calls                          |
//! | `work`      | jobs and what makes their calls: one after the other, or io_uring         |
//! | `uring`     | asynchronous system calls                                                 |
//! | `bounce`    | memory that `O_DIRECT` takes                                              |
//! | `config`    | what the driver reads in the device's configuration                       |
//!
//! A kick is answered by taking what is in the ring, up to a limit, giving the kernel all of it in one call, and giving
//! back what is complete by then, with one interrupt at most; what completes later comes by the host's side. Jobs that
//! are under way use guest memory: `quiesce`, `reset` and the end of the device wait for them.
//!
//! A flush covers the writes that were given back before it was made (5.2.6.2): these are in the file, and `fdatasync`
//! makes them safe.

mod answer;
mod bounce;
mod config;
mod counts;
mod device;
pub mod disk;
mod job;
mod options;
mod replace;
pub mod request;
mod take;
mod uring;
mod work;

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::rate_limiter::RateLimiter;
use super::{Activation, Broken, Ring, RingState};
use crate::limit::LogLimit;
use counts::Counts;
use disk::{Disk, Geometry};
pub use options::{BlockError, BlockOptions, BlockUpdate, CacheType, Engine};
use request::Limits;
use work::Work;

/// Feature bits of block devices (5.2.3).
mod bit {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Largest size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Buffers of data in a request: what is left of a queue's entries besides header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// The device.
pub struct Block {
    options: BlockOptions,
    /// Goes after everything that uses its file.
    disk: Box<dyn Disk>,
    /// The disk's, as the driver knows it.
    geometry: Geometry,
    sizes: Vec<u16>,
    /// The driver wants writes to be safe by its flushes, not each by itself.
    writeback: bool,
    active: Option<Active>,
    work: Work,
    limiter: RateLimiter,
    counts: Counts,
    log: LogLimit,
    /// What was found while nobody could be told.
    broken: Option<Broken>,
}

/// A device with its driver.
struct Active {
    activation: Activation,
    queues: Vec<Option<Queue>>,
    limits: Limits,
}

struct Queue {
    ring: Ring,
    /// What is to be given back: heads, and the bytes that were written.
    done: Vec<(u16, u32)>,
    /// It has more, for when a job is free.
    waits: bool,
}

impl Queue {
    fn new(ring: Ring) -> Self {
        Self {
            ring,
            done: Vec::new(),
            waits: false,
        }
    }
}

/// Saved [`Block`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Position in each queue that is in use, if the device was active.
    pub rings: Vec<Option<RingState>>,
    /// Whether the driver relies on its flushes.
    pub writeback: bool,
}

impl Block {
    /// Opens the disk and makes the device.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn new(options: BlockOptions) -> Result<Self, BlockError> {
        let disk = disk::open(&options.disk)?;
        let work = Work::new(options.engine).map_err(BlockError::Engine)?;
        Ok(Self {
            geometry: disk.geometry(),
            disk,
            sizes: vec![QUEUE_SIZE; options.queues.max(1).into()],
            writeback: true,
            active: None,
            work,
            limiter: RateLimiter::new(&options.limits, Instant::now()),
            counts: Counts::default(),
            log: LogLimit::default(),
            broken: None,
            options,
        })
    }

    /// Whether calls are made by io_uring.
    pub fn engine(&self) -> Engine {
        self.work.engine()
    }

    /// Whether each write has to be safe by itself.
    fn durable(&self) -> bool {
        self.options.cache == CacheType::Writeback && !self.writeback
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // The kernel must not write to memory that is somebody else's by then.
        self.work.drain();
    }
}

#[cfg(test)]
mod tests;
