//! Guest memory, and where a driver keeps what.
//!
//! | addresses               | what is there                                           |
//! |-------------------------|---------------------------------------------------------|
//! | 0 to 0x20_0000          | memory                                                   |
//! | 0x1_0000 to 0x5_0000    | the rings of queues 0 to 15, 0x4000 for each              |
//! | 0x8_0000 to 0xc_0000    | indirect tables                                           |
//! | 0xc_0000 to 0x1c_0000   | what devices read                                         |
//! | 0x1c_0000 to 0x2c_0000  | what devices write; a second region begins in its middle  |
//! | 0x40_0000               | a hole                                                   |
//! | 4 GiB to 4 GiB + 1 MiB  | memory                                                   |

use std::cell::{Cell, OnceCell};
use std::ops::Range;

use devices::virtio::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Ranges of it.
pub const RANGES: [(u64, usize); 3] =
    [(0, 0x20_0000), (0x20_0000, 0x20_0000), (1 << 32, 0x10_0000)];
/// Indirect tables.
pub const TABLES: Range<u64> = 0x8_0000..0xc_0000;
/// What devices read.
pub const READABLE: Range<u64> = 0xc_0000..0x1c_0000;
/// What devices write.
pub const WRITABLE: Range<u64> = 0x1c_0000..0x2c_0000;
/// Largest size of a queue that there is room for.
pub const MOST_ENTRIES: u16 = 256;
/// Queues that there is room for.
pub const MOST_QUEUES: usize = 16;

/// Descriptor table, driver area and device area of a queue.
pub fn areas(queue: usize) -> [u64; 3] {
    let base = 0x1_0000 + 0x4000 * (queue % MOST_QUEUES) as u64;
    [base, base + 0x1000, base + 0x2000]
}

// Tests run on several threads, each with a memory of its own.
thread_local! {
    static MEMORY: OnceCell<Memory> = const { OnceCell::new() };
    /// Ends of what drivers have used since memory was cleared: tables, readable, writable.
    static USED: [Cell<u64>; 3] = const { [const { Cell::new(0) }; 3] };
    /// Anything may have been written.
    static WILD: Cell<bool> = const { Cell::new(true) };
}

/// A driver uses a zone up to there.
pub fn used(zone: &Range<u64>, end: u64) {
    if let Some(mark) = [TABLES, READABLE, WRITABLE].iter().position(|z| z == zone) {
        USED.with(|used| used[mark].set(used[mark].get().max(end)));
    }
}

/// From now on anything may be written anywhere.
pub fn gets_wild() {
    WILD.set(true);
}

/// The memory, all zero but for rings, which a driver clears itself: the same one in each run.
///
/// # Panics
/// It cannot be had.
pub fn fresh() -> Memory {
    let make = || {
        let ranges = RANGES.map(|(at, len)| (GuestAddress(at), len));
        Memory::from_ranges(&ranges).expect("a few MiB")
    };
    let memory = MEMORY.with(|memory| memory.get_or_init(make).clone());
    let ends = USED.with(|used| used.each_ref().map(|end| end.replace(0)));
    if WILD.replace(false) {
        memory.iter().for_each(drop_pages);
    } else {
        // Pages that are there already are cleared faster than new ones are had.
        for (zone, end) in [TABLES, READABLE, WRITABLE].into_iter().zip(ends) {
            let mut at = zone.start;
            while at < end {
                let zeroes = [0; 4096];
                let len = (end - at).min(4096) as usize;
                let written = memory.write_slice(&zeroes[..len], GuestAddress(at));
                written.expect("zones are in memory");
                at += 4096;
            }
        }
    }
    memory
}

fn drop_pages(region: &vm_memory::GuestRegionMmap) {
    let host = region.get_host_address(MemoryRegionAddress(0));
    let host = host.expect("a region has a first byte");
    // SAFETY: all of a region is private anonymous memory, which reads as zeroes afterwards. Nothing of an earlier run is still
    // at work in it.
    let result = unsafe { libc::madvise(host.cast(), region.len() as usize, libc::MADV_DONTNEED) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
