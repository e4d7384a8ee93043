//! MSRs that a guest expects to find set (Intel SDM volume 4; Linux `arch/x86/include/asm/msr-index.h`).

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

const IA32_TSC: u32 = 0x10;
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back: without it Linux takes all memory for uncached.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Sets the MSRs that are not zero after reset, and starts the TSC at zero on every vCPU alike.
pub fn set(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entries = [
        (IA32_TSC, 0),
        (
            IA32_MISC_ENABLE,
            misc_enable(vcpu) | MISC_ENABLE_FAST_STRING,
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

/// What KVM has in `IA32_MISC_ENABLE`: bits that say what its CPU does not have (BTS, PEBS) are to stay.
fn misc_enable(vcpu: &VcpuFd) -> u64 {
    let entry = kvm_msr_entry {
        index: IA32_MISC_ENABLE,
        ..Default::default()
    };
    let Ok(mut msrs) = Msrs::from_entries(&[entry]) else {
        return 0;
    };
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map_or(0, |entry| entry.data),
        _ => 0,
    }
}
