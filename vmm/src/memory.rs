//! Guest memory, with its hole below 4 GiB.

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vm_memory::{GuestRegionCollectionError, GuestRegionMmap};

use crate::config::HugePages;
use crate::layout::{self, DeviceBus};

/// All memory of one guest.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Bytes in a page, of the guest's and of the host's.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes of a thread's stack in the VM process.
///
/// The default of 2 MiB is the size of a huge page: where the host gives these freely, each thread costs one.
pub const THREAD_STACK: usize = 128 << 10;

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("cannot map {mib} MiB of guest memory; {}", .huge_pages.remedy())]
    Map {
        /// Size of the mapping in MiB.
        mib: u64,
        /// Pages that were asked for.
        huge_pages: HugePages,
        /// What the host said.
        source: MmapRegionError,
    },
    /// The size does not fit into an address space.
    #[error("cannot lay out {mib} MiB of guest memory")]
    Layout {
        /// Size of the memory in MiB.
        mib: u64,
    },
    /// The regions do not make a memory.
    #[error("cannot put the regions of guest memory together")]
    Regions(#[source] GuestRegionCollectionError),
}

impl HugePages {
    fn remedy(self) -> &'static str {
        match self {
            Self::None => "lower machine-config.mem_size_mib, or give the host more memory",
            Self::Mib2 => {
                "raise /proc/sys/vm/nr_hugepages, lower machine-config.mem_size_mib, or set huge_pages to None"
            }
        }
    }
}

/// Maps `bytes` of anonymous memory, touching none of it.
///
/// What lies beyond [`layout::HOLE_START`] continues at [`layout::HOLE_END`].
///
/// # Errors
/// The host does not have the address space or the huge pages.
pub fn allocate(bytes: u64, huge_pages: HugePages) -> Result<GuestMemory, MemoryError> {
    let regions = ranges(bytes)
        .into_iter()
        .map(|(base, size)| map_region(base, size, huge_pages))
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(regions).map_err(MemoryError::Regions)
}

fn map_region(
    base: u64,
    size: u64,
    huge_pages: HugePages,
) -> Result<GuestRegionMmap<()>, MemoryError> {
    let mib = size >> 20;
    let length = usize::try_from(size).map_err(|_| MemoryError::Layout { mib })?;
    let flags = libc::MAP_PRIVATE
        | libc::MAP_ANONYMOUS
        | match huge_pages {
            HugePages::None => libc::MAP_NORESERVE,
            // Reserved at once: a guest must not die later of an empty pool.
            HugePages::Mib2 => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        };
    let region = MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .build()
        .map_err(|source| MemoryError::Map {
            mib,
            huge_pages,
            source,
        })?;
    keep_out_of_dumps(region.as_ptr(), length);
    GuestRegionMmap::new(region, GuestAddress(base)).ok_or(MemoryError::Layout { mib })
}

/// Guest-physical ranges (first address, bytes) of `bytes` of memory.
fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(layout::HOLE_START);
    let high = bytes - low;
    let mut ranges = vec![(0, low)];
    if high > 0 {
        ranges.push((layout::HOLE_END, high));
    }
    ranges
}

/// End of the memory below the hole.
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory
        .find_region(GuestAddress(0))
        .map_or(0, |region| region.last_addr().raw_value() + 1)
}

/// Reads a byte that the host may no longer have anything behind: a kernel is mapped from its file, which somebody may have
/// cut short. An ordinary access would be SIGBUS.
pub fn read_carefully(memory: &GuestMemory, address: u64) -> Option<u8> {
    let source = memory.get_host_address(GuestAddress(address)).ok()?;
    let mut byte = 0_u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: source.cast(),
        iov_len: 1,
    };
    // SAFETY: the kernel writes one byte to `byte`; what it reads it checks, and fails rather than faults.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    (read == 1).then_some(byte)
}

/// Keeps guest memory out of core dumps: it is the guest's, it may be secret, and it is large.
pub fn keep_out_of_dumps(address: *mut u8, bytes: usize) {
    // SAFETY: the advice changes no contents, and a range that is not mapped is refused.
    if unsafe { libc::madvise(address.cast(), bytes, libc::MADV_DONTDUMP) } != 0 {
        log::warn!(
            "guest memory may end up in a core dump: {}",
            std::io::Error::last_os_error()
        );
    }
}

/// Bytes of memory and swap that the host has.
pub fn of_host() -> u64 {
    // SAFETY: an all-zero sysinfo is valid, and sysinfo writes only to it. It cannot fail with a valid pointer.
    let info = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        libc::sysinfo(&mut info);
        info
    };
    // The types differ between C libraries.
    #[allow(clippy::unnecessary_cast)]
    let (ram, swap, unit) = (
        info.totalram as u64,
        info.totalswap as u64,
        u64::from(info.mem_unit),
    );
    ram.saturating_add(swap).saturating_mul(unit)
}

/// A guest memory map entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Whether the guest may use it as memory; reserved otherwise.
    pub usable: bool,
}

/// The memory map that firmware would give the guest, with what of the hole is reserved.
pub fn map(memory: &GuestMemory, bus: DeviceBus) -> Vec<MapEntry> {
    let entry = |base, end, usable| MapEntry {
        base,
        size: end - base,
        usable,
    };
    let mut map = vec![
        entry(0, layout::EBDA, true),
        entry(layout::EBDA, layout::HIGH_MEMORY, false),
        entry(layout::HIGH_MEMORY, low_end(memory), true),
    ];
    let reserved = bus.reserved();
    map.extend(reserved.map(|range| entry(range.start, range.end, false)));
    if let Some(region) = memory.find_region(GuestAddress(layout::HOLE_END)) {
        map.push(MapEntry {
            base: layout::HOLE_END,
            size: region.len(),
            usable: true,
        });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_goes_around_the_hole() {
        assert_eq!(ranges(16 << 20), [(0, 16 << 20)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(
            ranges(3 * GIB + PAGE_SIZE),
            [(0, 3 * GIB), (4 * GIB, PAGE_SIZE)]
        );
        assert_eq!(ranges(64 * GIB), [(0, 3 * GIB), (4 * GIB, 61 * GIB)]);
    }

    #[test]
    fn the_map_tells_what_is_there() {
        let memory = allocate(4 * GIB, HugePages::None).unwrap();
        let with_ecam = map(&memory, DeviceBus::Pci);
        let map = map(&memory, DeviceBus::None);
        assert!(
            map.windows(2)
                .all(|pair| pair[0].base + pair[0].size <= pair[1].base)
        );
        let usable: u64 = map.iter().filter(|e| e.usable).map(|e| e.size).sum();
        assert_eq!(usable, 4 * GIB - (layout::HIGH_MEMORY - layout::EBDA));
        assert_eq!(map.last().map(|e| (e.base, e.size)), Some((4 * GIB, GIB)));
        assert!(
            !map.iter()
                .any(|e| e.base < 4 * GIB && e.base + e.size > 3 * GIB)
        );
        assert_eq!(low_end(&memory), 3 * GIB);
        let added: Vec<_> = with_ecam.iter().filter(|e| !map.contains(e)).collect();
        let ecam = MapEntry {
            base: layout::ECAM,
            size: 1 << 20,
            usable: false,
        };
        assert_eq!(added, [&ecam]);
        assert!(with_ecam.is_sorted_by_key(|entry| entry.base));
    }

    #[test]
    fn a_careful_read_survives_what_is_not_there() {
        let memory = allocate(16 << 20, HugePages::None).unwrap();
        memory.write_obj(0x5a_u8, GuestAddress(0x1000)).unwrap();
        assert_eq!(read_carefully(&memory, 0x1000), Some(0x5a));
        assert_eq!(read_carefully(&memory, 16 << 20), None);
        // A page of a file beyond the file's end.
        let file = tempfile::tempfile().unwrap();
        let page = memory.get_host_address(GuestAddress(0x2000)).unwrap();
        // SAFETY: replaces a page of this test's own guest memory.
        let mapped = unsafe {
            libc::mmap(
                page.cast(),
                PAGE_SIZE as usize,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                std::os::fd::AsRawFd::as_raw_fd(&file),
                0,
            )
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        assert_eq!(read_carefully(&memory, 0x2000), None);
    }

    #[test]
    fn the_host_has_memory() {
        assert!((1 << 28..1 << 50).contains(&of_host()));
    }

    #[test]
    fn an_impossible_size_is_an_error_with_a_remedy() {
        let error = allocate(1 << 60, HugePages::None).unwrap_err();
        assert!(error.to_string().contains("mem_size_mib"), "{error}");
    }
}
