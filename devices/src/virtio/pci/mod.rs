//! The PCI transport (4.1), modern only: one BAR with all structures, MSI-X, kicks by doorbells.
//!
//! | file        | what lives there                                              |
//! |-------------|---------------------------------------------------------------|
//! | `common`    | the common configuration structure (4.1.4.3)                    |
//! | `layout`    | where the structures are, and the capabilities that say so      |
//! | `signals`   | interrupts: MSI-X vectors, ISR status, config generation        |
//!
//! Outside of the guest's reach, a [`VirtioPci`] needs two things that the VMM implements: a
//! [`MsiSink`] for interrupts and [`Doorbells`] for kicks.
//!
//! Lock order: the transport's state, then the worker, then the MSI-X table. The bus's lock is innermost.

mod common;
mod layout;
mod signals;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{
    Activation, DeviceState, Memory, Negotiation, NegotiationState, SharedWorker, Status, Step,
};
use crate::bus::{Action, Bus, BusDevice};
use crate::limit::LogLimit;
use crate::pci::{ConfigSpace, MsiSink, Msix, MsixState, PciFunction};
use layout::{Capabilities, Structure};
use signals::Signals;

/// Guest addresses whose writes are turned into events without the help of a vCPU's thread.
pub trait Doorbells: Send + Sync {
    /// From now on a write to `address` signals `event`.
    ///
    /// # Errors
    /// It cannot be had; writes then take the usual way.
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes it.
    ///
    /// # Errors
    /// It was not attached.
    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// What a function is made from.
pub struct Parts {
    /// Device number on the bus.
    pub slot: u8,
    /// The device.
    pub worker: SharedWorker,
    /// An event for each queue: its kick.
    pub kicks: Arc<[EventFd]>,
    /// Guest memory.
    pub memory: Memory,
    /// The bus that the BAR is on.
    pub bus: Weak<Bus>,
    /// Where a BAR may be.
    pub window: Range<u64>,
    /// Where the VMM places it, in the window.
    pub bar: u32,
    /// The way of interrupts: a vector for each queue and one for configuration changes.
    pub sink: Box<dyn MsiSink>,
    /// The way of kicks.
    pub doorbells: Box<dyn Doorbells>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    this: Weak<Self>,
    slot: u8,
    worker: SharedWorker,
    kicks: Arc<[EventFd]>,
    memory: Memory,
    bus: Weak<Bus>,
    window: Range<u64>,
    doorbells: Box<dyn Doorbells>,
    capabilities: Capabilities,
    signals: Arc<Signals>,
    state: Mutex<State>,
    limit: LogLimit,
}

struct State {
    config: ConfigSpace,
    negotiation: Negotiation,
    /// Where the BAR answers.
    mapped: Option<u64>,
    /// Where doorbells are attached.
    ringing: Option<u64>,
}

/// Saved [`VirtioPci`], its device included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// Configuration space.
    pub config: Vec<u8>,
    /// MSI-X table.
    pub msix: MsixState,
    /// Vector of configuration changes, then of each queue.
    pub vectors: Vec<u16>,
    /// ISR status.
    pub isr: u8,
    /// Generation of the configuration.
    pub generation: u8,
    /// Features and queues.
    pub negotiation: NegotiationState,
    /// The device.
    pub device: DeviceState,
}

impl VirtioPci {
    /// Bytes of the BAR.
    pub const BAR_SIZE: u32 = layout::BAR_SIZE;

    /// Vectors that a device with so many queues has.
    pub fn vectors(queues: u16) -> u16 {
        queues.saturating_add(1).min(layout::MOST_VECTORS)
    }

    /// A function, not on any bus yet. Its BAR appears when the guest switches memory decoding on.
    pub fn new(parts: Parts) -> Arc<Self> {
        let (negotiation, kind) = {
            let mut worker = parts.worker.lock();
            let device = worker.device();
            let negotiation = Negotiation::new(device.features(), device.queue_sizes());
            (negotiation, device.device_type())
        };
        let queues = negotiation.queues();
        let vectors = Self::vectors(queues);
        let (config, capabilities) = layout::config_space(kind, parts.bar, vectors);
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            slot: parts.slot,
            worker: parts.worker,
            kicks: parts.kicks,
            memory: parts.memory,
            bus: parts.bus,
            window: parts.window,
            doorbells: parts.doorbells,
            capabilities,
            signals: Arc::new(Signals::new(parts.sink, vectors, queues)),
            state: Mutex::new(State {
                config,
                negotiation,
                mapped: None,
                ringing: None,
            }),
            limit: LogLimit::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the bus and the doorbells to where the BAR says.
    fn place(&self, state: &mut State) {
        let size = u64::from(layout::BAR_SIZE);
        let wanted = state.config.decoded_bar().filter(|base| {
            let end = base.saturating_add(size);
            self.window.start <= *base && end <= self.window.end
        });
        if wanted != state.mapped {
            self.hush(state);
            let (Some(bus), Some(this)) = (self.bus.upgrade(), self.this.upgrade()) else {
                return;
            };
            if let Some(base) = state.mapped.take() {
                bus.remove(base);
            }
            if let Some(base) = wanted {
                match bus.insert(base, size, this) {
                    Ok(()) => state.mapped = Some(base),
                    Err(error) if self.limit.allow() => {
                        log::warn!("the guest moves PCI device {} badly: {error}", self.slot);
                    }
                    Err(_) => {}
                }
            }
        }
        match state.mapped {
            Some(base) if self.signals.live() && state.ringing.is_none() => {
                state.ringing = Some(base);
                self.each_doorbell(base, |doorbells, at, kick| doorbells.attach(at, kick));
            }
            _ => {}
        }
    }

    /// Takes the doorbells away.
    fn hush(&self, state: &mut State) {
        if let Some(base) = state.ringing.take() {
            self.each_doorbell(base, |doorbells, at, kick| doorbells.detach(at, kick));
        }
    }

    fn each_doorbell(
        &self,
        base: u64,
        act: impl Fn(&dyn Doorbells, u64, &EventFd) -> io::Result<()>,
    ) {
        for (index, kick) in self.kicks.iter().enumerate() {
            let at = base + layout::notify_offset(index as u16);
            if let Err(error) = act(&*self.doorbells, at, kick)
                && self.limit.allow()
            {
                log::warn!("PCI device {}: doorbell at {at:#x}: {error}", self.slot);
            }
        }
    }

    /// Carries out what follows from a write to the device status.
    fn take_step(&self, state: &mut State, step: Step) -> Action {
        match step {
            Step::Stay => Action::Continue,
            Step::Start => self.start(state),
            Step::Stop => {
                self.stop(state);
                Action::Continue
            }
            Step::Reset => {
                self.stop(state);
                state.negotiation.reset(&self.signals.status);
                self.signals.reset();
                Action::Continue
            }
        }
    }

    fn start(&self, state: &mut State) -> Action {
        let rings = match state.negotiation.rings(&self.memory) {
            Ok(rings) => rings,
            Err(broken) => {
                self.break_off(&broken);
                return Action::Continue;
            }
        };
        self.worker.lock().start(Activation {
            memory: self.memory.clone(),
            rings,
            features: state.negotiation.accepted(),
            interrupt: self.signals.clone(),
        });
        self.signals.set_live(true);
        self.place(state);
        // The driver may have made buffers available before.
        for index in 0..self.kicks.len() {
            self.kick(index);
        }
        Action::DriverOk(self.slot)
    }

    fn stop(&self, state: &mut State) {
        self.hush(state);
        self.signals.set_live(false);
        self.worker.lock().stop();
    }

    /// The driver has broken the rules while it set the device up.
    fn break_off(&self, broken: &super::Broken) {
        if self.limit.allow() {
            log::warn!("PCI device {}: {broken}; it needs a reset", self.slot);
        }
        self.signals.status.set(Status::NEEDS_RESET);
    }

    fn kick(&self, index: usize) {
        if let Some(kick) = self.kicks.get(index)
            && let Err(error) = kick.write(1)
            && self.limit.allow()
        {
            log::warn!(
                "PCI device {}: cannot kick queue {index}: {error}",
                self.slot
            );
        }
    }

    /// Reads in the BAR. `data` is zeroed.
    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        let Some((structure, offset)) = layout::find(offset, data.len()) else {
            return;
        };
        match structure {
            Structure::Common => common::read(self, &mut self.lock(), offset, data),
            Structure::Isr => {
                if let (0, Some(first)) = (offset, data.first_mut()) {
                    *first = self.signals.take_isr();
                }
            }
            Structure::Device => self.worker.lock().device().read_config(offset, data),
            Structure::Notify => {}
            Structure::MsixTable => self.signals.msix().read_table(offset, data),
            Structure::MsixPending => self.signals.msix().read_pending(offset, data),
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) -> Action {
        let Some((structure, offset)) = layout::find(offset, data.len()) else {
            return Action::Continue;
        };
        match structure {
            Structure::Common => return common::write(self, &mut self.lock(), offset, data),
            Structure::Device => self.worker.lock().device().write_config(offset, data),
            Structure::Notify if self.signals.live() => {
                self.kick((offset / u64::from(layout::NOTIFY_STEP)) as usize);
            }
            Structure::MsixTable => self.signals.change(|msix| msix.write_table(offset, data)),
            Structure::Notify | Structure::Isr | Structure::MsixPending => {}
        }
        Action::Continue
    }

    /// The access that the guest's PCI configuration access capability describes (4.1.4.9): offset in the BAR and length.
    fn window_access(&self, config: &ConfigSpace) -> Option<(u64, usize)> {
        let (bar, offset, len) = self.capabilities.access(config);
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        (bar == 0 && fits).then_some((offset.into(), len as usize))
    }

    /// The state to carry on from elsewhere. The device must stand still.
    pub fn save(&self) -> VirtioPciState {
        let state = self.lock();
        VirtioPciState {
            config: state.config.save(),
            msix: self.signals.msix().save(),
            vectors: self.signals.vectors(),
            isr: self.signals.isr(),
            generation: self.signals.generation(),
            negotiation: state.negotiation.save(&self.signals.status),
            device: self.worker.lock().device().save(),
        }
    }

    /// Carries on from `saved`, on a function that is new.
    pub fn restore(&self, saved: &VirtioPciState) {
        let state = &mut *self.lock();
        state.config.restore(&saved.config);
        self.signals.restore(saved, |msix| {
            msix.restore(&saved.msix);
            msix.set_control(self.capabilities.msix_control(&state.config));
        });
        let status = &self.signals.status;
        state.negotiation.restore(status, &saved.negotiation);
        self.place(state);
        let running = Status::DRIVER_OK;
        let stopped = Status::NEEDS_RESET | Status::FAILED;
        if status.has(running) && status.get() & stopped == 0 {
            let _ = self.start(state);
            self.worker.lock().device().restore(&saved.device);
        }
    }
}

impl BusDevice for VirtioPci {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.read_bar(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        self.write_bar(offset, data)
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        if offset == self.capabilities.access_data() {
            let access = self.window_access(&self.lock().config);
            if let Some((at, len)) = access.filter(|(_, len)| *len == data.len()) {
                data.fill(0);
                return self.read_bar(at, &mut data[..len]);
            }
        }
        self.lock().config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Action {
        let mut state = self.lock();
        if offset == self.capabilities.access_data() {
            let access = self.window_access(&state.config);
            // The BAR's own handlers take the lock.
            drop(state);
            return match access {
                Some((at, len)) if len == data.len() => self.write_bar(at, data),
                _ => Action::Continue,
            };
        }
        state.config.write(offset, data);
        let control = self.capabilities.msix_control(&state.config);
        self.signals
            .change(|msix: &mut Msix| msix.set_control(control));
        self.place(&mut state);
        Action::Continue
    }
}
