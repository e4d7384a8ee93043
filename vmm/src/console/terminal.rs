//! A terminal in raw mode, always given back as it was.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::console::Size;

/// Settings to go back to: kept here, where a signal handler and a panic hook can reach them.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
/// Whether the terminal is in raw mode now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end the process on the spot.
const FATAL: [libc::c_int; 5] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
];

/// Standard input as a raw terminal, for as long as the value lives.
///
/// Keys reach the guest as they are pressed, Ctrl-C among them. The settings come back when the value is dropped, when the
/// process panics, and when it dies of a signal that can be caught. Output settings are left alone, so that the
/// process's own messages look right.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw if it is a terminal that this process may use; else there is nothing to do.
    ///
    /// # Errors
    /// The terminal refused.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() || !in_foreground() {
            return Ok(None);
        }
        let mut settings = MaybeUninit::uninit();
        // SAFETY: tcgetattr writes only to `settings`, and all of it when it succeeds.
        let before = unsafe {
            if libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            settings.assume_init()
        };
        if BEFORE.set(before).is_ok() {
            restore_on_death()?;
        }
        make_raw()?;
        Ok(Some(Self(())))
    }

    /// Makes the terminal raw again after the shell had it, if it is this process's to use.
    ///
    /// # Errors
    /// The terminal refused.
    pub fn reenter(&self) -> io::Result<()> {
        if in_foreground() { make_raw() } else { Ok(()) }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn make_raw() -> io::Result<()> {
    let Some(mut raw) = BEFORE.get().copied() else {
        return Ok(());
    };
    raw.c_iflag &= !(libc::BRKINT | libc::ICRNL | libc::INPCK | libc::ISTRIP | libc::IXON);
    raw.c_lflag &= !(libc::ECHO | libc::ICANON | libc::IEXTEN | libc::ISIG);
    raw.c_cc[libc::VMIN] = 1;
    raw.c_cc[libc::VTIME] = 0;
    RAW.store(true, Ordering::SeqCst);
    // SAFETY: tcsetattr only reads `raw`.
    match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts the terminal back as it was, if it is raw and still this process's: a shell that has taken it over has put its own
/// settings in place, and would stop whoever changes them. Safe in a signal handler, and for those that the program
/// installs.
pub fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && in_foreground()
        && let Some(before) = BEFORE.get()
    {
        // SAFETY: tcsetattr only reads `before`, and is async-signal-safe.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
}

/// Whether this process may use the terminal: a background job that reads it or changes it is stopped for that. A terminal
/// that is not the one that controls this process stops nobody.
pub fn in_foreground() -> bool {
    // SAFETY: neither call takes a pointer; both are async-signal-safe.
    unsafe {
        let foreground = libc::tcgetpgrp(libc::STDIN_FILENO);
        foreground < 0 || foreground == libc::getpgrp()
    }
}

/// Size of the terminal that shows standard output, or else is standard input. `None` where neither is one, or
/// nobody has told the terminal its size.
pub fn size() -> Option<Size> {
    [libc::STDOUT_FILENO, libc::STDIN_FILENO]
        .into_iter()
        .find_map(|fd| {
            let mut size = MaybeUninit::<libc::winsize>::uninit();
            // SAFETY: the kernel writes a whole winsize where it succeeds.
            let size = unsafe {
                if libc::ioctl(fd, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
                    return None;
                }
                size.assume_init()
            };
            (size.ws_col > 0 && size.ws_row > 0).then_some(Size {
                columns: size.ws_col,
                rows: size.ws_row,
            })
        })
}

fn restore_on_death() -> io::Result<()> {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        next(info);
    }));
    extern "C" fn handler(_signal: libc::c_int) {
        restore();
        // SA_RESETHAND is set: when the handler returns, the fault happens again, and now is fatal. A signal
        // that was sent rather than caused (SIGABRT is raised by abort(), which raises it again) ends likewise.
    }
    // SAFETY: an all-zero sigaction is valid; the handler makes async-signal-safe calls only, and stays in place
    // until it has run once.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESETHAND;
        for signal in FATAL {
            if libc::sigaction(signal, &action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}
