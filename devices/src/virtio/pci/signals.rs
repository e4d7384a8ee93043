//! Interrupts: which MSI-X vector means what, and the ISR status where MSI-X is off.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::VirtioPciState;
use crate::limit::LogLimit;
use crate::pci::{MsiSink, Msix};
use crate::virtio::front::{ISR_CONFIG, ISR_QUEUE, Line, Signs};
use crate::virtio::{Interrupt, Status};

/// No vector: the event is not signalled (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// What the device's loop needs of its transport.
pub struct Signals {
    signs: Signs,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    msix: Mutex<Msix>,
    sink: Box<dyn MsiSink>,
    limit: LogLimit,
}

impl Signals {
    pub fn new(sink: Box<dyn MsiSink>, vectors: u16, queues: u16) -> Self {
        Self {
            signs: Signs::default(),
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
        // Before the driver is ready, no message is handed on: all of them follow together.
        if !self.signs.live() {
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

    /// Tells by MSI-X; where that is off there is no interrupt line, and only the ISR status tells.
    fn tell(&self, vector: u16, isr: u8) {
        let mut msix = self.msix();
        if msix.enabled() {
            msix.raise(vector);
            self.settle(&mut msix);
        } else {
            self.signs.set_isr(isr);
        }
    }
}

impl Interrupt for Signals {
    fn used(&self, queue: u16) {
        self.tell(self.queue_vector(queue), ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.signs.next_generation();
        self.tell(self.config_vector(), ISR_CONFIG);
    }

    fn needs_reset(&self) {
        self.signs.status.set(Status::NEEDS_RESET);
        self.tell(self.config_vector(), ISR_CONFIG);
    }
}

impl Line for Signals {
    fn signs(&self) -> &Signs {
        &self.signs
    }

    fn set_live(&self, live: bool) {
        self.signs.store_live(live);
        self.change(|_| {});
    }

    /// No vectors, nothing to be told. The MSI-X table is not the device's (4.1.5.1.2).
    fn reset(&self) {
        self.signs.clear_isr(u8::MAX);
        for vector in self.all() {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
    }

    fn reset_queue(&self, queue: u16) {
        self.set_queue_vector(queue, NO_VECTOR);
    }
}
