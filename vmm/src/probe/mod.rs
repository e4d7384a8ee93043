//! What this host's KVM can do, found by asking it and by running a probe guest.
//!
//! Not every /dev/kvm can run a stock kernel: some backends emulate instruction by instruction and
//! lack parts that every kernel uses. [`run`] opens the device, asks for version and capabilities,
//! and runs one tiny guest per [`Check`], each on its own, each with a time limit. The verdict comes
//! from that alone; the backend's name is only reported.
//!
//! | file | what |
//! |---|---|
//! | `guest.s`, `guest.rs` | the guest's code and memory |
//! | `runner.rs` | the VM a check runs in, and the time limit |
//! | `vcpu.rs` | the vCPU: its state at entry, and what its exit means |
//! | `signal.rs` | stopping a vCPU from another thread |
//! | `outcome.rs` | what came of a check |
//! | `capabilities.rs` | the table of capabilities |
//! | `host.rs` | backend, CPU flags, nested or not |
//!
//! Independent of the rest of the crate: it needs neither a configuration nor a machine.

mod capabilities;
mod guest;
mod host;
mod outcome;
mod runner;
mod signal;
mod vcpu;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use serde::Serialize;

pub use capabilities::Capability;
pub use host::{Backend, CpuFlags, Host};
pub use outcome::{Failure, Outcome};

/// One thing that a stock kernel does and that the probe guest tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// General registers, memory, call and return, an exit by port I/O.
    Plain,
    /// An interrupt from outside reaches the guest's handler, which returns.
    Interrupt,
    /// `int3` reaches the guest's handler.
    Breakpoint,
    /// `ud2` reaches the guest's handler.
    InvalidOpcode,
    /// A page fault reaches the guest's handler, with its address.
    PageFault,
    /// To user mode by `sysret` and back by `syscall`.
    Syscall,
    /// SSE2 arithmetic.
    Sse,
    /// `cmpxchg16b`.
    Cmpxchg16b,
    /// `xsetbv`, `xsave`, `xrstor`.
    Xsave,
}

impl Check {
    /// All checks, in the order in which they run.
    pub const ALL: [Self; 9] = [
        Self::Plain,
        Self::Interrupt,
        Self::Breakpoint,
        Self::InvalidOpcode,
        Self::PageFault,
        Self::Syscall,
        Self::Sse,
        Self::Cmpxchg16b,
        Self::Xsave,
    ];

    /// A short name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain code",
            Self::Interrupt => "interrupt",
            Self::Breakpoint => "int3",
            Self::InvalidOpcode => "#UD",
            Self::PageFault => "#PF",
            Self::Syscall => "syscall",
            Self::Sse => "SSE",
            Self::Cmpxchg16b => "cmpxchg16b",
            Self::Xsave => "xsave",
        }
    }
}

/// A check and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// The check.
    pub check: Check,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Wall time it took, microseconds.
    pub micros: u64,
}

/// What to probe and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// The device, normally /dev/kvm.
    pub device: PathBuf,
    /// The longest that one check may take before its vCPU is stopped.
    pub time_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: PathBuf::from("/dev/kvm"),
            time_limit: Duration::from_secs(2),
        }
    }
}

/// Why the device is no use at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeviceError {
    /// There is no such file (ENOENT).
    #[error("{device} does not exist")]
    Missing {
        /// The device's path.
        device: String,
    },
    /// The file's permissions do not let us open it (EACCES, EPERM).
    #[error("no permission to open {device}")]
    Denied {
        /// The device's path.
        device: String,
    },
    /// Opening failed otherwise.
    #[error("cannot open {device}: {}", std::io::Error::from_raw_os_error(*errno))]
    Open {
        /// The device's path.
        device: String,
        /// The error number.
        errno: i32,
    },
    /// It opens, but does not answer `KVM_GET_API_VERSION`.
    #[error("{device} is not a KVM device")]
    NotKvm {
        /// The device's path.
        device: String,
    },
    /// Another API than the only one ever published as stable.
    #[error("{device} speaks KVM API version {version}; version 12 is needed")]
    Version {
        /// The device's path.
        device: String,
        /// The version it answered.
        version: i32,
    },
}

/// What an open KVM device answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `KVM_GET_API_VERSION`: always 12.
    pub api_version: i32,
    /// Every capability of the table, needed ones first.
    pub capabilities: Vec<Capability>,
    /// One result for each of [`Check::ALL`], in that order.
    pub checks: Vec<CheckResult>,
}

impl Device {
    /// The needed capabilities that are not there.
    pub fn missing_capabilities(&self) -> impl Iterator<Item = &Capability> {
        self.capabilities
            .iter()
            .filter(|c| c.needed && !c.is_present())
    }

    /// The checks that failed.
    pub fn failed_checks(&self) -> impl Iterator<Item = &CheckResult> {
        self.checks
            .iter()
            .filter(|result| !result.outcome.is_good())
    }
}

/// What can be done with this KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Stock kernels run.
    StockKernels,
    /// Only guests of simple code (general registers, no exceptions) run.
    SimpleCode,
    /// Nothing runs.
    Unusable,
}

/// Everything that the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The device's answers, or why there are none.
    pub device: Result<Device, DeviceError>,
    /// The host around it.
    pub host: Host,
}

impl Report {
    /// Sums up: by the needed capabilities and the checks alone.
    pub fn verdict(&self) -> Verdict {
        let Ok(device) = &self.device else {
            return Verdict::Unusable;
        };
        let plain = device
            .checks
            .iter()
            .any(|result| result.check == Check::Plain && result.outcome == Outcome::Passed);
        if !plain || device.missing_capabilities().next().is_some() {
            Verdict::Unusable
        } else if device.failed_checks().next().is_some() {
            Verdict::SimpleCode
        } else {
            Verdict::StockKernels
        }
    }

    /// Whether unmodified distribution kernels will run here.
    pub fn can_run_stock_kernels(&self) -> bool {
        self.verdict() == Verdict::StockKernels
    }
}

/// Asks the device and runs every check: some milliseconds where KVM is hardware, and at most
/// about a second more than the time limit for each check where it is not.
pub fn run(options: &Options) -> Report {
    let device = open(&options.device).map(|kvm| Device {
        api_version: kvm.get_api_version(),
        capabilities: capabilities::ask(&kvm),
        checks: check_all(&kvm, options.time_limit),
    });
    Report {
        device,
        host: Host::detect(),
    }
}

fn check_all(kvm: &Kvm, time_limit: Duration) -> Vec<CheckResult> {
    let mut runner = runner::Runner::new(kvm, time_limit);
    let run = |check| {
        let start = Instant::now();
        let outcome = runner.check(check);
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        CheckResult {
            check,
            outcome,
            micros,
        }
    };
    Check::ALL.map(run).into()
}

fn open(path: &Path) -> Result<Kvm, DeviceError> {
    let device = path.display().to_string();
    // A path with a NUL byte names no file.
    let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else {
        return Err(DeviceError::Missing { device });
    };
    let kvm = match Kvm::new_with_path(c_path) {
        Ok(kvm) => kvm,
        Err(error) => {
            return Err(match error.errno() {
                libc::ENOENT => DeviceError::Missing { device },
                libc::EACCES | libc::EPERM => DeviceError::Denied { device },
                errno => DeviceError::Open { device, errno },
            });
        }
    };
    match kvm.get_api_version() {
        // The only stable version (Documentation/virt/kvm/api.rst, 4.1).
        12 => Ok(kvm),
        version if version < 0 => Err(DeviceError::NotKvm { device }),
        version => Err(DeviceError::Version { device, version }),
    }
}

#[cfg(test)]
mod tests;
