//! What a driver asks of a balloon, piece by piece.

use std::ops::Range;

use super::super::{Broken, Memory, chain};
use super::pages::{self, PAGE};
use super::queues::{Queue, Role, Work};
use crate::limit::LogLimit;

/// Page numbers in a piece. Linux sends 256 in a request.
const NUMBERS: usize = 1024;
/// Bytes of reported memory in a piece.
const REPORTED: u64 = 64 << 20;

/// Counters.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests to inflate.
    pub inflates: u64,
    /// Bytes that the host has got by them.
    pub inflated_bytes: u64,
    /// Requests to deflate.
    pub deflates: u64,
    /// Bytes that the guest has taken back by them.
    pub deflated_bytes: u64,
    /// Reports of free pages.
    pub reports: u64,
    /// Bytes that the host has got by them.
    pub reported_bytes: u64,
    /// Times that statistics have come.
    pub updates: u64,
    /// Ranges that could not be given back, or not all of it: the host refused, or they are not in memory.
    pub failures: u64,
    limit: LogLimit,
}

/// Does a piece of the request in `queue.buffers`. Returns whether all of it is done.
///
/// # Errors
/// [`Broken`]: it is not in memory.
pub fn do_piece(
    queue: &Queue,
    work: &mut Work,
    memory: &Memory,
    counts: &mut Counts,
) -> Result<bool, Broken> {
    let (mut numbers, mut ranges) = chain::split(memory, &queue.buffers);
    let done = match queue.role {
        Role::Inflate => {
            numbers.skip(work.done);
            let mut bytes = [0; 4 * NUMBERS];
            let len = numbers.len().min(bytes.len() as u64);
            let (bytes, _) = bytes.split_at_mut(len as usize);
            numbers.read(bytes)?;
            let (bytes, _) = bytes.as_chunks();
            let mut pages: Vec<_> = bytes.iter().map(|n| u32::from_le_bytes(*n)).collect();
            for range in pages::ranges(&mut pages) {
                counts.inflated_bytes += counts.release(memory, &range);
            }
            work.done += len;
            counts.inflates += u64::from(numbers.is_empty());
            numbers.is_empty()
        }
        Role::Deflate => {
            counts.deflates += 1;
            counts.deflated_bytes += numbers.len() / 4 * PAGE;
            true
        }
        Role::Reports => {
            ranges.skip(work.done);
            let mut piece = ranges.take(REPORTED);
            work.done += piece.len();
            while let Some((start, len)) = piece.next(u64::MAX) {
                let range = start.0..start.0.saturating_add(len as u64);
                counts.reported_bytes += counts.release(memory, &range);
            }
            counts.reports += u64::from(ranges.is_empty());
            ranges.is_empty()
        }
        // They are held back rather than worked on.
        Role::Statistics => true,
    };
    Ok(done)
}

impl Counts {
    /// Gives a range back to the host. Returns how many bytes of it the host has taken.
    fn release(&mut self, memory: &Memory, range: &Range<u64>) -> u64 {
        let range = pages::whole(range);
        match pages::release(memory, &range) {
            Ok(bytes) => {
                self.failures += u64::from(bytes < range.end - range.start);
                bytes
            }
            Err(error) => {
                self.failures += 1;
                if self.limit.allow() {
                    log::warn!("cannot give the guest's free pages back to the host: {error}");
                }
                0
            }
        }
    }
}
