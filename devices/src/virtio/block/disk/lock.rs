//! The lock that keeps two VMs from one disk.
//!
//! It is on the open file description (`F_OFD_SETLK` in fcntl(2)) and goes with it, however the process ends. Who writes
//! locks the whole file for itself. Who reads locks the bytes by which QEMU says on its images that it reads, and that nobody
//! may write or resize meanwhile (`block/file-posix.c` there); so readers of both kinds can share a file, and writers of both
//! kinds find each other.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::OpenError;

/// Bytes whose locks stand for an ability that is in use, and for one that others must not use: these, and the ability.
const IN_USE: libc::off_t = 100;
const NOT_SHARED: libc::off_t = 200;
/// Abilities.
const READ: libc::off_t = 0;
const WRITE: libc::off_t = 1;
const RESIZE: libc::off_t = 3;

/// Locks the file: for its owner alone (`exclusive`), or together with others that only read it.
///
/// # Errors
/// [`OpenError::Locked`]. Where a file system has no locks, there is a warning and no error.
pub fn take(file: &File, path: &Path, exclusive: bool) -> Result<(), OpenError> {
    let taken = if exclusive {
        // To the end, wherever that will be.
        lock(file, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0).map(|_| true)
    } else {
        share(file)
    };
    match taken {
        Ok(true) => Ok(()),
        Ok(false) => Err(locked(path, exclusive)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Err(locked(path, exclusive)),
            _ => {
                log::warn!(
                    "{}: cannot be locked ({error}): nothing keeps another VM from using it at the same time",
                    path.display()
                );
                Ok(())
            }
        },
    }
}

/// Locks the file as one who reads it; false if somebody writes to it.
fn share(file: &File) -> io::Result<bool> {
    for byte in [IN_USE + READ, NOT_SHARED + WRITE, NOT_SHARED + RESIZE] {
        lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte, 1)?;
    }
    for byte in [IN_USE + WRITE, IN_USE + RESIZE] {
        if lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte, 1)? != libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes a lock, or asks for one that is in its way: its kind then.
fn lock(
    file: &File,
    command: libc::c_int,
    kind: libc::c_int,
    start: libc::off_t,
    len: libc::off_t,
) -> io::Result<libc::c_int> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the kernel reads and writes a `struct flock`, which `lock` is.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type.into())
}

fn locked(path: &Path, exclusive: bool) -> OpenError {
    OpenError::Locked {
        path: path.into(),
        who: if exclusive {
            "another VM, another drive of this one, or a program like qemu-img has it open"
        } else {
            "a VM that may write to it, or a program like qemu-img, has it open"
        },
    }
}
