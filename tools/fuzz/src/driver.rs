//! A driver's side of queues, with what it may expect of the device.
//!
//! A driver in good order knows what it gave: a chain comes back once, with no more bytes written than there was room for;
//! what the device may only read is as it was, and so is what lies behind each buffer; and if the driver wants to hear of it,
//! it has been told. A driver that has broken a rule may expect nothing any more.

use std::collections::HashMap;
use std::ops::Range;

use devices::virtio::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{self, MOST_QUEUES, READABLE, TABLES, WRITABLE};
use crate::script::{Chain, Spoil};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The driver does not want interrupts.
const NO_INTERRUPT: u16 = 1;
/// Bytes behind each writable buffer that nobody may write.
const GUARD: [u8; 16] = [0xa5; 16];

/// A chain that the device has.
#[derive(Debug)]
struct Pending {
    descriptors: Vec<u16>,
    /// Bytes that may be written.
    room: u64,
    readable: Vec<(u64, Vec<u8>)>,
    guards: Vec<u64>,
}

/// One queue.
#[derive(Debug)]
struct Queue {
    size: u16,
    areas: [u64; 3],
    taken: Vec<bool>,
    /// Available index: up to where the device may go, and with the chains that are held.
    published: u16,
    filled: u16,
    /// Used index up to which the driver has looked.
    seen: u16,
    pending: HashMap<u16, Pending>,
}

/// A driver of some queues.
#[derive(Debug)]
pub struct Driver {
    memory: Memory,
    /// Which half of all places is its own.
    half: u64,
    queues: Vec<Option<Queue>>,
    /// First free addresses.
    readable: u64,
    writable: u64,
    tables: u64,
    /// A rule was broken.
    outlaw: bool,
    /// Chains that came back.
    pub completed: u64,
    /// Bytes that were written to them.
    pub written: u64,
}

impl Driver {
    /// A driver that has no queue set up.
    pub fn new(memory: Memory) -> Self {
        Self::beside(memory, 0)
    }

    /// One of two that have the same memory, 0 or 1: each keeps to places of its own.
    pub fn beside(memory: Memory, half: u64) -> Self {
        Self {
            memory,
            half,
            queues: Vec::new(),
            readable: start(half, &READABLE),
            writable: start(half, &WRITABLE),
            tables: start(half, &TABLES),
            outlaw: false,
            completed: 0,
            written: 0,
        }
    }

    /// The device was reset: nothing is given any more. What is in memory stays there.
    pub fn start_over(&mut self) {
        self.queues.clear();
        [self.readable, self.writable, self.tables] =
            [READABLE, WRITABLE, TABLES].map(|zone| start(self.half, &zone));
        self.outlaw = false;
    }

    /// Descriptor table, driver area and device area of a queue.
    pub fn areas(&self, number: usize) -> [u64; 3] {
        memory::areas(number + self.half as usize * MOST_QUEUES / 2)
    }

    /// Sets a queue up: its rings, all zero, are there then.
    pub fn set_up(&mut self, number: usize, size: u16) {
        if self.queues.len() <= number {
            self.queues.resize_with(number + 1, || None);
        }
        let areas = self.areas(number);
        self.put(areas[0], &[0; 0x4000]);
        self.queues[number] = Some(Queue {
            size,
            areas,
            taken: vec![false; size.into()],
            published: 0,
            filled: 0,
            seen: 0,
            pending: HashMap::new(),
        });
    }

    /// A queue is not set up any more.
    pub fn forget(&mut self, number: usize) {
        if let Some(slot) = self.queues.get_mut(number) {
            *slot = None;
        }
    }

    /// Whether the device has chains of it.
    pub fn waits(&self) -> bool {
        self.queues.iter().flatten().any(|q| !q.pending.is_empty())
    }

    fn break_rules(&mut self) {
        self.outlaw = true;
        memory::gets_wild();
    }

    /// Something happens that it does not know of: it may expect nothing any more.
    pub fn give_up(&mut self) {
        self.break_rules();
    }

    /// It writes to memory at random: it may expect nothing any more.
    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        self.break_rules();
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    /// Flags and used event of a queue.
    pub fn set_events(&mut self, number: usize, flags: u16, event: u16) {
        let Some(Some(queue)) = self.queues.get(number) else {
            return;
        };
        let (at, end) = (queue.areas[1], 4 + 2 * u64::from(queue.size));
        self.put(at, &flags.to_le_bytes());
        self.put(at + end, &event.to_le_bytes());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .expect("the driver's own places are in memory");
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("the driver's own places are in memory");
        bytes
    }

    /// Makes a chain available, if there is room for it.
    pub fn offer(&mut self, chain: &Chain) {
        let number = usize::from(chain.queue);
        let Some(mut queue) = self.queues.get_mut(number).and_then(Option::take) else {
            return;
        };
        self.offer_in(&mut queue, chain);
        self.queues[number] = Some(queue);
    }

    fn offer_in(&mut self, queue: &mut Queue, chain: &Chain) -> Option<()> {
        let buffers = self.place(chain)?;
        let count = if chain.indirect { 1 } else { buffers.len() };
        let free = (0..queue.size).filter(|index| !queue.taken[usize::from(*index)]);
        let descriptors: Vec<u16> = free.take(count).collect();
        let head = *descriptors.first().filter(|_| descriptors.len() == count)?;
        let write = |driver: &Self, at: u64, buffer: &(u64, u32, bool), next: Option<u16>| {
            let flags = if buffer.2 { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            let next = next.unwrap_or(0);
            driver.put(at, &descriptor(buffer.0, buffer.1, flags, next));
        };
        let mut places = Vec::new();
        if chain.indirect {
            let (at, len) = (self.tables, 16 * buffers.len() as u64);
            if at + len > TABLES.end {
                return None;
            }
            self.tables += len;
            memory::used(&TABLES, self.tables);
            for (index, buffer) in (0_u16..).zip(&buffers) {
                let next = (usize::from(index) + 1 < buffers.len()).then_some(index + 1);
                places.push(at + 16 * u64::from(index));
                write(self, places[places.len() - 1], buffer, next);
            }
            let entry = descriptor(at, len as u32, INDIRECT, 0);
            places.push(queue.areas[0] + 16 * u64::from(head));
            self.put(places[places.len() - 1], &entry);
        } else {
            for (position, buffer) in buffers.iter().enumerate() {
                let at = queue.areas[0] + 16 * u64::from(descriptors[position]);
                places.push(at);
                write(self, at, buffer, descriptors.get(position + 1).copied());
            }
        }
        for index in &descriptors {
            queue.taken[usize::from(*index)] = true;
        }
        let writable = buffers.iter().filter(|buffer| buffer.2);
        let readable = buffers.iter().filter(|buffer| !buffer.2);
        let bytes = |at: u64, len: u32| {
            let mut bytes = vec![0; len as usize];
            let _ = self.memory.read_slice(&mut bytes, GuestAddress(at));
            bytes
        };
        let pending = Pending {
            descriptors,
            room: writable.clone().map(|buffer| u64::from(buffer.1)).sum(),
            readable: readable.map(|b| (b.0, bytes(b.0, b.1))).collect(),
            guards: writable.map(|b| b.0 + u64::from(b.1)).collect(),
        };
        queue.pending.insert(head, pending);
        let slot = queue.areas[1] + 4 + 2 * u64::from(queue.filled % queue.size);
        self.put(slot, &head.to_le_bytes());
        queue.filled = queue.filled.wrapping_add(1);
        if !chain.held {
            queue.published = queue.filled;
            self.put(queue.areas[1] + 2, &queue.published.to_le_bytes());
        }
        if let Some(spoil) = chain.spoil {
            self.spoil(queue, &places, slot, spoil);
        }
        Some(())
    }

    /// Finds room for a chain's buffers: address, length, whether the device writes.
    fn place(&mut self, chain: &Chain) -> Option<Vec<(u64, u32, bool)>> {
        let mut bytes = chain.readable.clone();
        let last = bytes.last().copied().unwrap_or(0);
        bytes.resize(bytes.len() + usize::from(chain.padding), last);
        let mut buffers = Vec::new();
        let mut rest = bytes.as_slice();
        let mut put = |rest: &[u8]| {
            let at = self.readable;
            // Apart from each other by all kinds of distances.
            self.readable += rest.len() as u64 + 1 + (rest.len() as u64 & 3);
            memory::used(&READABLE, self.readable.min(READABLE.end));
            (self.readable <= READABLE.end).then(|| {
                let fits = self.memory.write_slice(rest, GuestAddress(at));
                fits.expect("the zone is in memory");
                buffers.push((at, rest.len() as u32, false));
            })
        };
        for cut in &chain.cuts {
            let (piece, later) = rest.split_at(usize::from(*cut).min(rest.len()));
            put(piece)?;
            rest = later;
        }
        if !rest.is_empty() {
            put(rest)?;
        }
        for len in &chain.writable {
            let (at, len) = (self.writable, u32::from(*len));
            self.writable += u64::from(len) + GUARD.len() as u64;
            if self.writable > WRITABLE.end {
                return None;
            }
            memory::used(&WRITABLE, self.writable);
            self.put(at + u64::from(len), &GUARD);
            buffers.push((at, len, true));
        }
        (!buffers.is_empty()).then_some(buffers)
    }

    /// Makes something wrong.
    fn spoil(&mut self, queue: &Queue, places: &[u64], slot: u64, spoil: Spoil) {
        self.break_rules();
        let place = places[usize::from(spoil.descriptor) % places.len()];
        let value = spoil.value.to_le_bytes();
        match spoil.field % 6 {
            0 => self.put(place, &value),
            1 => self.put(place + 8, &value[..4]),
            2 => self.put(place + 12, &value[..2]),
            3 => self.put(place + 14, &value[..2]),
            4 => self.put(slot, &value[..2]),
            _ => self.put(queue.areas[1] + 2, &value[..2]),
        }
    }

    /// Looks at what came back. `told` says for a queue whether there was an interrupt since the last look; `None` where
    /// none is needed: the device has given up.
    ///
    /// # Panics
    /// It is not what a driver in good order may expect.
    pub fn look(
        &mut self,
        event_idx: bool,
        keeps_memory: bool,
        told: Option<&dyn Fn(u16) -> bool>,
    ) {
        let mut queues = std::mem::take(&mut self.queues);
        for (number, queue) in (0_u16..).zip(&mut queues) {
            if let Some(queue) = queue {
                let told = told.map(|told| told(number));
                self.look_at(number, queue, event_idx, keeps_memory, told);
            }
        }
        self.queues = queues;
    }

    fn look_at(
        &mut self,
        number: u16,
        queue: &mut Queue,
        event_idx: bool,
        keeps_memory: bool,
        told: Option<bool>,
    ) {
        let used = queue.areas[2];
        let index = u16::from_le_bytes(self.get(used + 2));
        let (old, new) = (queue.seen, index.wrapping_sub(queue.seen));
        queue.seen = index;
        if self.outlaw {
            // What came back is not known; all of it may be offered again.
            queue.taken.fill(false);
            queue.pending.clear();
            self.completed += u64::from(new);
            return;
        }
        let pending = queue.pending.len();
        assert!(
            usize::from(new) <= pending,
            "queue {number}: {new} chains came back of {pending}"
        );
        for position in 0..new {
            let slot = u64::from(old.wrapping_add(position) % queue.size);
            let [head, len] =
                [0, 4].map(|at| u32::from_le_bytes(self.get(used + 4 + 8 * slot + at)));
            let chain = u16::try_from(head).ok();
            let chain = chain.and_then(|head| queue.pending.remove(&head));
            let chain = chain.unwrap_or_else(|| panic!("queue {number}: {head} was not given"));
            let room = chain.room;
            assert!(
                u64::from(len) <= room,
                "queue {number}: {len} bytes written to {room}"
            );
            for guard in &chain.guards {
                let guard: [u8; GUARD.len()] = self.get(*guard);
                assert!(
                    !keeps_memory || guard == GUARD,
                    "queue {number}: written beyond a buffer's end"
                );
            }
            for (at, expected) in &chain.readable {
                let mut bytes = vec![0; expected.len()];
                let _ = self.memory.read_slice(&mut bytes, GuestAddress(*at));
                assert!(
                    !keeps_memory || bytes == *expected,
                    "queue {number}: a readable buffer was written"
                );
            }
            for index in chain.descriptors {
                queue.taken[usize::from(index)] = false;
            }
            self.completed += 1;
            self.written += u64::from(len);
        }
        let Some(told) = told.filter(|_| new > 0) else {
            return;
        };
        let driver_area = queue.areas[1];
        let wants = if event_idx {
            let at = driver_area + 4 + 2 * u64::from(queue.size);
            let event = u16::from_le_bytes(self.get(at));
            index.wrapping_sub(event).wrapping_sub(1) < new
        } else {
            u16::from_le_bytes(self.get(driver_area)) & NO_INTERRUPT == 0
        };
        assert!(
            told || !wants,
            "queue {number}: the driver waits for an interrupt that does not come"
        );
    }
}

/// Where a half of a zone begins. Whoever has the first one has to see to it that it is enough.
fn start(half: u64, zone: &Range<u64>) -> u64 {
    zone.start + half * (zone.end - zone.start) / 2
}

/// Bytes of a descriptor.
pub fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
