//! Terminals.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use super::check;
use crate::spec::Terminal;

/// A new pseudo-terminal: the side to hold and the side for the command.
pub fn open_terminal(size: Terminal) -> io::Result<(File, File)> {
    let (mut master, mut slave) = (0, 0);
    let size = window(size);
    // SAFETY: the pointers are to live values (or null, where nothing is asked for); the new descriptors are ours.
    unsafe {
        check(libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &size as *const _ as _,
        ))?;
        let pair = (File::from_raw_fd(master), File::from_raw_fd(slave));
        check(libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC))?;
        check(libc::fcntl(slave, libc::F_SETFD, libc::FD_CLOEXEC))?;
        Ok(pair)
    }
}

fn window(size: Terminal) -> libc::winsize {
    libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Tells a terminal its size.
pub fn set_window(terminal: &File, size: Terminal) -> io::Result<()> {
    // SAFETY: the structure is live and of the type that the request reads.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &window(size)) })
        .map(drop)
}

/// The size of the terminal on a descriptor, if it is one.
pub fn window_of(fd: RawFd) -> Option<Terminal> {
    let mut size = window(Terminal {
        rows: 0,
        columns: 0,
    });
    // SAFETY: the structure is live and of the type that the request writes.
    let result = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ as _, &mut size) };
    (result == 0).then_some(Terminal {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Makes this process's group the terminal's foreground group.
pub fn take_foreground(terminal: RawFd) {
    // SAFETY: no memory effects. Where it fails the terminal stays as it was.
    unsafe { libc::tcsetpgrp(terminal, libc::getpgrp()) };
}

/// Is this process in the foreground of the terminal on that descriptor?
pub fn in_foreground(fd: RawFd) -> bool {
    // SAFETY: no memory effects.
    unsafe { libc::tcgetpgrp(fd) == libc::getpgrp() }
}

/// A terminal in raw mode, to be [restored](Self::restore).
#[derive(Clone, Copy)]
pub struct RawTerminal {
    fd: RawFd,
    before: libc::termios,
}

impl RawTerminal {
    /// Every byte as it comes, nothing echoed, no key has a meaning.
    pub fn enter(fd: RawFd) -> io::Result<Self> {
        let mut before = MaybeUninit::uninit();
        // SAFETY: tcgetattr initialises the structure, or fails and it is not used.
        let before: libc::termios = unsafe {
            check(libc::tcgetattr(fd, before.as_mut_ptr()))?;
            before.assume_init()
        };
        let mut raw = before;
        // SAFETY: the structure is a live copy.
        unsafe {
            libc::cfmakeraw(&mut raw);
            check(libc::tcsetattr(fd, libc::TCSANOW, &raw))?;
        }
        Ok(RawTerminal { fd, before })
    }

    /// As it was.
    pub fn restore(&self) {
        // SAFETY: the structure is live; a failure (the terminal is gone) leaves nothing to restore.
        unsafe { libc::tcsetattr(self.fd, libc::TCSANOW, &self.before) };
    }
}
