//! Where a vmlinux goes when the cache directory cannot be used: a sealed memfd.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// An empty anonymous file that can be sealed.
pub(super) fn create() -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string that outlives the call, and the call touches no other memory.
    let fd = unsafe {
        libc::memfd_create(
            c"tandem-vmlinux".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes `file` immutable for everybody and for good (memfd_create(2), "File sealing"); private mappings still work.
pub(super) fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl with F_ADD_SEALS takes an int and touches no memory of this process.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
