//! Whether a guest that resets the machine does so in good order.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::VmFd;

/// Redirection table entry: the interrupt is masked (82093AA data sheet, 3.2.4).
const MASKED: u64 = 1 << 16;

/// Whether the guest, which has just asked for a reset, was still in operation.
///
/// On the way of a `reboot` Linux masks all interrupts of the I/O APIC first (`native_machine_shutdown()` in
/// `arch/x86/kernel/reboot.c`). `emergency_restart()`, the way of a panic with `panic=-1` and of SysRq-b, does not. A
/// kernel that uses ACPI has at least the Generic Event Device's interrupt unmasked until then. There is no better sign
/// with a kernel that has no pvpanic driver loaded; the local APIC is switched off either way.
pub fn is_emergency(vm: &VmFd) -> bool {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    if let Err(error) = vm.get_irqchip(&mut chip) {
        log::warn!("cannot look at the I/O APIC: {error}");
        return false;
    }
    // SAFETY: KVM has filled the union as the chip that was asked for; its entries are plain integers.
    let entries = unsafe { chip.chip.ioapic.redirtbl.map(|entry| entry.bits) };
    entries.iter().any(|entry| entry & MASKED == 0)
}
