//! What the tables say about PCI: configuration space, and the host bridge with what it passes on.
//!
//! PCI Firmware Specification 3.3: 4.1.2 (MCFG), 4.1.3 (its space is reserved by a motherboard resource, and `_CBA`
//! names it). ACPI 6.5: 6.4.3.5 (address spaces), 6.5.5 (`_BBN`), 6.5.6 (`_SEG`).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::mcfg::MCFG;
use devices::pci::{ConfigPorts, Ecam};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// The one bus.
const BUS: u8 = 0;

/// MCFG: where configuration space is.
pub fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM, 0, BUS, BUS);
    mcfg
}

/// `_SB.PCI0`, and the reservation of configuration space. There is no `_PRT`: interrupts are MSI-X.
pub fn host_bridge(aml: &mut Vec<u8>) {
    let ecam = layout::ECAM as u32;
    let window = layout::PCI_WINDOW;
    let (first, last) = (window.start as u32, (window.end - 1) as u32);
    let port = ConfigPorts::PORT as u16;

    let buses = AddressSpace::new_bus_number(u16::from(BUS), u16::from(BUS));
    let ports = IO::new(port, port, 1, ConfigPorts::LEN as u8);
    let not_cacheable = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(not_cacheable, true, first, last, None);
    let resources = ResourceTemplate::new(vec![&buses, &ports, &memory]);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &ZERO);
    let segment = Name::new("_SEG".into(), &ZERO);
    let bus = Name::new("_BBN".into(), &BUS);
    let base = Name::new("_CBA".into(), &ecam);
    let crs = Name::new("_CRS".into(), &resources);
    let bridge = Device::new(
        "PCI0".into(),
        vec![&hid, &cid, &uid, &segment, &bus, &base, &crs],
    );

    let space = Memory32Fixed::new(true, ecam, Ecam::LEN as u32);
    let reserved = ResourceTemplate::new(vec![&space]);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let crs = Name::new("_CRS".into(), &reserved);
    let motherboard = Device::new("MBRD".into(), vec![&hid, &uid, &crs]);
    Scope::new("\\_SB_".into(), vec![&bridge, &motherboard]).to_aml_bytes(aml);
}
