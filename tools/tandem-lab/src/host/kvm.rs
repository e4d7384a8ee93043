//! Is the host's own `/dev/kvm` good for stock kernels?

use std::fs::{self, OpenOptions};

use super::{LabError, Result};

/// `TANDEM_LAB=direct|emulated` decides it by hand; `auto`, or nothing, asks the machine.
pub fn host_kvm_complete() -> Result<bool> {
    match std::env::var("TANDEM_LAB").as_deref() {
        Ok("direct") => Ok(true),
        Ok("emulated") => Ok(false),
        Ok("auto" | "") | Err(_) => Ok(probe()),
        Ok(other) => Err(LabError::Told(format!(
            "TANDEM_LAB={other} is none of direct, emulated and auto"
        ))),
    }
}

/// A KVM without the processor's own virtualisation emulates guests in software, and not all of what kernels need.
fn probe() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = processor
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|flags| {
            flags
                .split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        });
    hardware
        && OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}
