//! News of the host's network interfaces (rtnetlink(7)): what tells that a tap is gone while nobody reads from it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// A socket that has news whenever an interface changes, of this network namespace.
#[derive(Debug)]
pub struct Monitor(File);

impl Monitor {
    /// With no news yet.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn new() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket(2) takes no pointer.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { File::from_raw_fd(fd) };
        // SAFETY: all zeroes are a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        let size = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the kernel reads a sockaddr_nl.
        if unsafe { libc::bind(fd, (&raw const address).cast(), size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// Readable when there is news.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes a bounded part of the news. True if there was any; what it says is not looked at.
    pub fn take(&self) -> bool {
        let mut bytes = [0; 4096];
        let mut news = false;
        for _ in 0..16 {
            match (&self.0).read(&mut bytes) {
                Ok(_) => news = true,
                // Some were lost (`ENOBUFS`): that is news, too.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return true,
                Err(_) => break,
            }
        }
        news
    }
}
