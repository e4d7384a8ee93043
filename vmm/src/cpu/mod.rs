//! CPUID, MSRs, registers and local APIC of a vCPU, as firmware and hardware would leave them.
//!
//! What KVM supports, then the configuration's [`Template`], then what only the machine knows ([`normalise`], [`for_vcpu`],
//! [`configure`]): the last one counts.

pub(crate) mod bits;
mod cpuid;
mod lapic;
mod msr;
mod registers;
mod static_templates;
mod template;

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::kernel::Entry;

pub use cpuid::{Topology, for_vcpu, normalise, physical_bits};
pub use registers::gdt;
pub use template::Template;

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

/// Gives vCPU number `index` its CPUID, on which it depends what MSRs it has.
///
/// # Errors
/// KVM refused it.
pub fn set_cpuid(vcpu: &VcpuFd, index: u8, cpuid: &CpuId) -> Result<(), CpuError> {
    vcpu.set_cpuid2(cpuid).map_err(|source| CpuError {
        what: "CPUID",
        vcpu: index,
        source,
    })
}

/// Sets up vCPU number `index`, which has its CPUID. The boot vCPU, 0, is set to enter the guest at `entry`; the others
/// wait for its SIPI.
///
/// # Errors
/// KVM refused a part of it.
pub fn configure(vcpu: &VcpuFd, index: u8, entry: Entry) -> Result<(), CpuError> {
    let failed = |what| {
        move |source| CpuError {
            what,
            vcpu: index,
            source,
        }
    };
    msr::set(vcpu).map_err(failed("MSRs"))?;
    registers::set_fpu(vcpu).map_err(failed("FPU"))?;
    lapic::set(vcpu).map_err(failed("local APIC"))?;
    if index == 0 {
        registers::set_entry(vcpu, entry).map_err(failed("registers"))?;
    }
    Ok(())
}
