//! A vCPU's thread: run, exit, device, run.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::ptr;
use std::sync::Arc;

use devices::{Action, Bus};
use kvm_bindings::{
    KVM_EXIT_IO_IN, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

use super::fault;
use super::gate::{Gate, Passage};
use super::reset;
use crate::confine::{Confine, Role};
use crate::console::Room;
use crate::exit::{ExitReason, PanicSign};
use crate::kick;
use crate::memory::GuestMemory;
use crate::timeline::{Phase, Timeline};

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs; null outside of it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Makes the kick signal do its work in every vCPU thread of this process.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // A kick between the look at the gate and KVM_RUN would be lost without the flag.
        let flag = IMMEDIATE_EXIT.get();
        if !flag.is_null() {
            // SAFETY: not null, so it points into the kvm_run of the vCPU whose loop this thread is in, which is mapped
            // until after the pointer was cleared.
            unsafe { flag.write_volatile(1) };
        }
    }
    register_signal_handler(kick::signal(), handler)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// What a guest reaches by port I/O and by MMIO.
pub struct Buses {
    pub ports: Bus,
    /// Shared with the PCI functions, which move on it.
    pub mmio: Arc<Bus>,
}

/// What all vCPUs of a machine share.
pub struct Shared {
    pub vm: Arc<VmFd>,
    pub buses: Buses,
    /// Names of virtio devices, by their number.
    pub names: BTreeMap<u8, String>,
    pub gate: Gate,
    pub room: Room,
    pub timeline: Arc<Timeline>,
    pub memory: GuestMemory,
    /// What each thread does first.
    pub confine: Confine,
}

/// One vCPU and all that its thread needs.
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    shared: Arc<Shared>,
}

/// What becomes of the thread after an exit.
enum Next {
    /// Back into the guest.
    Run,
    /// To the gate first.
    Gate,
    /// The machine is over.
    End(ExitReason),
}

/// Tells the gate when the thread is gone, however it went.
struct Presence<'a> {
    gate: &'a Gate,
    index: u8,
    expected: bool,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
        if !self.expected {
            self.gate.end(ExitReason::VcpuLost {
                vcpu: self.index,
                detail: "its thread ended by itself".into(),
            });
        }
        self.gate.leave();
    }
}

impl Vcpu {
    pub fn new(index: u8, fd: VcpuFd, shared: Arc<Shared>) -> Self {
        Self { index, fd, shared }
    }

    pub fn index(&self) -> u8 {
        self.index
    }

    /// The thread.
    pub fn run(mut self) {
        let shared = self.shared.clone();
        let mut presence = Presence {
            gate: &shared.gate,
            index: self.index,
            expected: false,
        };
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        // Whoever started this process may have had the signal blocked, and threads inherit that.
        let blocked = unblock_signal(kick::signal());
        if let Err(error) = blocked {
            log::error!(
                "vCPU {}: cannot let the kick through: {error:?}",
                self.index
            );
        }
        let over = match (shared.confine)(Role::Vcpu) {
            Ok(()) => self.run_until_over(),
            Err(error) => Some(ExitReason::VcpuLost {
                vcpu: self.index,
                detail: format!("its thread cannot be confined: {error}"),
            }),
        };
        if let Some(reason) = over {
            log::debug!("vCPU {}: {reason}", self.index);
            shared.gate.end(reason);
        }
        presence.expected = true;
    }

    /// Runs until this vCPU ends the machine, or, with `None`, until somebody else has.
    fn run_until_over(&mut self) -> Option<ExitReason> {
        let mut first = true;
        loop {
            // Cleared before the look at the gate: a kick after that sets it again.
            self.fd.set_kvm_immediate_exit(0);
            match self.shared.gate.pass() {
                Passage::Over => return None,
                Passage::Go { waited } if waited && !first => self.forgive_lost_time(),
                Passage::Go { .. } => {}
            }
            if first && self.index == 0 {
                self.shared.timeline.mark(Phase::FirstVcpuEntry);
            }
            first = false;
            loop {
                match self.run_once() {
                    Next::Run => {}
                    Next::Gate => break,
                    Next::End(reason) => return Some(reason),
                }
            }
        }
    }

    /// Tells a guest with kvm-clock that it was paused, so that its watchdogs do not bark.
    fn forgive_lost_time(&self) {
        // EINVAL: the guest has no kvm-clock, and then no watchdog that would look at it.
        if let Err(error) = self.fd.kvmclock_ctrl()
            && error.errno() != libc::EINVAL
        {
            log::warn!(
                "vCPU {}: cannot tell the guest of the pause: {error}",
                self.index
            );
        }
    }

    fn run_once(&mut self) -> Next {
        let index = self.index;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Next::Gate,
            Err(error) => {
                return Next::End(ExitReason::VcpuLost {
                    vcpu: index,
                    detail: fault::run_failed(error),
                });
            }
        };
        let action = match exit {
            VcpuExit::IoOut(port, data) if data.len() == 1 => {
                self.shared.buses.ports.write(port.into(), data)
            }
            VcpuExit::IoIn(port, data) if data.len() == 1 => {
                self.shared.buses.ports.read(port.into(), data);
                Action::Continue
            }
            VcpuExit::IoOut(..) | VcpuExit::IoIn(..) => self.wide_or_repeated_io(),
            VcpuExit::MmioRead(address, data) => {
                self.shared.buses.mmio.read(address, data);
                Action::Continue
            }
            VcpuExit::MmioWrite(address, data) => self.shared.buses.mmio.write(address, data),
            VcpuExit::Intr => return Next::Gate,
            VcpuExit::Shutdown => return Next::End(ExitReason::TripleFault { vcpu: index }),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Action::PowerOff,
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Action::Reset,
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => Action::Panicked,
            VcpuExit::InternalError => {
                let detail = fault::internal_error(&mut self.fd, &self.shared.memory);
                return Next::End(ExitReason::InternalError {
                    vcpu: index,
                    detail,
                });
            }
            VcpuExit::FailEntry(reason, _) => {
                let detail = fault::entry_failed(&self.fd, &self.shared.memory, reason);
                return Next::End(ExitReason::InternalError {
                    vcpu: index,
                    detail,
                });
            }
            unexpected => {
                let detail =
                    format!("KVM left the guest for a reason that cannot be: {unexpected:?}");
                return Next::End(ExitReason::VcpuLost {
                    vcpu: index,
                    detail,
                });
            }
        };
        self.carry_out(action)
    }

    fn carry_out(&self, action: Action) -> Next {
        match action {
            Action::Continue => Next::Run,
            Action::Congested => {
                self.shared.room.wait(|| !self.shared.gate.is_open());
                Next::Run
            }
            Action::InitReached => {
                self.shared.timeline.mark(Phase::InitReached);
                Next::Run
            }
            Action::DriverOk(slot) => {
                let name = self.shared.names.get(&slot);
                let name = name.map_or("?", String::as_str);
                self.shared.timeline.mark_driver_ok(name);
                Next::Run
            }
            Action::PowerOff => Next::End(ExitReason::PowerOff),
            Action::Panicked => Next::End(ExitReason::Panic(PanicSign::Reported)),
            Action::Reset if reset::is_emergency(&self.shared.vm) => {
                Next::End(ExitReason::Panic(PanicSign::EmergencyRestart))
            }
            Action::Reset => Next::End(ExitReason::Reset),
        }
    }

    /// Port I/O of more than a byte: one wide access, or string instructions, for which KVM hands over several
    /// elements at once. kvm-ioctls does not tell them apart.
    fn wide_or_repeated_io(&mut self) -> Action {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_IO, so KVM has filled the union as `io` (linux/kvm.h).
        let io = unsafe { (*run).__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let length = size * io.count as usize;
        // SAFETY: KVM keeps the elements `data_offset` bytes behind the start of kvm_run, inside the area that kvm-ioctls
        // has mapped, and nobody else looks at them until the next KVM_RUN.
        let data = unsafe {
            std::slice::from_raw_parts_mut(run.cast::<u8>().add(io.data_offset as usize), length)
        };
        let mut result = Action::Continue;
        for element in data.chunks_mut(size.max(1)) {
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                self.shared.buses.ports.read(io.port.into(), element);
                continue;
            }
            match self.shared.buses.ports.write(io.port.into(), element) {
                Action::Continue => {}
                // The elements of one exit, a page at most, still fit.
                Action::Congested => result = Action::Congested,
                ready @ Action::DriverOk(_) => result = ready,
                ending => return ending,
            }
        }
        result
    }
}
