//! Ctrl-C ends the measuring, not the program: what was measured so far is still reported.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: i32) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on, SIGINT, SIGTERM and SIGHUP are noted.
pub fn watch() {
    sys::on_signals(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP], stop);
}

/// Did one come?
pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}
