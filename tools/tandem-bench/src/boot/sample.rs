//! One cold boot, measured from outside.
//!
//! Time zero is just before the process is started. The guest's user space is there when its line arrives at the
//! standard output of the VMM. At that moment the process is stopped, its memory is looked at, and it goes on; the time
//! that this took is taken off what comes after.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::adapters::{Guest, Launch, START_TIME_US};
use super::entry::EntryTrace;
use crate::smaps::{self, Memory};
use crate::stage::StagedProgram;
use crate::{signals, sys};

/// What the guest's init prints first.
const USER_SPACE: &[u8] = b"TANDEM-GUEST";
/// Of the output, this much is kept to find that in and to explain a failure with.
const KEPT: usize = 4096;

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

/// Why there is no sample.
#[derive(Debug)]
pub enum Failure {
    /// A signal ended the measuring.
    Interrupted,
    /// The boot failed.
    Boot(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Boot(text)
    }
}

fn failed(doing: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::Boot(format!("cannot {doing}: {error}"))
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
    let mut command = Command::new(&program.path);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for us to handle.
        .process_group(0);
    if let Some(libraries) = &program.libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let zero_ns = sys::monotonic_ns();
    command.args(arguments(launch, zero_ns / 1_000));
    let mut child = command.spawn().map_err(failed("start it"))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Failure::Boot("its output cannot be read".into()));
    };
    let mut running = Running {
        pid: child.id() as i32,
        over: false,
        zero_ns,
        stdout,
        stderr,
        output: Vec::new(),
        messages: Vec::new(),
        user_space: None,
    };
    let exit_ns = running.watch(guest, limit)?;
    let ended = sys::wait(running.pid).map_err(failed("wait for it"))?;
    running.over = true;
    let status = ExitStatus::from_raw(ended.status);
    let good = |code: i32| launch.good_exits.contains(&code);
    let Some(user_space) = running.user_space.take() else {
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
            Failure::Boot("its guest memory was not found among its mappings".into())
        })?,
        timeline: launch.timeline.as_deref().map(read_timeline).transpose()?,
    })
}

fn arguments(launch: &Launch, zero_us: u64) -> impl Iterator<Item = OsString> {
    launch.arguments.iter().map(move |argument| {
        if argument == START_TIME_US {
            zero_us.to_string().into()
        } else {
            argument.clone()
        }
    })
}

fn read_timeline(path: &std::path::Path) -> Result<Vec<Mark>, Failure> {
    let text = fs::read(path).map_err(failed("read its timeline"))?;
    // Not the next boot's, should that one write none.
    let _ = fs::remove_file(path);
    let timeline: Timeline = serde_json::from_slice(&text)
        .map_err(|error| Failure::Boot(format!("its timeline is not as expected: {error}")))?;
    Ok(timeline.marks)
}

struct UserSpace {
    at_ns: u64,
    stopped_ns: u64,
    memory: Option<Memory>,
}

struct Running {
    pid: i32,
    /// It was waited for: the number may be another process's by now.
    over: bool,
    zero_ns: u64,
    stdout: ChildStdout,
    stderr: ChildStderr,
    output: Vec<u8>,
    messages: Vec<u8>,
    user_space: Option<UserSpace>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            // It may just have ended; then there is nothing to kill, but still one to wait for.
            let _ = sys::kill(self.pid, libc::SIGKILL);
            let _ = sys::wait(self.pid);
        }
    }
}

impl Running {
    /// Follows the process to its end, and gives the time of that.
    fn watch(&mut self, guest: &Guest, limit: Duration) -> Result<u64, Failure> {
        let pidfd = sys::pidfd(self.pid).map_err(failed("watch it"))?;
        let (mut open_out, mut open_err) = (true, true);
        let mut exit_ns = None;
        loop {
            let left =
                limit.saturating_sub(Duration::from_nanos(sys::monotonic_ns() - self.zero_ns));
            let left = if exit_ns.is_some() {
                Duration::ZERO
            } else {
                left
            };
            let fds = [
                open_out.then(|| self.stdout.as_fd()),
                open_err.then(|| self.stderr.as_fd()),
                exit_ns.is_none().then(|| pidfd.as_fd()),
            ];
            let [out, err, end] = sys::readable(fds, left).map_err(failed("watch it"))?;
            let now = sys::monotonic_ns();
            if out {
                open_out = read_some(&mut self.stdout, &mut self.output)?;
                if self.user_space.is_none() && contains(&self.output, USER_SPACE) {
                    self.user_space = Some(self.look(now, guest)?);
                }
            }
            if err {
                open_err = read_some(&mut self.stderr, &mut self.messages)?;
            }
            if end {
                exit_ns = Some(now);
            }
            if out || err || end {
                continue;
            }
            // Nothing more is there to be read.
            if let Some(exit_ns) = exit_ns {
                return Ok(exit_ns);
            }
            if signals::stopped() {
                return Err(Failure::Interrupted);
            }
            if left.is_zero() {
                let seconds = limit.as_secs();
                let why = self.last_words();
                return Err(format!("not over after {seconds} s (--time-limit): {why}").into());
            }
        }
    }

    /// Stops the process, looks at its memory, and lets it go on.
    fn look(&self, at_ns: u64, guest: &Guest) -> Result<UserSpace, Failure> {
        let from_ns = sys::monotonic_ns();
        sys::kill(self.pid, libc::SIGSTOP).map_err(failed("stop it"))?;
        let stopped = sys::wait_stopped(self.pid).map_err(failed("stop it"))?;
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.pid)).unwrap_or_default();
        sys::kill(self.pid, libc::SIGCONT).map_err(failed("continue it"))?;
        let stopped_ns = sys::monotonic_ns() - from_ns;
        let kernel = guest.kernel.to_string_lossy();
        let initrd = guest.initrd.to_string_lossy();
        Ok(UserSpace {
            at_ns,
            stopped_ns,
            memory: smaps::split(&smaps, guest.memory_mib, &[&kernel, &initrd]).filter(|_| stopped),
        })
    }

    /// What it said last, on standard error if it said anything there.
    fn last_words(&self) -> String {
        let text = if self.messages.is_empty() {
            &self.output
        } else {
            &self.messages
        };
        let text = String::from_utf8_lossy(text);
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        match lines[lines.len().saturating_sub(3)..].join(" / ") {
            words if words.is_empty() => "it said nothing".into(),
            words => format!("it said: {words}"),
        }
    }
}

/// False at the end.
fn read_some(from: &mut impl Read, to: &mut Vec<u8>) -> Result<bool, Failure> {
    let mut buffer = [0; KEPT];
    let count = from.read(&mut buffer).map_err(failed("read its output"))?;
    to.extend_from_slice(&buffer[..count]);
    // At the next reading, a line that is cut here is still whole.
    if to.len() > 2 * KEPT {
        to.drain(..to.len() - KEPT);
    }
    Ok(count > 0)
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        };
        boot(&program, &launch, &guest, None, Duration::from_secs(2))
    }

    fn why(text: &str) -> String {
        match script(text) {
            Err(Failure::Boot(text)) => text,
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
