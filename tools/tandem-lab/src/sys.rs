//! The system calls that the standard library does not wrap: the crate's only unsafe code is here.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::spec::Terminal;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn c_text(text: &str) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

/// A file descriptor to poll, and for what; `revents` says what came.
pub use libc::pollfd as PollFd;

/// An entry for [`poll`]; a negative descriptor is skipped.
pub fn poll_entry(fd: RawFd, events: i16) -> PollFd {
    PollFd {
        fd,
        events,
        revents: 0,
    }
}

/// Waits until one of the descriptors is ready, or for that many milliseconds (-1: for ever).
pub fn poll(entries: &mut [PollFd], timeout: i32) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live, exclusive slice.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
    match check(ready) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other.map(|count| count as usize),
    }
}

/// Makes reads and writes return at once.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl on descriptors has no memory effects.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// A pipe: what is written to the second is read from the first.
pub fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two descriptors, which are then ours.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])))
    }
}

/// Another descriptor of the same open file.
pub fn duplicate(fd: &impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// Takes the exclusive lock on a file, if no one else has it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: flock has no memory effects.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

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

/// Makes a process group the terminal's foreground group.
pub fn set_foreground(terminal: RawFd, group: i32) {
    // SAFETY: no memory effects. The caller ignores SIGTTOU; where it fails the terminal stays as it was.
    unsafe { libc::tcsetpgrp(terminal, group) };
}

/// Is this process in the foreground of the terminal on that descriptor?
pub fn in_foreground(fd: RawFd) -> bool {
    // SAFETY: no memory effects.
    unsafe { libc::tcgetpgrp(fd) == libc::getpgrp() }
}

/// Reads what there is, waiting for it even where the descriptor was made not to wait by whoever shares it.
pub fn read_waiting(mut file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [poll_entry(file.as_raw_fd(), libc::POLLIN)], -1)?;
            }
            other => return other,
        }
    }
}

/// Writes all, likewise.
pub fn write_waiting(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [poll_entry(file.as_raw_fd(), libc::POLLOUT)], -1)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ignores a signal.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
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

/// Mounts; `None` where a source, type or data is not needed.
pub fn mount(source: &str, target: &Path, kind: &str, flags: u64, data: &str) -> io::Result<()> {
    let (source, target, kind, data) = (
        c_text(source)?,
        c_path(target)?,
        c_text(kind)?,
        c_text(data)?,
    );
    // SAFETY: the strings live through the call.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags as libc::c_ulong,
            data.as_ptr().cast(),
        )
    })
    .map(drop)
}

/// Loads a kernel module from a file.
pub fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is live and the parameters are an empty string.
    check(unsafe {
        libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) as libc::c_int
    })
    .map(drop)
}

/// Writes out all that is dirty in the file system that holds `file`.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: no memory effects.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// Names the machine.
pub fn set_host_name(name: &CStr) -> io::Result<()> {
    // SAFETY: pointer and length are those of a live string.
    check(unsafe { libc::sethostname(name.as_ptr(), name.to_bytes().len()) }).map(drop)
}

/// Writes out everything and powers the machine off.
pub fn power_off() {
    // SAFETY: no memory effects; only the first process of the emulated machine calls it.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
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

/// Brings the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: the request structure is plain data, zeroed is a valid value, and it lives through both calls.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        ))?);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &mut request,
        ))?;
    }
    Ok(())
}

/// A descriptor that this process was started with, made its own.
///
/// # Safety
/// It must be open, and no one else's.
pub unsafe fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: no memory effects. What this process starts does not inherit it.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Borrows a standard stream's descriptor.
pub fn standard(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: 0, 1 and 2 are open for the whole life of a Rust program: the runtime sees to it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Makes `target` another descriptor of the same open file.
pub fn replace(file: &File, target: RawFd) {
    // SAFETY: dup2 has no memory effects; on failure the target stays as it is.
    unsafe { libc::dup2(file.as_raw_fd(), target) };
}
