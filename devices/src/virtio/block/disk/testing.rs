//! Programs that are run while other tests hold locks.
//!
//! A new process has the descriptors of the one that starts it until it becomes another program, and with them their locks.
//! A lock that was just let go would still be held by it.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

static STARTING: Mutex<()> = Mutex::new(());

/// While this is held, no program is started.
pub fn none_starts() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of something that is locked, so that nobody has the lock afterwards.
pub fn close<T>(locked: T) {
    let _none_starts = none_starts();
    drop(locked);
}

/// Runs a program.
pub fn run(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = {
        let _nothing_is_let_go = none_starts();
        command.spawn()
    };
    let mut child = started.expect("the program is there (qemu-img: apt-get install qemu-utils)");
    let mut text = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut text).unwrap();
    let mut output = child.wait_with_output().unwrap();
    output.stderr = text;
    output
}
