//! The host's end of a device, and which of its descriptors the device waits for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::passt::Passt;
use super::tap::Tap;
use super::vhost::Vhost;

/// The host's end.
#[derive(Debug)]
pub enum Link {
    /// A tap, with a queue for each pair.
    Tap(Tap),
    /// A connection to passt: one pair.
    Passt(Passt),
    /// A tap that the host's kernel serves.
    Vhost(Box<Vhost>),
}

/// A host's end that cannot be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{problem}: {error}; {remedy}")]
pub struct OpenError {
    /// What could not be done to what.
    pub problem: String,
    /// What the kernel says.
    pub error: io::Error,
    /// What to do.
    pub remedy: String,
}

impl Link {
    /// The descriptor of a pair of queues.
    pub fn fd(&self, pair: usize) -> Option<RawFd> {
        match self {
            Self::Tap(tap) => tap.fd(pair),
            Self::Passt(passt) => passt.fd().filter(|_| pair == 0),
            Self::Vhost(_) => None,
        }
    }

    /// Whether an error in receiving or sending means that nothing more comes of it.
    pub fn is_lost_by(&self, error: &io::Error) -> bool {
        match self {
            // The tap is deleted. All else (`EIO`: it is down) can get better.
            Self::Tap(_) | Self::Vhost(_) => error.raw_os_error() == Some(libc::EBADFD),
            // A stream that was broken in one place cannot be followed any more.
            Self::Passt(_) => true,
        }
    }

    /// Whether an answer may be there when a frame is sent: the kernel handles a tap's frames before it returns.
    pub fn answers_at_once(&self) -> bool {
        matches!(self, Self::Tap(_))
    }

    /// Whether part of a frame is still to be sent.
    pub fn has_unsent(&self) -> bool {
        matches!(self, Self::Passt(passt) if passt.has_unsent())
    }

    /// Sends it.
    ///
    /// # Errors
    /// `WouldBlock`: not all of it now. All others: the link is lost.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tap(_) | Self::Vhost(_) => Ok(()),
            Self::Passt(passt) => passt.flush(),
        }
    }

    /// Leaves what is lost.
    pub fn close(&mut self) {
        if let Self::Passt(passt) = self {
            passt.disconnect();
        }
    }

    /// Whether a lost link can come back.
    pub fn can_return(&self) -> bool {
        matches!(self, Self::Passt(_))
    }

    /// Tries to get a lost link back.
    ///
    /// # Errors
    /// Not now, or never.
    pub fn restore(&mut self) -> io::Result<()> {
        match self {
            Self::Tap(_) | Self::Vhost(_) => Err(io::ErrorKind::Unsupported.into()),
            Self::Passt(passt) => passt.connect(),
        }
    }

    /// Features that it makes possible.
    pub fn features(&self) -> u64 {
        match self {
            Self::Tap(tap) => tap.features(),
            Self::Passt(_) => 0,
            Self::Vhost(vhost) => vhost.tap().features(),
        }
    }

    /// The tap, where it is one.
    pub fn tap(&self) -> Option<&Tap> {
        match self {
            Self::Tap(tap) => Some(tap),
            Self::Passt(_) => None,
            Self::Vhost(vhost) => Some(vhost.tap()),
        }
    }

    /// The same, to be changed.
    pub fn tap_mut(&mut self) -> Option<&mut Tap> {
        match self {
            Self::Tap(tap) => Some(tap),
            Self::Passt(_) => None,
            Self::Vhost(vhost) => Some(vhost.tap_mut()),
        }
    }
}

/// What is waited for at one descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Frames to receive.
    pub frames: bool,
    /// Room to send.
    pub room: bool,
}

/// Number of what is no pair's.
const OTHER: u64 = u64::MAX;

/// Waits for the descriptors of all pairs. Level-triggered, so nothing is waited for that could not be dealt with.
pub struct Waiting {
    epoll: Epoll,
    /// For each pair the descriptor that is waited for, and for what.
    wishes: Vec<Option<(RawFd, Wish)>>,
    /// What else is waited for.
    others: Vec<RawFd>,
}

impl Waiting {
    /// Of nothing so far, for so many pairs.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(pairs: u16) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            wishes: vec![None; pairs.into()],
            others: Vec::new(),
        })
    }

    /// Readable when something that is waited for has come.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the epoll is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }

    /// Waits for `wish` at a pair's descriptor from now on. A closed descriptor counts as none.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn want(&mut self, pair: usize, fd: Option<RawFd>, wish: Wish) -> io::Result<()> {
        let Some(slot) = self.wishes.get_mut(pair) else {
            return Ok(());
        };
        let wanted = fd.filter(|_| wish != Wish::default()).map(|fd| (fd, wish));
        if *slot == wanted {
            return Ok(());
        }
        let before = std::mem::replace(slot, wanted);
        let Some((fd, wish)) = wanted else {
            return match before.filter(|(old, _)| Some(*old) == fd) {
                Some((old, _)) => {
                    let nothing = EpollEvent::default();
                    self.epoll.ctl(ControlOperation::Delete, old, nothing)
                }
                // Closing it has taken it out.
                None => Ok(()),
            };
        };
        let mut events = EventSet::empty();
        events.set(EventSet::IN, wish.frames);
        events.set(EventSet::OUT, wish.room);
        let operation = match before {
            Some((old, _)) if old == fd => ControlOperation::Modify,
            _ => ControlOperation::Add,
        };
        let event = EpollEvent::new(events, pair as u64);
        self.epoll.ctl(operation, fd, event)
    }

    /// Waits for these to be readable from now on, and for no others that are no pair's. All of them are open, and those
    /// that were given before are too.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn want_others(&mut self, fds: Vec<RawFd>) -> io::Result<()> {
        for old in self.others.drain(..).filter(|old| !fds.contains(old)) {
            let nothing = EpollEvent::default();
            // It fails where it is closed: then it is out already.
            let _ = self.epoll.ctl(ControlOperation::Delete, old, nothing);
        }
        for fd in fds {
            let event = EpollEvent::new(EventSet::IN, OTHER);
            match self.epoll.ctl(ControlOperation::Add, fd, event) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
                _ => self.others.push(fd),
            }
        }
        Ok(())
    }

    /// The pairs for which something has come, without waiting.
    pub fn ready(&self, into: &mut Vec<usize>) {
        let mut events = [EpollEvent::default(); 16];
        into.clear();
        // Two pairs at most: looking at both is cheaper than asking.
        if self.wishes.len() <= 2 {
            return into.extend(0..self.wishes.len());
        }
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let ready = events.iter().take(count);
        let pairs = ready.filter(|event| event.data() != OTHER);
        into.extend(pairs.map(|event| event.data() as usize));
    }
}
