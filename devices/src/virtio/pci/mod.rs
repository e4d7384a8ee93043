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
#[cfg(test)]
pub(super) mod rig;
mod signals;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::front::{Front, Line};
use super::{Backend, FrontState, Negotiation};
use crate::bus::{Action, Bus, BusDevice};
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
    /// The device. Its number is that on the PCI bus.
    pub backend: Backend,
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
    front: Front<Signals>,
    bus: Weak<Bus>,
    window: Range<u64>,
    doorbells: Box<dyn Doorbells>,
    capabilities: Capabilities,
    state: Mutex<State>,
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
    /// What every transport has, with the device.
    pub front: FrontState,
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
        let (kind, negotiation) = parts.backend.open();
        let queues = negotiation.queues();
        let vectors = Self::vectors(queues);
        let (config, capabilities) = layout::config_space(kind, parts.bar, vectors);
        let signals = Arc::new(Signals::new(parts.sink, vectors, queues));
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            front: Front::new(parts.backend, kind, signals),
            bus: parts.bus,
            window: parts.window,
            doorbells: parts.doorbells,
            capabilities,
            state: Mutex::new(State {
                config,
                negotiation,
                mapped: None,
                ringing: None,
            }),
        })
    }

    fn signals(&self) -> &Signals {
        self.front.line()
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
                    Err(error) => self
                        .front
                        .warn(format_args!("the guest moves it badly: {error}")),
                }
            }
        }
        if !self.signals().signs().live() {
            return self.hush(state);
        }
        if let (Some(base), None) = (state.mapped, state.ringing) {
            state.ringing = Some(base);
            self.each_doorbell(base, |doorbells, at, kick| doorbells.attach(at, kick));
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
        for (index, kick) in self.front.kicks().iter().enumerate() {
            if self.front.serves_at_kick(index) {
                continue;
            }
            let at = base + layout::notify_offset(index as u16);
            if let Err(error) = act(&*self.doorbells, at, kick) {
                self.front
                    .warn(format_args!("doorbell at {at:#x}: {error}"));
            }
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
                    // Reading clears it (4.1.4.5).
                    *first = self.signals().signs().clear_isr(u8::MAX);
                }
            }
            Structure::Device => self.front.read_config(offset, data),
            Structure::Notify => {}
            Structure::MsixTable => self.signals().msix().read_table(offset, data),
            Structure::MsixPending => self.signals().msix().read_pending(offset, data),
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) -> Action {
        let Some((structure, offset)) = layout::find(offset, data.len()) else {
            return Action::Continue;
        };
        match structure {
            Structure::Common => return common::write(self, &mut self.lock(), offset, data),
            Structure::Device => self.front.write_config(offset, data),
            Structure::Notify => self.front.notify(offset / u64::from(layout::NOTIFY_STEP)),
            Structure::MsixTable => self.signals().change(|msix| msix.write_table(offset, data)),
            Structure::Isr | Structure::MsixPending => {}
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
            msix: self.signals().msix().save(),
            vectors: self.signals().vectors(),
            front: self.front.save(&state.negotiation),
        }
    }

    /// Carries on from `saved`, on a function that is new.
    pub fn restore(&self, saved: &VirtioPciState) {
        let state = &mut *self.lock();
        state.config.restore(&saved.config);
        self.signals().restore(saved, |msix| {
            msix.restore(&saved.msix);
            msix.set_control(self.capabilities.msix_control(&state.config));
        });
        self.front.restore(&mut state.negotiation, &saved.front);
        self.place(state);
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
        let master = state.config.is_bus_master();
        state.config.write(offset, data);
        if master && !state.config.is_bus_master() {
            // A kernel that starts another one (kexec) does that to devices that it has not reset, and then uses their buffers
            // for something else. Drivers that never were bus masters by the book are left in peace.
            self.front.halt();
        }
        let control = self.capabilities.msix_control(&state.config);
        self.signals()
            .change(|msix: &mut Msix| msix.set_control(control));
        self.place(&mut state);
        Action::Continue
    }
}
