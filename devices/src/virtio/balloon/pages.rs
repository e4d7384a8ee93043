//! Pages that the guest does without, and their way back to the host.

use std::io;
use std::ops::Range;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::super::Memory;

/// Bytes of a page, the balloon's (5.5.6) and the host's.
pub const PAGE: u64 = 4096;

/// The addresses that page numbers stand for: in order, each page once, neighbours in one range. `numbers` is sorted for it.
pub fn ranges(numbers: &mut [u32]) -> impl Iterator<Item = Range<u64>> {
    numbers.sort_unstable();
    numbers
        .chunk_by(|one, next| next - one <= 1)
        .filter_map(|chunk| {
            let (first, last) = (chunk.first()?, chunk.last()?);
            Some(u64::from(*first) * PAGE..(u64::from(*last) + 1) * PAGE)
        })
}

/// The whole pages of a range.
pub fn whole(range: &Range<u64>) -> Range<u64> {
    let end = range.end - range.end % PAGE;
    let start = range.start.checked_next_multiple_of(PAGE);
    start.map_or(end, |start| start.min(end))..end
}

/// Gives a range of whole pages of guest memory back to the host, and returns how many bytes that were. What is not in
/// memory is left out.
///
/// The range stays mapped and the guest may use it at any time: it finds zeroes there, or what a file holds where one is
/// mapped (a kernel's pages, before they were written to). It was told to expect nothing of such pages (5.5.6.2, 5.5.6.7).
///
/// # Errors
/// The host does not take them.
pub fn release(memory: &Memory, range: &Range<u64>) -> io::Result<u64> {
    let mut released = 0;
    for region in memory.iter() {
        let base = region.start_addr().raw_value();
        let from = range.start.max(base);
        let to = range.end.min(base.saturating_add(region.len()));
        if from >= to {
            continue;
        }
        // Memory that is shared, with a file or another process, is not free before it is taken out of what backs it.
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let advice = if shared {
            libc::MADV_REMOVE
        } else {
            libc::MADV_DONTNEED
        };
        let Ok(host) = region.get_host_address(MemoryRegionAddress(from - base)) else {
            continue;
        };
        // SAFETY: the range is inside one region of guest memory, which stays mapped; where it is not of whole pages, the host
        // refuses. Its contents change, as they may at any time: guest memory is only ever accessed as volatile.
        if unsafe { libc::madvise(host.cast(), (to - from) as usize, advice) } != 0 {
            return Err(io::Error::last_os_error());
        }
        released += to - from;
    }
    Ok(released)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// Two regions with a hole between them, all bytes of both set.
    fn memory() -> Memory {
        let ranges = [
            (GuestAddress(0), 8 * PAGE as usize),
            (GuestAddress(16 * PAGE), 4 * PAGE as usize),
        ];
        let memory = Memory::from_ranges(&ranges).unwrap();
        for (base, len) in ranges {
            memory.write_slice(&vec![0xaa; len], base).unwrap();
        }
        memory
    }

    /// Numbers of the pages whose first byte was lost.
    fn lost(memory: &Memory) -> Vec<u64> {
        let pages = (0..8).chain(16..20);
        pages
            .filter(|page| memory.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap() == 0)
            .collect()
    }

    #[test]
    fn whole_pages_in_memory_are_released_and_nothing_else() {
        for (range, pages) in [
            (0..PAGE, vec![0]),
            (PAGE..3 * PAGE, vec![1, 2]),
            // Not whole.
            (1..2 * PAGE - 1, vec![]),
            (1..3 * PAGE - 1, vec![1]),
            (5..6, vec![]),
            // Into the hole, over it, in it, behind memory.
            (6 * PAGE..12 * PAGE, vec![6, 7]),
            (7 * PAGE..17 * PAGE, vec![7, 16]),
            (9 * PAGE..10 * PAGE, vec![]),
            (19 * PAGE..u64::MAX, vec![19]),
            (u64::MAX - 5..u64::MAX, vec![]),
            (u64::from(u32::MAX) * PAGE..(1 << 32) * PAGE, vec![]),
        ] {
            let memory = memory();
            let released = release(&memory, &whole(&range)).unwrap();
            assert_eq!(released, pages.len() as u64 * PAGE, "{range:?}");
            assert_eq!(lost(&memory), pages, "{range:?}");
        }
    }

    #[test]
    fn a_page_of_a_private_file_mapping_shows_the_file_again() {
        let memory = memory();
        let host = memory.get_host_address(GuestAddress(PAGE)).unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        // SAFETY: replaces a page of this test's own guest memory.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                std::os::fd::AsRawFd::as_raw_fd(&file),
                0,
            )
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        memory.write_obj(0x55_u8, GuestAddress(PAGE)).unwrap();
        assert_eq!(release(&memory, &(0..2 * PAGE)).unwrap(), 2 * PAGE);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
        // The first byte of an ELF file.
        assert_eq!(memory.read_obj::<u8>(GuestAddress(PAGE)).unwrap(), 0x7f);
        memory.write_obj(0x66_u8, GuestAddress(PAGE)).unwrap();
    }

    proptest! {
        /// However pages are numbered, the ranges hold just these, in order, and none touches the next.
        #[test]
        fn ranges_hold_the_same_pages(numbers in prop::collection::vec(
            prop_oneof![0_u32..64, (u32::MAX - 8)..=u32::MAX, any::<u32>()], 0..200,
        )) {
            let pages: BTreeSet<u64> = numbers.iter().map(|number| u64::from(*number)).collect();
            let mut numbers = numbers;
            let ranges: Vec<_> = ranges(&mut numbers).collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let held: Vec<_> = ranges
                .into_iter()
                .flat_map(|range| range.start / PAGE..range.end / PAGE)
                .collect();
            prop_assert_eq!(held, pages.into_iter().collect::<Vec<_>>());
        }

        /// Whatever a guest names, only whole pages of its own memory go.
        #[test]
        fn release_stays_inside(start in 0_u64..25 * PAGE, len in 0_u64..25 * PAGE) {
            let memory = memory();
            let range = start..start + len;
            let released = release(&memory, &whole(&range)).unwrap();
            let inside = |page: &u64| range.start <= page * PAGE && (page + 1) * PAGE <= range.end;
            let expected: Vec<_> = (0..8).chain(16..20).filter(inside).collect();
            prop_assert_eq!(released, expected.len() as u64 * PAGE);
            prop_assert_eq!(lost(&memory), expected);
        }
    }
}
