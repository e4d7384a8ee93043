//! The kernels, and a VM that boots one of them into the test initramfs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tests::artifacts::artifact;
use tests::vm::VmBuilder;

/// A stock kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Name among the artifacts.
    pub name: &'static str,
    /// What `uname -r` begins with.
    pub release: &'static str,
    /// Least memory in MiB that it boots with.
    pub least_mib: u64,
    /// What it keeps for itself of any memory, at most.
    pub overhead_kib: u64,
    /// Whether user space can reach the boot timer (`CONFIG_DEVMEM`).
    pub dev_mem: bool,
}

impl Kernel {
    /// Debian's cloud kernel 6.12. Its vmlinux is linked to end beyond 64 MiB (16 MiB and 50 MiB of image).
    pub const CLOUD_6_12: Self = Self {
        name: "6.12-cloud",
        release: "6.12.",
        least_mib: 80,
        overhead_kib: 50 << 10,
        dev_mem: true,
    };
    /// Debian's cloud kernel 6.1. With 64 MiB it runs out of memory before there is an init.
    pub const CLOUD_6_1: Self = Self {
        name: "6.1-cloud",
        release: "6.1.",
        least_mib: 80,
        overhead_kib: 50 << 10,
        dev_mem: true,
    };
    /// Debian's kernel 6.12 for all machines, with everything built in that they might need.
    pub const GENERIC_6_12: Self = Self {
        name: "6.12",
        release: "6.12.",
        least_mib: 80,
        overhead_kib: 60 << 10,
        dev_mem: true,
    };
}

/// A form of the kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Vmlinux,
    BzImage,
}

/// A cache for all tests that are not about the cache. It stays below the tests' directory for temporary files, and
/// serves the next run as well.
fn common_cache() -> PathBuf {
    std::env::temp_dir().join("tandem-test-kernels")
}

/// An artifact, looked for once: checking it takes seconds in the lab.
fn found(name: &str) -> PathBuf {
    static FOUND: OnceLock<std::sync::Mutex<std::collections::HashMap<String, PathBuf>>> =
        OnceLock::new();
    let mut found = FOUND
        .get_or_init(Default::default)
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    found
        .entry(name.to_owned())
        .or_insert_with(|| artifact(name))
        .clone()
}

/// A VM of one vCPU and 128 MiB that boots `kernel` and does `test` (`resources/test-guest/init`).
pub fn boot(kernel: Kernel, format: Format, test: &str) -> VmBuilder {
    boot_with_cache(kernel, format, test, &common_cache())
}

/// The same, with decompressed kernels kept in `cache`.
pub fn boot_with_cache(kernel: Kernel, format: Format, test: &str, cache: &Path) -> VmBuilder {
    let file = match format {
        Format::Vmlinux => "vmlinux",
        Format::BzImage => "bzimage",
    };
    let initramfs = match test {
        "powerbutton" | "rng" => format!("initramfs-test-{}", kernel.name),
        "commands" => format!("initramfs-toolbox-{}", kernel.name),
        _ => "initramfs-test".to_owned(),
    };
    VmBuilder::with_kernel(found(&format!("{file}-{}", kernel.name)))
        .initrd(&found(&initramfs))
        .boot(
            "boot_args",
            format!("console=ttyS0 panic=-1 quiet tandem.test={test}"),
        )
        .option("--kernel-cache", cache)
}

/// A guest with the toolbox that runs shell commands, with 256 MiB: `GuestShell::boot` takes it. Tests may add what they are about.
pub fn commands(kernel: Kernel) -> VmBuilder {
    boot(kernel, Format::Vmlinux, "commands").memory(256)
}
