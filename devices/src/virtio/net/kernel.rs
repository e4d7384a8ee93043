//! `/dev/vhost-net`: a thread of the host's kernel that serves a receive and a transmit queue (`include/uapi/linux/vhost.h`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
    Permissions,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

use super::OpenError;
use crate::virtio::{Memory, Ring};

const DEVICE: &str = "/dev/vhost-net";
/// `VHOST_VIRTIO`.
const TYPE: u32 = 0xaf;

/// Feature bits of the driver's that concern a queue: all but these are the tap's or nobody's. `VIRTIO_NET_F_MRG_RXBUF`,
/// `VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX`, `VIRTIO_F_VERSION_1`.
pub const FEATURES: u64 = 1 << 15 | 1 << 28 | 1 << 29 | 1 << 32;

/// One instance: two queues.
#[derive(Debug)]
pub struct VhostNet(File);

#[repr(C)]
struct Region {
    guest: u64,
    size: u64,
    host: u64,
    padding: u64,
}

/// As many regions as the kernel takes by default (`max_mem_regions`).
const REGIONS: usize = 64;

#[repr(C)]
struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [Region; REGIONS],
}

#[repr(C)]
struct VringState {
    index: u32,
    value: u32,
}

#[repr(C)]
struct VringAddress {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

#[repr(C)]
struct VringFile {
    index: u32,
    fd: RawFd,
}

impl VhostNet {
    /// A new instance.
    ///
    /// # Errors
    /// [`OpenError`], with the remedy.
    pub fn open() -> Result<Self, OpenError> {
        let open = || {
            let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
            let vhost = Self(file);
            vhost.ask(_IOC_NONE, 0x01, &mut ())?;
            Ok(vhost)
        };
        open().map_err(|error: io::Error| {
            let remedy = match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => "give this user read and write access to it",
                _ => "load the module vhost_net (modprobe vhost_net)",
            };
            OpenError {
                problem: format!("cannot open {DEVICE}"),
                error,
                remedy: format!("{remedy}, or give backend \"tap\""),
            }
        })
    }

    /// Which of [`FEATURES`] it has.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn features(&self) -> io::Result<u64> {
        let mut features = 0_u64;
        self.ask(_IOC_READ, 0x00, &mut features)?;
        Ok(features & FEATURES)
    }

    /// The features and the memory of the driver's.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn set_up(&self, features: u64, memory: &Memory) -> io::Result<()> {
        let mut features = features & FEATURES;
        self.ask(_IOC_WRITE, 0x00, &mut features)?;
        let mut table = MemoryTable {
            count: 0,
            padding: 0,
            regions: [const {
                Region {
                    guest: 0,
                    size: 0,
                    host: 0,
                    padding: 0,
                }
            }; REGIONS],
        };
        for (slot, region) in table.regions.iter_mut().zip(memory.iter()) {
            let host = region.get_host_address(MemoryRegionAddress(0));
            slot.host = host.map_err(io::Error::other)? as u64;
            slot.guest = region.start_addr().0;
            slot.size = region.len();
            table.count += 1;
        }
        // The kernel's structure ends before the regions.
        self.ask_sized(_IOC_WRITE, 0x03, 8, &mut table)
    }

    /// Starts a queue (0 receives, 1 sends) at `backend`, a tap's queue.
    ///
    /// # Errors
    /// Of the kernel; the queue does not run.
    pub fn start(
        &self,
        index: u32,
        memory: &Memory,
        ring: &Ring,
        events: &Events,
        backend: RawFd,
    ) -> io::Result<()> {
        let size = u64::from(ring.size());
        let [descriptors, available, used] = ring.areas();
        let host = |address, len: u64| {
            let mut slices = GuestMemory::get_slices(
                memory,
                GuestAddress(address),
                len as usize,
                Permissions::No,
            );
            let whole = slices.as_mut().ok().and_then(|slices| slices.next());
            let whole = whole
                .and_then(Result::ok)
                .filter(|slice| slice.len() as u64 == len);
            whole
                .map(|slice| slice.ptr_guard_mut().as_ptr() as u64)
                .ok_or_else(|| io::Error::other("a queue lies in two pieces of memory"))
        };
        let mut address = VringAddress {
            index,
            flags: 0,
            descriptors: host(descriptors, 16 * size)?,
            used: host(used, 6 + 8 * size)?,
            available: host(available, 6 + 2 * size)?,
            log: 0,
        };
        let state = |value| VringState { index, value };
        self.ask(_IOC_WRITE, 0x10, &mut state(size as u32))?;
        self.ask(_IOC_WRITE, 0x12, &mut state(ring.save().next_avail.into()))?;
        self.ask(_IOC_WRITE, 0x11, &mut address)?;
        for (number, event) in [
            (0x20, events.kick),
            (0x21, events.call),
            (0x22, events.error),
        ] {
            let fd = event.as_raw_fd();
            self.ask(_IOC_WRITE, number, &mut VringFile { index, fd })?;
        }
        self.set_backend(index, backend)
    }

    /// Stops a queue. Returns its next available entry; nothing is under way then.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn stop(&self, index: u32) -> io::Result<u16> {
        self.set_backend(index, -1)?;
        let mut state = VringState { index, value: 0 };
        self.ask(_IOC_READ | _IOC_WRITE, 0x12, &mut state)?;
        Ok(state.value as u16)
    }

    fn set_backend(&self, index: u32, fd: RawFd) -> io::Result<()> {
        self.ask(_IOC_WRITE, 0x30, &mut VringFile { index, fd })
    }

    fn ask<T>(&self, direction: u32, number: u32, argument: &mut T) -> io::Result<()> {
        self.ask_sized(direction, number, size_of::<T>(), argument)
    }

    /// `T` is what the kernel reads and writes for that number.
    fn ask_sized<T>(
        &self,
        direction: u32,
        number: u32,
        size: usize,
        argument: &mut T,
    ) -> io::Result<()> {
        let request = ioctl_expr(direction, TYPE, number, size as u32);
        // SAFETY: the argument is the structure of that request, borrowed for the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, &raw mut *argument) };
        super::tap::length(result as isize).map(|_| ())
    }
}

/// What a queue is kicked by, what it calls its driver by, and what tells of a ring that is broken.
#[derive(Clone, Copy)]
pub struct Events<'a> {
    /// Signalled by the guest.
    pub kick: &'a EventFd,
    /// Signalled by the kernel.
    pub call: &'a EventFd,
    /// Signalled by the kernel.
    pub error: &'a EventFd,
}
