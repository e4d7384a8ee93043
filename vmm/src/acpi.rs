//! The ACPI tables: hardware-reduced, in one block of low memory.
//!
//! ACPI 6.5: 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.12 (MADT), 5.2.11 (DSDT), 5.2.6 (MCFG), 4.1 (hardware-reduced ACPI).
//! The registers that the tables point to are in [`devices::acpi`]. Tables and AML are encoded by the `acpi_tables`
//! crate; a test has the result checked by Intel's `iasl`.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    IO, If, Interrupt, Local, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use devices::acpi::{EventRegister, PowerRegisters, RESET_VALUE, SLEEP_TYPE_S5};
use devices::legacy::{pvpanic::PvPanic, rtc, serial::Serial};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{self, DeviceBus};
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"TANDEM";
const OEM_TABLE_ID: [u8; 8] = *b"TANDEMVM";
const OEM_REVISION: u32 = 1;
/// Revision of a DSDT whose integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// Tables begin on a boundary of this many bytes.
const ALIGNMENT: u64 = 16;
const IO_APIC_ID: u8 = 0;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// The tables are larger than their place.
    #[error("the ACPI tables need {needed} bytes and have {space}")]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        space: u64,
    },
    /// Guest memory could not be written.
    #[error("cannot write the ACPI tables into guest memory")]
    Write(#[from] GuestMemoryError),
}

/// The tables as they stand in guest memory from [`layout::RSDP`] on.
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// The RSDP stands first and points at the rest, so its place is kept.
    fn new() -> Self {
        let first = (Rsdp::len() as u64).next_multiple_of(ALIGNMENT);
        Self {
            bytes: vec![0; first as usize],
        }
    }

    /// Appends a table and returns its guest address.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        let start = (self.bytes.len() as u64).next_multiple_of(ALIGNMENT);
        self.bytes.resize(start as usize, 0);
        table.to_aml_bytes(&mut self.bytes);
        layout::RSDP + start
    }

    /// Puts the RSDP at the start.
    fn finish(mut self, xsdt: u64) -> Vec<u8> {
        let mut rsdp = Vec::new();
        Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
        for (slot, byte) in self.bytes.iter_mut().zip(rsdp) {
            *slot = byte;
        }
        self.bytes
    }
}

/// Writes the tables for a machine with `vcpus` vCPUs and with virtio devices on `bus`, at [`layout::RSDP`].
///
/// # Errors
/// [`AcpiError`].
pub fn write(memory: &GuestMemory, vcpus: u8, bus: DeviceBus) -> Result<(), AcpiError> {
    let bytes = build(vcpus, bus);
    let space = layout::ACPI_END - layout::RSDP;
    if bytes.len() as u64 > space {
        return Err(AcpiError::NoSpace {
            needed: bytes.len() as u64,
            space,
        });
    }
    Ok(memory.write_slice(&bytes, GuestAddress(layout::RSDP))?)
}

fn build(vcpus: u8, bus: DeviceBus) -> Vec<u8> {
    let mut tables = Tables::new();
    let dsdt = tables.append(&dsdt(bus));
    let fadt = tables.append(&fadt(dsdt));
    let madt = tables.append(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if bus == DeviceBus::Pci {
        xsdt.add_entry(tables.append(&pci::mcfg()));
    }
    let xsdt = tables.append(&xsdt);
    tables.finish(xsdt)
}

fn fadt(dsdt: u64) -> impl Aml {
    let register = |offset| {
        acpi_tables::gas::GAS::new(
            acpi_tables::gas::AddressSpace::SystemIo,
            8,
            0,
            acpi_tables::gas::AccessSize::ByteAccess,
            layout::POWER_PORT + offset,
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd);
    fadt.reset_reg = register(PowerRegisters::RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(PowerRegisters::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(PowerRegisters::SLEEP_STATUS);
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = boot_architecture().into();
    fadt.finalize()
}

/// `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11): no VGA and no ASPM; no 8042 keyboard, and the CMOS clock is there.
fn boot_architecture() -> u16 {
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    NO_VGA | NO_ASPM
}

fn madt(vcpus: u8) -> impl Aml {
    let address = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, address);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IO_APIC_ID, layout::IO_APIC, 0));
    madt
}

fn dsdt(bus: DeviceBus) -> Sdt {
    let mut aml = Vec::new();
    s5().to_aml_bytes(&mut aml);
    system_bus(&mut aml);
    match bus {
        DeviceBus::None => {}
        DeviceBus::Pci => pci::host_bridge(&mut aml),
        DeviceBus::Mmio { .. } => mmio::devices(bus, &mut aml),
    }
    let mut table = Sdt::new(
        *b"DSDT",
        36,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&aml);
    table
}

/// `_S5`: the sleep type that switches the machine off. There is no other.
fn s5() -> impl Aml {
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]),
    )
}

/// An edge-triggered, active-high interrupt of one device.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// `_SB`: serial port, clock, panic port, power button and the event device that announces its presses.
fn system_bus(aml: &mut Vec<u8>) {
    let ports = |first: u64, count: u64| IO::new(first as u16, first as u16, 1, count as u8);
    let present = Name::new("_STA".into(), &0x0f_u8);

    let serial_ports = ports(Serial::COM1, Serial::LEN);
    let serial_interrupt = interrupt(layout::SERIAL_GSI);
    let serial_resources = ResourceTemplate::new(vec![&serial_ports, &serial_interrupt]);
    let serial_hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let serial_uid = Name::new("_UID".into(), &ZERO);
    let serial_crs = Name::new("_CRS".into(), &serial_resources);
    let serial = Device::new(
        "COM1".into(),
        vec![&serial_hid, &serial_uid, &present, &serial_crs],
    );

    let rtc_ports = ports(rtc::Rtc::PORT, rtc::Rtc::LEN);
    let rtc_resources = ResourceTemplate::new(vec![&rtc_ports]);
    let rtc_hid = Name::new("_HID".into(), &EISAName::new("PNP0B00"));
    let rtc_crs = Name::new("_CRS".into(), &rtc_resources);
    let clock = Device::new("RTC_".into(), vec![&rtc_hid, &present, &rtc_crs]);

    let panic_ports = ports(PvPanic::PORT, PvPanic::LEN);
    let panic_resources = ResourceTemplate::new(vec![&panic_ports]);
    let panic_hid = Name::new("_HID".into(), &"QEMU0001");
    let panic_crs = Name::new("_CRS".into(), &panic_resources);
    let panic_port = Device::new("PVPN".into(), vec![&panic_hid, &present, &panic_crs]);

    let button_hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    let button = Device::new("PWRB".into(), vec![&button_hid, &present]);

    // Generic Event Device (ACPI 6.5, 5.6.9): its interrupt makes the guest evaluate _EVT, which reads what
    // happened from the event register and passes it on.
    let event_interrupt = interrupt(layout::EVENT_GSI);
    let event_resources = ResourceTemplate::new(vec![&event_interrupt]);
    let event_hid = Name::new("_HID".into(), &"ACPI0013");
    let event_uid = Name::new("_UID".into(), &ZERO);
    let event_crs = Name::new("_CRS".into(), &event_resources);
    let port = layout::EVENT_PORT as u16;
    let length = EventRegister::LEN as u8;
    let region = OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &port, &length);
    let field = Field::new(
        "EREG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let events = Path::new("EVTS");
    let seen = Local(0);
    let read = Store::new(&seen, &events);
    let target = Path::new("\\_SB_.PWRB");
    let pressed_code = 0x80_u8;
    let pressed = Notify::new(&target, &pressed_code);
    let masked = acpi_tables::aml::And::new(&ZERO, &seen, &EventRegister::POWER_BUTTON);
    let is_set = Equal::new(&masked, &ONE);
    let power = If::new(&is_set, vec![&pressed]);
    let method = Method::new("_EVT".into(), 1, true, vec![&read, &power]);
    let event_device = Device::new(
        "GED_".into(),
        vec![
            &event_hid, &event_uid, &present, &event_crs, &region, &field, &method,
        ],
    );

    Scope::new(
        "\\_SB_".into(),
        vec![&serial, &clock, &panic_port, &button, &event_device],
    )
    .to_aml_bytes(aml);
}

mod mmio;
mod pci;
#[cfg(test)]
mod tests;
