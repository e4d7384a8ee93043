//! Interrupts: which MSI-X vector means what, and the ISR status where MSI-X is off.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

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
        for (vector, connected) in msix.take_connections() {
            if let Err(error) = self.sink.connect(vector, connected)
                && self.limit.allow()
            {
                log::error!("cannot connect an interrupt: {error}");
            }
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

    /// The vector's own event. While a vector is masked, KVM does not see it: what is signalled then stays in the event,
    /// and is seen when it is connected again.
    fn used_event(&self, queue: u16) -> Option<EventFd> {
        let vector = self.queue_vector(queue);
        let mut msix = self.msix();
        let event = self.sink.event(vector).filter(|_| msix.enabled())?;
        msix.set_direct(vector);
        self.settle(&mut msix);
        Some(event)
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

#[cfg(test)]
mod tests {
    use super::super::rig::{Event, Outside};
    use super::*;
    use crate::pci::MsiMessage;

    #[test]
    fn an_event_that_the_kernel_signals_is_connected_while_its_vector_can_fire() {
        let outside = Outside::default();
        let signals = Signals::new(Box::new(outside.clone()), 3, 2);
        let mask = |vector: u64, masked: u32| {
            signals.change(|msix| msix.write_table(16 * vector + 12, &masked.to_le_bytes()));
        };
        signals.set_queue_vector(0, 1);
        assert!(signals.used_event(0).is_none(), "MSI-X is off");
        signals.change(|msix| {
            msix.write_table(16, &0xfee0_0000_u64.to_le_bytes());
            msix.set_control(Msix::ENABLE);
        });
        assert!(signals.used_event(0).is_some());
        assert!(signals.used_event(1).is_none(), "no vector");
        mask(1, 0);
        assert!(outside.take().is_empty(), "before the driver is ready");
        signals.set_live(true);
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0,
        };
        let route = Event::Route(vec![(1, message)]);
        assert_eq!(outside.take(), [route, Event::Connect(1, true)]);
        // Nothing for what stays as it is, nor for a vector that only this process fires.
        for (vector, masked) in [(1, 0), (0, 0), (2, 1), (0, 1)] {
            mask(vector, masked);
        }
        let others = outside.take();
        assert!(
            others
                .iter()
                .all(|event| matches!(event, Event::Route(changes) if changes[0].0 == 0))
        );
        mask(1, 1);
        assert_eq!(outside.take(), [Event::Connect(1, false)]);
        // This process's own signs wait in the table, as ever.
        signals.used(0);
        assert!(outside.take().is_empty());
        mask(1, 0);
        assert_eq!(outside.take(), [Event::Connect(1, true), Event::Trigger(1)]);
        signals.change(|msix| msix.set_control(0));
        assert_eq!(outside.take(), [Event::Connect(1, false)]);
    }
}
