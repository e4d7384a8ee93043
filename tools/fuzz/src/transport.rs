//! What the targets of transports have in common: a device with its queues' kicks, and a driver's way to `DRIVER_OK`.

use std::sync::Arc;

use devices::virtio::rng::Entropy;
use devices::virtio::{Backend, Memory, Progress, SharedWorker, VirtioDevice, feature};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::balloon::Pages;
use crate::driver::Driver;
use crate::memory;
use crate::messages;
use crate::seeds::Reached;
use crate::session::Rig;

/// Turns after which a device has nothing more to do.
const TURNS: usize = 5000;

/// A device of that kind: those that need nothing of the host's.
fn device(kind: u8) -> Box<dyn VirtioDevice> {
    match kind % 2 {
        0 => Box::new(Entropy::default()),
        _ => Pages(kind >> 1).device(),
    }
}

/// A device that a transport is put in front of.
pub struct Board {
    /// What it is.
    pub kind: u8,
    /// The device, as transport and loop share it.
    pub worker: SharedWorker,
    /// The kick of each queue.
    pub kicks: Arc<[EventFd]>,
    /// Guest memory.
    pub memory: Memory,
    /// Who drives it.
    pub driver: Driver,
    /// Counters of devices that are gone.
    reached: Reached,
}

impl Board {
    /// A new device of a kind.
    pub fn new(kind: u8, driver: Driver, memory: Memory) -> Self {
        let device = device(kind);
        let queues = device.queue_sizes().len();
        let kick = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Self {
            kind,
            worker: SharedWorker::new(device),
            kicks: (0..queues).map(|_| kick()).collect(),
            driver,
            memory,
            reached: Reached::new(),
        }
    }

    /// What a transport is made from.
    pub fn backend(&self, number: u8) -> Backend {
        Backend {
            number,
            worker: self.worker.clone(),
            kicks: self.kicks.clone(),
            memory: self.memory.clone(),
        }
    }

    /// Another device takes this one's place, as after a restore.
    pub fn replace_device(&mut self) {
        self.note_counters();
        messages::anew();
        let memory = self.memory.clone();
        let next = Self::new(self.kind, Driver::new(memory.clone()), memory);
        (self.worker, self.kicks) = (next.worker, next.kicks);
    }

    /// Serves all queues that were kicked, as the loop does.
    pub fn serve(&mut self) {
        for (number, kick) in (0_u16..).zip(self.kicks.iter()) {
            if kick.read().is_err() {
                continue;
            }
            for turn in 0.. {
                assert!(turn < TURNS, "queue {number}: a kick that is never over");
                if self.worker.lock().service(number) != Progress::More {
                    break;
                }
            }
        }
        // What a balloon has taken is gone.
        self.driver.look(false, self.kind.is_multiple_of(2), None);
    }

    fn note_counters(&mut self) {
        for (name, count) in self.worker.lock().device().counters() {
            let sum = self.reached.entry(name.into()).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// What was reached.
    pub fn end(mut self) -> Reached {
        self.note_counters();
        self.reached
            .insert("completed".into(), self.driver.completed);
        self.reached
    }
}

/// A transport's registers, as a driver in good order uses them.
pub trait Registers {
    /// Device status.
    fn status(&self) -> u8;
    /// Writes the status.
    fn set_status(&self, status: u8);
    /// Half of the offered features.
    fn features(&self, half: u32) -> u32;
    /// Accepts half of the features.
    fn accept(&self, half: u32, bits: u32);
    /// Selects a queue.
    fn select(&self, queue: u16);
    /// Sets the selected queue up and enables it.
    fn enable(&self, queue: u16, size: u16, areas: [u64; 3]);
}

/// Sets a device up, up to `DRIVER_OK`, with queues of `size` (a power of two that is possible).
pub fn set_up(registers: &dyn Registers, board: &mut Board, without: u64, size: u16) {
    registers.set_status(0);
    board.driver.start_over();
    registers.set_status(1);
    registers.set_status(3);
    for half in 0..2 {
        let version = feature::VERSION_1 >> (32 * half);
        let leave_out = (without & !feature::VERSION_1) >> (32 * half);
        let bits = registers.features(half) & !(leave_out as u32);
        registers.accept(half, bits | version as u32);
    }
    registers.set_status(11);
    for number in 0..board.kicks.len().min(memory::MOST_QUEUES) {
        registers.select(number as u16);
        registers.enable(number as u16, size, board.driver.areas(number));
        board.driver.set_up(number, size);
    }
    registers.set_status(15);
}
