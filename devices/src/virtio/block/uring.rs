//! Asynchronous system calls by io_uring(7): one ring for a device.
//!
//! What is under way uses guest memory and lists of a [`Job`](super::job::Job): whoever has a [`Uring`] waits for all of
//! it before these go. Completions are waited for by the ring's own descriptor, which is readable while there are any:
//! there is no event to be signalled for each of them, or to be read.
//!
//! If the kernel takes no more calls, and will not, the ring is given up: it is never entered again, what the kernel has not
//! taken completes with `EAGAIN`, to be made in another way, and what it has taken is waited for however long that takes, as
//! it is memory that the kernel may write to.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::disk::Call;

/// Calls that can be under way.
pub const MOST_UNDER_WAY: u16 = 256;
/// Token of what only wakes whoever waits for completions.
const WAKE: u64 = u64::MAX;
/// How often in a row the kernel may be short of something while calls are waited for.
const MOST_REFUSALS: u32 = 100;
/// Milliseconds to wait for a completion before the kernel is asked again.
const PAUSE: libc::c_int = 50;

/// A ring, and how much is under way in it.
pub struct Uring {
    ring: IoUring,
    under_way: usize,
    /// Tokens of what was pushed and the kernel has not taken yet.
    pushed: VecDeque<u64>,
    /// How often in a row the kernel took nothing.
    refusals: u32,
    given_up: bool,
}

/// A completed call: its token, and its result.
pub type Completion = (u64, io::Result<usize>);

impl Uring {
    /// Makes a ring, where the kernel has them, lets this process have one, and knows the calls that are needed.
    ///
    /// # Errors
    /// It does not.
    pub fn new() -> io::Result<Self> {
        let entries = u32::from(MOST_UNDER_WAY);
        // Completions wait for this thread to ask the kernel for something rather than interrupt it (Linux 5.19).
        let ring: IoUring = IoUring::builder()
            .dontfork()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| IoUring::builder().dontfork().build(entries))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::Nop::CODE,
        ];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        Ok(Self {
            ring,
            under_way: 0,
            pushed: VecDeque::new(),
            refusals: 0,
            given_up: false,
        })
    }

    /// Readable while there are completions.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open for as long as it lives, which the borrow does not outlive.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// How many calls are under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether calls can be made by it.
    pub fn works(&self) -> bool {
        !self.given_up
    }

    /// Adds a call; the kernel hears of it with the next [`submit`](Self::submit).
    ///
    /// # Safety
    /// What the call names stays as it is until its completion was taken: its list of pieces, their memory, its file.
    ///
    /// # Errors
    /// There is no room, and the kernel does not take what is there.
    pub unsafe fn push(&mut self, call: &Call, token: u64) -> io::Result<()> {
        let entry = entry(call).user_data(token);
        // SAFETY: the caller sees to it that what the entry names stays.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit()?;
            let full = |_| io::Error::from_raw_os_error(libc::EBUSY);
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }.map_err(full)?;
        }
        self.under_way += 1;
        self.pushed.push_back(token);
        Ok(())
    }

    /// Makes [`event`](Self::event) readable, once.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn wake(&mut self) -> io::Result<()> {
        let entry = opcode::Nop::new().build().user_data(WAKE);
        let full = |_| io::Error::from_raw_os_error(libc::EBUSY);
        // SAFETY: the entry names no memory.
        unsafe { self.ring.submission().push(&entry) }.map_err(full)?;
        self.pushed.push_back(WAKE);
        self.submit()
    }

    /// Gives the kernel what was added, in one call. Some of it may be complete when it returns.
    ///
    /// # Errors
    /// The kernel is short of something; what was added stays added.
    pub fn submit(&mut self) -> io::Result<()> {
        while !self.pushed.is_empty() {
            let before = self.pushed.len();
            match self.enter(0) {
                Ok(()) if self.pushed.len() < before => {}
                Ok(()) => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the kernel what was added, and waits for so many completions.
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        if self.given_up {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let result = self.ring.submit_and_wait(wanted);
        // Whatever it says: what is before the head of the queue it has taken.
        let left = self.ring.submission().len();
        let taken = self.pushed.len().saturating_sub(left);
        self.pushed.drain(..taken);
        let Err(error) = result else {
            self.refusals = 0;
            return Ok(());
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // These pass as calls complete, where any are under way.
            Some(libc::EAGAIN | libc::EBUSY)
                if self.refusals < MOST_REFUSALS && self.in_kernel() > 0 =>
            {
                // Only while they are waited for is there a pause between one and the next.
                self.refusals += u32::from(wanted > 0);
            }
            _ => {
                log::error!(
                    "io_uring takes no more calls ({error}): a disk does one thing at a time from here on"
                );
                self.given_up = true;
            }
        }
        Err(error)
    }

    /// How many calls the kernel has taken that have not completed.
    fn in_kernel(&self) -> usize {
        let pushed = self.pushed.iter().filter(|token| **token != WAKE).count();
        self.under_way.saturating_sub(pushed)
    }

    /// Takes the next completion, if there is one.
    pub fn completion(&mut self) -> Option<Completion> {
        let mut entries = self.ring.completion();
        let Some(entry) = entries.find(|entry| entry.user_data() != WAKE) else {
            drop(entries);
            return self.not_taken();
        };
        self.under_way = self.under_way.saturating_sub(1);
        let result = entry.result();
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some((entry.user_data(), result))
    }

    /// The next call that the kernel has not taken and never will, as one that cannot be made in this way.
    fn not_taken(&mut self) -> Option<Completion> {
        while self.given_up {
            let token = self.pushed.pop_front()?;
            if token != WAKE {
                self.under_way = self.under_way.saturating_sub(1);
                return Some((token, Err(io::Error::from_raw_os_error(libc::EAGAIN))));
            }
        }
        None
    }

    /// Waits until there is a completion, or some time; something must be under way.
    pub fn wait(&mut self) {
        let Err(error) = self.enter(1) else {
            return;
        };
        if error.kind() == io::ErrorKind::Interrupted || (self.given_up && !self.pushed.is_empty())
        {
            return;
        }
        let mut poll = libc::pollfd {
            fd: self.ring.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the kernel reads and writes one entry.
        unsafe { libc::poll(&raw mut poll, 1, PAUSE) };
        if self.ring.completion().is_empty() {
            // It does not tell when, either.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event()
    }
}

fn entry(call: &Call) -> squeue::Entry {
    match *call {
        // A single piece costs the kernel less than a list of one.
        Call::Read {
            fd,
            at,
            pieces: [one],
        } => opcode::Read::new(types::Fd(fd), one.0.iov_base.cast(), length(one.len()))
            .offset(at)
            .build(),
        Call::Read { fd, at, pieces } => {
            opcode::Readv::new(types::Fd(fd), pieces.as_ptr().cast(), count(pieces.len()))
                .offset(at)
                .build()
        }
        Call::Write {
            fd,
            at,
            pieces: [one],
            durable,
        } => opcode::Write::new(types::Fd(fd), one.0.iov_base.cast(), length(one.len()))
            .offset(at)
            .rw_flags(flags(durable))
            .build(),
        Call::Write {
            fd,
            at,
            pieces,
            durable,
        } => opcode::Writev::new(types::Fd(fd), pieces.as_ptr().cast(), count(pieces.len()))
            .offset(at)
            .rw_flags(flags(durable))
            .build(),
        Call::Sync { fd } => opcode::Fsync::new(types::Fd(fd))
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Call::Allocate { fd, mode, at, len } => opcode::Fallocate::new(types::Fd(fd), len)
            .offset(at)
            .mode(mode.flags())
            .build(),
    }
}

/// Bytes of one call: what is left is for the next.
fn length(bytes: usize) -> u32 {
    bytes.min(1 << 30) as u32
}

fn count(pieces: usize) -> u32 {
    pieces.min(super::disk::MOST_PIECES) as u32
}

fn flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::super::super::IoVec;
    use super::*;

    fn piece(bytes: &mut [u8]) -> [IoVec; 1] {
        [IoVec(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        })]
    }

    #[test]
    fn what_the_kernel_never_takes_is_handed_back_and_what_it_has_taken_is_waited_for() {
        let mut ring = Uring::new().unwrap();
        let (pipe, mut other) = io::pipe().unwrap();
        let (mut first, mut second) = ([0; 4], [0; 4]);
        let (one, two) = (piece(&mut first), piece(&mut second));
        let read = |pieces| Call::Read {
            fd: pipe.as_raw_fd(),
            at: 0,
            pieces,
        };
        // SAFETY: all of it lives until the end of the test, which has every completion.
        unsafe { ring.push(&read(&one), 1).unwrap() };
        ring.submit().unwrap();
        // SAFETY: as above.
        unsafe { ring.push(&read(&two), 2).unwrap() };
        // Its descriptor is no ring's any more: the kernel refuses, for ever.
        let no_ring = File::open("/dev/null").unwrap();
        // SAFETY: the ring's own descriptor is replaced; the mapped ring itself stays.
        unsafe { libc::dup2(no_ring.as_raw_fd(), ring.ring.as_raw_fd()) };
        ring.submit().unwrap_err();
        assert!(!ring.works());
        let (token, result) = ring.completion().unwrap();
        let error = result.unwrap_err().raw_os_error();
        assert_eq!((token, error), (2, Some(libc::EAGAIN)));
        assert!(ring.completion().is_none());
        assert_eq!(ring.under_way(), 1, "the kernel may still write to it");
        ring.wait();
        assert_eq!(ring.under_way(), 1);
        other.write_all(b"here").unwrap();
        let (token, result) = loop {
            if let Some(completion) = ring.completion() {
                break completion;
            }
            ring.wait();
        };
        assert_eq!((token, result.unwrap(), ring.under_way()), (1, 4, 0));
        assert_eq!(&first, b"here");
    }
}
