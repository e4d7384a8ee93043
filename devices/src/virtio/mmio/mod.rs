//! The MMIO transport (4.2), version 2: a page of registers, one interrupt line, a doorbell for all queues.
//!
//! | file        | what lives there                                                 |
//! |-------------|------------------------------------------------------------------|
//! | `registers` | offsets, and what reading and writing the plain ones means (4.2.2)  |
//! | `line`      | the interrupt line, and which events it stands for                 |
//!
//! Outside of the guest's reach, a [`VirtioMmio`] needs an event that raises its interrupt line. The VMM may have writes
//! to [`VirtioMmio::NOTIFY`] signal the queues' kicks without this device's help; those that reach it do the same.
//!
//! # The line is edge-triggered
//!
//! Each event of the device is a bit in `InterruptStatus` and then an edge, also where the bit was set already. A driver
//! reads the bits, acknowledges them and looks at its queues (4.2.3.4), so an edge that falls together with another one
//! leaves its bit to be found; one that comes in the middle is delivered when the handler ends, and finds nothing new at
//! worst. Only an edge at a masked pin of the I/O APIC is lost, which happens to drivers that have not asked for the
//! interrupt yet; their bits wait for the next edge. A level-triggered line would need the guest's end of interrupt to come
//! back to this process each time (a resample event), to learn what the bits say anyway.
//!
//! Lock order: the transport's state, then the worker.

mod line;
mod registers;
#[cfg(test)]
pub(super) mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::front::Front;
use super::{Backend, FrontState, Negotiation};
use crate::bus::{Action, BusDevice};
use line::EdgeLine;

/// A virtio device as a page of registers.
pub struct VirtioMmio {
    front: Front<EdgeLine>,
    negotiation: Mutex<Negotiation>,
}

/// Saved [`VirtioMmio`], its device included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioMmioState {
    /// What every transport has, with the device.
    pub front: FrontState,
}

impl VirtioMmio {
    /// Bytes of the registers, device-specific configuration included.
    pub const LEN: u64 = 0x1000;
    /// Offset of the doorbell: a write of 4 bytes, the number of the queue.
    pub const NOTIFY: u64 = registers::QUEUE_NOTIFY;

    /// A device whose interrupt line `interrupt` raises.
    pub fn new(backend: Backend, interrupt: EventFd) -> Self {
        let (kind, negotiation) = backend.open();
        let line = Arc::new(EdgeLine::new(interrupt));
        Self {
            front: Front::new(backend, kind, line),
            negotiation: Mutex::new(negotiation),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Negotiation> {
        self.negotiation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The state to carry on from elsewhere. The device must stand still.
    pub fn save(&self) -> VirtioMmioState {
        VirtioMmioState {
            front: self.front.save(&self.lock()),
        }
    }

    /// Carries on from `saved`, on a device that is new.
    pub fn restore(&self, saved: &VirtioMmioState) {
        self.front.restore(&mut self.lock(), &saved.front);
        // An edge that was under way may be lost.
        self.front.line().remind();
    }
}

impl BusDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(within) = offset.checked_sub(registers::CONFIG) {
            return self.front.read_config(within, data);
        }
        // 4.2.2.2: registers are read whole.
        if let Ok(slot) = <&mut [u8; 4]>::try_from(data) {
            *slot = registers::read(self, offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let Some(within) = offset.checked_sub(registers::CONFIG) {
            self.front.write_config(within, data);
            return Action::Continue;
        }
        match <[u8; 4]>::try_from(data) {
            Ok(bytes) => registers::write(self, offset, u32::from_le_bytes(bytes)),
            Err(_) => Action::Continue,
        }
    }
}
