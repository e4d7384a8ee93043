//! The words for a vCPU that cannot go on.

use std::fmt::Write;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use kvm_ioctls::VcpuFd;

use crate::memory::{self, GuestMemory};

/// Bytes of code that are shown: the longest x86 instruction.
const CODE_BYTES: u64 = 15;

/// `KVM_EXIT_INTERNAL_ERROR`: what KVM says, and where the guest was.
pub fn internal_error(vcpu: &mut VcpuFd, memory: &GuestMemory) -> String {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so KVM has filled the union as `internal` (linux/kvm.h).
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let what = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction",
        KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions came on top of each other",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "it cannot deliver an event",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the CPU left the guest for an unknown reason",
        _ => "internal error",
    };
    let mut text = format!("{what} (suberror {}", internal.suberror);
    // Of a failed emulation the data are flags and the bytes at rip, which are shown better below.
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        for value in internal.data.iter().take(internal.ndata as usize) {
            // Writing to a String cannot fail.
            let _ = write!(text, " {value:#x}");
        }
    }
    text.push(')');
    text + &place(vcpu, memory)
}

/// `KVM_EXIT_FAIL_ENTRY`.
pub fn entry_failed(vcpu: &VcpuFd, memory: &GuestMemory, reason: u64) -> String {
    format!("the CPU refused to enter the guest (reason {reason:#x})") + &place(vcpu, memory)
}

/// `KVM_RUN` itself failed.
pub fn run_failed(error: kvm_ioctls::Error) -> String {
    match error.errno() {
        libc::EFAULT => {
            "KVM_RUN failed: the host has no memory behind an address of the guest (was the kernel file cut short?)"
                .into()
        }
        _ => format!("KVM_RUN failed: {error}"),
    }
}

/// Where the guest was: rip, and the bytes there as far as they can be read.
fn place(vcpu: &VcpuFd, memory: &GuestMemory) -> String {
    let Ok(regs) = vcpu.get_regs() else {
        return String::new();
    };
    let base = vcpu.get_sregs().map_or(0, |sregs| sregs.cs.base);
    let code: String = (0..CODE_BYTES)
        .map_while(|offset| {
            let linear = base.wrapping_add(regs.rip).wrapping_add(offset);
            let translation = vcpu.translate_gva(linear).ok()?;
            let address = (translation.valid != 0).then_some(translation.physical_address)?;
            let byte = memory::read_carefully(memory, address)?;
            Some(format!(" {byte:02x}"))
        })
        .collect();
    if code.is_empty() {
        format!(" at rip {:#x}, no readable code there", regs.rip)
    } else {
        format!(" at rip {:#x}:{code}", regs.rip)
    }
}
