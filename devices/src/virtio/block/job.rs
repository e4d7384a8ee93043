//! A request under way, as a series of system calls on files: what comes next, and what its result means.

use std::io;
use std::os::fd::RawFd;

use vm_memory::GuestAddress;

use super::super::IoVec;
use super::disk::{self, Call, Mode};
use super::request::{Outcome, Range};

/// A page of zeros, for what cannot be cleared in another way.
#[repr(align(4096))]
struct Zeros([u8; 4096]);
static ZEROS: Zeros = Zeros([0; 4096]);
/// How often that page is written at once.
const ZERO_PIECES: usize = 64;

/// What a job does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Reads into `pieces`.
    #[default]
    Read,
    /// Writes from `pieces`.
    Write {
        /// Each call makes safe what it has written.
        durable: bool,
    },
    /// Makes safe what was written before.
    Sync,
    /// Gives the ranges' space back.
    Discard,
    /// Makes the ranges read as zeros.
    Zero,
}

/// Where a job's answer goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin {
    /// Queue that the request came by.
    pub queue: u16,
    /// Head of its chain.
    pub head: u16,
    /// Bytes that the chain is given back with if the request is done.
    pub written: u32,
    /// Address of the status byte.
    pub status: GuestAddress,
}

/// A request under way. Jobs are used again, with the memory that their lists have.
#[derive(Debug, Default)]
pub struct Job {
    pub origin: Origin,
    pub kind: Kind,
    /// Bytes that it is about.
    pub bytes: u64,
    /// Its calls are made at once, even where there is a ring.
    pub at_once: bool,
    /// A call of it is under way in the ring, or was.
    pub under_way: bool,
    /// When its ranges are cleared, that is made safe; and whether that is being done.
    pub sync_after: bool,
    syncing: bool,
    pub fd: RawFd,
    /// Where the next byte is read or written.
    pub at: u64,
    /// Guest memory, all of it; and how many of the pieces are done.
    pub pieces: Vec<IoVec>,
    done: usize,
    /// What is to be cleared, in bytes of the file; and how many of the ranges are done.
    pub ranges: Vec<Range>,
    cleared: usize,
    /// How the present range is being cleared.
    way: Way,
}

/// Ways to clear a range, the next for where one does not work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    /// A hole, where that is allowed.
    #[default]
    Punch,
    /// Zeros, without writing them.
    Zero,
    /// Zeros that are written.
    Write,
}

/// What a result leads to.
#[derive(Debug)]
pub enum Next {
    /// Another call.
    Call,
    /// The job is done.
    Done,
    /// It cannot be done.
    Failed(io::Error),
}

impl Job {
    /// Empties it, for another request.
    pub fn begin(&mut self) {
        let mut new = Self {
            pieces: std::mem::take(&mut self.pieces),
            ranges: std::mem::take(&mut self.ranges),
            ..Self::default()
        };
        new.pieces.clear();
        new.ranges.clear();
        *self = new;
    }

    /// What it does, for a message.
    pub fn verb(&self) -> &'static str {
        match self.kind {
            Kind::Read => "a read",
            Kind::Write { .. } => "a write",
            Kind::Sync => "a flush",
            Kind::Discard => "a discard",
            Kind::Zero => "a write of zeros",
        }
    }

    /// The next system call; `None` if there is nothing left to do.
    pub fn call(&mut self) -> Option<Call<'_>> {
        let (fd, at) = (self.fd, self.at);
        match self.kind {
            _ if self.syncing => Some(Call::Sync { fd }),
            Kind::Read => Some(Call::Read {
                fd,
                at,
                pieces: self.left()?,
            }),
            Kind::Write { durable } => Some(Call::Write {
                fd,
                at,
                pieces: self.left()?,
                durable,
            }),
            Kind::Sync => Some(Call::Sync { fd }),
            Kind::Discard | Kind::Zero => self.clearing(),
        }
    }

    fn left(&self) -> Option<&[IoVec]> {
        let left = self.pieces.get(self.done..)?;
        (!left.is_empty()).then_some(left)
    }

    fn clearing(&mut self) -> Option<Call<'_>> {
        let range = *self.ranges.get(self.cleared)?;
        let Range { at, len, unmap } = range;
        if self.kind == Kind::Zero && !unmap && self.way == Way::Punch {
            self.way = Way::Zero;
        }
        let mode = match self.way {
            Way::Punch => Mode::Punch,
            Way::Zero => Mode::Zero,
            Way::Write => {
                self.pieces.clear();
                let mut left = len;
                while left > 0 && self.pieces.len() < ZERO_PIECES {
                    let part = left.min(ZEROS.0.len() as u64);
                    left -= part;
                    self.pieces.push(IoVec(libc::iovec {
                        // It is only read.
                        iov_base: ZEROS.0.as_ptr().cast_mut().cast(),
                        iov_len: part as usize,
                    }));
                }
                return Some(Call::Write {
                    fd: self.fd,
                    at,
                    pieces: &self.pieces,
                    durable: false,
                });
            }
        };
        Some(Call::Allocate {
            fd: self.fd,
            mode,
            at,
            len,
        })
    }

    /// Takes the result of the last call: bytes, or the kernel's error.
    pub fn result(&mut self, result: io::Result<usize>) -> Next {
        let count = match result {
            Ok(count) => count,
            Err(error) => return self.failed(error),
        };
        match self.kind {
            Kind::Read | Kind::Write { .. } => {
                if count == 0 {
                    // The end of the file, which was longer when the request was looked at.
                    return Next::Failed(io::ErrorKind::UnexpectedEof.into());
                }
                self.at += count as u64;
                let left = self.pieces.get_mut(self.done..).unwrap_or_default();
                self.done += disk::advance(left, count);
                self.next(self.done < self.pieces.len())
            }
            Kind::Sync => Next::Done,
            Kind::Discard | Kind::Zero if self.syncing => Next::Done,
            Kind::Discard | Kind::Zero => {
                let done = self.ranges.get_mut(self.cleared).is_none_or(|range| {
                    if self.way == Way::Write {
                        range.at += count as u64;
                        range.len -= range.len.min(count as u64);
                        range.len == 0
                    } else {
                        true
                    }
                });
                if done {
                    self.cleared += 1;
                    self.way = Way::Punch;
                } else if count == 0 {
                    return Next::Failed(io::ErrorKind::WriteZero.into());
                }
                let more = self.cleared < self.ranges.len();
                if !more && std::mem::take(&mut self.sync_after) {
                    self.syncing = true;
                    return Next::Call;
                }
                self.next(more)
            }
        }
    }

    fn next(&self, more: bool) -> Next {
        if more { Next::Call } else { Next::Done }
    }

    fn failed(&mut self, error: io::Error) -> Next {
        match error.raw_os_error() {
            Some(libc::EINTR) => Next::Call,
            // The kernel could not have it wait for the file. It is this thread that waits, then.
            Some(libc::EAGAIN) if !self.at_once => {
                self.at_once = true;
                Next::Call
            }
            Some(libc::EOPNOTSUPP | libc::ENOSYS) if self.kind == Kind::Zero => match self.way {
                Way::Punch => {
                    self.way = Way::Zero;
                    Next::Call
                }
                Way::Zero => {
                    self.way = Way::Write;
                    Next::Call
                }
                Way::Write => Next::Failed(error),
            },
            _ => Next::Failed(error),
        }
    }

    /// What a failed job is answered with.
    pub fn outcome(error: &io::Error) -> Outcome {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Outcome::Unsupported,
            _ if error.kind() == io::ErrorKind::Unsupported => Outcome::Unsupported,
            _ => Outcome::IoError,
        }
    }
}
