//! Signals as a descriptor.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::signal::{block_signal, create_sigset};

/// Signals that ask for the end. Those that this process was started to ignore stay ignored: `nohup`, and a shell's `&`.
pub const ENDING: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Signals that are asked for something else: that a terminal is there again or has another size, a new look at the
/// configuration, a line of metrics.
const OTHERS: [libc::c_int; 4] = [libc::SIGCONT, libc::SIGWINCH, libc::SIGUSR1, libc::SIGUSR2];

/// The signals that this process reacts to, blocked for this thread and those it starts, and read from a descriptor (signalfd(2)).
#[derive(Debug)]
pub struct SignalFd(File);

impl SignalFd {
    /// Takes the signals over from now on.
    ///
    /// # Errors
    /// The signals could not be blocked, or the descriptor not be made.
    pub fn new() -> io::Result<Self> {
        let wanted: Vec<_> = ENDING
            .into_iter()
            .filter(|signal| !is_ignored(*signal))
            .chain(OTHERS)
            .collect();
        for &signal in &wanted {
            match block_signal(signal) {
                // Blocked already, by whoever started this process: just as good.
                Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(format!("{error:?}"))),
            }
        }
        let set =
            create_sigset(&wanted).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // SAFETY: signalfd only reads `set`.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was made just now and belongs to nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Number of the next signal, if one has come.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&mut self) -> io::Result<Option<i32>> {
        // struct signalfd_siginfo begins with the number, in 32 bits.
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match self.0.read(&mut info) {
            Ok(_) => {
                let [a, b, c, d, ..] = info;
                Ok(Some(i32::from_ne_bytes([a, b, c, d])))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is valid; without a new action the call only writes the old one there.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_and_does_not_kill() {
        // On a thread of its own: the mask is the thread's.
        std::thread::spawn(|| {
            let mut signals = SignalFd::new().unwrap();
            assert_eq!(signals.read().unwrap(), None);
            // SAFETY: the signal goes to this thread, which has it blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
            assert_eq!(signals.read().unwrap(), Some(libc::SIGTERM));
            assert_eq!(signals.read().unwrap(), None);
        })
        .join()
        .unwrap();
    }
}
