//! Interrupts: which MSI-X vector means what, the ISR status, the configuration's generation.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::VirtioPciState;
use crate::limit::LogLimit;
use crate::pci::{MsiSink, Msix};
use crate::virtio::{Interrupt, Status};

/// No vector: the event is not signalled (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue, the configuration (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What the device's loop needs of its transport.
pub struct Signals {
    pub status: Status,
    isr: AtomicU8,
    generation: AtomicU8,
    /// Whether the driver is ready. Before that, no message is handed on: all of them follow together.
    live: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    msix: Mutex<Msix>,
    sink: Box<dyn MsiSink>,
    limit: LogLimit,
}

impl Signals {
    pub fn new(sink: Box<dyn MsiSink>, vectors: u16, queues: u16) -> Self {
        Self {
            status: Status::default(),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            live: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            msix: Mutex::new(Msix::new(vectors)),
            sink,
            limit: LogLimit::default(),
        }
    }

    pub fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes MSI-X state, and lets follow what follows from it.
    pub fn change(&self, change: impl FnOnce(&mut Msix)) {
        let mut msix = self.msix();
        change(&mut msix);
        self.settle(&mut msix);
    }

    /// Hands changed messages on, all at once, and fires what is due.
    fn settle(&self, msix: &mut Msix) {
        if !self.live() {
            return;
        }
        let changes = msix.take_changes();
        if !changes.is_empty()
            && let Err(error) = self.sink.route(&changes)
            && self.limit.allow()
        {
            log::error!("cannot route interrupts: {error}");
        }
        while let Some(vector) = msix.take_due() {
            if let Err(error) = self.sink.trigger(vector)
                && self.limit.allow()
            {
                log::error!("cannot raise an interrupt: {error}");
            }
        }
    }

    pub fn live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    pub fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
        self.change(|_| {});
    }

    /// Device reset: no vectors, nothing to be told. The MSI-X table is not the device's (4.1.5.1.2).
    pub fn reset(&self) {
        self.isr.store(0, Ordering::Relaxed);
        for vector in self.all() {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
    }

    /// Configuration, then queues.
    fn all(&self) -> impl Iterator<Item = &AtomicU16> {
        std::iter::once(&self.config_vector).chain(&self.queue_vectors)
    }

    pub fn vectors(&self) -> Vec<u16> {
        let load = |vector: &AtomicU16| vector.load(Ordering::Relaxed);
        self.all().map(load).collect()
    }

    /// Carries on from `saved`; `change` does the same for MSI-X.
    pub fn restore(&self, saved: &VirtioPciState, change: impl FnOnce(&mut Msix)) {
        for (slot, vector) in self.all().zip(&saved.vectors) {
            slot.store(self.possible(*vector), Ordering::Relaxed);
        }
        self.isr.store(saved.isr, Ordering::Release);
        self.generation.store(saved.generation, Ordering::Release);
        self.change(change);
    }

    /// A vector that is not there is none (4.1.5.1.2.1).
    fn possible(&self, vector: u16) -> u16 {
        if vector < self.msix().vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub fn set_config_vector(&self, vector: u16) {
        let vector = self.possible(vector);
        self.config_vector.store(vector, Ordering::Relaxed);
    }

    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        let vector = self.possible(vector);
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(vector, Ordering::Relaxed);
        }
    }

    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// The ISR status, as it stays.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// Reading the ISR status clears it (4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Tells by MSI-X; where that is off there is no interrupt line, and only the ISR status tells.
    fn tell(&self, vector: u16, isr: u8) {
        let mut msix = self.msix();
        if msix.enabled() {
            msix.raise(vector);
            self.settle(&mut msix);
        } else {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        }
    }
}

impl Interrupt for Signals {
    fn used(&self, queue: u16) {
        self.tell(self.queue_vector(queue), ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.tell(self.config_vector(), ISR_CONFIG);
    }

    fn needs_reset(&self) {
        self.status.set(Status::NEEDS_RESET);
        self.tell(self.config_vector(), ISR_CONFIG);
    }
}
