//! How a machine can end, with the exit code of each way.
//!
//! | code | meaning                                                                          |
//! |------|----------------------------------------------------------------------------------|
//! | 0    | the guest switched itself off, of its own will or when the power button was pressed |
//! | 1    | the host could not set up or run the machine                                      |
//! | 64   | the guest reset itself (`reboot`), or a request over the control socket did         |
//! | 65   | the guest's kernel panicked, or restarted in an emergency                         |
//! | 66   | triple fault                                                                      |
//! | 67   | KVM could not go on (`KVM_EXIT_INTERNAL_ERROR`, `KVM_EXIT_FAIL_ENTRY`)            |
//! | 68   | a vCPU was lost: `KVM_RUN` failed, or its thread ended                            |
//! | 69   | the devices were lost: their thread cannot go on                                  |
//! | 70   | a request over the control socket stopped the machine                              |
//! | 129, 130, 131, 143 | stopped by SIGHUP, SIGINT, SIGQUIT, SIGTERM without waiting for the guest any longer |
//! | 134  | the VM process found itself broken and gave up (a bug: SIGABRT)                   |
//! | 148  | a thread made a system call that its filter does not allow                         |
//! | 152  | the configuration is not valid                                                    |
//! | 153  | the command line is not valid                                                     |
//!
//! A panic is certain where the guest reports it (pvpanic). Without that driver, a reset counts as one if the guest was still
//! taking interrupts, as Linux does with `panic=-1` and SysRq-b; `reboot=f` looks the same. A panic so early that the guest
//! had not yet set up an interrupt, or with `noapic`, looks like a reboot.
//!
//! 148, 152 and 153 are Firecracker's; 130 and 143 are 128 plus the signal's number, as shells have it.

use std::fmt;

/// Exit code: the host could not set up or run the machine.
pub const HOST_ERROR: u8 = 1;
/// Exit code: a thread made a system call that its filter does not allow.
pub const BAD_SYSCALL: u8 = 148;
/// Exit code: the configuration is not valid.
pub const BAD_CONFIGURATION: u8 = 152;
/// Exit code: the command line is not valid.
pub const BAD_ARGUMENTS: u8 = 153;

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself in good order.
    Reset,
    /// The guest's kernel panicked, or reset the machine in an emergency.
    Panic(PanicSign),
    /// A fault while handling a double fault, on the vCPU of that number.
    TripleFault {
        /// Number of the vCPU.
        vcpu: u8,
    },
    /// KVM could not go on with the guest.
    InternalError {
        /// Number of the vCPU.
        vcpu: u8,
        /// What KVM said, and where the guest was.
        detail: String,
    },
    /// A vCPU cannot run any more.
    VcpuLost {
        /// Number of the vCPU.
        vcpu: u8,
        /// What happened to it.
        detail: String,
    },
    /// The thread that serves the devices cannot go on.
    DevicesLost {
        /// What happened to it.
        detail: String,
    },
    /// A request asked for a reset.
    ResetByRequest,
    /// A request asked for the end at once.
    StoppedByRequest,
    /// A signal asked for the end and the guest did not switch itself off in time.
    Stopped {
        /// Number of the signal.
        signal: i32,
    },
}

/// By what a panic was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicSign {
    /// The guest's kernel said so (pvpanic).
    Reported,
    /// The guest reset the machine without masking its interrupts first, which only an emergency restart does:
    /// `panic=-1`, or SysRq-b.
    EmergencyRestart,
}

impl ExitReason {
    /// Exit code of the process.
    pub fn code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reset | Self::ResetByRequest => 64,
            Self::Panic(_) => 65,
            Self::TripleFault { .. } => 66,
            Self::InternalError { .. } => 67,
            Self::VcpuLost { .. } => 68,
            Self::DevicesLost { .. } => 69,
            Self::StoppedByRequest => 70,
            // Signal numbers are below 128.
            Self::Stopped { signal } => 128_u8.saturating_add(*signal as u8),
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched itself off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panic(PanicSign::Reported) => f.write_str("the guest's kernel panicked"),
            Self::Panic(PanicSign::EmergencyRestart) => f.write_str(
                "the guest's kernel panicked, or restarted in an emergency: it reset the machine while taking interrupts",
            ),
            Self::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            Self::InternalError { vcpu, detail } => {
                write!(f, "KVM could not go on with vCPU {vcpu}: {detail}")
            }
            Self::VcpuLost { vcpu, detail } => write!(f, "vCPU {vcpu} was lost: {detail}"),
            Self::DevicesLost { detail } => write!(f, "the devices were lost: {detail}"),
            Self::ResetByRequest => f.write_str("reset by a request over the control socket"),
            Self::StoppedByRequest => f.write_str("stopped by a request over the control socket"),
            Self::Stopped { signal } => {
                write!(
                    f,
                    "stopped by signal {signal} before the guest had switched itself off"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_a_code_of_its_own() {
        let ways = [
            ExitReason::PowerOff,
            ExitReason::Reset,
            ExitReason::Panic(PanicSign::Reported),
            ExitReason::TripleFault { vcpu: 0 },
            ExitReason::InternalError {
                vcpu: 0,
                detail: String::new(),
            },
            ExitReason::VcpuLost {
                vcpu: 0,
                detail: String::new(),
            },
            ExitReason::DevicesLost {
                detail: String::new(),
            },
            ExitReason::StoppedByRequest,
            ExitReason::Stopped {
                signal: libc::SIGINT,
            },
            ExitReason::Stopped {
                signal: libc::SIGTERM,
            },
        ];
        let mut codes: Vec<u8> = ways.iter().map(ExitReason::code).collect();
        assert_eq!(codes, [0, 64, 65, 66, 67, 68, 69, 70, 130, 143]);
        codes.extend([HOST_ERROR, BAD_SYSCALL, BAD_CONFIGURATION, BAD_ARGUMENTS]);
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), 14);
    }
}
