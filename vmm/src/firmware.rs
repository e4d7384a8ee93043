//! What firmware leaves in low memory besides tables: the boot vCPU's GDT and page tables, and a reset vector.
//!
//! The reset vector is not for starting: nothing boots there. Linux jumps to it to *restart* (`machine_real_restart()` in
//! `arch/x86/kernel/reboot.c`), and on a machine with hardware-reduced ACPI a kernel with `CONFIG_EFI` that was not booted
//! by EFI does so before it tries the ACPI reset register: `efi_reboot_required()` selects EFI, and BIOS is next in line.
//! Without code there, `reboot` and `panic=-1` on a stock kernel run off into zeros for ever.

use devices::acpi::{PowerRegisters, RESET_VALUE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::kernel::Entry;
use crate::memory::GuestMemory;
use crate::{cpu, layout};

/// Page table bits: present and writable.
const PRESENT_WRITABLE: u64 = 0b11;
/// Page directory bit: a page of 2 MiB.
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const TABLE_ENTRIES: u64 = 512;

/// Writes what firmware leaves, for a guest that begins at `entry`.
///
/// # Errors
/// Low memory could not be written.
pub fn write(memory: &GuestMemory, entry: Entry) -> Result<(), GuestMemoryError> {
    memory.write_slice(&reset_code(), GuestAddress(layout::RESET_VECTOR))?;
    memory.write_obj(cpu::gdt(entry), GuestAddress(layout::GDT))?;
    memory.write_obj(0_u64, GuestAddress(layout::IDT))?;
    if let Entry::Linux64 { .. } = entry {
        write_page_tables(memory)?;
    }
    Ok(())
}

/// Real-mode code that resets the machine by its reset register.
fn reset_code() -> [u8; 9] {
    let [low, high, ..] = (layout::POWER_PORT + PowerRegisters::RESET).to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, the reset register's port
        0xb0,
        RESET_VALUE, // mov al, the reset value
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

/// Maps the first GiB one to one, in pages of 2 MiB (boot.rst, "64-bit Boot Protocol": at least the kernel, the zero
/// page and the command line).
fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_obj(layout::PDPT | PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    memory.write_obj(layout::PD | PRESENT_WRITABLE, GuestAddress(layout::PDPT))?;
    let directory: Vec<u8> = (0..TABLE_ENTRIES)
        .flat_map(|page| ((page * LARGE_PAGE_SIZE) | LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    memory.write_slice(&directory, GuestAddress(layout::PD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HugePages;
    use crate::memory;

    #[test]
    fn the_reset_vector_fits_and_names_the_register() {
        let code = reset_code();
        assert!(layout::RESET_VECTOR + code.len() as u64 <= layout::HIGH_MEMORY);
        assert_eq!(code[..5], [0xba, 0x02, 0x06, 0xb0, 0x01]);
    }

    #[test]
    fn page_tables_map_the_first_gib() {
        let memory = memory::allocate(16 << 20, HugePages::None).unwrap();
        write(&memory, Entry::Linux64 { address: 0 }).unwrap();
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(read(read(layout::PML4) & !0xfff), layout::PD | 3);
        assert_eq!(read(layout::PD), 0x83);
        assert_eq!(read(layout::PD + 511 * 8), 0x3fe0_0083);
    }
}
