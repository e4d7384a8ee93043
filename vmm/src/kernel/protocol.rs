//! Boot data of the PVH and the 64-bit Linux boot protocol.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::{KernelError, Placed};
use crate::layout;
use crate::memory::{GuestMemory, MapEntry};

/// `XEN_HVM_START_MAGIC_VALUE` (Linux: `include/xen/interface/hvm/start_info.h`).
const PVH_MAGIC: u32 = 0x336e_c578;
/// `E820_TYPE_RAM` and `XEN_HVM_MEMMAP_TYPE_RAM`.
const MAP_USABLE: u32 = 1;
/// `E820_TYPE_RESERVED` and `XEN_HVM_MEMMAP_TYPE_RESERVED`.
const MAP_RESERVED: u32 = 2;

/// boot.rst: `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// boot.rst: `header`, "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// boot.rst: `type_of_loader`, "undefined".
const LOADER_UNDEFINED: u8 = 0xff;
/// boot.rst: `kernel_alignment` of a kernel without a header of its own.
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

impl MapEntry {
    fn kind(&self) -> u32 {
        if self.usable {
            MAP_USABLE
        } else {
            MAP_RESERVED
        }
    }
}

/// Writes the PVH start info, the memory map and the module list.
pub fn write_pvh(
    memory: &GuestMemory,
    map: &[MapEntry],
    initrd: Option<Placed>,
) -> Result<(), KernelError> {
    let map: Vec<_> = map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.base,
            size: entry.size,
            type_: entry.kind(),
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.base,
            size: initrd.size,
            ..Default::default()
        })
        .into_iter()
        .collect();
    let start_info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() {
            0
        } else {
            layout::PVH_MODULES
        },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: layout::RSDP,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(layout::PVH_MODULES));
    Ok(PvhBootConfigurator::write_bootparams(&params, memory)?)
}

/// Writes the zero page. `header` is the kernel's own where it came as a bzImage.
pub fn write_linux64(
    memory: &GuestMemory,
    map: &[MapEntry],
    header: Option<setup_header>,
    command_line_len: usize,
    initrd: Option<Placed>,
) -> Result<(), KernelError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: KERNEL_ALIGNMENT,
            ..Default::default()
        }),
        acpi_rsdp_addr: layout::RSDP,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line_len as u32;
    if let Some(initrd) = initrd {
        // Both are below the hole, which is below 4 GiB.
        params.hdr.ramdisk_image = initrd.base as u32;
        params.hdr.ramdisk_size = initrd.size as u32;
    }
    params.e820_entries = map.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.base,
            size: entry.size,
            r#type: entry.kind(),
        };
    }
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    Ok(LinuxBootConfigurator::write_bootparams(&params, memory)?)
}
