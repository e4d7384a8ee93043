//! CPUID, MSRs, registers and local APIC of a vCPU, as firmware and hardware would leave them.

pub(crate) mod bits;
mod cpuid;
mod lapic;
mod msr;
mod registers;

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::kernel::Entry;

pub use cpuid::{Topology, for_vcpu, physical_bits, template};
pub use registers::gdt;

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set the {what} of vCPU {vcpu}")]
pub struct CpuError {
    /// Part of the vCPU.
    pub what: &'static str,
    /// Number of the vCPU.
    pub vcpu: u8,
    /// What KVM said.
    pub source: kvm_ioctls::Error,
}

/// Sets up vCPU number `index`. The boot vCPU, 0, is set to enter the guest at `entry`; the others wait for its SIPI.
///
/// # Errors
/// KVM refused a part of it.
pub fn configure(vcpu: &VcpuFd, index: u8, cpuid: &CpuId, entry: Entry) -> Result<(), CpuError> {
    let failed = |what| {
        move |source| CpuError {
            what,
            vcpu: index,
            source,
        }
    };
    vcpu.set_cpuid2(cpuid).map_err(failed("CPUID"))?;
    msr::set(vcpu).map_err(failed("MSRs"))?;
    registers::set_fpu(vcpu).map_err(failed("FPU"))?;
    lapic::set(vcpu).map_err(failed("local APIC"))?;
    if index == 0 {
        registers::set_entry(vcpu, entry).map_err(failed("registers"))?;
    }
    Ok(())
}
