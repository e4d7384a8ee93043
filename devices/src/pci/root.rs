//! The root bus, its host bridge, and the two ways into configuration space.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::{ConfigSpace, Ids, PciFunction};
use crate::bus::{Action, BusDevice};

/// Device numbers on a bus.
const SLOTS: usize = 32;

/// Bus 0: one function for each device number, the host bridge at 0.
pub struct PciRoot {
    slots: [OnceLock<Arc<dyn PciFunction>>; SLOTS],
}

/// The device number is used already, or is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no free place {slot} on the PCI bus")]
pub struct SlotTaken {
    /// The device number.
    pub slot: u8,
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl PciRoot {
    /// A bus with its host bridge.
    pub fn new() -> Self {
        let root = Self {
            slots: [const { OnceLock::new() }; SLOTS],
        };
        // The first one: the place is free.
        let _ = root.add(0, Arc::new(HostBridge::new()));
        root
    }

    /// Puts a function at a device number.
    ///
    /// # Errors
    /// [`SlotTaken`].
    pub fn add(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), SlotTaken> {
        let place = self
            .slots
            .get(usize::from(slot))
            .ok_or(SlotTaken { slot })?;
        place.set(function).map_err(|_| SlotTaken { slot })
    }

    /// The function with that address (PCIe 5.0, 7.2.2: 8 bits of bus, 5 of device, 3 of function).
    fn find(&self, address: u16) -> Option<&Arc<dyn PciFunction>> {
        let (rest, function) = (address >> 3, address & 7);
        if function != 0 {
            return None;
        }
        // Any bus but 0 makes the number too large.
        self.slots.get(usize::from(rest))?.get()
    }

    fn read(&self, address: u16, offset: u16, data: &mut [u8]) {
        if let Some(function) = self.find(address) {
            function.read_config(offset, data);
        }
    }

    fn write(&self, address: u16, offset: u16, data: &[u8]) -> Action {
        self.find(address).map_or(Action::Continue, |function| {
            function.write_config(offset, data)
        })
    }
}

/// The host bridge: there to be seen, without any register of its own.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl HostBridge {
    /// The one of bus 0.
    pub fn new() -> Self {
        Self {
            // A generic PCI Express host bridge, which no system treats specially.
            config: ConfigSpace::new(Ids {
                vendor: 0x1b36,
                device: 0x0008,
                revision: 0,
                class: 0x06_0000,
                subsystem_vendor: 0,
                subsystem: 0,
            }),
        }
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) -> Action {
        Action::Continue
    }
}

/// Enhanced Configuration Access Mechanism (7.2.2): 4 KiB of MMIO for each function of bus 0.
pub struct Ecam(Arc<PciRoot>);

impl Ecam {
    /// Bytes on the bus.
    pub const LEN: u64 = 1 << 20;

    /// Of that bus.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self(root)
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0
            .read((offset >> 12) as u16, (offset & 0xfff) as u16, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.0
            .write((offset >> 12) as u16, (offset & 0xfff) as u16, data)
    }
}

/// Configuration mechanism #1 (PCI 3.0, 3.2.2.3.2): an address port and a data port.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// First port.
    pub const PORT: u64 = 0xcf8;
    /// Bytes on the bus.
    pub const LEN: u64 = 8;
    const ENABLE: u32 = 1 << 31;

    /// Of that bus.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self {
            root,
            address: AtomicU32::new(0),
        }
    }

    /// Function and register that an access at data port `port` (4 to 7) means.
    fn target(&self, port: u64) -> Option<(u16, u16)> {
        // Relaxed: guests serialise the pair of accesses themselves, by a lock.
        let address = self.address.load(Ordering::Relaxed);
        let register = (address & 0xfc) as u16 + (port & 3) as u16;
        (address & Self::ENABLE != 0).then_some(((address >> 8) as u16, register))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= 4 {
            if let Some((function, register)) = self.target(offset) {
                self.root.read(function, register, data);
            }
        } else if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *data = self.address.load(Ordering::Relaxed).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if offset >= 4 {
            if let Some((function, register)) = self.target(offset) {
                return self.root.write(function, register, data);
            }
        } else if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            // Only whole double words set the address; narrower accesses mean other chipset registers.
            let address = u32::from_le_bytes(address) & 0x80ff_fffc;
            self.address.store(address, Ordering::Relaxed);
        }
        Action::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_u32(device: &dyn BusDevice, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn both_ways_lead_to_the_host_bridge_and_to_nothing_else() {
        let root = Arc::new(PciRoot::new());
        let (ecam, ports) = (Ecam::new(root.clone()), ConfigPorts::new(root));
        for (address, expected) in [
            (0, 0x0008_1b36_u32),
            (1 << 8, u32::MAX),
            (1 << 11, u32::MAX),
            (31 << 11, u32::MAX),
            (1 << 16, u32::MAX),
            (0xff_ff00, u32::MAX),
        ] {
            let _ = ports.write(0, &(address | ConfigPorts::ENABLE).to_le_bytes());
            assert_eq!(read_u32(&ports, 4), expected, "{address:#x}");
            assert_eq!(read_u32(&ecam, u64::from(address) << 4), expected);
        }
        assert_eq!(read_u32(&ports, 0), 0x80ff_ff00);
    }

    #[test]
    fn the_address_port_takes_double_words_only() {
        let ports = ConfigPorts::new(Arc::new(PciRoot::new()));
        assert_eq!(read_u32(&ports, 4), u32::MAX, "not enabled");
        for (offset, data) in [
            (1, &[6_u8][..]),
            (0, &[0x80; 2]),
            (3, &[0x80]),
            (2, &[0; 4]),
        ] {
            assert_eq!(ports.write(offset, data), Action::Continue);
        }
        assert_eq!(read_u32(&ports, 0), 0);
        let _ = ports.write(0, &0x8000_0000_u32.to_le_bytes());
        let mut data = [0xff; 2];
        ports.read(6, &mut data);
        assert_eq!(data, [0x08, 0x00]);
        // Accesses of every shape.
        for offset in 0..8 {
            for len in 0..=8 {
                let mut data = vec![0xff; len];
                ports.read(offset, &mut data);
                let _ = ports.write(offset.max(4), &data);
            }
        }
    }

    #[test]
    fn a_place_is_given_once() {
        let root = PciRoot::new();
        let bridge = || Arc::new(HostBridge::new());
        for slot in [0, 32, 255] {
            assert_eq!(root.add(slot, bridge()), Err(SlotTaken { slot }));
        }
        root.add(31, bridge()).unwrap();
    }
}
