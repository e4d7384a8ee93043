//! What a block device has done.

use super::job::{Job, Kind};

/// Counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub discarded_bytes: u64,
    pub write_zeroes: u64,
    pub zeroed_bytes: u64,
    pub errors: u64,
    pub throttled: u64,
}

impl Counts {
    /// Adds a job that is done.
    pub fn count(&mut self, job: &Job) {
        let (count, bytes) = match job.kind {
            Kind::Read => (&mut self.reads, Some(&mut self.read_bytes)),
            Kind::Write { .. } => (&mut self.writes, Some(&mut self.written_bytes)),
            Kind::Sync => (&mut self.flushes, None),
            Kind::Discard => (&mut self.discards, Some(&mut self.discarded_bytes)),
            Kind::Zero => (&mut self.write_zeroes, Some(&mut self.zeroed_bytes)),
        };
        *count += 1;
        if let Some(total) = bytes {
            *total += job.bytes;
        }
    }
}
