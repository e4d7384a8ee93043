//! What a driver tells of its memory (5.5.6.4).

use super::super::chain::Cursor;
use super::super::{Broken, Counters};

/// Names by tag: those of 5.5.6.4, then those of newer drivers (`include/uapi/linux/virtio_balloon.h`). Amounts of memory are in
/// bytes. The names are Firecracker's.
pub const STATISTICS: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];
/// Bytes of an entry: a tag of 16 bits and a value of 64, packed.
const ENTRY: u64 = 10;
/// Entries that are looked at. A driver has one for each tag.
const MOST: u64 = 256;

/// The numbers that came last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics([Option<u64>; STATISTICS.len()]);

impl Statistics {
    /// Takes what the driver has sent. Tags that are not known are left out, and so is an entry that is cut off.
    ///
    /// # Errors
    /// [`Broken`]: it is not in memory.
    pub fn read(sent: &mut Cursor) -> Result<Self, Broken> {
        let mut statistics = Self::default();
        for _ in 0..(sent.len() / ENTRY).min(MOST) {
            let mut entry = [0; ENTRY as usize];
            sent.read(&mut entry)?;
            let [a, b, value @ ..] = entry;
            let tag = usize::from(u16::from_le_bytes([a, b]));
            if let Some(slot) = statistics.0.get_mut(tag) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
        Ok(statistics)
    }

    /// Those that have come.
    pub fn counters(&self) -> Counters {
        let named = STATISTICS.iter().zip(&self.0);
        named
            .filter_map(|(name, value)| Some((*name, (*value)?)))
            .collect()
    }
}
