//! The lock that keeps two VMs from one disk.
//!
//! It is on the open file description (`F_OFD_SETLK` in fcntl(2)) and goes with it, however the process ends. It covers
//! the whole file, so that it gets in the way of the locks on single bytes that QEMU takes on its images, and these of it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::OpenError;

/// Locks the file: for its owner alone (`exclusive`), or together with others that do the same.
///
/// # Errors
/// [`OpenError::Locked`]. Where a file system has no locks, there is a warning and no error.
pub fn take(file: &File, path: &Path, exclusive: bool) -> Result<(), OpenError> {
    let kind = if exclusive {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        // To the end, wherever that will be.
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads a `struct flock`, which `lock` is.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(OpenError::Locked {
            path: path.into(),
            who: if exclusive {
                "another VM, another drive of this one, or a program like qemu-img has it open"
            } else {
                "a VM that may write to it, or a program like qemu-img, has it open"
            },
        }),
        _ => {
            log::warn!(
                "{}: cannot be locked ({error}): nothing keeps another VM from using it at the same time",
                path.display()
            );
            Ok(())
        }
    }
}
