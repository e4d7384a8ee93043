//! Findings about networking: may we create tap devices, and is vhost-net there.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

use super::report::Finding;

const TUN: &str = "/dev/net/tun";
const VHOST_NET: &str = "/dev/vhost-net";

/// All findings.
pub fn findings() -> Vec<Finding> {
    vec![tap(), vhost_net()]
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// The system's words for an error, without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn tap() -> Finding {
    let (id, title) = ("tap", "tap devices");
    let file = match open(TUN) {
        Ok(file) => file,
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::NotFound => {
                    "modprobe tun; in a container, pass it in (--device /dev/net/tun)"
                }
                ErrorKind::PermissionDenied => "sudo chmod 666 /dev/net/tun (Debian's default)",
                _ => "modprobe tun",
            };
            return Finding::warning(
                id,
                title,
                format!("cannot open {TUN}: {}", reason(&error)),
                remedy,
            );
        }
    };
    match create_tap(&file) {
        Ok(name) => Finding::ok(id, title, format!("can be created (tried with {name})")),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Finding::warning(
            id,
            title,
            "may not be created: CAP_NET_ADMIN is missing",
            "run as root, or let root make one for you: sudo ip tuntap add tap0 mode tap user $USER; \
             or use passt, which needs no rights",
        ),
        Err(error) => Finding::warning(
            id,
            title,
            format!("cannot be created: {}", reason(&error)),
            "modprobe tun",
        ),
    }
}

/// Creates a tap device that vanishes when the file is closed; returns its name.
fn create_tap(tun: &File) -> io::Result<String> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The kernel puts the first free number for %d (dev_alloc_name).
    for (to, from) in request.ifr_name.iter_mut().zip(b"tdmprobe%d") {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    Ok(name.map(|byte| char::from(byte.cast_unsigned())).collect())
}

fn vhost_net() -> Finding {
    let (id, title) = ("vhost_net", "vhost-net");
    match open(VHOST_NET) {
        Ok(_) => Finding::ok(id, title, format!("{VHOST_NET} opens")),
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::NotFound => "modprobe vhost_net (networking works without it, slower)",
                _ => "run as root, or join the group of /dev/vhost-net (often kvm)",
            };
            Finding::warning(
                id,
                title,
                format!("cannot open {VHOST_NET}: {}", reason(&error)),
                remedy,
            )
        }
    }
}
