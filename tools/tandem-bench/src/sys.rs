//! The few system calls that the standard library does not have. All `unsafe` of this program is here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Nanoseconds of CLOCK_MONOTONIC: the clock of every time stamp here, and of the kernel's `mono` trace clock.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime writes only to `time`. It cannot fail: every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A descriptor that becomes readable when the process ends.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = checked(fd)? as i32;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to a child that was not yet waited for.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    checked(i64::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// Waits until a child stopped by SIGSTOP really is. False if it ended instead.
pub fn wait_stopped(pid: i32) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // WNOWAIT: the end of the child is left for `wait`.
    let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: waitid writes to `info` only.
    let result = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options) };
    checked(i64::from(result))?;
    Ok(info.si_code == libc::CLD_STOPPED)
}

/// How a process ended and what it had used.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// As of wait(2).
    pub status: i32,
    /// Microseconds of CPU time in user mode (guest code runs there, too).
    pub user_us: u64,
    /// Microseconds of CPU time in the kernel.
    pub system_us: u64,
    /// Page faults that needed no reading.
    pub minor_faults: u64,
}

/// Waits for the end of a child.
pub fn wait(pid: i32) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: wait4 writes to `status` and `usage` only.
        let result = unsafe { libc::wait4(pid, &mut status, 0, &mut usage) };
        match checked(i64::from(result)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    Ok(Ended {
        status,
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        minor_faults: usage.ru_minflt as u64,
    })
}

fn micros(time: libc::timeval) -> u64 {
    time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64
}

/// Waits until one of `fds` is readable or closed; says which are. None at all: time is over, or a signal came.
pub fn readable<const N: usize>(
    fds: [Option<BorrowedFd>; N],
    limit: Duration,
) -> io::Result<[bool; N]> {
    // poll leaves negative descriptors alone.
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the array is valid for its length, and poll writes to it only.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis) };
    match checked(i64::from(result)) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(error) => Err(error),
        Ok(_) => Ok(polled.map(|fd| fd.revents != 0)),
    }
}

/// Gives the calling thread, and all that it starts from now on, a network namespace of their own.
pub fn own_network() -> io::Result<()> {
    // SAFETY: unshare takes flags and touches no memory of ours.
    checked(i64::from(unsafe { libc::unshare(libc::CLONE_NEWNET) })).map(drop)
}

/// Clock ticks in a second, as /proc counts CPU time.
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).max(1)
}

/// The type of the file system that holds `path` (`f_type` of statfs).
pub fn filesystem(path: &Path) -> io::Result<i64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and statfs writes to `stat` only.
    checked(i64::from(unsafe { libc::statfs(path.as_ptr(), &mut stat) }))?;
    #[allow(
        clippy::unnecessary_cast,
        reason = "its type is not the same in every C library"
    )]
    Ok(stat.f_type as i64)
}

/// Calls `handler`, which must do nothing but set atomics, when one of `signals` arrives.
pub fn on_signals(signals: &[i32], handler: extern "C" fn(i32)) {
    for &signal in signals {
        // SAFETY: all-zero bytes are a valid sigaction; without SA_RESTART, poll returns when a signal comes.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: `action` is valid, and the caller's handler is safe in a signal's context.
        unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    }
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
