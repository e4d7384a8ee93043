//! Address ranges to devices: one bus for port I/O, one for MMIO.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// What a guest's write asks of the machine.
///
/// Side effects travel as values: the vCPU thread that made the access hands anything but
/// [`Continue`](Action::Continue) to the machine's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing beyond the device.
    Continue,
    /// The guest switched the machine off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel reported that it panicked.
    Panicked,
    /// The guest's init signalled that it runs.
    InitReached,
    /// The device took what was written and has no room for more: the vCPU is to wait before it goes on. The device
    /// holds no lock while it does.
    Congested,
    /// The guest's driver has taken over the device with that number on the PCI bus (`DRIVER_OK`).
    DriverOk(u8),
}

/// A device on a [`Bus`].
pub trait BusDevice: Send + Sync {
    /// Answers a read of `data.len()` bytes (1 to 8) at `offset` from the start of the device's range.
    ///
    /// `data` comes filled with ones, what a bus without a device returns.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes a write of `data` (1 to 8 bytes) at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]) -> Action;
}

/// Why a device could not be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("no address range starts at {base:#x} with a length of {len:#x}")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device has part of the range.
    #[error("addresses {base:#x} to {last:#x} overlap a device that is on the bus already")]
    Overlap {
        /// First address.
        base: u64,
        /// Last address.
        last: u64,
    },
}

#[derive(Clone)]
struct Entry {
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// An ordered map of address ranges to devices.
///
/// The lock guards the map alone and is released before a device's handler runs, so a handler may
/// itself change the bus (a PCI BAR that moves) and a slow device holds up nobody else.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Entry>>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the addresses `base .. base + len` to `device`.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|rest| base.checked_add(rest))
            .ok_or(BusError::BadRange { base, len })?;
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let taken = ranges
            .range(..=last)
            .next_back()
            .is_some_and(|(_, entry)| entry.last >= base);
        if taken {
            return Err(BusError::Overlap { base, last });
        }
        ranges.insert(base, Entry { last, device });
        Ok(())
    }

    /// Takes the device away whose range starts at `base`. An access that is under way still reaches it.
    pub fn remove(&self, base: u64) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.remove(&base);
    }

    /// Reads `data.len()` bytes at `address`; ones where no device answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes `data` at `address`; lost where no device listens.
    pub fn write(&self, address: u64, data: &[u8]) -> Action {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.write(offset, data),
            None => Action::Continue,
        }
    }

    /// The device that has all of `address .. address + len`, and the offset in it.
    fn find(&self, address: u64, len: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (base, entry) = ranges.range(..=address).next_back()?;
        (last <= entry.last).then(|| (address - base, entry.device.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);

    impl BusDevice for Fixed {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _offset: u64, data: &[u8]) -> Action {
            if data[0] == self.0 {
                Action::Reset
            } else {
                Action::Continue
            }
        }
    }

    fn read_u8(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn finds_the_device_and_its_offset() {
        let bus = Bus::new();
        bus.insert(0x10, 4, Arc::new(Fixed(1))).unwrap();
        bus.insert(0x14, 4, Arc::new(Fixed(100))).unwrap();
        assert_eq!(read_u8(&bus, 0x0f), 0xff);
        assert_eq!(read_u8(&bus, 0x10), 1);
        assert_eq!(read_u8(&bus, 0x13), 4);
        assert_eq!(read_u8(&bus, 0x14), 100);
        assert_eq!(read_u8(&bus, 0x18), 0xff);
        assert_eq!(bus.write(0x14, &[100]), Action::Reset);
        assert_eq!(bus.write(0x99, &[100]), Action::Continue);
    }

    #[test]
    fn an_access_across_a_range_end_reaches_nobody() {
        let bus = Bus::new();
        bus.insert(0x10, 4, Arc::new(Fixed(1))).unwrap();
        bus.insert(u64::MAX, 1, Arc::new(Fixed(1))).unwrap();
        let mut data = [0; 4];
        bus.read(0x12, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bus.write(u64::MAX, &[1, 2]), Action::Continue);
        assert_eq!(bus.write(u64::MAX, &[]), Action::Continue);
    }

    #[test]
    fn a_device_that_is_removed_is_gone_and_its_place_is_free() {
        let bus = Bus::new();
        bus.insert(0x10, 4, Arc::new(Fixed(1))).unwrap();
        bus.remove(0x11);
        assert_eq!(read_u8(&bus, 0x10), 1);
        bus.remove(0x10);
        assert_eq!(read_u8(&bus, 0x10), 0xff);
        bus.insert(0x12, 4, Arc::new(Fixed(1))).unwrap();
    }

    #[test]
    fn refuses_overlaps_and_impossible_ranges() {
        let bus = Bus::new();
        bus.insert(0x10, 0x10, Arc::new(Fixed(1))).unwrap();
        for (base, len) in [(0x10, 1), (0x1f, 1), (0x0f, 2), (0, 0x100), (0x18, 0x100)] {
            let result = bus.insert(base, len, Arc::new(Fixed(2)));
            assert!(matches!(result, Err(BusError::Overlap { .. })), "{base:#x}");
        }
        for (base, len) in [(5, 0), (u64::MAX, 2), (2, u64::MAX)] {
            let result = bus.insert(base, len, Arc::new(Fixed(2)));
            assert!(
                matches!(result, Err(BusError::BadRange { .. })),
                "{base:#x}"
            );
        }
        bus.insert(0x0f, 1, Arc::new(Fixed(2))).unwrap();
        bus.insert(0x20, 1, Arc::new(Fixed(2))).unwrap();
    }
}
