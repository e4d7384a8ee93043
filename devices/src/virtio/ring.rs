//! A split virtqueue (2.7) whose chains are checked as a whole before a device sees them.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::negotiation::QueueSetup;
use super::{Memory, feature};

/// The driver has broken the rules, in that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the driver has broken the rules: {0}")]
pub struct Broken(pub &'static str);

impl Broken {
    fn ring(_error: virtio_queue::Error) -> Self {
        Self("the ring's indices or addresses are impossible")
    }
}

/// A buffer of a chain: guest memory that is all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First address.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// Whether the device may write to it; it may only read from it otherwise.
    pub writable: bool,
}

/// A virtqueue in use.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    memory: Arc<Memory>,
    /// Up to where the driver has been told, or did not want to be.
    told: Wrapping<u16>,
}

/// The driver does not want interrupts (2.7.6, without `EVENT_IDX`).
const NO_INTERRUPT: u16 = 1;

/// Saved position of a [`Ring`]. The rest of it is part of the transport's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// Next available entry.
    pub next_avail: u16,
    /// Next used entry.
    pub next_used: u16,
}

impl Ring {
    /// A queue that the driver has set up.
    ///
    /// # Errors
    /// [`Broken`]: its size or addresses are impossible (2.7, 2.7.1).
    pub fn new(setup: &QueueSetup, features: u64, memory: &Memory) -> Result<Self, Broken> {
        let bad = |_| Broken("a queue's size or alignment is impossible");
        let mut queue = Queue::new(setup.max).map_err(bad)?;
        queue.try_set_size(setup.size).map_err(bad)?;
        let [table, driver, device] = setup.areas.map(GuestAddress);
        queue.try_set_desc_table_address(table).map_err(bad)?;
        queue.try_set_avail_ring_address(driver).map_err(bad)?;
        queue.try_set_used_ring_address(device).map_err(bad)?;
        queue.set_event_idx(features & feature::EVENT_IDX != 0);
        queue.set_ready(true);
        let size = usize::from(setup.size);
        let there = memory.check_range(table, 16 * size, Permissions::Read)
            && memory.check_range(driver, 6 + 2 * size, Permissions::Read)
            && memory.check_range(device, 6 + 8 * size, Permissions::Write);
        // Address 0 counts as not set.
        if !there || setup.areas.contains(&0) {
            return Err(Broken("a queue is not in memory"));
        }
        Ok(Self {
            queue,
            memory: Arc::new(memory.clone()),
            told: Wrapping(0),
        })
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Addresses of descriptor table, driver area and device area (2.7): of memory that is all there.
    pub fn areas(&self) -> [u64; 3] {
        [
            self.queue.desc_table(),
            self.queue.avail_ring(),
            self.queue.used_ring(),
        ]
    }

    /// Takes the next chain: its head, with its buffers in `buffers`. `None` if there is none.
    ///
    /// # Errors
    /// [`Broken`]: the chain loops, leaves the table or memory, is longer than the queue (2.7.5.3.1), or has a
    /// readable buffer behind a writable one (2.7.4.2).
    pub fn pop(&mut self, buffers: &mut Vec<Buffer>) -> Result<Option<u16>, Broken> {
        buffers.clear();
        let size = self.queue.size();
        let memory = self.memory.clone();
        let mut heads = self.queue.iter(memory).map_err(Broken::ring)?;
        let Some(chain) = heads.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        let mut ends = false;
        for descriptor in chain {
            let buffer = Buffer {
                address: descriptor.addr(),
                len: descriptor.len(),
                writable: descriptor.is_write_only(),
            };
            if buffers.len() >= usize::from(size) {
                return Err(Broken("a chain is longer than its queue"));
            }
            if !buffer.writable && buffers.last().is_some_and(|last| last.writable) {
                return Err(Broken("a readable buffer is behind a writable one"));
            }
            let access = if buffer.writable {
                Permissions::Write
            } else {
                Permissions::Read
            };
            let len = buffer.len as usize;
            if len != 0 && !self.memory.check_range(buffer.address, len, access) {
                return Err(Broken("a buffer is not in memory"));
            }
            ends = !descriptor.has_next();
            buffers.push(buffer);
        }
        if !ends {
            return Err(Broken("a chain has no end, or leaves its table"));
        }
        Ok(Some(head))
    }

    /// Takes the last `count` chains back that were popped and not given back: they are popped again, in the same order.
    pub fn put_back(&mut self, count: u16) {
        let next = Wrapping(self.queue.next_avail()) - Wrapping(count);
        self.queue.set_next_avail(next.0);
    }

    /// Gives a chain back, with `len` bytes written to it (2.7.8).
    ///
    /// # Errors
    /// [`Broken`]: the used ring cannot be written.
    pub fn give_back(&mut self, head: u16, len: u32) -> Result<(), Broken> {
        self.give_back_all(&[(head, len)])
    }

    /// Gives chains back, all at once: the driver sees all of them or none (2.7.8). Each is a head with the bytes that
    /// were written to it.
    ///
    /// # Errors
    /// [`Broken`]: the used ring cannot be written.
    pub fn give_back_all(&mut self, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let Some(((last, last_len), rest)) = chains.split_last() else {
            return Ok(());
        };
        let missing = |_| Broken("the used ring is not in memory");
        let mut next = Wrapping(self.queue.next_used());
        for (head, len) in rest {
            let slot = u64::from(next.0 % self.queue.size());
            let at = GuestAddress(self.queue.used_ring().wrapping_add(4 + 8 * slot));
            let entry = u64::from(*head) | u64::from(*len) << 32;
            let bytes = entry.to_le_bytes();
            self.memory.write_slice(&bytes, at).map_err(missing)?;
            next += 1;
        }
        // The last one moves the index, for all.
        self.queue.set_next_used(next.0);
        self.queue
            .add_used(&*self.memory, *last, *last_len)
            .map_err(Broken::ring)
    }

    /// Whether the driver wants to hear of what was given back since the last time (2.7.7).
    ///
    /// # Errors
    /// [`Broken`]: the ring cannot be read.
    pub fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        let next = Wrapping(self.queue.next_used());
        let old = std::mem::replace(&mut self.told, next);
        if next == old {
            return Ok(false);
        }
        // What was given back is there before the driver's wish is looked at; the driver does it the other way round.
        fence(Ordering::SeqCst);
        let driver_area = self.queue.avail_ring();
        let load = |offset| {
            let at = GuestAddress(driver_area.wrapping_add(offset));
            let value = self.memory.load::<u16>(at, Ordering::Relaxed);
            value
                .map(u16::from_le)
                .map_err(|_| Broken("the available ring is not in memory"))
        };
        if self.queue.event_idx_enabled() {
            let event = Wrapping(load(4 + 2 * u64::from(self.queue.size()))?);
            Ok(next - event - Wrapping(1) < next - old)
        } else {
            Ok(load(0)? & NO_INTERRUPT == 0)
        }
    }

    /// Asks for a kick when something becomes available (2.7.10). True if something is already.
    ///
    /// # Errors
    /// [`Broken`]: the ring cannot be used.
    pub fn ask_for_kick(&mut self) -> Result<bool, Broken> {
        self.queue
            .enable_notification(&*self.memory)
            .map_err(Broken::ring)
    }

    /// Takes the next chain, as [`pop`](Self::pop) does. Where there is none, the driver has been asked for a kick.
    ///
    /// # Errors
    /// Those of [`pop`](Self::pop).
    pub fn pop_or_ask(&mut self, buffers: &mut Vec<Buffer>) -> Result<Option<u16>, Broken> {
        match self.pop(buffers)? {
            // Something came meanwhile. Only a driver that takes back what it has offered leaves nothing here.
            None if self.ask_for_kick()? => self.pop(buffers),
            head => Ok(head),
        }
    }

    /// Its position.
    pub fn save(&self) -> RingState {
        RingState {
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Carries on from `state`.
    pub fn restore(&mut self, state: RingState) {
        self.queue.set_next_avail(state.next_avail);
        self.queue.set_next_used(state.next_used);
        self.told = Wrapping(state.next_used);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Driver, NEXT, WRITE};
    use super::*;

    const INDIRECT: u16 = 4;

    fn pop(driver: &Driver) -> Result<Option<(u16, Vec<Buffer>)>, Broken> {
        let mut buffers = Vec::new();
        let head = driver.ring().pop(&mut buffers)?;
        Ok(head.map(|head| (head, buffers)))
    }

    #[test]
    fn chains_of_legal_shapes_come_whole() {
        let driver = Driver::new();
        assert_eq!(pop(&driver), Ok(None));
        driver.descriptor(3, 0x8000, 10, NEXT, 5);
        driver.descriptor(5, 0x9000, 0, NEXT | WRITE, 0);
        driver.descriptor(0, 0x9000, 20, WRITE, 0);
        driver.offer(&[3]);
        let (head, buffers) = pop(&driver).unwrap().unwrap();
        let lengths: Vec<_> = buffers.iter().map(|b| (b.len, b.writable)).collect();
        assert_eq!(
            (head, lengths),
            (3, vec![(10, false), (0, true), (20, true)])
        );
        // The same through an indirect table (2.7.5.3).
        driver.descriptor_at(0xa000, 0, 0x8000, 7, NEXT, 1);
        driver.descriptor_at(0xa000, 1, 0x9000, 8, WRITE, 0);
        driver.descriptor(3, 0xa000, 32, INDIRECT, 0);
        let (_, buffers) = pop(&driver).unwrap().unwrap();
        assert_eq!(buffers.len(), 2);
    }

    #[test]
    fn chains_of_illegal_shapes_are_refused() {
        type Spoil = fn(&Driver);
        let ways: [(&str, Spoil); 11] = [
            ("loop", |d| d.descriptor(0, 0x8000, 1, NEXT, 0)),
            ("next beyond the table", |d| {
                d.descriptor(0, 0x8000, 1, NEXT, 8)
            }),
            ("not in memory", |d| {
                d.descriptor(0, 0xffff_0000, 1, WRITE, 0)
            }),
            ("end beyond memory", |d| {
                d.descriptor(0, 0x1_fff0, 17, WRITE, 0)
            }),
            ("4 GiB", |d| d.descriptor(0, 0x8000, u32::MAX, WRITE, 0)),
            ("address overflow", |d| d.descriptor(0, u64::MAX, 2, 0, 0)),
            ("empty indirect table", |d| {
                d.descriptor(0, 0xa000, 0, INDIRECT, 0)
            }),
            ("odd indirect table", |d| {
                d.descriptor(0, 0xa000, 17, INDIRECT, 0)
            }),
            ("indirect table nowhere", |d| {
                d.descriptor(0, 0xffff_0000, 16, INDIRECT, 0);
            }),
            ("indirect in indirect", |d| {
                d.descriptor_at(0xa000, 0, 0xa000, 16, INDIRECT, 0);
                d.descriptor(0, 0xa000, 16, INDIRECT, 0);
            }),
            ("readable behind writable", |d| {
                d.descriptor(0, 0x8000, 1, NEXT | WRITE, 1);
                d.descriptor(1, 0x8000, 1, 0, 0);
            }),
        ];
        for (name, spoil) in ways {
            let driver = Driver::new();
            spoil(&driver);
            driver.offer(&[0]);
            assert!(pop(&driver).is_err(), "{name}");
        }
        // Indirect chains may not be longer than the queue.
        let driver = Driver::new();
        for index in 0..9 {
            driver.descriptor_at(
                0xa000,
                index,
                0x8000,
                1,
                if index < 8 { NEXT } else { 0 },
                index + 1,
            );
        }
        driver.descriptor(0, 0xa000, 9 * 16, INDIRECT, 0);
        driver.offer(&[0]);
        assert!(pop(&driver).is_err());
    }

    #[test]
    fn impossible_indices_are_refused() {
        let driver = Driver::new();
        driver.offer(&[8]);
        assert!(pop(&driver).is_err(), "head beyond the table");
        let driver = Driver::new();
        driver.set_available(9);
        assert!(pop(&driver).is_err(), "more than the ring holds");
    }

    #[test]
    fn where_there_is_no_chain_the_driver_is_asked_for_a_kick() {
        let driver = Driver::new();
        driver.descriptor(0, 0x8000, 1, WRITE, 0);
        driver.offer(&[0]);
        let (mut ring, mut buffers) = (driver.ring(), Vec::new());
        let avail_event = || -> u16 {
            let at = GuestAddress(Driver::setup().areas[2] + 4 + 8 * 8);
            driver.memory.read_obj(at).unwrap()
        };
        assert_eq!(ring.pop_or_ask(&mut buffers), Ok(Some(0)));
        assert_eq!(avail_event(), 0);
        assert_eq!(ring.pop_or_ask(&mut buffers), Ok(None));
        assert_eq!(avail_event(), 1);
    }

    #[test]
    fn several_chains_are_given_back_at_once() {
        let driver = Driver::new();
        for index in 0..8 {
            driver.descriptor(index, 0x8000, 1, WRITE, 0);
        }
        let mut ring = driver.ring();
        ring.restore(RingState {
            next_avail: 0,
            next_used: 5,
        });
        // Around the end of the ring.
        let chains: Vec<_> = (0..6).map(|index| (index, u32::from(index) + 10)).collect();
        ring.give_back_all(&chains).unwrap();
        let used = driver.used();
        assert_eq!(used.len(), 11);
        let expected: Vec<_> = chains.iter().map(|(h, l)| (u32::from(*h), *l)).collect();
        assert_eq!(used[5..8], expected[..3]);
        assert_eq!(used[8..], expected[3..]);
        ring.give_back_all(&[]).unwrap();
        assert_eq!(ring.save().next_used, 11);
        assert!(ring.give_back(8, 0).is_err(), "no such head");
    }

    #[test]
    fn what_is_put_back_is_popped_again() {
        let driver = Driver::new();
        for index in 0..3 {
            driver.descriptor(index, 0x8000, 1, WRITE, 0);
        }
        driver.offer(&[2, 0, 1]);
        let (mut ring, mut buffers) = (driver.ring(), Vec::new());
        for _ in 0..3 {
            ring.pop(&mut buffers).unwrap();
        }
        ring.put_back(2);
        assert_eq!(ring.pop(&mut buffers), Ok(Some(0)));
        assert_eq!(ring.pop(&mut buffers), Ok(Some(1)));
        assert_eq!(ring.pop(&mut buffers), Ok(None));
    }

    #[test]
    fn the_driver_is_told_when_it_wants_to_be() {
        let driver = Driver::new();
        driver.descriptor(0, 0x8000, 1, WRITE, 0);
        let mut ring = driver.ring();
        let used_event = |value: u16| {
            let at = GuestAddress(Driver::setup().areas[1] + 4 + 16);
            driver.memory.write_obj(value, at).unwrap();
        };
        used_event(1);
        assert_eq!(ring.wants_interrupt(), Ok(false), "nothing was given back");
        ring.give_back(0, 1).unwrap();
        assert_eq!(ring.wants_interrupt(), Ok(false), "after the second");
        ring.give_back_all(&[(0, 1), (0, 1)]).unwrap();
        assert_eq!(ring.wants_interrupt(), Ok(true));
        assert_eq!(ring.wants_interrupt(), Ok(false), "once");

        // Without the event index there is a flag.
        let setup = Driver::setup();
        let features = feature::COMMON & !feature::EVENT_IDX;
        let mut ring = Ring::new(&setup, features, &driver.memory).unwrap();
        for flag in [0, NO_INTERRUPT] {
            let at = GuestAddress(setup.areas[1]);
            driver.memory.write_obj(flag, at).unwrap();
            ring.give_back(0, 1).unwrap();
            assert_eq!(ring.wants_interrupt(), Ok(flag == 0));
        }
    }

    #[test]
    fn a_position_is_saved_and_restored() {
        let driver = Driver::new();
        driver.descriptor(0, 0x8000, 1, WRITE, 0);
        driver.offer(&[0]);
        let mut ring = driver.ring();
        let head = ring.pop(&mut Vec::new()).unwrap().unwrap();
        ring.give_back(head, 1).unwrap();
        let saved = ring.save();
        let mut other = driver.ring();
        other.restore(saved);
        assert_eq!(other.pop(&mut Vec::new()), Ok(None));
        assert_eq!(other.save(), saved);
    }
}
