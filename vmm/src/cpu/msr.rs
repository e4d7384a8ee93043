//! MSRs that a guest expects to find set (Intel SDM volume 4; Linux `arch/x86/include/asm/msr-index.h`).

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::template::get;

const IA32_TSC: u32 = 0x10;
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back: without it Linux takes all memory for uncached.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// The MSRs that are set to the same whatever a template says.
pub const OWN: [u32; 2] = [IA32_TSC, MTRR_DEF_TYPE];

/// Sets the MSRs that are not zero after reset, and starts the TSC at zero on every vCPU alike.
pub fn set(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entries = [
        (IA32_TSC, 0),
        (
            IA32_MISC_ENABLE,
            // What is in it stays: a template's bits, and KVM's that say what its CPU does not have (BTS, PEBS).
            get(vcpu, IA32_MISC_ENABLE).unwrap_or(0) | MISC_ENABLE_FAST_STRING,
        ),
        (MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
    let set = vcpu.set_msrs(&msrs)?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => {
            log::error!("KVM refuses MSR {:#x}", refused.index);
            Err(kvm_ioctls::Error::new(libc::EIO))
        }
    }
}
