use std::fs;
use std::process::Command;

use super::*;

/// As many as there can be.
const MMIO: DeviceBus = DeviceBus::Mmio {
    devices: DeviceBus::MAX_MMIO as u8,
};

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at a guest address, by its own length field; its checksum is right.
fn table(block: &[u8], address: u64) -> &[u8] {
    let start = (address - layout::RSDP) as usize;
    let table = &block[start..start + u32_at(block, start + 4)];
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0, "checksum of {}", table[..4].escape_ascii());
    table
}

/// Signature and bytes of every table, followed from the RSDP as a guest does.
fn tables(vcpus: u8, bus: DeviceBus) -> Vec<(String, Vec<u8>)> {
    let block = build(vcpus, bus);
    assert_eq!(&block[..8], b"RSD PTR ");
    for length in [20, 36] {
        let sum = block[..length]
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of the RSDP's first {length} bytes");
    }
    let xsdt = table(&block, u64_at(&block, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let mut found: Vec<_> = xsdt[36..]
        .chunks(8)
        .map(|entry| table(&block, u64_at(entry, 0)).to_vec())
        .collect();
    let dsdt = found
        .iter()
        .find(|table| &table[..4] == b"FACP")
        .map(|fadt| table(&block, u64_at(fadt, 140)).to_vec());
    found.extend(dsdt);
    found
        .into_iter()
        .map(|table| (table[..4].escape_ascii().to_string(), table))
        .collect()
}

#[test]
fn the_guest_finds_every_table() {
    let names = |bus| -> Vec<_> { tables(2, bus).into_iter().map(|(name, _)| name).collect() };
    assert_eq!(names(DeviceBus::None), ["FACP", "APIC", "DSDT"]);
    assert_eq!(names(DeviceBus::Pci), ["FACP", "APIC", "MCFG", "DSDT"]);
    assert_eq!(names(MMIO), ["FACP", "APIC", "DSDT"]);
}

#[test]
fn the_fadt_points_at_the_registers() {
    let tables = tables(1, DeviceBus::None);
    let fadt = &tables[0].1;
    let register = |at: usize| (fadt[at], fadt[at + 1], u64_at(fadt, at + 4));
    assert_eq!(
        register(116),
        (1, 8, layout::POWER_PORT + PowerRegisters::RESET)
    );
    assert_eq!(fadt[128], RESET_VALUE);
    assert_eq!(
        register(244),
        (1, 8, layout::POWER_PORT + PowerRegisters::SLEEP_CONTROL)
    );
    assert_eq!(
        register(256),
        (1, 8, layout::POWER_PORT + PowerRegisters::SLEEP_STATUS)
    );
    let flags = u32_at(fadt, 112);
    assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
    assert_ne!(flags & (1 << 10), 0, "reset register");
}

#[test]
fn the_madt_has_every_vcpu_and_the_io_apic() {
    for vcpus in [1, 2, 32] {
        let tables = tables(vcpus, DeviceBus::None);
        let madt = &tables[1].1;
        let (mut processors, mut io_apics) = (Vec::new(), Vec::new());
        let mut rest = &madt[44..];
        while let [kind, length, ..] = *rest {
            match kind {
                0 => processors.push((rest[3], u32_at(rest, 4))),
                1 => io_apics.push(u32_at(rest, 4)),
                other => panic!("structure {other}"),
            }
            rest = &rest[usize::from(length)..];
        }
        let expected: Vec<_> = (0..vcpus).map(|id| (id, 1)).collect();
        assert_eq!(processors, expected);
        assert_eq!(io_apics, [layout::IO_APIC as usize]);
    }
}

/// Intel's own compiler reads every table back, and takes the DSDT that it disassembled without a complaint.
#[test]
fn iasl_accepts_the_tables() {
    for bus in [DeviceBus::None, DeviceBus::Pci, MMIO] {
        check_by_iasl(bus);
    }
}

fn check_by_iasl(bus: DeviceBus) {
    let dir = tempfile::tempdir().unwrap();
    let iasl = |arguments: &[&str]| {
        let output = Command::new("iasl")
            .args(arguments)
            .current_dir(dir.path())
            .output()
            .expect("iasl runs (Debian package acpica-tools)");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "iasl {arguments:?}:\n{text}");
        text
    };
    for (name, bytes) in tables(32, bus) {
        let file = format!("{name}.aml");
        fs::write(dir.path().join(&file), bytes).unwrap();
        let text = iasl(&["-d", &file]);
        for complaint in ["Error", "Warning", "Invalid", "incorrect", "Unknown"] {
            assert!(!text.contains(complaint), "{name}: {text}");
        }
    }
    // -we: warnings are errors.
    let text = iasl(&["-we", "-p", "again", "DSDT.dsl"]);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
    let source = fs::read_to_string(dir.path().join("DSDT.dsl")).unwrap();
    for expected in [
        "_S5",
        "_EVT",
        "Notify (\\_SB.PWRB, 0x80)",
        "ACPI0013",
        "PNP0501",
    ] {
        assert!(source.contains(expected), "{expected} in\n{source}");
    }
    for expected in ["PNP0A08", "PNP0A03", "PNP0C02", "_CBA", "WordBusNumber"] {
        let wanted = bus == DeviceBus::Pci;
        assert_eq!(source.contains(expected), wanted, "{expected} in\n{source}");
    }
    let places: Vec<_> = bus.mmio_places().collect();
    assert_eq!(source.matches("LNRO0005").count(), places.len());
    for place in places {
        for expected in [
            format!("0x{:08X}", place.base),
            format!("0x{:08X}", place.gsi),
        ] {
            assert!(source.contains(&expected), "{expected} in\n{source}");
        }
    }
}

#[test]
fn the_mcfg_points_at_bus_0() {
    let tables = tables(1, DeviceBus::Pci);
    let mcfg = &tables[2].1;
    assert_eq!(mcfg.len(), 44 + 16);
    assert_eq!(u64_at(mcfg, 44), layout::ECAM);
    assert_eq!(mcfg[52..60], [0; 8], "segment 0, buses 0 to 0");
}

#[test]
fn pci_has_a_place_of_its_own() {
    let ecam = layout::ECAM..layout::ECAM + (256 << 20);
    let window = layout::PCI_WINDOW;
    assert!(ecam.end <= window.start && window.end <= layout::IO_APIC.into());
    for timer in layout::BOOT_TIMERS {
        assert!(timer + 0x1000 <= ecam.start);
    }
}

#[test]
fn mmio_devices_have_places_of_their_own() {
    let places: Vec<_> = MMIO.mmio_places().collect();
    assert_eq!(places.len(), DeviceBus::MAX_MMIO);
    for (index, place) in places.iter().enumerate() {
        assert_eq!(usize::from(place.number), index);
        assert!(place.gsi < 24 && ![layout::SERIAL_GSI, layout::EVENT_GSI].contains(&place.gsi));
        for other in &places[..index] {
            assert_ne!(place.gsi, other.gsi);
            assert!(other.base + 0x1000 <= place.base);
        }
        for timer in layout::BOOT_TIMERS {
            assert!(place.base >= timer + 0x1000);
        }
        assert!(place.base + 0x1000 <= layout::ECAM);
    }
}
