//! The driver's side.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::super::{Link, Net, Options, feature, header};
use crate::virtio::negotiation::QueueSetup;
use crate::virtio::rate_limiter::RateLimiterConfig;
use crate::virtio::{
    Activation, Interrupt, Memory, Progress, Ring, SharedWorker, feature as common,
};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

const SIZE: u16 = 64;
/// Bytes of memory for each queue: its areas, then buffers.
const STEP: u64 = 1 << 20;
const AREAS: [u64; 3] = [0x1000, 0x2000, 0x3000];
/// Where a queue's buffers are.
const BUFFERS: u64 = 0x4000;

#[derive(Default)]
pub struct Events {
    pub used: [AtomicU32; 8],
    pub config: AtomicU32,
    pub broken: AtomicU32,
}

impl Interrupt for Events {
    fn used(&self, queue: u16) {
        self.used[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
    }
    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }
}

/// A driver, with a device that it has started.
pub struct Driver {
    pub memory: Memory,
    pub worker: SharedWorker,
    pub events: Arc<Events>,
    queues: Vec<Queue>,
}

#[derive(Clone, Copy, Default)]
struct Queue {
    descriptors: u16,
    offered: u16,
    seen: u16,
    buffers: u64,
}

impl Driver {
    pub fn start(link: Link, pairs: u16, features: u64) -> Self {
        Self::with_limits(link, pairs, features, RateLimiterConfig::default())
    }

    pub fn with_limits(link: Link, pairs: u16, features: u64, limits: RateLimiterConfig) -> Self {
        let options = Options {
            name: "test".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: Some(9000),
            pairs,
            rx_limits: limits,
            tx_limits: limits,
        };
        let worker = SharedWorker::new(Box::new(Net::new(options, link).unwrap()));
        let queues = worker.lock().device().queue_sizes().len();
        let size = STEP as usize * queues;
        let mut driver = Self {
            memory: Memory::from_ranges(&[(GuestAddress(0), size)]).unwrap(),
            worker,
            events: Arc::default(),
            queues: vec![Queue::default(); queues],
        };
        driver.activate(features);
        driver
    }

    /// Sets all queues up from their start, and says that the driver is ready.
    pub fn activate(&mut self, features: u64) {
        let features = features | common::VERSION_1 | common::EVENT_IDX | common::INDIRECT_DESC;
        let rings = (0..self.queues.len()).map(|queue| Some(self.ring(queue, features)));
        let activation = Activation {
            memory: self.memory.clone(),
            rings: rings.collect(),
            features,
            interrupt: self.events.clone(),
        };
        self.worker.lock().start(activation);
    }

    pub fn ring(&self, queue: usize, features: u64) -> Ring {
        let setup = QueueSetup {
            max: 256,
            size: SIZE,
            enabled: true,
            areas: AREAS.map(|area| self.base(queue) + area),
        };
        Ring::new(&setup, features, &self.memory).unwrap()
    }

    fn base(&self, queue: usize) -> u64 {
        STEP * queue as u64
    }

    /// Offers a chain of buffers of these lengths. Returns its head and where the buffers are.
    pub fn offer(&mut self, queue: usize, lengths: &[u32], flags: u16) -> (u16, Vec<GuestAddress>) {
        let base = self.base(queue);
        let state = &mut self.queues[queue];
        let head = state.descriptors % SIZE;
        let mut places = Vec::new();
        for (index, len) in lengths.iter().enumerate() {
            let descriptor = state.descriptors % SIZE;
            state.descriptors += 1;
            let room = STEP - BUFFERS - 0x2_0000;
            let at = base + BUFFERS + state.buffers % room;
            // No two buffers touch: what is written beyond one is seen.
            state.buffers += u64::from(*len).min(0x2_0000) + 16;
            places.push(GuestAddress(at));
            let last = index + 1 == lengths.len();
            let mut bytes = at.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend((flags | if last { 0 } else { NEXT }).to_le_bytes());
            bytes.extend((state.descriptors % SIZE).to_le_bytes());
            let slot = GuestAddress(base + AREAS[0] + 16 * u64::from(descriptor));
            self.memory.write_slice(&bytes, slot).unwrap();
        }
        let slot = base + AREAS[1] + 4 + 2 * u64::from(state.offered % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        state.offered = state.offered.wrapping_add(1);
        let index = GuestAddress(base + AREAS[1] + 2);
        self.memory.write_obj(state.offered, index).unwrap();
        (head, places)
    }

    /// The descriptor that was filled last.
    pub fn last_descriptor(&self, queue: usize) -> u16 {
        (self.queues[queue].descriptors - 1) % SIZE
    }

    fn slot(&self, queue: usize, descriptor: u16) -> u64 {
        self.base(queue) + AREAS[0] + 16 * u64::from(descriptor)
    }

    pub fn make_writable(&self, queue: usize, descriptor: u16) {
        let at = GuestAddress(self.slot(queue, descriptor) + 12);
        self.memory.write_obj(WRITE, at).unwrap();
    }

    pub fn resize(&self, queue: usize, descriptor: u16, len: u32) {
        let at = GuestAddress(self.slot(queue, descriptor) + 8);
        self.memory.write_obj(len, at).unwrap();
    }

    /// Offers a frame to be sent, cut in buffers of `cut` bytes.
    pub fn transmit(&mut self, pair: usize, bytes: &[u8], cut: usize) {
        let lengths: Vec<_> = bytes.chunks(cut).map(|piece| piece.len() as u32).collect();
        let (_, places) = self.offer(2 * pair + 1, &lengths, 0);
        for (piece, at) in bytes.chunks(cut).zip(places) {
            self.memory.write_slice(piece, at).unwrap();
        }
    }

    /// What was given back since the last time: heads with lengths.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let base = self.base(queue);
        let state = &mut self.queues[queue];
        let at = |offset| GuestAddress(base + AREAS[2] + offset);
        let end: u16 = self.memory.read_obj(at(2)).unwrap();
        let mut found = Vec::new();
        while state.seen != end {
            let entry = 4 + 8 * u64::from(state.seen % SIZE);
            let head: u32 = self.memory.read_obj(at(entry)).unwrap();
            found.push((head as u16, self.memory.read_obj(at(entry + 4)).unwrap()));
            state.seen = state.seen.wrapping_add(1);
        }
        found
    }

    /// A kick, with all that follows.
    pub fn kick(&self, queue: usize) {
        while self.worker.lock().service(queue as u16) == Progress::More {}
    }

    /// Gives the host's side turns for as long as it wants any.
    pub fn turn(&self) {
        while self.readable() {
            let _ = self.worker.lock().service_host();
        }
    }

    /// Waits for the host's side to want a turn, and gives it one.
    pub fn wait_and_turn(&self) {
        assert!(self.poll(10_000), "nothing comes");
        let _ = self.worker.lock().service_host();
    }

    /// Whether the host's side wants a turn.
    pub fn readable(&self) -> bool {
        self.poll(0)
    }

    fn poll(&self, milliseconds: i32) -> bool {
        let fd = {
            let mut worker = self.worker.lock();
            worker.device().host_event().unwrap().as_raw_fd()
        };
        poll(fd, libc::POLLIN, milliseconds)
    }

    pub fn bytes(&self, at: GuestAddress, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    /// The link's status as the driver reads it.
    pub fn status(&self) -> u16 {
        let mut bytes = [0; 2];
        self.worker.lock().device().read_config(6, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    pub fn count(&self, name: &str) -> u64 {
        let counters = self.worker.lock().device().counters();
        let found = counters.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no {name}")).1
    }
}

pub fn poll(fd: i32, events: i16, milliseconds: i32) -> bool {
    let mut wanted = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut wanted, 1, milliseconds) == 1 }
}

/// A frame of `len` bytes with its header, told apart from others by `mark`.
pub fn frame(len: usize, mark: u8) -> Vec<u8> {
    let mut bytes = vec![0; header::LEN];
    bytes.extend(ethernet(len, mark));
    bytes
}

/// A broadcast frame of an experimental type.
pub fn ethernet(len: usize, mark: u8) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, mark, 0x88, 0xb5]);
    bytes.extend((bytes.len()..len).map(|index| (index as u8).wrapping_mul(31) ^ mark));
    bytes
}

pub const MERGED: u64 = feature::MRG_RXBUF | feature::STATUS;
