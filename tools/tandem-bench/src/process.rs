//! A VMM's process while it runs: its output is followed, its time is limited, and it does not outlive its value.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::stage::StagedProgram;
use crate::sys::Ended;
use crate::{signals, sys};

/// Of the output, this much is kept to find something in and to explain a failure with.
const KEPT: usize = 4096;

/// Why there is no sample.
#[derive(Debug)]
pub enum Failure {
    /// A signal ended the measuring.
    Interrupted,
    /// The VMM or its guest failed.
    Vm(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Vm(text)
    }
}

/// For `map_err`: `doing` could not be done.
pub fn failed(doing: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Vm(format!("cannot {doing}: {error}"))
}

/// The process. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    pid: i32,
    /// It was waited for: the number may be another process's by now.
    over: bool,
    zero_ns: u64,
    stdout: ChildStdout,
    stderr: ChildStderr,
    output: Vec<u8>,
    messages: Vec<u8>,
}

/// Something came out.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// When, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// The process.
    pub pid: i32,
    /// What came.
    pub new: &'a [u8],
    /// That and at least 4 KiB of what was before it, if so much was there.
    pub last: &'a [u8],
}

impl Running {
    /// Starts it. `zero_ns` is the time from which its limit counts.
    pub fn start(
        program: &StagedProgram,
        arguments: impl Iterator<Item = OsString>,
        zero_ns: u64,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(&program.path);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for us to handle.
            .process_group(0);
        if let Some(libraries) = &program.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let mut child = command.spawn().map_err(failed("start it"))?;
        let pid = child.id() as i32;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::Vm("its output cannot be read".into()));
        };
        Ok(Self {
            pid,
            over: false,
            zero_ns,
            stdout,
            stderr,
            output: Vec::new(),
            messages: Vec::new(),
        })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Follows the process to its end, shows what comes on its standard output to `see`, and gives the time of the end.
    pub fn watch(
        &mut self,
        limit: Duration,
        mut see: impl FnMut(Seen) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
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
            let at_ns = sys::monotonic_ns();
            if out {
                let count = read_some(&mut self.stdout, &mut self.output)?;
                open_out = count > 0;
                see(Seen {
                    at_ns,
                    pid: self.pid,
                    new: &self.output[self.output.len() - count..],
                    last: &self.output,
                })?;
            }
            if err {
                open_err = read_some(&mut self.stderr, &mut self.messages)? > 0;
            }
            if end {
                exit_ns = Some(at_ns);
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

    /// Takes what is there on its standard output, and tells whether `line` was in it by now.
    pub fn has_said(&mut self, line: &str) -> Result<bool, Failure> {
        loop {
            let fds = [Some(self.stdout.as_fd()), None, None];
            let [out, ..] = sys::readable(fds, Duration::ZERO).map_err(failed("watch it"))?;
            if out && read_some(&mut self.stdout, &mut self.output)? == 0 {
                return Err(format!("it is over; {}", self.last_words()).into());
            }
            let found = self
                .output
                .windows(line.len())
                .any(|piece| piece == line.as_bytes());
            if found || !out {
                return Ok(found);
            }
        }
    }

    /// What it had used, once [`watch`](Self::watch) has seen its end.
    pub fn wait(&mut self) -> Result<(ExitStatus, Ended), Failure> {
        let ended = sys::wait(self.pid).map_err(failed("wait for it"))?;
        self.over = true;
        Ok((ExitStatus::from_raw(ended.status), ended))
    }

    /// What it said last, on standard error if it said anything there.
    pub fn last_words(&self) -> String {
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

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            // It may just have ended; then there is nothing to kill, but still one to wait for.
            let _ = sys::kill(self.pid, libc::SIGKILL);
            let _ = sys::wait(self.pid);
        }
    }
}

/// The number of bytes read: 0 at the end.
fn read_some(from: &mut impl Read, to: &mut Vec<u8>) -> Result<usize, Failure> {
    // At the next reading, a line that is cut here is still whole.
    if to.len() > 2 * KEPT {
        to.drain(..to.len() - KEPT);
    }
    let mut buffer = [0; KEPT];
    let count = from.read(&mut buffer).map_err(failed("read its output"))?;
    to.extend_from_slice(&buffer[..count]);
    Ok(count)
}
