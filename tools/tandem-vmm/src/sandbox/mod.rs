//! What the process gives up before the guest runs.
//!
//! | file       | what lives there                                                             |
//! |------------|------------------------------------------------------------------------------|
//! | `filters`  | the seccomp filters of each kind of thread, as BPF                            |
//! | `violation`| a call that a filter does not allow: what is said, and the end               |
//!
//! The policy is `resources/seccomp/policy.json`, compiled at build time for the static build (musl), which is the one
//! that ships. Other C libraries make other calls: their builds have no filters, and say so in the log.

mod filters;
mod violation;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use vmm::confine::{Confine, Role, unconfined};
use vmm::exit;

use crate::args::Args;
use filters::Filters;
pub use violation::tell_in;

/// Filters of this policy suit this build.
const SUITABLE: bool = cfg!(all(target_arch = "x86_64", target_env = "musl"));

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The file of filters cannot be read.
    #[error("--seccomp-filter: cannot read {}; give a file that `tandem-seccomp compile` has made", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The file of filters is something else.
    #[error("--seccomp-filter: {} {}; give a file that `tandem-seccomp compile` has made", .0.display(), .1)]
    NoFilters(PathBuf, &'static str),
    /// The host refused.
    #[error("cannot prepare the seccomp filters; run with --no-seccomp on a kernel that has none")]
    Prepare(#[source] io::Error),
}

impl SandboxError {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read(..) | Self::NoFilters(..) => exit::BAD_CONFIGURATION,
            Self::Prepare(_) => exit::HOST_ERROR,
        }
    }
}

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Prepares what threads will do to confine themselves, before any is made.
///
/// # Errors
/// [`SandboxError`].
pub fn start(args: &Args) -> Result<Confine, SandboxError> {
    if args.no_seccomp {
        return Ok(unconfined);
    }
    let filters = match &args.seccomp_filter {
        Some(path) => {
            let bytes = fs::read(path).map_err(|error| SandboxError::Read(path.clone(), error))?;
            Filters::parse(&bytes)
                .map_err(|problem| SandboxError::NoFilters(path.clone(), problem))?
        }
        None if SUITABLE => Filters::built_in(),
        None => {
            log::warn!(
                "no seccomp filters: the policy is for the static build (x86_64-unknown-linux-musl)"
            );
            return Ok(unconfined);
        }
    };
    filters::promise_no_privileges().map_err(SandboxError::Prepare)?;
    violation::install_handler(&args.id).map_err(SandboxError::Prepare)?;
    // Nobody else sets it.
    let _ = FILTERS.set(filters);
    Ok(confine)
}

fn confine(role: Role) -> io::Result<()> {
    violation::name_thread(role);
    match FILTERS.get() {
        Some(filters) => filters.install(role),
        None => Ok(()),
    }
}
