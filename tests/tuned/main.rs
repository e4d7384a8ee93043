//! The tuned guest kernel (`tools/build-kernel`), where `/dev/kvm` is complete. `tools/test` runs this when the kernel has been
//! built: `TANDEM_ARTIFACT_GUEST_KERNEL` is its directory.

use tests::artifacts::artifact;
use tests::vm::VmBuilder;

/// Boots `file` of the kernel's directory to power-off, and checks what init sees.
fn check(file: &str, vcpus: u8, mib: u64) {
    let ended = VmBuilder::with_kernel(artifact("guest-kernel").join(file))
        .initrd(&artifact("initramfs-test"))
        .boot("boot_args", "console=ttyS0 panic=-1 quiet")
        .vcpus(vcpus)
        .memory(mib)
        .run();
    let text = ended.text();
    assert_eq!(ended.code, 0, "{file}: {}\n{text}", ended.stderr);
    let seen = format!("TANDEM-GUEST cpus={vcpus} ");
    assert!(text.contains(&seen), "{file}: {text}");
}

#[test]
fn vmlinux_boots_in_little_memory() {
    check("vmlinux", 1, 64);
}

#[test]
fn bzimage_boots_on_two_vcpus() {
    check("bzImage", 2, 256);
}
