//! The system calls that the standard library does not wrap: the crate's only unsafe code is here.
//!
//! This file has descriptors; [`clock`], [`process`], [`terminal`] and [`machine`] what their names say.

pub mod clock;
pub mod machine;
pub mod process;
pub mod terminal;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
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
