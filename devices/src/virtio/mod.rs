//! Virtio devices, and the transports that a guest's drivers find them by. Sections are those of VIRTIO 1.2.
//!
//! | file          | what lives there                                                         |
//! |---------------|--------------------------------------------------------------------------|
//! | `front`       | what every transport does in the same way: status, queues, kicks, start and end |
//! | `negotiation` | what every transport has: status, features, queue setup (2.1, 2.2, 3.1)    |
//! | `ring`        | [`Ring`]: a split virtqueue (2.7) whose chains are checked as a whole       |
//! | [`chain`]     | what is in a chain's buffers, wherever the driver has cut them            |
//! | `worker`      | [`Worker`]: a device with the state that its transport and its loop share  |
//! | [`rate_limiter`] | bytes and requests in a time                                          |
//! | [`balloon`]   | memory balloon (5.5)                                                      |
//! | [`console`]   | console (5.3)                                                             |
//! | [`pci`]       | the PCI transport (4.1)                                                   |
//! | [`mmio`]      | the MMIO transport (4.2)                                                  |
//! | [`block`]     | block device (5.2)                                                        |
//! | [`net`]       | network device (5.1)                                                      |
//! | [`rng`]       | entropy device (5.4)                                                      |
//! | [`vsock`]     | socket device (5.10)                                                      |
//!
//! A [`VirtioDevice`] does not know its transport: it gets [`Ring`]s and an [`Interrupt`] when the driver is ready, is
//! asked to process a queue when the driver has kicked it, and to look at its host side when the host has something for
//! it. A guest that breaks the rules is told so by `DEVICE_NEEDS_RESET` (2.1.2), and nothing more happens until it resets
//! the device.
//!
//! Lock order: a transport's state, then the worker, then what is inside an [`Interrupt`].

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
mod front;
pub mod mmio;
mod negotiation;
pub mod net;
pub mod pci;
pub mod rate_limiter;
mod ring;
pub mod rng;
pub mod vsock;
mod worker;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

pub use chain::{Cursor, IoVec};
pub use front::{Backend, FrontState};
pub use negotiation::{Negotiation, NegotiationState, Status, Step};
use rate_limiter::RateLimiterConfig;
pub use ring::{Broken, Buffer, Ring, RingState};
pub use worker::{SharedWorker, Worker};

/// Guest memory as devices see it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

/// Feature bits that are not a device's own (chapter 6).
pub mod feature {
    /// Indirect descriptors (2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event` (2.7.7, 2.7.10).
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// Queues can be reset one by one (2.6.1). Offered for a device that has a [`QueueReset`](super::QueueReset).
    pub const RING_RESET: u64 = 1 << 40;
    /// What every device here offers.
    pub const COMMON: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Device types (chapter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// Network device (5.1).
    Net,
    /// Block device (5.2).
    Block,
    /// Console (5.3).
    Console,
    /// Entropy device (5.4).
    Entropy,
    /// Memory balloon (5.5).
    Balloon,
    /// Socket device (5.10).
    Vsock,
}

impl DeviceType {
    /// Number of the type.
    pub fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
        }
    }

    /// PCI class code, as firmware and `lspci` like to see it; drivers do not look (4.1.2.1).
    pub fn pci_class(self) -> u32 {
        match self {
            // Network controller, Ethernet.
            Self::Net => 0x02_0000,
            // Mass storage controller, SCSI: what QEMU's virtio disks say, and installers know.
            Self::Block => 0x01_0000,
            // Simple communication controller, other.
            Self::Console => 0x07_8000,
            // Encryption controller, other.
            Self::Entropy => 0x10_8000,
            // Memory controller, RAM; what has no class of its own, like the socket device, is "unassigned".
            Self::Balloon => 0x05_0000,
            Self::Vsock => 0xff_0000,
        }
    }
}

/// How a device reaches its driver.
pub trait Interrupt: Send + Sync {
    /// Used buffers are in that queue (2.3, 4.1.5.1.3).
    fn used(&self, queue: u16);
    /// The device's configuration has changed (2.5, 4.1.5.1.4): its generation is another from now on.
    fn config_changed(&self);
    /// The driver has broken the rules: sets `DEVICE_NEEDS_RESET` and says so (2.1.2).
    fn needs_reset(&self);
    /// An event that does what [`used`](Self::used) does, for a queue that the host's kernel serves. `None` where that needs
    /// more than an event: then whoever has it signalled hands it on.
    fn used_event(&self, queue: u16) -> Option<EventFd> {
        let _ = queue;
        None
    }
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Guest memory.
    pub memory: Memory,
    /// The queues, by number; `None` for one that the driver does not use.
    pub rings: Vec<Option<Ring>>,
    /// Features that both sides have.
    pub features: u64,
    /// The way to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// What is left to do after a queue was processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Nothing: the next kick will tell.
    Done,
    /// More, but it is somebody else's turn first.
    More,
    /// Perhaps more, after that time: a limit is reached.
    Wait(Duration),
}

/// A device, whatever its transport.
pub trait VirtioDevice: Send {
    /// What it is.
    fn device_type(&self) -> DeviceType;
    /// The features that it offers.
    fn features(&self) -> u64;
    /// Largest size of each queue: powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// Reads device-specific configuration (2.5). `data` is zeroed.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes device-specific configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// The driver is ready (`DRIVER_OK`).
    fn activate(&mut self, activation: Activation);
    /// Processes a queue: a bounded piece of work. Without effect while the device is not active.
    ///
    /// # Errors
    /// [`Broken`]: the driver has broken the rules. The device stands still until it is reset.
    fn process(&mut self, queue: u16) -> Result<Progress, Broken>;
    /// Gives a device the kick of each of its queues, once, before all else. Only one whose queues the host's kernel serves
    /// has use for them.
    fn take_kicks(&mut self, kicks: &Arc<[EventFd]>) {
        let _ = kicks;
    }
    /// Whether the loop waits for the kicks of that queue: not where they are somebody else's to read.
    fn waits_for_kicks(&self, queue: u16) -> bool {
        let _ = queue;
        true
    }
    /// Whether a driver that kicks this queue does nothing until it is served, as Linux does with what a console is to show.
    /// The vCPU's own thread serves it at once then: waiting for the loop would cost both of them a processor.
    fn serves_at_kick(&self, queue: u16) -> bool {
        let _ = queue;
        false
    }
    /// What tells the loop that the host has something for the device: a descriptor that is readable then, the same for
    /// the device's whole life. A device with several things to wait for gives an `epoll` of its own.
    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Does a bounded piece of the host side's work. It is called while [`host_event`](Self::host_event) is readable, so it
    /// takes away what made it so; also while the device is not active, and after [`Progress::More`].
    ///
    /// # Errors
    /// As [`process`](Self::process).
    fn process_host(&mut self) -> Result<Progress, Broken> {
        Ok(Progress::Done)
    }
    /// How single queues are reset and started again (2.6.1). `None`, as by default, for a device that cannot do it;
    /// [`RING_RESET`](feature::RING_RESET) is offered for one that can.
    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        None
    }
    /// Waits until nothing is under way in guest memory, as before a pause. What comes in after that is left waiting.
    fn quiesce(&mut self) {}
    /// Goes on after [`quiesce`](Self::quiesce).
    fn resume(&mut self) {}
    /// Changes a device while it may be running.
    ///
    /// # Errors
    /// [`UpdateError`]; the device is as it was.
    fn update(&mut self, update: &Update) -> Result<(), UpdateError> {
        let _ = update;
        Err(UpdateError::Unsupported)
    }
    /// What the device has done so far: names in `snake_case`, with the unit where it is not a count.
    fn counters(&self) -> Counters {
        Counters::new()
    }
    /// Back to the state before activation (2.4). Guest memory is not touched after this.
    fn reset(&mut self);
    /// The state to carry on from elsewhere.
    fn save(&self) -> DeviceState;
    /// Carries on from `state`; the device is active if it was.
    fn restore(&mut self, state: &DeviceState);
}

/// A device whose queues can be reset one by one (2.6.1), while it is active and its other queues go on.
///
/// A driver does it to give a queue another size (`ethtool -G`), and over MMIO also by taking `QueueReady` back. Both are
/// called on a vCPU's thread, with the worker locked: not while the device processes something, and for a bounded time.
pub trait QueueReset {
    /// Drops the queue: its [`Ring`], chains that were popped and not given back, everything that was remembered of it.
    ///
    /// On return nothing of it may be under way in guest memory: a device that hands buffers to the host waits for, or
    /// cancels, those of this queue, and neither gives them back nor interrupts for them. From then on
    /// [`process`](VirtioDevice::process) of this queue does nothing, and [`process_host`](VirtioDevice::process_host)
    /// leaves what would go there to the host; a kick may still come. What is saved says that the queue is not there.
    /// The configuration and the rest of the device stay as they are. The queue may be one that was not in use.
    fn reset_queue(&mut self, queue: u16);

    /// Takes the queue into use, from its start and perhaps with another size: always one that is not in use, and perhaps
    /// one that [`activate`](VirtioDevice::activate) was not given. A kick for it follows.
    fn start_queue(&mut self, queue: u16, ring: Ring);
}

/// Numbers of a device, by name.
pub type Counters = Vec<(&'static str, u64)>;

/// A change of a device that may be running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Other limits for an [`rng::Entropy`]. A bucket that is not given stays as it is; one of size 0 is no limit.
    Entropy(RateLimiterConfig),
    /// What is wanted of a [`balloon::Balloon`] from now on.
    Balloon(balloon::Wanted),
    /// Of a [`block::Block`].
    Block(block::BlockUpdate),
    /// Other limits for a [`net::Net`], in the same way.
    Net {
        /// Of what the guest receives.
        rx: RateLimiterConfig,
        /// Of what the guest sends.
        tx: RateLimiterConfig,
    },
    /// The terminal of a [`console::Console`] has another size.
    ConsoleSize(console::Size),
}

/// Why a device was not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The device has nothing of that kind.
    #[error("this device cannot be changed in that way")]
    Unsupported,
    /// Not with that value; the text says why, and what would do.
    #[error("{0}")]
    Refused(String),
}

/// Saved state of a device, beyond what its transport saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Of a [`rng::Entropy`].
    Entropy(rng::EntropyState),
    /// Of a [`balloon::Balloon`].
    Balloon(balloon::BalloonState),
    /// Of a [`block::Block`].
    Block(block::BlockState),
    /// Of a [`net::Net`].
    Net(net::NetState),
    /// Of a [`console::Console`].
    Console(console::ConsoleState),
    /// Of a [`vsock::Vsock`].
    Vsock(vsock::VsockState),
}

#[cfg(test)]
mod moves;
#[cfg(test)]
mod testing;
