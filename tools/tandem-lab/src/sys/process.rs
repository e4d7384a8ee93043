//! Processes: signals, children, limits.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::check;

/// A set of signals.
#[derive(Clone, Copy)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// These.
    pub fn of(numbers: &[i32]) -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set; the numbers only set bits in it.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for number in numbers {
                libc::sigaddset(set.as_mut_ptr(), *number);
            }
            Signals(set.assume_init())
        }
    }

    /// Keeps them pending instead of delivered, in this thread and those it starts from now on.
    pub fn block(&self) -> io::Result<()> {
        // SAFETY: the set is initialised; the old one is not asked for.
        check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &self.0, std::ptr::null_mut()) })
            .map(drop)
    }

    /// Takes the next of them, waiting for it. They must be blocked.
    pub fn wait(&self) -> io::Result<i32> {
        let mut number = 0;
        // SAFETY: both pointers are to live values.
        match unsafe { libc::sigwait(&self.0, &mut number) } {
            0 => Ok(number),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// A descriptor that is readable when one of them is pending. They must be blocked.
    pub fn descriptor(&self) -> io::Result<File> {
        // SAFETY: the set is initialised; the new descriptor is ours.
        unsafe {
            let fd = check(libc::signalfd(
                -1,
                &self.0,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            ))?;
            Ok(File::from_raw_fd(fd))
        }
    }
}

/// Sends a signal to a process, or to a group (negative).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory effects.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// A child that ended, and its wait status; `None` when none has (yet).
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the status is a live integer.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Waits for one child.
pub fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a live integer.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }) {
            Ok(_) => return Ok(status),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Splits the process in two; `None` in the new one. Only for a process with one thread.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the guest's processes have one thread each, so that the copy is whole and may go on as if nothing were.
    let pid = check(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// Sets one of the process's properties (`prctl` with one argument).
pub fn prctl(option: i32, value: usize) -> io::Result<()> {
    // SAFETY: the options used here (death signal, subreaper, name-less) take a number.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }).map(drop)
}

/// The file mode mask, put back as it was.
pub fn umask() -> u32 {
    // SAFETY: no memory effects.
    unsafe {
        let mask = libc::umask(0o077);
        libc::umask(mask);
        mask
    }
}

/// The caller's user id.
pub fn user_id() -> u32 {
    // SAFETY: no memory effects.
    unsafe { libc::getuid() }
}

/// How a command's process is to be set up between fork and exec.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChildSetup {
    /// Its file mode mask.
    pub umask: Option<u32>,
    /// A session of its own.
    pub new_session: bool,
    /// A process group of its own.
    pub new_group: bool,
    /// That group becomes the foreground of the terminal on standard input.
    pub foreground: bool,
    /// Standard input becomes the session's terminal.
    pub controlling_terminal: bool,
    /// The signal it gets when the thread that started it ends.
    pub death_signal: Option<i32>,
    /// It does not inherit the agent's priority and protection from the out-of-memory killer.
    pub ordinary: bool,
}

/// Applies `setup`, and keeps `inherited` open across the exec.
pub fn set_up_child(command: &mut Command, setup: ChildSetup, inherited: Vec<RawFd>) {
    let apply = move || {
        // SAFETY: each call is async-signal-safe and gets numbers or pointers to constants.
        unsafe {
            if setup.new_session {
                check(libc::setsid())?;
            }
            if setup.new_group {
                check(libc::setpgid(0, 0))?;
            }
            if setup.foreground {
                libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                libc::tcsetpgrp(0, libc::getpid());
                libc::signal(libc::SIGTTOU, libc::SIG_DFL);
            }
            if setup.controlling_terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY as _, 0))?;
            }
            if let Some(mask) = setup.umask {
                libc::umask(mask as libc::mode_t);
            }
            if let Some(signal) = setup.death_signal {
                check(libc::prctl(
                    libc::PR_SET_PDEATHSIG,
                    signal as libc::c_ulong,
                    0,
                    0,
                    0,
                ))?;
            }
            if setup.ordinary {
                libc::setpriority(libc::PRIO_PROCESS as _, 0, 0);
                let fd = libc::open(
                    c"/proc/self/oom_score_adj".as_ptr(),
                    libc::O_WRONLY | libc::O_CLOEXEC,
                );
                if fd >= 0 {
                    libc::write(fd, b"0".as_ptr().cast(), 1);
                    libc::close(fd);
                }
            }
            for fd in &inherited {
                check(libc::fcntl(*fd, libc::F_SETFD, 0))?;
            }
        }
        Ok(())
    };
    // SAFETY: `apply` only makes system calls: nothing of it allocates or takes a lock.
    unsafe { command.pre_exec(apply) };
}

/// Sets a process's priority; the lower, the more it gets.
pub fn set_priority(nice: i32) {
    // SAFETY: no memory effects; a failure leaves the priority as it is, which is good enough.
    unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, nice) };
}

/// Sets the limits on open files.
pub fn set_open_files(soft: u64, hard: u64) {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure is live; on failure the limit stays as it is.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

/// As many open files as the hard limit allows.
pub fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is live; on failure the limit stays as it is.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Ignores a signal.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}
