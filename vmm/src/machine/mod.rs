//! Building a machine and running it.
//!
//! | file      | what lives there                                                               |
//! |-----------|--------------------------------------------------------------------------------|
//! | `builder` | [`MachineBuilder`]: the one constructor, from configuration to [`Machine`]      |
//! | `error`   | why a machine could not be built                                               |
//! | `gate`    | where vCPU threads wait while paused, and learn that it is over                |
//! | `vcpu`    | a vCPU's thread: run, exit, device, run                                        |
//! | `pci`     | the PCI bus and its devices; their interrupts and kicks by KVM's means          |
//! | `io_thread` | the thread that does the devices' work                                         |
//! | `fault`   | the words for a vCPU that cannot go on                                         |
//! | `reset`   | whether a reset was a reboot or an emergency                                   |
//!
//! A machine is born paused. [`start`](Machine::start) makes its threads and lets them go; [`pause`](Machine::pause) and
//! [`resume`](Machine::resume) stop and continue all vCPUs at an instruction boundary, and device work with them; when it ends,
//! [`ended`](Machine::ended) becomes readable and [`exit_reason`](Machine::exit_reason) tells why.
//!
//! Locks: a device's own lock may be held while the console's or the timeline's is taken, never the other way round; the
//! gate's is taken alone. None is held while the guest runs or a vCPU waits.

mod builder;
mod error;
mod fault;
mod gate;
mod io_thread;
mod pci;
mod reset;
mod vcpu;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use devices::acpi::EventRegister;
use devices::legacy::serial::Serial;
use vmm_sys_util::eventfd::EventFd;

use crate::exit::ExitReason;
use crate::kick;
use crate::memory::{GuestMemory, THREAD_STACK};
use crate::timeline::{Phase, Timeline};

pub use builder::{Host, MachineBuilder};
pub use error::BuildError;
use io_thread::{IoDevice, IoThread};
use vcpu::{Shared, Vcpu};

/// A complete machine.
pub struct Machine {
    threads: Vec<JoinHandle<()>>,
    waiting: Vec<Vcpu>,
    /// Devices whose thread is not started yet.
    served: Vec<IoDevice>,
    io: Option<IoThread>,
    shared: Arc<Shared>,
    serial: Arc<Serial>,
    events: Arc<EventRegister>,
    input_space: EventFd,
}

impl Machine {
    /// Starts the threads of vCPUs and devices and lets the guest run.
    ///
    /// # Errors
    /// A thread could not be started; the machine is then stopped.
    pub fn start(&mut self) -> io::Result<()> {
        vcpu::install_kick_handler()?;
        for vcpu in self.waiting.drain(..) {
            let name = format!("vcpu {}", vcpu.index());
            self.shared.gate.enter();
            let thread = thread::Builder::new()
                .name(name)
                .stack_size(THREAD_STACK)
                .spawn(move || vcpu.run())
                .inspect_err(|_| self.shared.gate.leave())?;
            self.threads.push(thread);
        }
        if !self.served.is_empty() {
            let devices = std::mem::take(&mut self.served);
            self.io = Some(IoThread::start(devices, self.shared.clone())?);
        }
        self.shared.gate.open();
        Ok(())
    }

    /// Stops all vCPUs where they are, and device work between two pieces; returns when nothing of it runs.
    pub fn pause(&self) {
        self.shared.gate.close();
        self.kick();
        self.shared.gate.wait_until_parked();
    }

    /// Lets paused vCPUs run on.
    pub fn resume(&self) {
        self.shared.gate.open();
    }

    /// Ends the machine for `reason`, unless it has ended already.
    pub fn end(&self, reason: ExitReason) {
        self.shared.gate.end(reason);
    }

    /// Presses the power button; what follows is up to the guest.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.events.press_power_button()
    }

    /// Becomes readable when the machine has ended.
    pub fn ended(&self) -> &EventFd {
        self.shared.gate.ended()
    }

    /// Why the machine has ended, once it has.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.shared.gate.exit_reason()
    }

    /// The serial port.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Becomes readable when the guest has read all serial input.
    pub fn input_space(&self) -> &EventFd {
        &self.input_space
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// When what was reached.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.shared.timeline
    }

    /// Makes every vCPU leave the guest, and the devices' thread its wait.
    fn kick(&self) {
        for thread in &self.threads {
            kick::send(thread);
        }
        if let Some(io) = &self.io {
            io.kick();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.gate.shut();
        self.kick();
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has nothing more to say here.
            let _ = thread.join();
        }
        if let Some(io) = &mut self.io {
            io.join();
        }
        self.shared.timeline.mark(Phase::Shutdown);
    }
}
