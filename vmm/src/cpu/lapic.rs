//! Local APIC (Intel SDM volume 3, chapter 12).

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

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
