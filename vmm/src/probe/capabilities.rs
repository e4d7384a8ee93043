//! The KVM capabilities that Tandem asks about: the table, and asking it.

use kvm_bindings as kvm;
use kvm_ioctls::Kvm;
use serde::Serialize;

/// One capability and what this KVM answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Name in linux/kvm.h without `KVM_CAP_`.
    pub name: &'static str,
    /// Without it no VM of ours runs.
    pub needed: bool,
    /// What Tandem uses it for.
    pub purpose: &'static str,
    /// `KVM_CHECK_EXTENSION`'s answer: 0 is absent, what other values mean depends on the capability.
    pub value: i32,
}

impl Capability {
    /// Whether KVM has it.
    pub fn is_present(&self) -> bool {
        self.value > 0
    }
}

type Row = (u32, &'static str, &'static str);

const NEEDED: &[Row] = &[
    (kvm::KVM_CAP_USER_MEMORY, "USER_MEMORY", "guest memory"),
    (
        kvm::KVM_CAP_IRQCHIP,
        "IRQCHIP",
        "in-kernel PIC, I/O APIC and local APICs",
    ),
    (
        kvm::KVM_CAP_IRQ_ROUTING,
        "IRQ_ROUTING",
        "MSI-X interrupt routes",
    ),
    (kvm::KVM_CAP_IRQFD, "IRQFD", "interrupts from devices"),
    (
        kvm::KVM_CAP_IOEVENTFD,
        "IOEVENTFD",
        "queue notifications from the guest",
    ),
    (
        kvm::KVM_CAP_EXT_CPUID,
        "EXT_CPUID",
        "the CPU features the guest sees",
    ),
    (
        kvm::KVM_CAP_MP_STATE,
        "MP_STATE",
        "starting and stopping vCPUs",
    ),
    (
        kvm::KVM_CAP_VCPU_EVENTS,
        "VCPU_EVENTS",
        "pending events of a vCPU",
    ),
    (kvm::KVM_CAP_XSAVE, "XSAVE", "FPU and vector state"),
    (kvm::KVM_CAP_XCRS, "XCRS", "extended control registers"),
    (
        kvm::KVM_CAP_SET_TSS_ADDR,
        "SET_TSS_ADDR",
        "real mode on Intel CPUs",
    ),
    (
        kvm::KVM_CAP_IMMEDIATE_EXIT,
        "IMMEDIATE_EXIT",
        "stopping a vCPU without a race",
    ),
];

const OPTIONAL: &[Row] = &[
    (
        kvm::KVM_CAP_NR_VCPUS,
        "NR_VCPUS",
        "recommended number of vCPUs",
    ),
    (
        kvm::KVM_CAP_MAX_VCPUS,
        "MAX_VCPUS",
        "largest number of vCPUs",
    ),
    (
        kvm::KVM_CAP_NR_MEMSLOTS,
        "NR_MEMSLOTS",
        "number of memory regions",
    ),
    (
        kvm::KVM_CAP_GET_TSC_KHZ,
        "GET_TSC_KHZ",
        "guests need not calibrate the TSC",
    ),
    (
        kvm::KVM_CAP_TSC_CONTROL,
        "TSC_CONTROL",
        "TSC scaling after a restore",
    ),
    (
        kvm::KVM_CAP_TSC_DEADLINE_TIMER,
        "TSC_DEADLINE_TIMER",
        "cheap guest timers",
    ),
    (
        kvm::KVM_CAP_ADJUST_CLOCK,
        "ADJUST_CLOCK",
        "kvm-clock across pause and restore",
    ),
    (
        kvm::KVM_CAP_KVMCLOCK_CTRL,
        "KVMCLOCK_CTRL",
        "no soft-lockup reports after a pause",
    ),
    (
        kvm::KVM_CAP_SIGNAL_MSI,
        "SIGNAL_MSI",
        "interrupts without a route",
    ),
    (
        kvm::KVM_CAP_SPLIT_IRQCHIP,
        "SPLIT_IRQCHIP",
        "local APICs only in the kernel",
    ),
    (kvm::KVM_CAP_X2APIC_API, "X2APIC_API", "APIC ids above 254"),
    (
        kvm::KVM_CAP_READONLY_MEM,
        "READONLY_MEM",
        "read-only memory regions",
    ),
    (
        kvm::KVM_CAP_DEBUGREGS,
        "DEBUGREGS",
        "debug registers in snapshots",
    ),
    (
        kvm::KVM_CAP_XSAVE2,
        "XSAVE2",
        "vector state above 4 KiB (AMX)",
    ),
    (
        kvm::KVM_CAP_NESTED_STATE,
        "NESTED_STATE",
        "snapshots of guests that run VMs",
    ),
    (
        kvm::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        "MANUAL_DIRTY_LOG_PROTECT2",
        "cheap dirty logs",
    ),
    (
        kvm::KVM_CAP_X86_USER_SPACE_MSR,
        "X86_USER_SPACE_MSR",
        "MSRs handled by the VMM",
    ),
    (
        kvm::KVM_CAP_BINARY_STATS_FD,
        "BINARY_STATS_FD",
        "statistics of VMs and vCPUs",
    ),
    (
        kvm::KVM_CAP_PRE_FAULT_MEMORY,
        "PRE_FAULT_MEMORY",
        "memory mapped before the first access",
    ),
];

/// Asks for every capability of the table: the needed ones first.
pub(super) fn ask(kvm: &Kvm) -> Vec<Capability> {
    let rows = |rows: &'static [Row], needed| {
        rows.iter().map(move |&(number, name, purpose)| Capability {
            name,
            needed,
            purpose,
            value: kvm.check_extension_raw(number.into()),
        })
    };
    rows(NEEDED, true).chain(rows(OPTIONAL, false)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_capability_is_listed_twice() {
        let mut numbers: Vec<_> = NEEDED.iter().chain(OPTIONAL).map(|row| row.0).collect();
        numbers.sort_unstable();
        let all = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}
