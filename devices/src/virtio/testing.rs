//! A driver's side of a queue, for tests.

use vm_memory::{Bytes, GuestAddress};

use super::negotiation::QueueSetup;
use super::{Memory, Ring, feature};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

const TABLE: u64 = 0x1000;
const DRIVER_AREA: u64 = 0x2000;
const DEVICE_AREA: u64 = 0x3000;
const SIZE: u16 = 8;

/// 128 KiB.
pub fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap()
}

/// Memory with a queue of 8 in it.
pub struct Driver {
    pub memory: Memory,
}

impl Driver {
    pub fn new() -> Self {
        Self { memory: memory() }
    }

    /// All of it is zero again.
    pub fn clear(&self) {
        let zeros = [0; 0x3000];
        self.memory
            .write_slice(&zeros, GuestAddress(TABLE))
            .unwrap();
    }

    pub fn setup() -> QueueSetup {
        QueueSetup {
            max: SIZE,
            size: SIZE,
            enabled: true,
            areas: [TABLE, DRIVER_AREA, DEVICE_AREA],
        }
    }

    pub fn ring(&self) -> Ring {
        Ring::new(&Self::setup(), feature::COMMON, &self.memory).unwrap()
    }

    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(TABLE, index, address, len, flags, next);
    }

    pub fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Makes these heads available, from the start of the ring.
    pub fn offer(&self, heads: &[u16]) {
        for (index, head) in heads.iter().enumerate() {
            let at = GuestAddress(DRIVER_AREA + 4 + 2 * index as u64);
            self.memory.write_obj(*head, at).unwrap();
        }
        self.set_available(heads.len() as u16);
    }

    pub fn set_available(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(DRIVER_AREA + 2))
            .unwrap();
    }

    /// Nothing is available and nothing was given back, as when a ring is new.
    pub fn clear_used(&self) {
        self.set_available(0);
        self.memory
            .write_obj(0_u16, GuestAddress(DEVICE_AREA + 2))
            .unwrap();
    }

    /// Head and length of everything that was given back.
    pub fn used(&self) -> Vec<(u32, u32)> {
        let at = |offset| GuestAddress(DEVICE_AREA + offset);
        let count: u16 = self.memory.read_obj(at(2)).unwrap();
        (0..u64::from(count))
            .map(|index| {
                let entry = 4 + 8 * (index % u64::from(SIZE));
                let head = self.memory.read_obj(at(entry)).unwrap();
                (head, self.memory.read_obj(at(entry + 4)).unwrap())
            })
            .collect()
    }
}
