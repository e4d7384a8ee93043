//! Header, BAR and capability list of a function, with what of them a guest may write.

use super::read_bytes;

/// Bytes that are modelled; the rest of the 4096 reads as zero: no extended capabilities.
const LEN: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// First byte behind the header.
const FIRST_CAPABILITY: usize = 0x40;
/// Command register: memory space, bus master, INTx disable (PCIe 5.0, 7.5.1.1.3).
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const COMMAND_INTX_DISABLE_HIGH: u8 = 1 << 2;
/// Status register: there is a capability list (7.5.1.1.4).
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, as one number of 24 bits.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// Type-0 configuration space with at most one BAR, a 32-bit memory one.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    /// Bits that a guest may change.
    writable: [u8; LEN],
    /// Where the next capability goes, and the byte that will point at it.
    next: usize,
    link: usize,
}

impl ConfigSpace {
    /// A function without BAR and capabilities.
    pub fn new(ids: Ids) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            next: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        space.put(0x00, &ids.vendor.to_le_bytes());
        space.put(0x02, &ids.device.to_le_bytes());
        space.put(0x08, &[ids.revision]);
        let [interface, subclass, class, _] = ids.class.to_le_bytes();
        space.put(0x09, &[interface, subclass, class]);
        space.put(0x2c, &ids.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &ids.subsystem.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        space.writable[COMMAND + 1] = COMMAND_INTX_DISABLE_HIGH;
        // Interrupt line: a scratch register for software.
        space.writable[0x3c] = 0xff;
        space
    }

    /// Gives the function BAR 0: `size` bytes (a power of two from 16) of 32-bit memory space at `address`.
    pub fn set_bar(&mut self, address: u32, size: u32) {
        self.put(BAR0, &address.to_le_bytes());
        let mask = !(size.max(16) - 1);
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&mask.to_le_bytes());
    }

    /// Appends a capability; `body` follows its two bytes of id and link, `writable` has the bits of `body` that a guest
    /// may change. Returns its offset; `None` if there is no space left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u16> {
        let at = self.next;
        let end = at.checked_add(2)?.checked_add(body.len())?;
        if end > LEN {
            return None;
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        for (slot, mask) in self.writable[at + 2..end].iter_mut().zip(writable) {
            *slot = *mask;
        }
        // Below 256.
        self.bytes[self.link] = at as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.link = at + 1;
        self.next = end.next_multiple_of(4);
        Some(at as u16)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (slot, byte) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    }

    /// Reads at `offset`.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        read_bytes(&self.bytes, offset.into(), data);
    }

    /// A guest's write at `offset`: changes the bits that it may change.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let pairs = self.bytes.iter_mut().zip(&self.writable);
        for ((slot, mask), byte) in pairs.skip(offset.into()).zip(data) {
            *slot = (*slot & !mask) | (byte & mask);
        }
    }

    /// Two bytes at `offset`.
    pub fn u16_at(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Four bytes at `offset`.
    pub fn u32_at(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where BAR 0 answers; `None` while memory decoding is off (7.5.1.1.3).
    pub fn decoded_bar(&self) -> Option<u64> {
        let enabled = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        enabled.then(|| u64::from(self.u32_at(BAR0 as u16) & !0xf))
    }

    /// Whether the function may access memory and raise interrupts by itself (7.5.1.1.3).
    pub fn is_bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }

    /// The state to carry on from elsewhere: all bytes.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Carries on from `bytes`: takes the bits that a guest may have changed, and no others.
    pub fn restore(&mut self, bytes: &[u8]) {
        self.write(0, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Ids {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: 0xff_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        })
    }

    #[test]
    fn a_guest_changes_only_what_it_may() {
        let mut space = space();
        space.set_bar(0xf000_0000, 0x8000);
        let before = space.save();
        for offset in 0..300 {
            space.write(offset, &[0xff; 8]);
        }
        assert_eq!(space.u32_at(0), 0x1044_1af4);
        assert_eq!(space.u32_at(8), 0xff00_0001);
        assert_eq!(space.u16_at(4), 0x0406);
        assert_eq!(space.u32_at(0x10), 0xffff_8000, "sizing");
        assert_eq!(space.u32_at(0x14), 0);
        space.restore(&before);
        assert_eq!(space.save(), before);
        let mut data = [1; 8];
        space.read(4095, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn a_bar_answers_only_while_decoding_is_on() {
        let mut space = space();
        space.set_bar(0xf000_0000, 0x1000);
        assert_eq!(space.decoded_bar(), None);
        space.write(4, &[2]);
        assert_eq!(space.decoded_bar(), Some(0xf000_0000));
        space.write(0x10, &0xf123_4567_u32.to_le_bytes());
        assert_eq!(space.decoded_bar(), Some(0xf123_4000));
    }

    #[test]
    fn capabilities_make_a_list() {
        let mut space = space();
        assert_eq!(space.u16_at(6) & 0x10, 0);
        assert_eq!(space.add_capability(9, &[1, 2, 3], &[]), Some(0x40));
        assert_eq!(space.add_capability(0x11, &[4; 10], &[0xf0]), Some(0x48));
        assert_eq!(space.add_capability(9, &[0; 200], &[]), None);
        assert_ne!(space.u16_at(6) & 0x10, 0);
        assert_eq!(space.bytes[0x34], 0x40);
        assert_eq!(space.bytes[0x40..0x45], [9, 0x48, 1, 2, 3]);
        assert_eq!(space.bytes[0x48..0x4b], [0x11, 0, 4]);
        space.write(0x48, &[0xff; 4]);
        assert_eq!(space.bytes[0x48..0x4c], [0x11, 0, 0xf4, 4]);
    }
}
