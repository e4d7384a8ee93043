//! Asynchronous system calls by io_uring(7): one ring for a device.
//!
//! What is under way uses guest memory and lists of a [`Job`](super::job::Job): whoever has a [`Uring`] waits for all of
//! it before these go. Completions are waited for by the ring's own descriptor, which is readable while there are any:
//! there is no event to be signalled for each of them, or to be read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::disk::Call;

/// Calls that can be under way.
pub const MOST_UNDER_WAY: u16 = 256;
/// Token of what only wakes whoever waits for completions.
const WAKE: u64 = u64::MAX;

/// A ring, and how much is under way in it.
pub struct Uring {
    ring: IoUring,
    under_way: usize,
    /// What was pushed and not submitted yet.
    pushed: usize,
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
            pushed: 0,
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
        self.pushed += 1;
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
        self.pushed += 1;
        self.submit()
    }

    /// Gives the kernel what was added, in one call. Some of it may be complete when it returns.
    ///
    /// # Errors
    /// The kernel is short of something; what was added stays added.
    pub fn submit(&mut self) -> io::Result<()> {
        while self.pushed > 0 {
            match self.ring.submit() {
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                Ok(count) => self.pushed -= count.min(self.pushed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the next completion, if there is one.
    pub fn completion(&mut self) -> Option<Completion> {
        let entry = self
            .ring
            .completion()
            .find(|entry| entry.user_data() != WAKE)?;
        self.under_way = self.under_way.saturating_sub(1);
        let result = entry.result();
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some((entry.user_data(), result))
    }

    /// Waits until there is a completion; something must be under way.
    pub fn wait(&mut self) {
        match self.ring.submit_and_wait(1) {
            Ok(count) => self.pushed -= count.min(self.pushed),
            // EINTR; or EAGAIN and EBUSY, which pass as calls complete.
            Err(_) => std::thread::yield_now(),
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
