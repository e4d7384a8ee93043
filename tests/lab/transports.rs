//! Virtio devices over PCI and over MMIO, found and driven by the kernels' own drivers.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::json;
use tests::guest_shell::GuestShell;
use tests::kernel_log::complaints;

use crate::kernels::{Format, Kernel, boot, commands};

/// Boots with an entropy device, reads 128 KiB from it, and looks at all that is said about it.
fn check(kernel: Kernel, transport: &str, vcpus: u8, mib: u64) {
    let args = "console=ttyS0 panic=-1 loglevel=8 tandem.test=rng";
    let mut builder = boot(kernel, Format::Vmlinux, "rng")
        .vcpus(vcpus)
        .memory(mib)
        .boot("boot_args", args);
    builder.config["machine-config"]["transport"] = json!(transport);
    builder.config["entropy"] = json!({});
    let timeline = builder.path("timeline.json");
    let ended = builder.option("--boot-timeline", timeline).run();
    let text = ended.text();
    assert_eq!(ended.code, 0, "{}\n{text}", ended.stderr);
    assert_eq!(ended.stderr, "");

    let (there, interrupt): (&[_], _) = match transport {
        "pci" => (
            &[
                "PCI 0000:00:00.0 0x1b36 0x0008 0x060000",
                "PCI 0000:00:01.0 0x1af4 0x1044 0x108000",
                "0000:00:01.0/virtio0",
                // Configuration space is used at first sight.
                "PCI: ECAM [mem 0xe0000000-0xe00fffff] (base 0xe0000000) for domain 0000 [bus 00-00]",
            ],
            "PCI-MSIX",
        ),
        _ => (&["LNRO0005:00/virtio0"], "IO-APIC"),
    };
    for line in there.iter().chain(&["RNG current=virtio_rng.0"]) {
        assert!(text.contains(line), "no {line}\n{text}");
    }
    let count = |word| text.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!(count("VIRTIO "), 1, "each device once\n{text}");
    assert_eq!(
        count("PCI "),
        if transport == "pci" { 2 } else { 0 },
        "{text}"
    );
    assert!(!text.contains("not using ECAM"), "{text}");
    let reads: Vec<_> = text
        .lines()
        .filter(|l| l.starts_with("RNG "))
        .skip(1)
        .collect();
    let value = |line: &str, name: &str| {
        let words = line.split_whitespace();
        let mut found = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.next().unwrap_or_default().to_owned()
    };
    assert_eq!(reads.len(), 2, "{text}");
    for read in &reads {
        assert_eq!(value(read, "bytes"), "65536", "{text}");
        // What is random does not get smaller.
        let packed: u32 = value(read, "gzip").parse().unwrap();
        assert!(packed >= 65536, "{read}");
    }
    assert_ne!(value(reads[0], "md5"), value(reads[1], "md5"));
    // It was told by an interrupt, not found by polling.
    let told = |l: &&str| l.starts_with("IRQ ") && (l.contains("input") || transport == "mmio");
    let irq = text.lines().find(told);
    let irq = irq.unwrap_or_else(|| panic!("no interrupt\n{text}"));
    let count: u32 = irq
        .split_whitespace()
        .skip(2)
        .map_while(|word| word.parse::<u32>().ok())
        .sum();
    assert!(irq.contains(interrupt) && count > 0, "{irq}");

    let complaints = complaints(&text);
    assert!(complaints.is_empty(), "{complaints:#?}\n{text}");

    let timeline = ended.json("timeline.json");
    let marks = timeline["marks"].as_array().expect("marks");
    let ready = |mark: &&serde_json::Value| mark["phase"] == "driver_ok";
    let devices: Vec<_> = marks
        .iter()
        .filter(ready)
        .map(|mark| &mark["device"])
        .collect();
    assert_eq!(devices, [&json!("entropy")]);
    for line in text.lines().filter(|line| {
        let words = [
            "PCI", "pci", "RNG", "IRQ", "MCFG", "ECAM", "virtio", "hwrng", "LNRO",
        ];
        words.iter().any(|word| line.contains(word))
    }) {
        println!("{line}");
    }
}

#[test]
fn cloud_6_12_reads_random_bytes() {
    check(Kernel::CLOUD_6_12, "pci", 1, 128);
}

#[test]
fn cloud_6_12_reads_random_bytes_over_mmio() {
    check(Kernel::CLOUD_6_12, "mmio", 1, 128);
}

#[test]
fn other_kernels_read_random_bytes() {
    check(Kernel::GENERIC_6_12, "pci", 2, 256);
    check(Kernel::GENERIC_6_12, "mmio", 2, 256);
    // Memory on both sides of the hole.
    check(Kernel::CLOUD_6_12, "pci", 2, 3584);
}

/// FIPS 140-2 over 100 blocks of 2,500 bytes. What is random fails in one block of 1,250 or so: three of a hundred is luck
/// that nobody has.
#[test]
fn random_bytes_are_random() {
    let mut builder = commands(Kernel::CLOUD_6_12);
    builder.config["entropy"] = json!({});
    let mut shell = GuestShell::boot(builder);
    let report = shell.run("rngtest -c 100 </dev/hwrng").text;
    let count = |what: &str| -> u32 {
        let line = report.lines().find_map(|line| line.split_once(what));
        let (_, count) = line.unwrap_or_else(|| panic!("no {what:?}\n{report}"));
        count.trim().parse().unwrap()
    };
    let passed = count("FIPS 140-2 successes:");
    let failed = count("FIPS 140-2 failures:");
    assert!(passed + failed == 100 && failed < 3, "{report}");
    assert_eq!(shell.power_off().code, 0);
}

/// Every place on MMIO has a device: disks that say which they are, the entropy device, a balloon.
#[test]
fn sixteen_devices_over_mmio_each_have_a_line() {
    const DISKS: usize = 14;
    let mut builder = commands(Kernel::CLOUD_6_12).vcpus(2);
    builder.config["machine-config"]["transport"] = json!("mmio");
    let drives: Vec<_> = (0..DISKS)
        .map(|number| {
            let path = builder.path(&format!("disk-{number}"));
            let disk = File::create_new(&path).unwrap();
            disk.set_len(1 << 20).unwrap();
            disk.write_all_at(format!("disk {number:>2}\n").as_bytes(), 0)
                .unwrap();
            json!({"drive_id": format!("d{number}"), "path_on_host": path})
        })
        .collect();
    builder.config["drives"] = drives.into();
    builder.config["entropy"] = json!({});
    builder.config["balloon"] = json!({"amount_mib": 0, "deflate_on_oom": true});
    let mut config = builder.config.clone();
    let last = builder.path("disk-13");
    let mut shell = GuestShell::boot(builder.option("--level", "Info"));

    let all = "a b c d e f g h i j k l m n";
    let read = format!("for d in {all}; do head -c 8 /dev/vd$d; done");
    let expected: String = (0..DISKS).map(|n| format!("disk {n:>2}\n")).collect();
    assert_eq!(shell.ok(&read), expected.trim_end());
    shell.ok("dd if=/dev/hwrng of=/dev/vdn bs=4096 count=16 iflag=fullblock conv=fsync");
    assert!(!fs::read(&last).unwrap().starts_with(b"disk 13"));
    // The configuration changes, which the same line tells.
    config["balloon"]["amount_mib"] = json!(16);
    shell.vm().reload(&config.to_string(), "balloon: changed");
    shell.ok("for i in $(seq 100); do [ $(awk '/balloon_inflate/ { print $2 }' /proc/vmstat) -ge 4096 ] && exit; sleep 0.1; done; exit 1");

    let interrupts = shell.ok("grep virtio /proc/interrupts");
    print!("{interrupts}");
    assert_eq!(interrupts.lines().count(), DISKS + 2, "{interrupts}");
    for line in interrupts.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let count: u32 = words[1..3].iter().map(|n| n.parse::<u32>().unwrap()).sum();
        assert!(
            count > 0 && line.contains("IO-APIC") && line.contains("-edge"),
            "{line}"
        );
    }
    assert_eq!(shell.power_off().code, 0);
}
