//! What came of one check: passed, failed and why, or not applicable.

use serde::Serialize;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The guest ran the instructions and found its own results right.
    Passed,
    /// It did not; guests that need this will not run.
    Failed {
        /// What KVM or the guest said.
        failure: Failure,
        /// The same in one line.
        text: String,
    },
    /// Not run: the CPU that KVM offers to guests lacks the feature, and guests are told so.
    Skipped {
        /// The CPUID feature that is missing.
        missing: String,
    },
}

impl Outcome {
    /// Whether guests that use the feature will run, or know not to use it.
    pub fn is_good(&self) -> bool {
        !matches!(self, Self::Failed { .. })
    }

    pub(super) fn from_failure(failure: Failure) -> Self {
        let text = failure.to_string();
        Self::Failed { failure, text }
    }
}

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Failure {
    /// KVM gave up (`KVM_EXIT_INTERNAL_ERROR`, `struct kvm_run::internal` in linux/kvm.h).
    #[error(
        "KVM_EXIT_INTERNAL_ERROR, suberror {suberror} ({}), at {} {code}", suberror_name(*suberror),
        place(*rip)
    )]
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// Guest's instruction pointer.
        rip: u64,
        /// The bytes at `rip`, in hexadecimal.
        code: String,
    },
    /// Triple fault (`KVM_EXIT_SHUTDOWN`).
    #[error("KVM_EXIT_SHUTDOWN (triple fault), at {}", place(*rip))]
    Shutdown {
        /// Guest's instruction pointer; after a shutdown some CPUs reset it.
        rip: u64,
    },
    /// The CPU refused the guest's state (`KVM_EXIT_FAIL_ENTRY`).
    #[error("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}")]
    FailEntry {
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// Another exit than the guest's own report.
    #[error("unexpected exit {exit}, at {}", place(*rip))]
    UnexpectedExit {
        /// The exit's name and data.
        exit: String,
        /// Guest's instruction pointer.
        rip: u64,
    },
    /// An exception that the guest did not cause on purpose reached its handler.
    #[error("unexpected exception, vector {vector}")]
    UnexpectedVector {
        /// The vector.
        vector: u8,
    },
    /// The guest ran on and computed something else than it should.
    #[error("wrong result")]
    WrongResult,
    /// No report within the time limit.
    #[error("no answer within {limit_ms} ms, stopped at {}", place(*rip))]
    TimedOut {
        /// The time limit, milliseconds.
        limit_ms: u64,
        /// Guest's instruction pointer when it was stopped.
        rip: u64,
    },
    /// The vCPU did not even leave `KVM_RUN` when it was told to; its thread is left behind.
    #[error("no answer within {limit_ms} ms, and the vCPU cannot be stopped")]
    Stuck {
        /// The time limit, milliseconds.
        limit_ms: u64,
    },
    /// A system call that sets the guest up or runs it failed.
    #[error("{what}: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The call, by its KVM name.
        what: String,
        /// The error number.
        errno: i32,
    },
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "instruction not emulated",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "exit while an event was delivered",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
        _ => "unknown",
    }
}

fn place(rip: u64) -> String {
    format!("rip {rip:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_exit_suberror_and_bytes() {
        let failure = Failure::InternalError {
            suberror: 1,
            rip: 0x8100,
            code: "cc eb 00".into(),
        };
        assert_eq!(
            failure.to_string(),
            "KVM_EXIT_INTERNAL_ERROR, suberror 1 (instruction not emulated), at rip 0x8100 cc eb 00"
        );
        let json = serde_json::to_value(Outcome::from_failure(failure)).unwrap();
        assert_eq!(json["outcome"], "failed");
        assert_eq!(json["failure"]["kind"], "internal_error");
        assert_eq!(json["failure"]["suberror"], 1);
    }
}
