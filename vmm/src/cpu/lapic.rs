//! Local APIC (Intel SDM volume 3, chapter 12).

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

/// Spurious interrupt vector register.
const SPIV: usize = 0xf0;
/// `APIC_SPIV_APIC_ENABLED`: the APIC is switched on by software.
const SPIV_ENABLED: u32 = 1 << 8;
/// Vector of the spurious interrupt while Linux runs (`SPURIOUS_APIC_VECTOR`).
const LINUX_SPURIOUS_VECTOR: u32 = 0xff;
/// Local vector table: LINT0.
const LVT_LINT0: usize = 0x350;
/// Local vector table: LINT1.
const LVT_LINT1: usize = 0x360;
/// Delivery mode field of an LVT entry, and the mask bit with it.
const DELIVERY_MODE: u32 = 0x7 << 8;
const MASKED: u32 = 1 << 16;
const MODE_NMI: u32 = 0x4 << 8;
const MODE_EXTINT: u32 = 0x7 << 8;

/// Sets the local interrupt pins as firmware does: LINT0 takes the PIC's interrupts, LINT1 is the NMI.
pub fn set(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    for (register, mode) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
        let value = read(&lapic, register) & !(DELIVERY_MODE | MASKED);
        write(&mut lapic, register, value | mode);
    }
    vcpu.set_lapic(&lapic)
}

/// Whether the guest of this vCPU, which has just asked for a reset, had shut its local APIC down before.
///
/// Linux does so in `native_machine_shutdown()`, on the way of every `reboot`; what is left then is the spurious
/// vector of `disconnect_bsp_APIC()`. `emergency_restart()`, the way of a panic with `panic=-1` and of SysRq-b, leaves
/// the APIC as it was in operation. There is no better sign on a kernel that has no pvpanic driver loaded.
pub fn stopped_in_good_order(vcpu: &VcpuFd) -> bool {
    match vcpu.get_lapic() {
        Ok(lapic) => {
            let in_operation = SPIV_ENABLED | LINUX_SPURIOUS_VECTOR;
            read(&lapic, SPIV) & in_operation != in_operation
        }
        // Without the register, nothing speaks against an ordinary reset.
        Err(_) => true,
    }
}

fn read(lapic: &kvm_lapic_state, register: usize) -> u32 {
    let mut bytes = [0; 4];
    for (byte, value) in bytes.iter_mut().zip(lapic.regs.iter().skip(register)) {
        *byte = *value as u8;
    }
    u32::from_le_bytes(bytes)
}

fn write(lapic: &mut kvm_lapic_state, register: usize, value: u32) {
    for (slot, byte) in lapic
        .regs
        .iter_mut()
        .skip(register)
        .zip(value.to_le_bytes())
    {
        *slot = byte as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_read_back_little_endian() {
        let mut lapic = kvm_lapic_state::default();
        write(&mut lapic, LVT_LINT0, 0x8765_4321);
        assert_eq!(read(&lapic, LVT_LINT0), 0x8765_4321);
        assert_eq!(lapic.regs[LVT_LINT0] as u8, 0x21);
        assert_eq!(read(&lapic, LVT_LINT1), 0);
    }
}
