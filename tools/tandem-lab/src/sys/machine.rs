//! What the first process of a machine does to it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::check;

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn c_text(text: &str) -> io::Result<CString> {
    Ok(CString::new(text)?)
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
