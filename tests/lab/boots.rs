//! Kernels, formats, vCPUs and memory: every kernel as both formats, with 1 and 2 vCPUs, from little memory to much.
//!
//! Not the product of all: each boot takes seconds in an emulated lab.

use serde_json::Value;
use tempfile::TempDir;
use tests::vm::Ended;

use crate::kernels::{Format, Kernel, boot, boot_with_cache};

struct Case {
    kernel: Kernel,
    format: Format,
    vcpus: u8,
    mib: u64,
}

/// Boots, and checks all that a good boot shows.
fn check(case: Case) {
    let Case {
        kernel,
        format,
        vcpus,
        mib,
    } = case;
    let what = format!("{} {format:?}, {vcpus} vCPUs, {mib} MiB", kernel.name);
    println!("{what}");
    let builder = boot(kernel, format, "poweroff").vcpus(vcpus).memory(mib);
    let timeline = builder.path("timeline.json");
    let ended = builder.option("--boot-timeline", timeline).run();
    let text = ended.text();
    assert_eq!(ended.code, 0, "{what}\n{}\n{text}", ended.stderr);
    assert_eq!(ended.stderr, "", "{what}");
    let line = text
        .lines()
        .find(|line| line.starts_with("TANDEM-GUEST "))
        .unwrap_or_else(|| panic!("{what}: no init\n{text}"));
    let value = |name: &str| {
        let word = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.unwrap_or_else(|| panic!("{what}: no {name} in {line}"))
            .to_owned()
    };
    assert_eq!(value("cpus"), vcpus.to_string(), "{what}");
    assert!(
        value("kernel").starts_with(kernel.release),
        "{what}: {line}"
    );
    assert!(
        ["kvm-clock", "tsc"].contains(&value("clocksource").as_str()),
        "{what}: {line}"
    );
    // What the kernel itself and its page structures take is not in MemTotal; nor are, with memory beyond 4 GiB, the
    // 64 MiB of bounce buffers for devices that cannot reach it (swiotlb).
    let bounce = if mib > 3072 { 64 << 10 } else { 0 };
    let (total, all): (u64, u64) = (value("mem_kib").parse().unwrap(), mib * 1024);
    assert!(
        total < all && total + kernel.overhead_kib + bounce + all / 32 > all,
        "{what}: {line}"
    );
    check_timeline(&ended, kernel, &what);
}

fn check_timeline(ended: &Ended, kernel: Kernel, what: &str) {
    let timeline = ended.json("timeline.json");
    let marks = timeline["marks"].as_array().expect("marks");
    let phases: Vec<_> = marks
        .iter()
        .filter_map(|mark| mark["phase"].as_str())
        .collect();
    let mut expected = vec![
        "process_start",
        "config_complete",
        "memory_ready",
        "kernel_loaded",
        "machine_ready",
        "first_vcpu_entry",
        "first_serial_byte",
        "shutdown",
    ];
    if kernel.dev_mem {
        expected.insert(7, "init_reached");
    }
    assert_eq!(phases, expected, "{what}");
    let times: Vec<_> = marks
        .iter()
        .filter_map(|mark| mark["wall_us"].as_u64())
        .collect();
    assert!(
        times.is_sorted() && times.len() == marks.len(),
        "{what}: {timeline}"
    );
    assert_eq!(timeline["exit_code"], Value::from(0));
}

#[test]
fn cloud_6_12() {
    let kernel = Kernel::CLOUD_6_12;
    check(Case {
        kernel,
        format: Format::Vmlinux,
        vcpus: 1,
        mib: kernel.least_mib,
    });
    check(Case {
        kernel,
        format: Format::Vmlinux,
        vcpus: 2,
        mib: 256,
    });
    check(Case {
        kernel,
        format: Format::BzImage,
        vcpus: 2,
        mib: 2048,
    });
}

#[test]
fn cloud_6_1() {
    let kernel = Kernel::CLOUD_6_1;
    check(Case {
        kernel,
        format: Format::BzImage,
        vcpus: 1,
        mib: kernel.least_mib,
    });
    check(Case {
        kernel,
        format: Format::Vmlinux,
        vcpus: 2,
        mib: 2048,
    });
}

#[test]
fn generic_6_12() {
    let kernel = Kernel::GENERIC_6_12;
    check(Case {
        kernel,
        format: Format::BzImage,
        vcpus: 1,
        mib: kernel.least_mib,
    });
    check(Case {
        kernel,
        format: Format::Vmlinux,
        vcpus: 2,
        mib: 256,
    });
}

#[test]
fn memory_beyond_the_hole() {
    // 3 GiB below the hole and half a GiB above.
    check(Case {
        kernel: Kernel::CLOUD_6_12,
        format: Format::Vmlinux,
        vcpus: 1,
        mib: 3584,
    });
}

#[test]
fn a_guest_that_decompresses_its_kernel_itself() {
    let ended = boot(Kernel::CLOUD_6_1, Format::BzImage, "poweroff")
        .boot("bzimage_decompression", "Guest")
        .run();
    assert_eq!(ended.code, 0, "{}\n{}", ended.stderr, ended.text());
    assert!(
        ended.text().contains("TANDEM-GUEST cpus=1 "),
        "{}",
        ended.text()
    );
}

#[test]
fn a_bzimage_is_decompressed_once() {
    let cache = TempDir::new().unwrap();
    for decompressed in [true, false] {
        let ended = boot_with_cache(Kernel::CLOUD_6_1, Format::BzImage, "poweroff", cache.path())
            .option("--level", "Info")
            .run();
        assert_eq!(ended.code, 0, "{}", ended.text());
        assert_eq!(
            ended.stderr.contains("decompressed "),
            decompressed,
            "{}",
            ended.stderr
        );
    }
}

/// As many as there can be.
#[test]
fn all_vcpus() {
    let vcpus = 32;
    let ended = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "poweroff")
        .vcpus(vcpus)
        .memory(512)
        .run();
    assert_eq!(ended.code, 0, "{}\n{}", ended.stderr, ended.text());
    assert!(
        ended
            .text()
            .contains(&format!("TANDEM-GUEST cpus={vcpus} ")),
        "{}",
        ended.text()
    );
}
