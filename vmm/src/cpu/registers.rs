//! Registers of the boot vCPU at its first instruction, for each boot protocol.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::bits::*;
use crate::kernel::Entry;
use crate::layout;

/// Segment selectors: the GDT entries of [`gdt`], times 8.
const CODE_SELECTOR: u16 = 0x8;
const DATA_SELECTOR: u16 = 0x10;
const TASK_SELECTOR: u16 = 0x18;

/// A flat segment descriptor's attributes (Intel SDM volume 3, 3.4.5), in the bits of a GDT entry's upper half.
#[derive(Clone, Copy)]
struct Segment {
    selector: u16,
    limit: u32,
    kind: u8,
    code_or_data: bool,
    long: bool,
    big: bool,
    granular: bool,
}

impl Segment {
    fn code(long: bool) -> Self {
        Self {
            selector: CODE_SELECTOR,
            limit: 0xffff_ffff,
            kind: 0xb,
            code_or_data: true,
            long,
            big: !long,
            granular: true,
        }
    }

    fn data() -> Self {
        Self {
            selector: DATA_SELECTOR,
            limit: 0xffff_ffff,
            kind: 0x3,
            code_or_data: true,
            long: false,
            big: true,
            granular: true,
        }
    }

    fn task() -> Self {
        Self {
            selector: TASK_SELECTOR,
            limit: 0x67,
            kind: 0xb,
            code_or_data: false,
            long: false,
            big: false,
            granular: false,
        }
    }

    /// As a descriptor in a GDT, with base 0.
    fn descriptor(self) -> u64 {
        let limit = u64::from(if self.granular {
            self.limit >> 12
        } else {
            self.limit
        });
        let bit = |set: bool, at: u32| u64::from(set) << at;
        (limit & 0xffff)
            | u64::from(self.kind) << 40
            | bit(self.code_or_data, 44)
            | bit(true, 47)
            | (limit >> 16) << 48
            | bit(self.long, 53)
            | bit(self.big, 54)
            | bit(self.granular, 55)
    }
}

impl From<Segment> for kvm_segment {
    fn from(segment: Segment) -> Self {
        Self {
            base: 0,
            limit: segment.limit,
            selector: segment.selector,
            type_: segment.kind,
            present: 1,
            dpl: 0,
            db: segment.big.into(),
            s: segment.code_or_data.into(),
            l: segment.long.into(),
            g: segment.granular.into(),
            ..Default::default()
        }
    }
}

/// The boot GDT for a guest that is entered in this way.
pub fn gdt(entry: Entry) -> [u64; 4] {
    let long = matches!(entry, Entry::Linux64 { .. });
    [
        0,
        Segment::code(long).descriptor(),
        Segment::data().descriptor(),
        Segment::task().descriptor(),
    ]
}

/// x87 and SSE control words after reset (Intel SDM volume 3, table 11-1).
pub fn set_fpu(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    })
}

/// Sets the boot vCPU to enter the guest at `entry`.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let (code, regs) = match entry {
        Entry::Pvh { address } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            let regs = kvm_regs {
                rip: address,
                rbx: layout::PVH_START_INFO,
                ..Default::default()
            };
            (Segment::code(false), regs)
        }
        Entry::Linux64 { address } => {
            sregs.cr3 = layout::PML4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            let regs = kvm_regs {
                rip: address,
                rsi: layout::ZERO_PAGE,
                rsp: layout::BOOT_STACK,
                rbp: layout::BOOT_STACK,
                ..Default::default()
            };
            (Segment::code(true), regs)
        }
    };
    let data = Segment::data().into();
    sregs.cs = code.into();
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = Segment::task().into();
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = size_of::<[u64; 4]>() as u16 - 1;
    sregs.idt.base = layout::IDT;
    sregs.idt.limit = size_of::<u64>() as u16 - 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rflags: RFLAGS_ONE,
        ..regs
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let [null, code, data, task] = gdt(Entry::Linux64 { address: 0 });
        assert_eq!(null, 0);
        assert_eq!(code, 0x00af_9b00_0000_ffff);
        assert_eq!(data, 0x00cf_9300_0000_ffff);
        assert_eq!(task, 0x0000_8b00_0000_0067);
        let [_, code, ..] = gdt(Entry::Pvh { address: 0 });
        assert_eq!(code, 0x00cf_9b00_0000_ffff);
    }
}
