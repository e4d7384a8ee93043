//! Is the host's own `/dev/kvm` good for stock kernels?

use vmm::probe;

use super::{LabError, Result};

/// `TANDEM_LAB=direct|emulated` decides it by hand; `auto`, or nothing, has a probe guest decide: a KVM that emulates
/// guests in software looks the same from outside, and cannot do all that kernels need.
pub fn host_kvm_complete() -> Result<bool> {
    match std::env::var("TANDEM_LAB").as_deref() {
        Ok("direct") => Ok(true),
        Ok("emulated") => Ok(false),
        Ok("auto" | "") | Err(_) => {
            Ok(probe::run(&probe::Options::default()).can_run_stock_kernels())
        }
        Ok(other) => Err(LabError::Told(format!(
            "TANDEM_LAB={other} is none of direct, emulated and auto"
        ))),
    }
}
