//! A tap of the host's kernel, and its queues (Linux: `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`).

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{OpenError, feature, header};
use crate::virtio::IoVec;

/// Most bytes of an interface's name.
pub const NAME_MOST: usize = libc::IFNAMSIZ - 1;

/// Where taps come from.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Each offload of the driver's with the kernel's flag for it.
const OFFLOADS: [(u64, u32); 6] = [
    (feature::GUEST_CSUM, libc::TUN_F_CSUM),
    (feature::GUEST_TSO4, libc::TUN_F_TSO4),
    (feature::GUEST_TSO6, libc::TUN_F_TSO6),
    (feature::GUEST_ECN, libc::TUN_F_TSO_ECN),
    (feature::GUEST_USO4, libc::TUN_F_USO4),
    (feature::GUEST_USO6, libc::TUN_F_USO6),
];
/// The kernel takes these two together or not at all.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A tap that this process holds.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<File>,
    /// How many of them the kernel uses.
    in_use: u16,
    /// Whether the kernel knows UDP segmentation (since 6.2).
    uso: bool,
}

impl Tap {
    /// Takes the tap `name` with so many queues; makes one if there is none, which goes with this process.
    ///
    /// # Errors
    /// [`OpenError`], with the remedy.
    pub fn open(name: &str, queues: u16) -> Result<Self, OpenError> {
        let mut files = Vec::new();
        for index in 0..queues.max(1) {
            let queue = match open_queue(name, queues > 1) {
                // A tap that was made for several queues serves one as well.
                Err(error) if queues <= 1 && error.raw_os_error() == Some(libc::EINVAL) => {
                    open_queue(name, true).map_err(|_| error)
                }
                other => other,
            };
            files.push(queue.map_err(|error| explain(name, queues, index, error))?);
        }
        let uso = libc::TUN_F_CSUM | USO;
        let mut tap = Self {
            name: name.into(),
            uso: files
                .first()
                .is_some_and(|file| set_offloads(file, uso).is_ok()),
            in_use: queues.max(1),
            queues: files,
        };
        let unusable = |error| OpenError {
            problem: format!("cannot set the tap {name} up"),
            error,
            remedy: "give another tap, or a kernel of version 3.8 at least".into(),
        };
        let header = header::LEN as c_int;
        for queue in &tap.queues {
            // SAFETY: the kernel reads an int.
            check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &header) })
                .map_err(unusable)?;
        }
        tap.set_offloads(0).map_err(unusable)?;
        tap.use_queues(1).map_err(unusable)?;
        Ok(tap)
    }

    /// Offloads of both directions that can be offered to a driver.
    pub fn features(&self) -> u64 {
        let uso = feature::GUEST_USO4 | feature::GUEST_USO6 | feature::HOST_USO;
        let rest = feature::GUEST_OFFLOADS
            | feature::CSUM
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::HOST_ECN;
        if self.uso { rest | uso } else { rest & !uso }
    }

    /// Has the kernel hand over frames that need these of [`feature::GUEST_OFFLOADS`], and no others.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let flags = flags_of(features);
        match self.queues.first() {
            Some(queue) => set_offloads(queue, flags),
            None => Ok(()),
        }
    }

    /// Has the kernel spread frames over the first `count` queues.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn use_queues(&mut self, count: u16) -> io::Result<()> {
        let count = count.clamp(1, self.queues.len().try_into().unwrap_or(u16::MAX));
        while self.in_use != count {
            let (index, flag) = if self.in_use < count {
                (self.in_use, libc::IFF_ATTACH_QUEUE)
            } else {
                (self.in_use - 1, libc::IFF_DETACH_QUEUE)
            };
            let mut request = no_request();
            request.ifr_ifru.ifru_flags = flag as i16;
            if let Some(queue) = self.queues.get(usize::from(index)) {
                // SAFETY: the kernel reads an ifreq.
                check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETQUEUE as _, &request) })?;
            }
            self.in_use = if self.in_use < count {
                index + 1
            } else {
                index
            };
        }
        Ok(())
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The queue's descriptor.
    pub fn fd(&self, queue: usize) -> Option<RawFd> {
        self.queues.get(queue).map(File::as_raw_fd)
    }

    /// Whether it is there still.
    pub fn is_there(&self) -> bool {
        let mut request = no_request();
        let get = |queue: &File| {
            // SAFETY: the kernel writes an ifreq.
            check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF as _, &mut request) })
        };
        self.queues
            .first()
            .map(get)
            .is_some_and(|there| there.is_ok())
    }

    /// A number that the kernel keeps of it (`/sys/class/net/NAME/statistics`); 0 where it cannot be had.
    pub fn statistic(&self, name: &str) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/{name}", self.name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim_end().parse().unwrap_or(0)
    }

    /// Reads a frame with its header. Returns all its bytes, or those of `pieces` where it has more.
    ///
    /// # Safety
    /// `pieces` are memory that may be written.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Others are the kernel's.
    pub unsafe fn receive(&self, queue: usize, pieces: &[IoVec]) -> io::Result<usize> {
        let fd = self.borrow(queue)?.as_raw_fd();
        // SAFETY: `IoVec` is an iovec; the caller vouches for the memory.
        length(unsafe { libc::readv(fd, pieces.as_ptr().cast(), pieces.len() as c_int) })
    }

    /// Sends a frame with its header: all of it or nothing.
    ///
    /// # Safety
    /// `pieces` are memory that may be read.
    ///
    /// # Errors
    /// `WouldBlock`: no room now. Others are the kernel's.
    pub unsafe fn send(&self, queue: usize, pieces: &[IoVec]) -> io::Result<()> {
        let fd = self.borrow(queue)?.as_raw_fd();
        // SAFETY: as above.
        length(unsafe { libc::writev(fd, pieces.as_ptr().cast(), pieces.len() as c_int) })?;
        Ok(())
    }

    fn borrow(&self, queue: usize) -> io::Result<BorrowedFd<'_>> {
        let queue = self.queues.get(queue).map(File::as_fd);
        queue.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The kernel's flags for the driver's offloads.
fn flags_of(features: u64) -> u32 {
    let wanted = OFFLOADS.iter().filter(|(bit, _)| features & bit != 0);
    let flags = wanted.fold(0, |flags, (_, flag)| flags | flag);
    if flags & USO == USO {
        flags
    } else {
        flags & !USO
    }
}

fn set_offloads(queue: &File, flags: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            libc::c_ulong::from(flags),
        )
    })
}

fn no_request() -> libc::ifreq {
    // SAFETY: all zeroes are a valid ifreq: a name of no bytes, flags and addresses that are numbers.
    unsafe { std::mem::zeroed() }
}

fn open_queue(name: &str, several: bool) -> io::Result<File> {
    let mut request = no_request();
    if name.is_empty() || name.len() > NAME_MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)?;
    // SAFETY: the kernel reads and writes an ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    Ok(file)
}

/// Finds words and a remedy for an error of [`open_queue`].
fn explain(name: &str, queues: u16, index: u16, error: io::Error) -> OpenError {
    let kinds = if queues > 1 { " multi_queue" } else { "" };
    let make = format!("ip tuntap add dev {name} mode tap{kinds} user $(id -un)");
    let remedy = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            format!("{CLONE_DEVICE} is needed: load the module tun (modprobe tun)")
        }
        Some(libc::EACCES) => format!("give this user read and write access to {CLONE_DEVICE}"),
        Some(libc::EPERM) => format!(
            "give a tap that belongs to this user (as root: {make}), or run with CAP_NET_ADMIN"
        ),
        Some(libc::EBUSY) => "another process has it: give each VM a tap of its own".into(),
        Some(libc::EINVAL) if queues > 1 => format!(
            "an interface of that name is no tap with several queues: delete it and make it anew ({make}), or set queues to 1"
        ),
        Some(libc::EINVAL) => {
            format!(
                "an interface of that name is there and is no tap: give another name, or make it one ({make})"
            )
        }
        Some(libc::E2BIG | libc::ENOSPC) => format!("lower queues: the kernel gave {index}"),
        _ => "give the name of a tap that this process may use".into(),
    };
    OpenError {
        problem: format!("cannot use the tap {name}"),
        error,
        remedy,
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What `readv(2)` and its kin return.
pub fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
