//! What the tables say about virtio devices on MMIO: a device `LNRO0005` each, which is the only word of them.
//!
//! ACPI 6.5: 6.1.5 (`_HID`), 6.1.12 (`_UID`), 6.2.17 (`_CCA`), 6.4.3.4 (memory), 6.4.3.6 (interrupt).

use acpi_tables::Aml;
use acpi_tables::aml::{Device, Memory32Fixed, Name, ONE, ResourceTemplate, Scope};
use devices::virtio::mmio::VirtioMmio;

use super::interrupt;
use crate::layout::{DeviceBus, MmioPlace};

/// `_SB.V000` and so on: registers, and an edge-triggered interrupt.
pub fn devices(bus: DeviceBus, aml: &mut Vec<u8>) {
    for MmioPlace { number, base, gsi } in bus.mmio_places() {
        // All places are below 4 GiB.
        let registers = Memory32Fixed::new(true, base as u32, VirtioMmio::LEN as u32);
        let line = interrupt(gsi);
        let resources = ResourceTemplate::new(vec![&registers, &line]);
        let hid = Name::new("_HID".into(), &"LNRO0005");
        let uid = Name::new("_UID".into(), &number);
        // Memory that the device uses is coherent, as all memory here is.
        let cca = Name::new("_CCA".into(), &ONE);
        let crs = Name::new("_CRS".into(), &resources);
        let name = format!("V{number:03}");
        let device = Device::new(name.as_str().into(), vec![&hid, &uid, &cca, &crs]);
        Scope::new("\\_SB_".into(), vec![&device]).to_aml_bytes(aml);
    }
}
