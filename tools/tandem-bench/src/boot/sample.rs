//! One cold boot, measured from outside.
//!
//! Time zero is just before the process is started. The guest's user space is there when its line arrives at the
//! standard output of the VMM. At that moment the process is stopped, its memory is looked at, and it goes on; the time
//! that this took is taken off what comes after.

use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::entry::EntryTrace;
use crate::adapters::{Guest, Launch};
use crate::process::{Failure, Running, failed};
use crate::smaps::{self, Memory};
use crate::stage::StagedProgram;
use crate::sys;

/// What the guest's init prints first.
const USER_SPACE: &[u8] = b"TANDEM-GUEST";

/// One boot's numbers. Times are microseconds since time zero, without the time of looking at memory.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Round in which it was measured; warm-up rounds have none.
    pub round: Option<usize>,
    /// Position within the round.
    pub position: usize,
    /// The first vCPU entered the guest, by the kernel's tracepoint.
    pub first_entry_us: Option<u64>,
    /// The guest's user space wrote its line.
    pub user_space_us: u64,
    /// The process was over.
    pub exit_us: u64,
    /// Taken off `exit_us`: the process was stopped for its memory to be looked at.
    pub stopped_us: u64,
    /// CPU time in user mode, that of the guest included.
    pub cpu_user_us: u64,
    /// CPU time in the kernel.
    pub cpu_system_us: u64,
    /// Page faults without reading from a disk.
    pub minor_faults: u64,
    /// Memory when the guest's user space was reached.
    pub memory: Memory,
    /// The VMM's own timeline, if it writes one.
    pub timeline: Option<Vec<Mark>>,
}

/// A mark of Tandem's timeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Name of the phase that was reached.
    pub phase: String,
    /// Microseconds since time zero.
    pub wall_us: u64,
    /// Microseconds of CPU time until then.
    pub cpu_us: u64,
}

#[derive(Deserialize)]
struct Timeline {
    marks: Vec<Mark>,
}

/// Boots once.
pub fn boot(
    program: &StagedProgram,
    launch: &Launch,
    guest: &Guest,
    trace: Option<&EntryTrace>,
    limit: Duration,
) -> Result<Sample, Failure> {
    if let Some(trace) = trace {
        trace.arm()?;
    }
    let zero_ns = sys::monotonic_ns();
    let start_us = (zero_ns / 1_000).to_string();
    let mut running = Running::start(program, launch.arguments_at(&start_us), zero_ns)?;
    let mut user_space = None;
    let exit_ns = running.watch(limit, |seen| {
        if user_space.is_none() && contains(seen.last, USER_SPACE) {
            user_space = Some(look(seen.pid, seen.at_ns, guest)?);
        }
        Ok(())
    })?;
    let (status, ended) = running.wait()?;
    let good = |code: i32| launch.good_exits.contains(&code);
    let Some(user_space) = user_space else {
        let why = running.last_words();
        return Err(format!("ended before the guest's user space, with {status}: {why}").into());
    };
    if !status.code().is_some_and(good) {
        return Err(format!("ended with {status}: {}", running.last_words()).into());
    }
    let micros = |ns: u64| ns.saturating_sub(zero_ns) / 1_000;
    let first_entry = match trace {
        Some(trace) => trace.first().map_err(failed("read the trace"))?,
        None => None,
    };
    Ok(Sample {
        round: None,
        position: 0,
        first_entry_us: first_entry.map(micros),
        user_space_us: micros(user_space.at_ns),
        exit_us: micros(exit_ns.saturating_sub(user_space.stopped_ns)),
        stopped_us: user_space.stopped_ns / 1_000,
        cpu_user_us: ended.user_us,
        cpu_system_us: ended.system_us,
        minor_faults: ended.minor_faults,
        memory: user_space.memory.ok_or_else(|| {
            Failure::Vm("its guest memory was not found among its mappings".into())
        })?,
        timeline: launch.timeline.as_deref().map(read_timeline).transpose()?,
    })
}

fn read_timeline(path: &std::path::Path) -> Result<Vec<Mark>, Failure> {
    let text = fs::read(path).map_err(failed("read its timeline"))?;
    // Not the next boot's, should that one write none.
    let _ = fs::remove_file(path);
    let timeline: Timeline = serde_json::from_slice(&text)
        .map_err(|error| Failure::Vm(format!("its timeline is not as expected: {error}")))?;
    Ok(timeline.marks)
}

struct UserSpace {
    at_ns: u64,
    stopped_ns: u64,
    memory: Option<Memory>,
}

/// Stops the process, looks at its memory, and lets it go on.
fn look(pid: i32, at_ns: u64, guest: &Guest) -> Result<UserSpace, Failure> {
    let from_ns = sys::monotonic_ns();
    sys::kill(pid, libc::SIGSTOP).map_err(failed("stop it"))?;
    let stopped = sys::wait_stopped(pid).map_err(failed("stop it"))?;
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    sys::kill(pid, libc::SIGCONT).map_err(failed("continue it"))?;
    let stopped_ns = sys::monotonic_ns() - from_ns;
    let kernel = guest.kernel.to_string_lossy();
    let initrd = guest.initrd.to_string_lossy();
    Ok(UserSpace {
        at_ns,
        stopped_ns,
        memory: smaps::split(&smaps, guest.memory_mib, &[&kernel, &initrd]).filter(|_| stopped),
    })
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::START_TIME_US;

    fn script(text: &str) -> Result<Sample, Failure> {
        let program = StagedProgram {
            path: "/bin/sh".into(),
            libraries: None,
            copied: false,
        };
        let launch = Launch {
            arguments: vec!["-c".into(), text.into(), START_TIME_US.into()],
            good_exits: vec![0],
            timeline: None,
        };
        let guest = Guest {
            kernel: "/k".into(),
            initrd: "/i".into(),
            boot_args: String::new(),
            vcpus: 1,
            memory_mib: 128,
            disk: None,
            net: None,
        };
        boot(&program, &launch, &guest, None, Duration::from_secs(2))
    }

    fn why(text: &str) -> String {
        match script(text) {
            Err(Failure::Vm(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn failures_say_what_the_program_said() {
        assert!(why("echo no kvm >&2; exit 3").contains("exit status: 3: it said: no kvm"));
        assert!(why("exit 0").contains("before the guest's user space"));
        assert!(why("echo TANDEM-GUEST; sleep 0.1; exit 5").contains("exit status: 5"));
        assert!(why("echo TANDEM-GUEST; sleep 0.1").contains("guest memory was not found"));
        assert!(why("kill -9 $$").contains("signal: 9"));
        assert!(why("echo stuck; sleep 60").contains("not over after 2 s"));
    }

    #[test]
    fn the_start_time_reaches_the_program() {
        let told = why("echo \"t=$0\" >&2; exit 1");
        let digits = told.split("t=").nth(1).unwrap();
        assert!(digits.parse::<u64>().is_ok_and(|time| time > 0), "{told}");
    }
}
