//! Runs the command right here, where `/dev/kvm` is complete already: same streams, same terminal, with the time limit.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{Context, EXIT_TIMEOUT, Result};
use crate::sys::process::{self, ChildSetup, Signals};
use crate::sys::terminal;

/// Signals that are the command's.
const FORWARDED: &[i32] = &[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Runs it and returns the exit code for this process.
pub fn run(arguments: &[OsString], timeout: Option<Duration>) -> Result<i32> {
    let [program, rest @ ..] = arguments else {
        return Ok(0);
    };
    let signals = Signals::of(FORWARDED);
    signals.block().during("blocking signals")?;
    let mut command = Command::new(program);
    command.args(rest);
    // A group of its own, so that the time limit can end all of it; the terminal goes along.
    let foreground = terminal::in_foreground(0);
    let setup = ChildSetup {
        new_group: true,
        foreground,
        death_signal: Some(libc::SIGTERM),
        ..ChildSetup::default()
    };
    process::set_up_child(&mut command, setup, vec![]);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("tandem-lab: {}: {error}", program.to_string_lossy());
            return Ok(if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            });
        }
    };
    let group = child.id() as i32;
    thread::spawn(move || {
        while let Ok(number) = signals.wait() {
            let _ = process::kill(-group, number);
        }
    });
    let timed_out = Arc::new(AtomicBool::new(false));
    if let Some(timeout) = timeout {
        let timed_out = Arc::clone(&timed_out);
        thread::spawn(move || {
            thread::sleep(timeout);
            timed_out.store(true, Ordering::SeqCst);
            let _ = process::kill(-group, libc::SIGTERM);
            let _ = process::kill(-group, libc::SIGCONT);
            thread::sleep(Duration::from_secs(2));
            let _ = process::kill(-group, libc::SIGKILL);
        });
    }
    let status = child.wait().during("waiting for the command")?;
    if foreground {
        // From the background that takes ignoring what the terminal says to it.
        process::ignore(libc::SIGTTOU);
        terminal::take_foreground(0);
    }
    if timed_out.load(Ordering::SeqCst) {
        let _ = process::kill(-group, libc::SIGKILL);
        let limit = timeout.unwrap_or_default().as_secs();
        eprintln!("tandem-lab: the command ran longer than {limit} s (--timeout) and was ended");
        return Ok(EXIT_TIMEOUT);
    }
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}
