//! A driver without manners: any device, over either transport.
//!
//! Queue `n` has its descriptors at 0x40000 + n * 0x1000, its available ring 0x200 behind that and its used ring 0x400.
//! Indirect tables are at 0x50000, buffers from 8 MiB on.

use super::script::Script;

/// Entries of each queue.
pub const SIZE: u16 = 8;
/// Indirect tables.
pub const TABLE: u64 = 0x5_0000;
/// Buffers: 4 MiB where nothing else is.
pub const BUFFER: u64 = 0x80_0000;
/// Nothing is there.
pub const HOLE: u64 = 0xc000_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const NEEDS_RESET: u32 = 64;

/// Where a queue's descriptors are.
pub fn ring(queue: u16) -> u64 {
    0x4_0000 + 0x1000 * u64::from(queue)
}

/// What a device is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Pci,
    Mmio,
}

/// A device as its driver knows it.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub transport: Transport,
    /// Place among the machine's devices, from 0.
    pub place: u64,
    /// Type.
    pub kind: u32,
    /// Number of queues.
    pub queues: u16,
    /// Features that the driver takes.
    pub features: u64,
}

/// A buffer, as a descriptor has it.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor(pub u64, pub u32, pub u16, pub u16);

impl Descriptor {
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = self.0.to_le_bytes().to_vec();
        bytes.extend(self.1.to_le_bytes());
        bytes.extend(self.2.to_le_bytes());
        bytes.extend(self.3.to_le_bytes());
        bytes
    }
}

impl Device {
    /// Where its registers are.
    pub fn registers(&self) -> u64 {
        match self.transport {
            Transport::Pci => 0xf000_0000 + 0x8000 * (self.place + 1),
            Transport::Mmio => 0xd010_0000 + 0x1000 * self.place,
        }
    }

    /// Its configuration space on PCI.
    pub fn config_space(&self) -> u64 {
        0xe000_0000 + 0x8000 * (self.place + 1)
    }

    /// Device-specific configuration.
    pub fn config(&self) -> u64 {
        self.registers()
            + match self.transport {
                Transport::Pci => 0x2000,
                Transport::Mmio => 0x100,
            }
    }

    /// Makes its registers answer, and looks whether they are those of such a device.
    pub fn find(&self, script: &mut Script) {
        match self.transport {
            Transport::Pci => {
                let id = 0x1040 + self.kind;
                script.wait(4, self.config_space(), u32::MAX, id << 16 | 0x1af4);
                self.put_in_place(script);
            }
            Transport::Mmio => script.wait(4, self.registers() + 8, u32::MAX, self.kind),
        }
    }

    /// Puts the BAR where it was at first.
    pub fn put_in_place(&self, script: &mut Script) {
        if self.transport == Transport::Pci {
            script.write(2, self.config_space() + 4, 0);
            script.write(4, self.config_space() + 0x10, self.registers());
            script.write(2, self.config_space() + 4, 6);
        }
    }

    /// Width and offset of the status.
    fn status(&self) -> (usize, u64) {
        match self.transport {
            Transport::Pci => (1, self.registers() + 0x14),
            Transport::Mmio => (4, self.registers() + 0x70),
        }
    }

    pub fn set_status(&self, script: &mut Script, status: u64) {
        let (width, at) = self.status();
        script.write(width, at, status);
    }

    /// Resets the device and agrees on features.
    pub fn negotiate(&self, script: &mut Script) {
        let features = self.features | 1 << 32 | 1 << 28;
        let (select, accept) = match self.transport {
            Transport::Pci => (8, 12),
            Transport::Mmio => (0x24, 0x20),
        };
        for status in [0, 1, 3] {
            self.set_status(script, status);
        }
        for half in 0..2 {
            script.write(4, self.registers() + select, half);
            let bits = features >> (32 * half) & 0xffff_ffff;
            script.write(4, self.registers() + accept, bits);
        }
        self.set_status(script, 11);
        let (width, at) = self.status();
        script.wait(width, at, 0xff, 11);
    }

    /// Enables a queue, empty, at its usual place.
    pub fn enable(&self, script: &mut Script, queue: u16) {
        script.clear(ring(queue), 0x500);
        let registers = self.registers();
        let areas = [ring(queue), ring(queue) + 0x200, ring(queue) + 0x400];
        match self.transport {
            Transport::Pci => {
                script.write(2, registers + 0x16, queue.into());
                script.write(2, registers + 0x18, SIZE.into());
                for (index, area) in (0..).zip(areas) {
                    script.write(8, registers + 0x20 + 8 * index, area);
                }
                script.write(2, registers + 0x1c, 1);
            }
            Transport::Mmio => {
                script.write(4, registers + 0x30, queue.into());
                script.write(4, registers + 0x38, SIZE.into());
                for (index, area) in (0..).zip(areas) {
                    script.write(4, registers + 0x80 + 0x10 * index, area);
                    script.write(4, registers + 0x84 + 0x10 * index, 0);
                }
                script.write(4, registers + 0x44, 1);
            }
        }
    }

    /// Everything but `DRIVER_OK`, with all queues empty.
    pub fn set_up(&self, script: &mut Script) {
        self.negotiate(script);
        for queue in 0..self.queues {
            self.enable(script, queue);
        }
    }

    pub fn start(&self, script: &mut Script) {
        self.set_status(script, 15);
    }

    pub fn kick(&self, script: &mut Script, queue: u32) {
        match self.transport {
            Transport::Pci => script.write(2, self.registers() + 0x3000 + 4 * u64::from(queue), 0),
            Transport::Mmio => script.write(4, self.registers() + 0x50, queue.into()),
        }
    }

    /// Waits until the device says that its driver has broken the rules.
    pub fn wait_for_its_verdict(&self, script: &mut Script) {
        let (width, at) = self.status();
        script.wait(width, at, NEEDS_RESET, NEEDS_RESET);
    }
}

/// Writes descriptors from the start of a table.
pub fn describe(script: &mut Script, table: u64, descriptors: &[Descriptor]) {
    for (at, descriptor) in (table..).step_by(16).zip(descriptors) {
        script.write_bytes(at, &descriptor.bytes());
    }
}

/// Makes these heads available, in a ring that was empty.
pub fn offer(script: &mut Script, queue: u16, heads: &[u16]) {
    let at = ring(queue) + 0x200;
    for (slot, head) in (at + 4..).step_by(2).zip(heads) {
        script.write(2, slot, (*head).into());
    }
    script.write(2, at + 2, heads.len() as u64);
}

/// Waits until so many chains have come back.
pub fn wait_for_used(script: &mut Script, queue: u16, count: u32) {
    script.wait(4, ring(queue) + 0x400, 0xffff_0000, count << 16);
}
