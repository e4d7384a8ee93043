//! PCI configuration space and the virtio function's BAR, by all their ways: ECAM, ports, the BAR where the guest has put it, the
//! configuration access capability.
//!
//! Two functions on one bus, so that their BARs can get in each other's way. A machine model on the outside sees to it that
//! doorbells are attached and detached in pairs, that routes are set only where something changes, and that only vectors fire
//! that have a route.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use devices::pci::{ConfigPorts, Ecam, MsiMessage, MsiSink, PciRoot};
use devices::virtio::pci::{Doorbells, Parts, VirtioPci, VirtioPciState};
use devices::{Action, Bus, BusDevice};
use vmm_sys_util::eventfd::EventFd;

use crate::driver::Driver;
use crate::memory;
use crate::messages;
use crate::script::{Chain, Reader};
use crate::seeds::{Reached, Seed, seed};
use crate::transport::{self, Board, Registers};

const WINDOW: Range<u64> = 0xf000_0000..0xf010_0000;
const BARS: [u32; 2] = [0xf000_0000, 0xf000_8000];
const MOVES: usize = 300;

/// What the function does to the outside.
#[derive(Default)]
struct Machine {
    /// Calls fail.
    fails: bool,
    doorbells: HashSet<u64>,
    routes: HashMap<u16, MsiMessage>,
    fired: u64,
}

#[derive(Clone, Default)]
struct Outside(Arc<Mutex<Machine>>);

impl Outside {
    fn with<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        act(&mut self.0.lock().expect("no handler panics and goes on"))
    }
}

fn answer(fails: bool) -> io::Result<()> {
    match fails {
        true => Err(io::Error::other("as the script wants it")),
        false => Ok(()),
    }
}

impl MsiSink for Outside {
    fn route(&self, changes: &[(u16, MsiMessage)]) -> io::Result<()> {
        self.with(|machine| {
            assert!(!changes.is_empty(), "a change of nothing");
            for (vector, message) in changes {
                let before = machine.routes.insert(*vector, *message);
                assert_ne!(before, Some(*message), "vector {vector} is routed again");
            }
            answer(machine.fails)
        })
    }

    fn trigger(&self, vector: u16) -> io::Result<()> {
        self.with(|machine| {
            assert!(
                machine.routes.contains_key(&vector),
                "{vector} has no route"
            );
            machine.fired += 1;
            answer(machine.fails)
        })
    }
}

impl Doorbells for Outside {
    fn attach(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.with(|machine| {
            assert!(WINDOW.contains(&address), "{address:#x}");
            assert!(machine.doorbells.insert(address), "{address:#x} twice");
            answer(machine.fails)
        })
    }

    fn detach(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.with(|machine| {
            assert!(
                machine.doorbells.remove(&address),
                "{address:#x} is not there"
            );
            answer(machine.fails)
        })
    }
}

/// A function and what it is connected to.
struct Slot {
    number: u8,
    function: Arc<VirtioPci>,
    outside: Outside,
    board: Board,
}

struct Rig {
    bus: Arc<Bus>,
    ecam: Ecam,
    ports: ConfigPorts,
    slots: Vec<Slot>,
}

fn function(board: &Board, number: u8, bus: &Arc<Bus>, outside: &Outside) -> Arc<VirtioPci> {
    VirtioPci::new(Parts {
        backend: board.backend(number),
        bus: Arc::downgrade(bus),
        window: WINDOW,
        bar: BARS[usize::from(number - 1) % 2],
        sink: Box::new(outside.clone()),
        doorbells: Box::new(outside.clone()),
    })
}

impl Rig {
    fn new(choice: u8) -> Self {
        let memory = memory::fresh();
        let bus = Arc::new(Bus::new());
        let slots = [1, 2].map(|number| {
            let driver = Driver::beside(memory.clone(), u64::from(number) - 1);
            let board = Board::new(choice >> 1 & 7, driver, memory.clone());
            let outside = Outside::default();
            outside.with(|machine| machine.fails = choice & 1 != 0);
            let function = function(&board, number, &bus, &outside);
            Slot {
                number,
                function,
                outside,
                board,
            }
        });
        let mut rig = Self {
            ecam: Ecam::new(Arc::new(PciRoot::new())),
            ports: ConfigPorts::new(Arc::new(PciRoot::new())),
            bus,
            slots: slots.into(),
        };
        rig.connect();
        rig
    }

    /// Both ways into configuration space, for the functions as they are now.
    fn connect(&mut self) {
        let root = Arc::new(PciRoot::new());
        for slot in &self.slots {
            let added = root.add(slot.number, slot.function.clone());
            added.expect("the places are free");
        }
        self.ecam = Ecam::new(root.clone());
        self.ports = ConfigPorts::new(root);
    }

    fn config(&self, slot: u8, offset: u16) -> u32 {
        let mut data = [0xff; 4];
        let at = u64::from(slot) << 15 | u64::from(offset);
        self.ecam.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_config(&self, slot: u8, offset: u16, data: &[u8]) {
        let _ = self
            .ecam
            .write(u64::from(slot) << 15 | u64::from(offset), data);
    }

    fn bar(&self, slot: u8) -> u64 {
        u64::from(self.config(slot, 0x10) & !0xf)
    }

    /// Moves the function to its own place, switches it on, and sets the device up.
    fn set_up(&mut self, slot: usize, from: &mut Reader) {
        let number = self.slots[slot].number;
        let bar = BARS[slot % 2];
        // The other one may be in the way.
        self.set_config(self.slots[1 - slot].number, 4, &[0]);
        self.set_config(number, 4, &[0]);
        self.set_config(number, 0x10, &bar.to_le_bytes());
        self.set_config(number, 4, &[6, 0]);
        let vectors = from.u8();
        let wiring = Wiring {
            bus: &self.bus,
            bar: bar.into(),
            vectors: vectors & 1 == 0,
        };
        if wiring.vectors {
            // MSI-X is the first capability.
            self.set_config(number, 0x42, &[0, 0x80]);
            for vector in 0..=self.slots[slot].board.kicks.len() as u64 {
                let entry = bar as u64 + 0x4000 + 16 * vector;
                let _ = self.bus.write(entry, &0xfee0_0000_u64.to_le_bytes());
                let _ = self.bus.write(entry + 8, &(vector + 32).to_le_bytes());
            }
            let _ = self.bus.write(u64::from(bar) + 0x10, &0_u16.to_le_bytes());
        }
        let (without, size) = (from.u64(), 1 << (from.u8() % 9));
        transport::set_up(&wiring, &mut self.slots[slot].board, without, size);
    }

    /// What must be so at any time.
    fn check(&self) {
        for slot in &self.slots {
            let queues = slot.board.kicks.len();
            let (count, fails) = slot.outside.with(|m| (m.doorbells.len(), m.fails));
            assert!(fails || count == 0 || count == queues, "{count} doorbells");
            assert_eq!(self.config(slot.number, 0) & 0xffff, 0x1af4);
            // The list of capabilities ends.
            let mut at = self.config(slot.number, 0x34) as u8;
            for step in 0.. {
                assert!(step < 48, "a list of capabilities without an end");
                if at == 0 {
                    break;
                }
                at = (self.config(slot.number, at.into()) >> 8) as u8;
            }
        }
    }

    /// Another function carries on.
    fn migrate(&mut self, slot: usize) {
        let Self { bus, slots, .. } = self;
        let state: VirtioPciState = {
            let slot = &mut slots[slot];
            slot.board.worker.lock().device().quiesce();
            let state = slot.function.save();
            let text = serde_json::to_string(&state).expect("a state can be written");
            // The old one leaves the bus.
            slot.function_off();
            serde_json::from_str(&text).expect("what was written can be read")
        };
        let slot = &mut slots[slot];
        slot.board.replace_device();
        slot.outside = slot.outside.with(|before| {
            Outside(Arc::new(Mutex::new(Machine {
                fails: before.fails,
                fired: before.fired,
                ..Machine::default()
            })))
        });
        slot.function = function(&slot.board, slot.number, bus, &slot.outside);
        slot.function.restore(&state);
        let again = slot.function.save();
        assert_eq!(state.config, again.config);
        assert_eq!(state.vectors, again.vectors);
        assert_eq!(
            state.front.negotiation.queues,
            again.front.negotiation.queues
        );
        self.connect();
    }
}

impl Slot {
    fn function_off(&self) {
        use devices::pci::PciFunction;
        let _ = self.function.write_config(4, &[0, 0]);
    }
}

/// The common configuration structure, at a BAR.
struct Wiring<'a> {
    bus: &'a Bus,
    bar: u64,
    /// Each queue has a vector.
    vectors: bool,
}

impl Wiring<'_> {
    fn put(&self, offset: u64, data: &[u8]) -> Action {
        self.bus.write(self.bar + offset, data)
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read(self.bar + offset, &mut data);
        data
    }
}

impl Registers for Wiring<'_> {
    fn status(&self) -> u8 {
        self.get::<1>(0x14)[0]
    }
    fn set_status(&self, status: u8) {
        let action = self.put(0x14, &[status]);
        if let Action::DriverOk(_) = action {
            assert_eq!(self.status() & 4, 4);
        }
    }
    fn features(&self, half: u32) -> u32 {
        let _ = self.put(0, &half.to_le_bytes());
        u32::from_le_bytes(self.get(4))
    }
    fn accept(&self, half: u32, bits: u32) {
        let _ = self.put(8, &half.to_le_bytes());
        let _ = self.put(12, &bits.to_le_bytes());
    }
    fn select(&self, queue: u16) {
        let _ = self.put(0x16, &queue.to_le_bytes());
    }
    fn enable(&self, queue: u16, size: u16, areas: [u64; 3]) {
        let _ = self.put(0x18, &size.to_le_bytes());
        for (index, area) in areas.iter().enumerate() {
            let _ = self.put(0x20 + 8 * index as u64, &area.to_le_bytes());
        }
        if self.vectors {
            let _ = self.put(0x1a, &(queue + 1).to_le_bytes());
        }
        let _ = self.put(0x1c, &1_u16.to_le_bytes());
    }
}

const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    messages::begin();
    let mut from = Reader::new(data);
    let mut rig = Rig::new(from.u8());
    let (mut live, mut moved) = (0, 0);
    for _ in 0..MOVES {
        if from.is_empty() {
            break;
        }
        let (what, slot) = (from.u8(), from.u8());
        let (index, number) = (usize::from(slot & 1), (slot & 1) + 1);
        let len = WIDTHS[usize::from(slot >> 1 & 3)];
        let mut bytes = [0xff; 8];
        match what % 14 {
            0 | 1 => {
                // The place is 16 bits: 12 of offset.
                let at = from.u16();
                let value = from.array::<8>();
                rig.set_config(number, at & 0xfff, &value[..len]);
                rig.slots[index].board.driver.give_up();
            }
            2 => rig.ecam.read(from.u32().into(), &mut bytes[..len]),
            3 => {
                let _ = rig
                    .ports
                    .write(u64::from(slot >> 4 & 7), &from.array::<8>()[..len]);
            }
            4 => {
                let _ = rig.ports.write(0, &from.array::<4>());
                let _ = rig
                    .ports
                    .write(4 + u64::from(slot >> 4 & 3), &from.array::<8>()[..len]);
                rig.slots[index].board.driver.give_up();
            }
            5 => rig.ports.read(u64::from(slot >> 4 & 7), &mut bytes[..len]),
            6 | 7 => {
                let at = rig.bar(number) + u64::from(from.u16() & 0x7fff);
                let _ = rig.bus.write(at, &from.array::<8>()[..len]);
                rig.slots[index].board.driver.give_up();
            }
            8 => {
                let at = rig.bar(number) + u64::from(from.u16() & 0x7fff);
                rig.bus.read(at, &mut bytes[..len]);
            }
            9 => rig.set_up(index, &mut from),
            10 => {
                // Not so long that all of them together leave this driver's half of memory.
                let chain = Chain::new(slot >> 3 & 7, &[], &[from.u16() & 0x3ff]);
                let board = &mut rig.slots[index].board;
                board.driver.offer(&chain);
                let doorbell = rig.bar(number) + 0x3000 + 4 * u64::from(chain.queue);
                let Slot { board, .. } = &rig.slots[index];
                if let Some(kick) = board.kicks.get(usize::from(chain.queue))
                    && rig.slots[index]
                        .outside
                        .with(|m| m.doorbells.contains(&doorbell))
                {
                    kick.write(1).expect("a kick");
                } else {
                    let _ = rig.bus.write(doorbell, &[0, 0]);
                }
            }
            11 => rig.slots[index].board.serve(),
            12 => rig.migrate(index),
            _ => {
                let at = WINDOW.start + u64::from(from.u32()) % (WINDOW.end - WINDOW.start);
                let _ = rig.bus.write(at, &from.array::<8>()[..len]);
                rig.bus.read(at, &mut bytes[..len]);
                rig.slots
                    .iter_mut()
                    .for_each(|slot| slot.board.driver.give_up());
            }
        }
        rig.check();
        live += u64::from(rig.slots[index].outside.with(|m| !m.doorbells.is_empty()));
        moved += u64::from(rig.bar(number) != u64::from(BARS[index]));
    }
    let mut reached = Reached::from([("live".into(), live), ("moved".into(), moved)]);
    for slot in rig.slots {
        *reached.entry("fired".into()).or_default() += slot.outside.with(|m| m.fired);
        for (name, count) in slot.board.end() {
            *reached.entry(name).or_default() += count;
        }
    }
    messages::end();
    reached
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let set_up = |vectors: u8| [&[9, 0, vectors][..], &[0; 8], &[4]].concat();
    let fill = [10, 0, 64, 0, 11, 0];
    let config = |len: u8, at: u16, value: u32| {
        let mut bytes = vec![0, len << 1];
        bytes.extend(at.to_le_bytes());
        bytes.extend(u64::from(value).to_le_bytes());
        bytes
    };
    let bar = |len: u8, at: u16, value: u32| {
        let mut bytes = config(len, at, value);
        bytes[0] = 6;
        bytes
    };
    let good = [
        &[0][..],
        &set_up(0),
        &fill,
        &[12, 0],
        &fill,
        &[8, 4, 0x14, 0],
    ]
    .concat();
    let moved = [
        &[0][..],
        &set_up(0),
        &config(2, 0x10, 0xf008_0000),
        &fill,
        &config(2, 0x10, 0xf000_8000),
        &config(0, 4, 0),
        &config(0, 4, 6),
    ]
    .concat();
    // Status and ISR by way of the access capability: BAR 0, offset, length; then data.
    let windowed = [
        &[0][..],
        &set_up(1),
        &fill,
        &config(2, 0x9c, 0x14),
        &config(2, 0xa0, 1),
        &config(0, 0xa4, 0),
        &[4, 4, 0x10, 8, 0, 0x80, 1, 2, 3, 4, 5, 6, 7, 8],
        &[5, 0x44, 3, 0x20, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let masked = [
        &[0][..],
        &set_up(0),
        &bar(2, 0x401c, 1),
        &fill,
        &bar(2, 0x4018, 99),
        &bar(2, 0x401c, 0),
        &config(1, 0x42, 0xc000),
        &fill,
        &config(1, 0x42, 0x8000),
        &bar(0, 0x14, 0),
    ]
    .concat();
    let refused = [&[1][..], &set_up(0), &fill, &bar(0, 0x14, 0)].concat();
    vec![
        seed("good", good, &["live", "fired", "completed", "bytes"]),
        seed("moved", moved, &["live", "moved", "completed"]),
        seed("windowed", windowed, &["live", "completed"]),
        seed("masked", masked, &["live", "fired", "completed"]),
        seed("refused", refused, &["live"]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
