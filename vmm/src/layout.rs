//! Every guest address that is fixed.
//!
//! Low memory, as firmware would leave it:
//!
//! | from      | to        | what                                                                 |
//! |-----------|-----------|----------------------------------------------------------------------|
//! | 0x500     | 0x520     | boot GDT; the IDT follows                                             |
//! | 0x6000    | 0x7000    | PVH start info, module list and memory map                            |
//! | 0x7000    | 0x8000    | zero page (`struct boot_params`)                                      |
//! | 0x9000    | 0xc000    | boot page tables: PML4, PDPT, PD                                      |
//! | 0x20000   | 0x20800   | kernel command line                                                   |
//! | 0x9fc00   | 0xa0000   | EBDA: reserved, so that nobody looks for one elsewhere                |
//! | 0xe0000   | 0xffff0   | ACPI: RSDP first, where the ACPI specification lets it be searched for |
//! | 0xffff0   | 0x100000  | reset vector (see [`firmware`](crate::firmware))                      |
//! | 0x100000  |           | RAM: kernel, initrd                                                   |
//!
//! Below 4 GiB lies a hole for devices, from 3 GiB on; memory beyond 3 GiB continues at 4 GiB:
//!
//! | from       | to         | what                                                               |
//! |------------|------------|--------------------------------------------------------------------|
//! | 0xc0000000 | 0xc0001000 | boot timer, and once more at 0xd0000000                             |
//! | 0xd0100000 | 0xd0110000 | virtio devices' registers, where they are on MMIO                   |
//! | 0xe0000000 | 0xe0100000 | PCI configuration space of bus 0 (ECAM), with room for all 256 buses |
//! | 0xf0000000 | 0xfe000000 | PCI devices' memory: BARs                                           |
//! | 0xfec00000 | 0xff000000 | interrupt controllers, and pages that KVM needs                     |

use std::ops::Range;

use devices::pci::Ecam;
use devices::virtio::mmio::VirtioMmio;

/// Boot GDT, four entries of 8 bytes.
pub const GDT: u64 = 0x500;
/// Boot IDT, one empty entry.
pub const IDT: u64 = 0x520;
/// PVH start info (`struct hvm_start_info`).
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list.
pub const PVH_MODULES: u64 = 0x6100;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6200;
/// Zero page (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack for a kernel's first instructions; grows down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Boot page tables.
pub const PML4: u64 = 0x9000;
/// Page directory pointers.
pub const PDPT: u64 = 0xa000;
/// Page directory: the first GiB in pages of 2 MiB.
pub const PD: u64 = 0xb000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// End of the memory that is usable below 1 MiB: the EBDA.
pub const EBDA: u64 = 0x9_fc00;
/// RSDP, with the other ACPI tables behind it.
pub const RSDP: u64 = 0xe_0000;
/// End of the space for ACPI tables.
pub const ACPI_END: u64 = RESET_VECTOR;
/// Where a PC begins after reset, in the last 16 bytes of the first MiB.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM again.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the hole for devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole: memory continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Boot timer, at the addresses that Firecracker's guests use: its newer and its older layout.
pub const BOOT_TIMERS: [u64; 2] = [HOLE_START, 0xd000_0000];
/// Registers of the first virtio device on MMIO; the others follow, page by page.
const VIRTIO_MMIO: u64 = 0xd010_0000;
/// PCI configuration space ([`devices::pci::Ecam`]). Only machines with a PCI device have it.
pub const ECAM: u64 = 0xe000_0000;
/// Where BARs may be.
pub const PCI_WINDOW: Range<u64> = 0xf000_0000..0xfe00_0000;
/// I/O APIC (`KVM_CREATE_IRQCHIP`).
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Identity map page that KVM on Intel needs (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages for a TSS that KVM on Intel needs (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: usize = 0xfeff_d000;

/// First port of the power registers ([`devices::acpi::PowerRegisters`]).
pub const POWER_PORT: u64 = 0x600;
/// Port of the event register ([`devices::acpi::EventRegister`]).
pub const EVENT_PORT: u64 = 0x604;

/// GSI of COM1, as on every PC.
pub const SERIAL_GSI: u32 = 4;
/// GSI of the Generic Event Device: the one that a PC gives to ACPI's SCI.
pub const EVENT_GSI: u32 = 9;
/// GSIs of virtio devices on MMIO, one each: pins of the I/O APIC. First those that the legacy controllers do not have
/// too, then those of the others where a PC has had add-in cards.
const VIRTIO_MMIO_GSIS: [u32; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 10, 11, 14, 15, 5, 6, 7, 3];

/// What the guest finds its virtio devices on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceBus {
    /// There are none, and looking for a bus would cost the guest time.
    None,
    /// PCI.
    Pci,
    /// Registers in pages of memory, each with an interrupt line.
    Mmio {
        /// Number of devices, [`MAX_MMIO`](Self::MAX_MMIO) at most.
        devices: u8,
    },
}

/// Where a virtio device on MMIO is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioPlace {
    /// Number among the machine's devices, from 0.
    pub number: u8,
    /// First address of its [`VirtioMmio::LEN`] bytes.
    pub base: u64,
    /// Its interrupt line, edge-triggered.
    pub gsi: u32,
}

impl DeviceBus {
    /// Most devices that have a place on MMIO.
    pub const MAX_MMIO: usize = VIRTIO_MMIO_GSIS.len();

    /// The places of devices on MMIO.
    pub fn mmio_places(self) -> impl Iterator<Item = MmioPlace> {
        let count = match self {
            Self::Mmio { devices } => devices,
            Self::None | Self::Pci => 0,
        };
        let places = (0..count).zip(VIRTIO_MMIO_GSIS);
        places.map(|(number, gsi)| MmioPlace {
            number,
            base: VIRTIO_MMIO + u64::from(number) * VirtioMmio::LEN,
            gsi,
        })
    }

    /// What the guest's memory map has to say is reserved: Linux uses a configuration space that is found there at once.
    pub fn reserved(self) -> Option<Range<u64>> {
        (self == Self::Pci).then_some(ECAM..ECAM + Ecam::LEN)
    }
}
