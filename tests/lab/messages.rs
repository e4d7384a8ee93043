//! What the kernels say about the machine.

use crate::kernels::{Format, Kernel, boot};

/// Words of a kernel that finds something wrong.
pub const COMPLAINTS: [&str; 15] = [
    "Unable to",
    "BUG",
    "WARNING:",
    "Oops",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Warning",
    "ACPI BIOS Warning",
    "[Firmware Bug]",
    "Unstable clock",
    "unstable",
    "calibration",
    "nobody cared",
    "MP-BIOS bug",
    "stuck",
];

/// Complaints that are not about the machine: advice on a weakness of the host's CPU, which the guest shares; and the size of
/// the XSAVE area, in the lab: its emulated CPU does not let KVM see XSETBV, so CPUID 0xd keeps the size that it had before
/// (a guest of QEMU's says the same there).
pub const EXPECTED: [&str; 2] = [
    "Speculative Return Stack Overflow: WARNING: See",
    "arch/x86/kernel/fpu/xstate.c",
];

#[test]
fn kernels_find_nothing_wrong() {
    let mut all = String::new();
    for (kernel, vcpus) in [
        (Kernel::CLOUD_6_12, 2),
        (Kernel::CLOUD_6_1, 1),
        (Kernel::GENERIC_6_12, 2),
    ] {
        let args = "console=ttyS0 panic=-1 loglevel=8 tandem.test=poweroff";
        let ended = boot(kernel, Format::Vmlinux, "poweroff")
            .vcpus(vcpus)
            .memory(256)
            .boot("boot_args", args)
            .run();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let text = ended.text();
        assert!(text.lines().count() > 100, "{text}");
        let complaints: Vec<_> = text
            .lines()
            .filter(|line| COMPLAINTS.iter().any(|word| line.contains(word)))
            .filter(|line| !EXPECTED.iter().any(|known| line.contains(known)))
            .collect();
        if !complaints.is_empty() {
            all += &format!("{}:\n{}\n", kernel.name, complaints.join("\n"));
            // For whoever reads the failure: what stands around them.
            println!("{}:\n{text}", kernel.name);
        }
        for sign in [
            "Hypervisor detected: KVM",
            "kvm-clock: using sched offset",
            "ACPI: PM: (supports S0 S5)",
        ] {
            assert!(
                text.contains(sign),
                "{}: no {sign:?} in\n{text}",
                kernel.name
            );
        }
    }
    assert!(all.is_empty(), "{all}");
}
