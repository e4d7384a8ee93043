//! What the kernels say about the machine.

use tests::kernel_log::complaints;

use crate::kernels::{Format, Kernel, boot};

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
        let complaints = complaints(&text);
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
