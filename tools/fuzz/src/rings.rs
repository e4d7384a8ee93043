//! A virtqueue and its chains, beside a second, simple-minded reading of the ring: both must come to the same.
//!
//! Chains of all shapes, legal and not, are popped, put back and given back, one by one and several at once, with the event
//! index and without; what is in them is read and written by a cursor, and as host memory.

use std::num::Wrapping;

use devices::virtio::{Buffer, Memory, Negotiation, Ring, Status, chain, feature};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::Driver;
use crate::memory::{self, RANGES};
use crate::messages;
use crate::script::{Chain, Move, Reader, Spoil};
use crate::seeds::{Reached, Seed, seed};

/// Moves that are followed.
const MOVES: usize = 300;

/// What a reader of the ring finds there.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Broken,
    Chain(u16, Vec<Buffer>),
}

/// The ring as the specification tells it (2.7), with state of its own.
struct Model {
    memory: Memory,
    areas: [u64; 3],
    size: u16,
    event_idx: bool,
    next_avail: Wrapping<u16>,
    next_used: Wrapping<u16>,
    told: Wrapping<u16>,
}

impl Model {
    fn get<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let done = self.memory.read_slice(&mut bytes, GuestAddress(at));
        done.is_ok().then_some(bytes)
    }

    fn word(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at).expect("rings are in memory"))
    }

    fn pop(&mut self) -> Found {
        let ready = Wrapping(self.word(self.areas[1] + 2)) - self.next_avail;
        if ready.0 == 0 {
            return Found::Nothing;
        }
        if ready.0 > self.size {
            return Found::Broken;
        }
        let slot = u64::from(self.next_avail.0 % self.size);
        let head = self.word(self.areas[1] + 4 + 2 * slot);
        self.next_avail += 1;
        match self.walk(head) {
            Some(buffers) => Found::Chain(head, buffers),
            None => Found::Broken,
        }
    }

    fn walk(&self, head: u16) -> Option<Vec<Buffer>> {
        let (mut table, mut len, mut index) = (self.areas[0], u32::from(self.size), head);
        let (mut nested, mut total, mut buffers) = (false, 0_u64, Vec::<Buffer>::new());
        loop {
            if u32::from(index) >= len {
                return None;
            }
            let at = table.checked_add(16 * u64::from(index))?;
            let [low, high] = [self.get::<8>(at)?, self.get::<8>(at.checked_add(8)?)?];
            let (address, high) = (u64::from_le_bytes(low), u64::from_le_bytes(high));
            let (bytes, flags, next) = (high as u32, (high >> 32) as u16, (high >> 48) as u16);
            if flags & 4 != 0 {
                if nested || bytes % 16 != 0 || bytes / 16 > 0xffff {
                    return None;
                }
                (table, len, index, nested) = (address, bytes / 16, 0, true);
                continue;
            }
            let writable = flags & 2 != 0;
            total += u64::from(bytes);
            let late = !writable && buffers.last().is_some_and(|last| last.writable);
            if late || total > u64::from(u32::MAX) || buffers.len() >= usize::from(self.size) {
                return None;
            }
            if bytes != 0 && !in_memory(address, bytes) {
                return None;
            }
            buffers.push(Buffer {
                address: GuestAddress(address),
                len: bytes,
                writable,
            });
            if flags & 1 == 0 {
                return Some(buffers);
            }
            index = next;
        }
    }

    fn give_back(&mut self, head: u16, len: u32) -> bool {
        if head >= self.size {
            return false;
        }
        let used = self.areas[2];
        let slot = u64::from(self.next_used.0 % self.size);
        let entry = self.get::<8>(used + 4 + 8 * slot).map(u64::from_le_bytes);
        self.next_used += 1;
        assert_eq!(entry, Some(u64::from(head) | u64::from(len) << 32));
        assert_eq!(self.word(used + 2), self.next_used.0, "the used index");
        true
    }

    fn wants_interrupt(&mut self) -> bool {
        let (new, old) = (self.next_used, self.told);
        self.told = new;
        if !self.event_idx {
            return new != old && self.word(self.areas[1]) & 1 == 0;
        }
        // 2.7.7.2: whether the index that the driver waits for was passed.
        let event = self.word(self.areas[1] + 4 + 2 * u64::from(self.size));
        (0..(new - old).0).any(|step| (old + Wrapping(step)).0 == event)
    }
}

fn in_memory(address: u64, len: u32) -> bool {
    let Some(end) = address.checked_add(len.into()) else {
        return false;
    };
    // The first two ranges are one piece.
    let (low, high) = (RANGES[1].0 + RANGES[1].1 as u64, RANGES[2].0);
    end <= low || (address >= high && end <= high + RANGES[2].1 as u64)
}

/// Reads and writes what is in a chain, by all ways.
fn touch(memory: &Memory, buffers: &[Buffer], from: &mut Reader) {
    let (mut readable, mut writable) = chain::split(memory, buffers);
    let length = |writable: bool| -> u64 {
        let buffers = buffers.iter().filter(|buffer| buffer.writable == writable);
        buffers.map(|buffer| u64::from(buffer.len)).sum()
    };
    assert_eq!(
        (readable.len(), writable.len()),
        (length(false), length(true))
    );
    let (first, last) = (u64::from(from.u16()), u64::from(from.u16()));
    for cursor in [&mut readable, &mut writable] {
        let whole = cursor.len();
        let tail = cursor.take_last(last);
        assert_eq!(tail.len(), whole.min(last));
        let front = cursor.take(first);
        assert_eq!(front.len() + cursor.len() + tail.len(), whole);
        for part in [front, tail] {
            let mut pieces = Vec::new();
            part.io_vecs(&mut pieces).expect("buffers were checked");
            let sum: usize = pieces.iter().map(devices::virtio::IoVec::len).sum();
            assert_eq!(sum as u64, part.len());
        }
    }
    // Not over the rings: the model reads them too.
    let beside = |buffer: &&Buffer| buffer.writable && buffer.address.0 >= memory::TABLES.end;
    let zone: Vec<Buffer> = buffers.iter().filter(beside).copied().collect();
    let mut cursor = chain::Cursor::new(memory, &zone);
    let bytes = [0x5a; 70];
    let enough = cursor.len() >= bytes.len() as u64;
    let mut again = cursor.clone();
    assert_eq!(cursor.write(&bytes).is_ok(), enough);
    let mut back = [0; 70];
    assert_eq!(again.read(&mut back).is_ok(), enough);
    // Buffers may overlap: what is written last stays.
    assert!(!enough || back.contains(&0x5a));
}

/// Runs the target.
///
/// # Panics
/// Ring and model differ.
pub fn run(data: &[u8]) -> Reached {
    messages::begin();
    let mut script = Reader::new(data);
    let choice = script.u8();
    let memory = memory::fresh();
    let event_idx = choice & 1 == 0;
    let size = 256_u16 >> (choice >> 1 & 7);
    let mut driver = Driver::new(memory.clone());
    driver.set_up(0, size);
    let (mut ring, mut model) = make(&memory, size, event_idx);
    let mut reached = Reached::new();
    let mut note = |name: &str| *reached.entry(name.into()).or_default() += 1;
    // Heads that are popped and not given back.
    let mut popped: Vec<u16> = Vec::new();
    for _ in 0..MOVES {
        if script.is_empty() {
            break;
        }
        match Move::read(&mut script) {
            Move::Offer(chain) => {
                let queue = 0;
                driver.offer(&Chain { queue, ..chain });
            }
            Move::Poke(at, bytes) => driver.poke(at, &bytes),
            Move::Events(_, flags, event) => driver.set_events(0, flags, event),
            Move::Migrate => {
                let state = ring.save();
                (ring, _) = make(&memory, size, event_idx);
                ring.restore(state);
                assert_eq!(ring.save(), state);
                model.told = model.next_used;
                note("migrations");
            }
            Move::Kick(what) => match what % 6 {
                0 | 1 => {
                    let mut buffers = Vec::new();
                    let found = match ring.pop(&mut buffers) {
                        Ok(Some(head)) => Found::Chain(head, buffers),
                        Ok(None) => Found::Nothing,
                        Err(broken) => {
                            let _ = broken.to_string();
                            Found::Broken
                        }
                    };
                    assert_eq!(found, model.pop());
                    match found {
                        Found::Nothing => note("nothing"),
                        Found::Broken => {
                            // A device stands still now. Another one begins with what is there.
                            (ring, model) = make(&memory, size, event_idx);
                            popped.clear();
                            note("broken");
                        }
                        Found::Chain(head, buffers) => {
                            touch(&memory, &buffers, &mut script);
                            popped.push(head);
                            note("chains");
                        }
                    }
                }
                2 => {
                    let count = usize::from(script.u8()).min(popped.len());
                    popped.truncate(popped.len() - count);
                    ring.put_back(count as u16);
                    model.next_avail -= count as u16;
                    note("put_back");
                }
                3 => {
                    let count = usize::from(script.u8()).min(popped.len());
                    let heads = popped.drain(..count);
                    let chains: Vec<_> = heads.map(|head| (head, script.u32())).collect();
                    let (last, rest) = match chains.split_last() {
                        Some((last, rest)) => (Some(last), rest),
                        None => (None, &[][..]),
                    };
                    ring.give_back_all(&chains).expect("rings are in memory");
                    model.next_used += rest.len() as u16;
                    if let Some((head, len)) = last {
                        assert!(model.give_back(*head, *len));
                        note("given_back");
                    }
                }
                4 => {
                    let wants = ring.wants_interrupt().expect("rings are in memory");
                    assert_eq!(wants, model.wants_interrupt());
                    note(if wants { "interrupts" } else { "silence" });
                }
                _ => {
                    let more = ring.ask_for_kick().expect("rings are in memory");
                    let ready = model.word(model.areas[1] + 2);
                    assert_eq!(more, ready != model.next_avail.0);
                    if event_idx {
                        let at = model.areas[2] + 4 + 8 * u64::from(size);
                        assert_eq!(model.word(at), model.next_avail.0, "avail_event");
                    }
                    note("asked");
                }
            },
            _ => {}
        }
        let state = ring.save();
        assert_eq!(
            (state.next_avail, state.next_used),
            (model.next_avail.0, model.next_used.0)
        );
    }
    messages::end();
    reached
}

fn make(memory: &Memory, size: u16, event_idx: bool) -> (Ring, Model) {
    let without = if event_idx { 0 } else { feature::EVENT_IDX };
    let features = feature::COMMON & !without;
    let mut negotiation = Negotiation::new(feature::COMMON, &[256]);
    let status = Status::default();
    let _ = negotiation.write_status(&status, 3);
    for (half, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
        *negotiation.selectors().1 = half;
        negotiation.accept_half(&status, bits);
    }
    let _ = negotiation.write_status(&status, 11);
    let areas = memory::areas(0);
    if let Some((_, queue)) = negotiation.queue_to_set_up() {
        (queue.size, queue.areas) = (size, areas);
    }
    let enabled = negotiation.enable_queue(&status, memory);
    let (_, ring) = enabled.expect("a sound queue").expect("the first one");
    let model = Model {
        memory: memory.clone(),
        areas,
        size,
        event_idx,
        next_avail: Wrapping(0),
        next_used: Wrapping(0),
        told: Wrapping(0),
    };
    (ring, model)
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    const POP: Move = Move::Kick(0);
    let give = |script: &mut Vec<u8>, count: u8| {
        Move::Kick(3).write(script);
        script.push(count);
        script.extend([7; 4].repeat(count.into()));
    };
    let mut good = vec![10];
    for indirect in [false, true] {
        let chain = Chain {
            indirect,
            cuts: vec![1, 0, 3],
            ..Chain::new(0, &[1, 2, 3, 4, 5, 6, 7, 8], &[100, 0, 20])
        };
        for one in [chain.offer(), Chain::new(0, &[], &[64]).offer(), POP] {
            one.write(&mut good);
        }
        good.extend([3, 0, 50, 0]);
        POP.write(&mut good);
        good.extend([0, 0, 1, 0]);
        POP.write(&mut good);
        give(&mut good, 2);
        for one in [
            Move::Kick(4),
            Move::Kick(5),
            Move::Migrate,
            Move::Events(0, 1, 9),
        ] {
            one.write(&mut good);
        }
        Move::Kick(4).write(&mut good);
    }
    // The same without the event index, and put back.
    let mut plain = vec![11];
    for one in [Chain::new(0, &[], &[64]).offer(), POP] {
        one.write(&mut plain);
    }
    plain.extend([0; 4]);
    Move::Kick(2).write(&mut plain);
    plain.push(1);
    POP.write(&mut plain);
    plain.extend([0; 4]);
    give(&mut plain, 1);
    Move::Kick(4).write(&mut plain);
    let spoilt = |field, value| {
        let spoil = Some(Spoil {
            descriptor: 0,
            field,
            value,
        });
        let chain = Chain {
            indirect: true,
            spoil,
            ..Chain::new(0, &[1; 8], &[8, 8])
        };
        Move::script(4, &[chain.offer(), POP])
    };
    // A table for the chain itself to point at.
    let loops = Move::Poke(
        0x1_0000,
        [0, 0, 8, 0, 0, 0, 0, 0, 32, 0, 0, 0, 4, 0, 0, 0].repeat(2),
    );
    let nested = Move::Poke(
        0x8_0000,
        [0, 0, 8, 0, 0, 0, 0, 0, 32, 0, 0, 0, 4, 0, 0, 0].to_vec(),
    );
    let offer = Chain::new(0, &[], &[1]).offer();
    vec![
        seed(
            "good",
            good,
            &[
                "chains",
                "given_back",
                "interrupts",
                "silence",
                "asked",
                "migrations",
            ],
        ),
        seed("plain", plain, &["put_back", "chains", "interrupts"]),
        seed(
            "nested",
            Move::script(4, &[offer, loops, nested, POP]),
            &["broken"],
        ),
        seed("address", spoilt(0, 0xffff_ffff_ffff_fff0), &["broken"]),
        seed("length", spoilt(1, 0xffff_ffff), &["broken"]),
        seed("flags", spoilt(2, 7), &["broken"]),
        seed("next", spoilt(3, 2), &["chains"]),
        seed("head", spoilt(4, 70), &["broken"]),
        seed("index", spoilt(5, 70), &["broken"]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
