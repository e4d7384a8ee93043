//! The interrupt line, and which events it stands for.

use vmm_sys_util::eventfd::EventFd;

use crate::limit::LogLimit;
use crate::virtio::front::{ISR_CONFIG, ISR_QUEUE, Line, Signs};
use crate::virtio::{Interrupt, Status};

/// An edge-triggered line.
pub struct EdgeLine {
    signs: Signs,
    event: EventFd,
    limit: LogLimit,
}

impl EdgeLine {
    pub fn new(event: EventFd) -> Self {
        Self {
            signs: Signs::default(),
            event,
            limit: LogLimit::default(),
        }
    }

    /// The bit first: who sees the edge finds it.
    fn tell(&self, isr: u8) {
        self.signs.set_isr(isr);
        if let Err(error) = self.event.write(1)
            && self.limit.allow()
        {
            log::error!("cannot raise an interrupt: {error}");
        }
    }

    /// Raises the line once more if there is something that the driver has not acknowledged.
    pub fn remind(&self) {
        if self.signs.isr() != 0 {
            self.tell(0);
        }
    }
}

impl Interrupt for EdgeLine {
    fn used(&self, _queue: u16) {
        self.tell(ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.signs.next_generation();
        self.tell(ISR_CONFIG);
    }

    fn needs_reset(&self) {
        self.signs.status.set(Status::NEEDS_RESET);
        self.tell(ISR_CONFIG);
    }
}

impl Line for EdgeLine {
    fn signs(&self) -> &Signs {
        &self.signs
    }

    fn set_live(&self, live: bool) {
        self.signs.store_live(live);
    }

    fn reset(&self) {
        self.signs.clear_isr(u8::MAX);
    }

    /// All queues share the line.
    fn reset_queue(&self, _queue: u16) {}
}
