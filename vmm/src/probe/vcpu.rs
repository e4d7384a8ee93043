//! The vCPU of one check: its state at entry, and what its exit means.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{CpuId, KVM_EXIT_INTERNAL_ERROR, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::guest::{self, Program};
use super::runner::{Vm, system};
use super::{Check, Failure, signal};
use crate::cpu::bits::*;

/// A vCPU about to run one program.
pub(super) struct Vcpu {
    fd: VcpuFd,
}

/// An exit, free of the borrow of the vCPU it came from.
enum Exit {
    Io(u16, u8),
    Internal,
    Shutdown,
    FailEntry(u64),
    Other(String),
}

impl Vcpu {
    /// A vCPU in long mode at the program's entry.
    ///
    /// # Errors
    /// [`Failure::System`] with the ioctl that failed.
    pub(super) fn new(vm: &Vm, id: u64, program: Program, cpuid: &CpuId) -> Result<Self, Failure> {
        let fd = vm
            .fd
            .create_vcpu(id)
            .map_err(|e| system("KVM_CREATE_VCPU", e))?;
        signal::let_kick_through(&fd).map_err(|e| system("KVM_SET_SIGNAL_MASK", e))?;
        // Before the control registers: KVM checks CR4 against the guest's CPUID.
        fd.set_cpuid2(cpuid)
            .map_err(|e| system("KVM_SET_CPUID2", e))?;

        let mut sregs = fd.get_sregs().map_err(|e| system("KVM_GET_SREGS", e))?;
        enter_long_mode(&mut sregs);
        if program == Program::Check(Check::Xsave) {
            sregs.cr4 |= CR4_OSXSAVE;
        }
        fd.set_sregs(&sregs)
            .map_err(|e| system("KVM_SET_SREGS", e))?;

        let inject = program == Program::Check(Check::Interrupt);
        let regs = kvm_regs {
            rip: program.entry(),
            rsp: guest::STACK_TOP,
            rflags: RFLAGS_ONE | if inject { RFLAGS_IF } else { 0 },
            rdi: guest::SCRATCH,
            rsi: guest::UNMAPPED,
            r15: program.expected_vector(),
            ..kvm_regs::default()
        };
        fd.set_regs(&regs).map_err(|e| system("KVM_SET_REGS", e))?;

        if inject {
            let mut events = fd
                .get_vcpu_events()
                .map_err(|e| system("KVM_GET_VCPU_EVENTS", e))?;
            events.interrupt.injected = 1;
            events.interrupt.nr = guest::INTERRUPT_VECTOR;
            fd.set_vcpu_events(&events)
                .map_err(|e| system("KVM_SET_VCPU_EVENTS", e))?;
        }
        Ok(Self { fd })
    }

    /// Runs until the program's verdict, another exit, or `stop` and a kick.
    ///
    /// # Errors
    /// Everything but the guest's own report that all went well.
    pub(super) fn run(&mut self, vm: &Vm, stop: &AtomicBool, limit_ms: u64) -> Result<(), Failure> {
        let exit = loop {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port, &[byte])) => break Exit::Io(port, byte),
                Ok(VcpuExit::InternalError) => break Exit::Internal,
                Ok(VcpuExit::Shutdown) => break Exit::Shutdown,
                Ok(VcpuExit::FailEntry(reason, _)) => break Exit::FailEntry(reason),
                Ok(VcpuExit::Intr) => {}
                Ok(other) => break Exit::Other(format!("{other:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(system("KVM_RUN", error)),
            }
            if stop.load(Ordering::Acquire) {
                return Err(Failure::TimedOut {
                    limit_ms,
                    rip: self.rip(),
                });
            }
        };
        let rip = self.rip();
        Err(match exit {
            Exit::Io(guest::PORT_VERDICT, guest::VERDICT_PASS) => return Ok(()),
            Exit::Io(guest::PORT_VERDICT, guest::VERDICT_WRONG) => Failure::WrongResult,
            Exit::Io(guest::PORT_VECTOR, vector) => Failure::UnexpectedVector { vector },
            Exit::Io(port, byte) => Failure::UnexpectedExit {
                exit: format!("IoOut({port:#x}, {byte:#x})"),
                rip,
            },
            Exit::Internal => Failure::InternalError {
                suberror: self.suberror(),
                rip,
                code: vm.hex_at(rip),
            },
            Exit::Shutdown => Failure::Shutdown { rip },
            Exit::FailEntry(reason) => Failure::FailEntry { reason },
            Exit::Other(exit) => Failure::UnexpectedExit { exit, rip },
        })
    }

    /// The instruction pointer; 0 if it cannot be read any more.
    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    fn suberror(&mut self) -> u32 {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
            return 0;
        }
        // SAFETY: the exit reason says that this is the member which the kernel filled in.
        unsafe { run.__bindgen_anon_1.internal.suberror }
    }
}

/// 64-bit mode, CPL 0, with the tables that `guest::image` has laid out.
fn enter_long_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: guest::SELECTOR_DATA,
        type_: 3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.cs = kvm_segment {
        selector: guest::SELECTOR_CODE,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    // VT-x accepts a guest only with a busy TSS in TR.
    sregs.tr = kvm_segment {
        base: guest::TSS,
        limit: guest::TSS_LIMIT,
        selector: guest::SELECTOR_TSS,
        type_: 11,
        db: 0,
        s: 0,
        g: 0,
        ..data
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..kvm_segment::default()
    };
    sregs.gdt = kvm_dtable {
        base: guest::GDT,
        limit: guest::GDT_LIMIT,
        padding: [0; 3],
    };
    sregs.idt = kvm_dtable {
        base: guest::IDT,
        limit: guest::IDT_LIMIT,
        padding: [0; 3],
    };
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = guest::PML4;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    sregs.efer = EFER_SCE | EFER_LME | EFER_LMA;
}
