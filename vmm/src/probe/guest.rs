//! The probe guest's memory: its code (`guest.s`), descriptor tables and page tables.
//!
//! Pure bytes and addresses, no KVM: the runner (`runner.rs`) loads the image and enters it.

use super::Check;

std::arch::global_asm!(include_str!("guest.s"));

unsafe extern "C" {
    static tandem_probe_guest_start: u8;
    static tandem_probe_guest_end: u8;
}

/// Bytes of guest memory, from guest physical address 0.
pub(super) const MEMORY_SIZE: usize = 0x1_0000;
/// Port on which a program writes [`VERDICT_PASS`] or [`VERDICT_WRONG`].
pub(super) const PORT_VERDICT: u16 = 0x500;
/// Port on which the number of an unexpected vector is written.
pub(super) const PORT_VECTOR: u16 = 0x501;
/// The program got the results it computed for itself.
pub(super) const VERDICT_PASS: u8 = 0xa5;
/// The CPU went on, with a wrong result.
pub(super) const VERDICT_WRONG: u8 = 0x5a;

pub(super) const GDT: u64 = 0x1000;
pub(super) const GDT_LIMIT: u16 = 7 * 8 - 1;
pub(super) const IDT: u64 = 0x2000;
pub(super) const IDT_LIMIT: u16 = VECTORS * 16 - 1;
pub(super) const PML4: u64 = 0x3000;
const PDPT: u64 = 0x4000;
const PAGE_DIRECTORY: u64 = 0x5000;
pub(super) const TSS: u64 = 0x6000;
pub(super) const TSS_LIMIT: u32 = 0x67;
/// Where the code is loaded; 8 KiB are kept for it.
pub(super) const CODE: u64 = 0x8000;
const CODE_ROOM: usize = 0x2000;
pub(super) const STACK_TOP: u64 = 0xc000;
pub(super) const SCRATCH: u64 = 0xd000;
/// Canonical, and mapped by no page table: only the first 2 MiB are.
pub(super) const UNMAPPED: u64 = 0x40_0000;

pub(super) const SELECTOR_CODE: u16 = 0x08;
pub(super) const SELECTOR_DATA: u16 = 0x10;
pub(super) const SELECTOR_TSS: u16 = 0x28;

/// Entries in the IDT: the 32 exceptions and [`INTERRUPT_VECTOR`].
const VECTORS: u16 = 33;
/// The vector of the interrupt that the host injects.
pub(super) const INTERRUPT_VECTOR: u8 = 32;
/// A value of r15 that no vector equals.
const NO_VECTOR: u64 = u64::MAX;

/// One program of the guest; its number is its place in the table at the start of `guest.s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// A check that is reported.
    Check(Check),
    /// An endless loop, for the test of the time limit.
    #[cfg(test)]
    Spin,
}

impl Program {
    fn index(self) -> usize {
        match self {
            // Entry 0 of the table is the exception stubs.
            Self::Check(check) => check as usize + 1,
            #[cfg(test)]
            Self::Spin => Check::ALL.len() + 1,
        }
    }

    /// Guest address at which the program starts.
    pub(super) fn entry(self) -> u64 {
        CODE + table_entry(self.index())
    }

    /// The vector that the program must receive, as the guest's handler compares it (r15).
    pub(super) fn expected_vector(self) -> u64 {
        match self {
            Self::Check(Check::Interrupt) => u64::from(INTERRUPT_VECTOR),
            Self::Check(Check::Breakpoint) => 3,
            Self::Check(Check::InvalidOpcode) => 6,
            Self::Check(Check::PageFault) => 14,
            _ => NO_VECTOR,
        }
    }
}

/// The guest's code as it stands in this program's read-only data.
fn code() -> &'static [u8] {
    let start = &raw const tandem_probe_guest_start;
    let end = &raw const tandem_probe_guest_end;
    // SAFETY: both symbols are defined in `guest.s` in one section, start before end, and what lies
    // between them is initialised, read-only data that lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Offset from the start of the code in entry `index` of the table there.
fn table_entry(index: usize) -> u64 {
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(code().iter().skip(index * 4)) {
        *to = *from;
    }
    u64::from(u32::from_le_bytes(bytes))
}

/// Everything the guest needs in memory, for all programs alike.
pub(super) fn image() -> Vec<u8> {
    let mut memory = vec![0; MEMORY_SIZE];
    // Flat descriptors with the accessed bit set, so that no load writes to the table.
    // Intel SDM volume 3, 3.4.5: code 64-bit, data, user data, user code 64-bit, then the TSS.
    put_u64(&mut memory, GDT + 0x08, 0x00af_9b00_0000_ffff);
    put_u64(&mut memory, GDT + 0x10, 0x00cf_9300_0000_ffff);
    put_u64(&mut memory, GDT + 0x18, 0x00cf_f300_0000_ffff);
    put_u64(&mut memory, GDT + 0x20, 0x00af_fb00_0000_ffff);
    put_u64(
        &mut memory,
        GDT + u64::from(SELECTOR_TSS),
        0x0000_8b00_0000_0000 | (TSS << 16) | u64::from(TSS_LIMIT),
    );

    // RSP0, so that an exception in user mode is reported and not a triple fault.
    put_u64(&mut memory, TSS + 4, STACK_TOP);

    let stubs = CODE + table_entry(0);
    for vector in 0..u64::from(VECTORS) {
        // 64-bit interrupt gate, present, DPL 0 (SDM volume 3, 6.14.1). All stubs lie below 64 KiB.
        let gate = (stubs + vector * 16) | (u64::from(SELECTOR_CODE) << 16) | (0x8e00 << 32);
        put_u64(&mut memory, IDT + vector * 16, gate);
    }

    // Present, writable, user; the directory's one entry is a 2 MiB page at 0.
    put_u64(&mut memory, PML4, PDPT | 0x7);
    put_u64(&mut memory, PDPT, PAGE_DIRECTORY | 0x7);
    put_u64(&mut memory, PAGE_DIRECTORY, 0x87);

    let code = code();
    debug_assert!(code.len() <= CODE_ROOM);
    let room = memory.iter_mut().skip(CODE as usize).take(CODE_ROOM);
    for (to, from) in room.zip(code) {
        *to = *from;
    }
    memory
}

fn put_u64(memory: &mut [u8], address: u64, value: u64) {
    let at = memory.iter_mut().skip(address as usize);
    for (to, from) in at.zip(value.to_le_bytes()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_and_every_entry_points_into_it() {
        let code = code();
        assert!(
            code.len() > 256 && code.len() <= CODE_ROOM,
            "{}",
            code.len()
        );
        let first = 4 * (Check::ALL.len() as u64 + 2);
        for program in Check::ALL
            .map(Program::Check)
            .into_iter()
            .chain([Program::Spin])
        {
            let offset = program.entry() - CODE;
            assert!(
                offset >= first && offset < code.len() as u64,
                "{program:?} at {offset}"
            );
        }
    }

    #[test]
    fn entries_start_with_the_instructions_they_are_named_after() {
        let code = code();
        let at = |program: Program| &code[(program.entry() - CODE) as usize..];
        assert!(at(Program::Check(Check::Breakpoint)).starts_with(&[0xcc]));
        assert!(at(Program::Check(Check::Interrupt)).starts_with(&[0x90]));
        assert!(at(Program::Spin).starts_with(&[0xeb, 0xfe]));
    }

    #[test]
    fn stubs_push_their_own_vector() {
        let stubs = table_entry(0) as usize;
        assert_eq!(stubs % 16, 0);
        for vector in 0..VECTORS as usize {
            assert_eq!(code()[stubs + vector * 16..][..2], [0x6a, vector as u8]);
        }
    }

    #[test]
    fn gates_point_to_the_stubs() {
        let image = image();
        let gate = &image[(IDT + 3 * 16) as usize..][..16];
        let offset = u64::from(gate[0]) | u64::from(gate[1]) << 8;
        assert_eq!(offset, CODE + table_entry(0) + 48);
        assert_eq!(gate[5], 0x8e);
    }
}
