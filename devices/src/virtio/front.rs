//! What every transport does in the same way: a device's status, its queues and kicks, its start and end.
//!
//! A transport has registers of its own, a [`Negotiation`] behind them, and a [`Front`] that carries out what the
//! driver's writes to them mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{
    Activation, Broken, DeviceState, DeviceType, Interrupt, Memory, Negotiation, NegotiationState,
    Progress, SharedWorker, Status, feature,
};
use crate::bus::Action;
use crate::limit::LogLimit;

/// Interrupt or ISR status: a queue has used buffers, the configuration has changed (4.1.4.5, 4.2.2).
pub const ISR_QUEUE: u8 = 1;
/// The configuration has changed.
pub const ISR_CONFIG: u8 = 2;

/// What a transport is given of its device.
pub struct Backend {
    /// Number among the machine's devices.
    pub number: u8,
    /// The device.
    pub worker: SharedWorker,
    /// An event for each queue: its kick.
    pub kicks: Arc<[EventFd]>,
    /// Guest memory.
    pub memory: Memory,
}

impl Backend {
    /// What the device is, and a negotiation with it that has not begun.
    pub(super) fn open(&self) -> (DeviceType, Negotiation) {
        let mut worker = self.worker.lock();
        let device = worker.device();
        let mut features = device.features();
        if device.queue_reset().is_some() {
            features |= feature::RING_RESET;
        }
        let negotiation = Negotiation::new(features, device.queue_sizes());
        (device.device_type(), negotiation)
    }
}

/// What the device's loop and its driver share in every transport.
#[derive(Default)]
pub struct Signs {
    /// Device status.
    pub status: Status,
    isr: AtomicU8,
    generation: AtomicU32,
    live: AtomicBool,
}

impl Signs {
    /// Whether the driver is ready: from `DRIVER_OK` to a reset.
    pub fn live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// For [`Line::set_live`].
    pub fn store_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
    }

    /// Generation of the configuration (2.5).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The configuration is another from now on.
    pub fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Bits of what the driver has not been seen to know.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// Sets bits of it.
    pub fn set_isr(&self, bits: u8) {
        self.isr.fetch_or(bits, Ordering::AcqRel);
    }

    /// Clears bits of it; returns what was set before.
    pub fn clear_isr(&self, bits: u8) -> u8 {
        self.isr.fetch_and(!bits, Ordering::AcqRel)
    }
}

/// A transport's way to the driver.
pub trait Line: Interrupt {
    /// What the loop and the driver share.
    fn signs(&self) -> &Signs;
    /// The driver is ready, or no longer: stores it with [`Signs::store_live`].
    fn set_live(&self, live: bool);
    /// Device reset.
    fn reset(&self);
    /// A queue is as before it was set up (2.6.1).
    fn reset_queue(&self, queue: u16);
}

/// Saved [`Front`], its device included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontState {
    /// Interrupt or ISR status.
    pub isr: u8,
    /// Generation of the configuration.
    pub generation: u32,
    /// Features and queues.
    pub negotiation: NegotiationState,
    /// The device.
    pub device: DeviceState,
}

/// The transport's end of a device. Its caller holds the lock of the [`Negotiation`].
pub struct Front<L> {
    backend: Backend,
    kind: DeviceType,
    line: Arc<L>,
    /// For each queue, whether it is served at its kick.
    at_kick: Vec<bool>,
    limit: LogLimit,
}

impl<L: Line + 'static> Front<L> {
    /// Of a device that its driver has not seen yet.
    pub fn new(backend: Backend, kind: DeviceType, line: Arc<L>) -> Self {
        let mut worker = backend.worker.lock();
        let device = worker.device();
        let queues = 0..backend.kicks.len() as u16;
        let at_kick = queues.map(|queue| device.serves_at_kick(queue)).collect();
        drop(worker);
        Self {
            backend,
            kind,
            line,
            at_kick,
            limit: LogLimit::default(),
        }
    }

    /// What the device is.
    pub fn kind(&self) -> DeviceType {
        self.kind
    }

    /// The way to the driver.
    pub fn line(&self) -> &L {
        &self.line
    }

    /// The kick of each queue.
    pub fn kicks(&self) -> &[EventFd] {
        &self.backend.kicks
    }

    /// Logs what the guest or the host does wrong, not too often.
    pub fn warn(&self, message: std::fmt::Arguments) {
        if self.limit.allow() {
            let (kind, number) = (self.kind, self.backend.number);
            log::warn!("{kind:?} device (number {number}): {message}");
        }
    }

    fn status(&self) -> &Status {
        &self.line.signs().status
    }

    /// Reads device-specific configuration. `data` is zeroed.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.backend
            .worker
            .lock()
            .device()
            .read_config(offset, data);
    }

    /// Writes device-specific configuration.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let mut worker = self.backend.worker.lock();
        worker.device().write_config(offset, data);
    }

    /// The driver writes the device status. Whether the device is live may be different afterwards.
    pub fn write_status(&self, negotiation: &mut Negotiation, value: u8) -> Action {
        match negotiation.write_status(self.status(), value) {
            super::Step::Stay => Action::Continue,
            super::Step::Start => match self.start(negotiation, None) {
                Ok(()) => Action::DriverOk(self.backend.number),
                Err(broken) => {
                    self.break_off(&broken);
                    Action::Continue
                }
            },
            super::Step::Stop => {
                self.stop();
                Action::Continue
            }
            super::Step::Reset => {
                self.stop();
                negotiation.reset(self.status());
                self.line.reset();
                Action::Continue
            }
        }
    }

    fn start(&self, negotiation: &Negotiation, saved: Option<&DeviceState>) -> Result<(), Broken> {
        let memory = &self.backend.memory;
        let rings = negotiation.rings(memory)?;
        let mut worker = self.backend.worker.lock();
        worker.start(Activation {
            memory: memory.clone(),
            rings,
            features: negotiation.accepted(),
            interrupt: self.line.clone(),
        });
        if let Some(saved) = saved {
            worker.device().restore(saved);
        }
        drop(worker);
        self.line.set_live(true);
        // The driver may have made buffers available before.
        for queue in 0..self.backend.kicks.len() {
            self.kick(queue as u64);
        }
        Ok(())
    }

    fn stop(&self) {
        self.line.set_live(false);
        self.backend.worker.lock().stop();
    }

    /// The device may not touch memory any more, until it is reset. Nobody is told: the driver is gone.
    pub fn halt(&self) {
        if self.line.signs().live() {
            self.stop();
            self.status().set(Status::NEEDS_RESET);
        }
    }

    /// The driver has broken the rules in what it wrote to the device's registers (2.1.2).
    fn break_off(&self, broken: &Broken) {
        self.warn(format_args!("{broken}; it needs a reset"));
        if self.line.signs().live() {
            self.backend.worker.lock().stop();
            self.line.needs_reset();
        } else {
            // Before DRIVER_OK there is nobody to be told.
            self.status().set(Status::NEEDS_RESET);
        }
    }

    /// The driver enables the selected queue. After `DRIVER_OK` that is for queues that were reset (2.6.1.2).
    pub fn enable_queue(&self, negotiation: &mut Negotiation) {
        let result = negotiation.enable_queue(self.status(), &self.backend.memory);
        let result = result.and_then(|enabled| match enabled {
            Some((queue, ring)) if self.line.signs().live() => {
                if !self.backend.worker.lock().start_queue(queue, ring) {
                    return Err(Broken("a queue is enabled after DRIVER_OK"));
                }
                self.kick(queue.into());
                Ok(())
            }
            _ => Ok(()),
        });
        if let Err(broken) = result {
            self.break_off(&broken);
        }
    }

    /// The driver disables the selected queue, which MMIO lets it do at any time (4.2.2.2). A device that cannot part with
    /// a single queue stands still.
    pub fn disable_queue(&self, negotiation: &mut Negotiation) {
        let Some(queue) = negotiation.disable_queue() else {
            return;
        };
        if self.line.signs().live() && !self.backend.worker.lock().reset_queue(queue) {
            self.break_off(&Broken("a queue is disabled after DRIVER_OK"));
        }
    }

    /// The driver resets the selected queue (2.6.1.1). It is done on return: nobody ever reads of a reset under way.
    pub fn reset_queue(&self, negotiation: &mut Negotiation) {
        if negotiation.accepted() & feature::RING_RESET == 0
            || !self.status().has(Status::FEATURES_OK)
        {
            return;
        }
        if let Some(queue) = negotiation.reset_queue() {
            // The device can do it, or it would not have been offered.
            let _ = self.backend.worker.lock().reset_queue(queue);
            self.line.reset_queue(queue);
        }
    }

    /// Whether a queue's kicks are to come by way of a vCPU's thread.
    pub fn serves_at_kick(&self, queue: usize) -> bool {
        self.at_kick.get(queue) == Some(&true)
    }

    /// A kick by the driver that came by way of a vCPU's thread. Lost while the driver is not ready.
    pub fn notify(&self, queue: u64) {
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        if self.serves_at_kick(index) {
            let progress = self.backend.worker.lock().service(index as u16);
            if progress == Progress::Done {
                return;
            }
        }
        self.kick(queue);
    }

    /// Has the loop look at a queue. Lost while the driver is not ready.
    pub fn kick(&self, queue: u64) {
        if !self.line.signs().live() {
            return;
        }
        let kick = usize::try_from(queue)
            .ok()
            .and_then(|at| self.backend.kicks.get(at));
        if let Some(kick) = kick
            && let Err(error) = kick.write(1)
        {
            self.warn(format_args!("cannot kick queue {queue}: {error}"));
        }
    }

    /// The state to carry on from elsewhere. The device must stand still.
    pub fn save(&self, negotiation: &Negotiation) -> FrontState {
        let signs = self.line.signs();
        FrontState {
            isr: signs.isr(),
            generation: signs.generation(),
            negotiation: negotiation.save(&signs.status),
            device: self.backend.worker.lock().device().save(),
        }
    }

    /// Carries on from `saved`, on a front that is new.
    pub fn restore(&self, negotiation: &mut Negotiation, saved: &FrontState) {
        let signs = self.line.signs();
        signs.isr.store(saved.isr, Ordering::Release);
        signs.generation.store(saved.generation, Ordering::Release);
        negotiation.restore(&signs.status, &saved.negotiation);
        let stopped = Status::NEEDS_RESET | Status::FAILED;
        if signs.status.has(Status::DRIVER_OK)
            && signs.status.get() & stopped == 0
            && let Err(broken) = self.start(negotiation, Some(&saved.device))
        {
            self.break_off(&broken);
        }
    }
}
