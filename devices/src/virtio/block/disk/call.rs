//! System calls on files, each as a value that can be made now, or given to the kernel to be made later.

use std::io;
use std::os::fd::RawFd;

use super::super::super::IoVec;

/// What becomes of a stretch of a file's space (fallocate(2)). The file keeps its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A hole: it reads as zeros and takes no space.
    Punch,
    /// It reads as zeros and has its space.
    Zero,
}

impl Mode {
    /// Flags of fallocate(2).
    pub fn flags(self) -> libc::c_int {
        libc::FALLOC_FL_KEEP_SIZE
            | match self {
                Self::Punch => libc::FALLOC_FL_PUNCH_HOLE,
                Self::Zero => libc::FALLOC_FL_ZERO_RANGE,
            }
    }
}

/// A system call on a file.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// `preadv(2)`.
    Read {
        /// The file.
        fd: RawFd,
        /// First byte.
        at: u64,
        /// Where to.
        pieces: &'a [IoVec],
    },
    /// `pwritev2(2)`.
    Write {
        /// The file.
        fd: RawFd,
        /// First byte.
        at: u64,
        /// Where from.
        pieces: &'a [IoVec],
        /// It is safe when the call is over (`RWF_DSYNC`).
        durable: bool,
    },
    /// `fdatasync(2)`.
    Sync {
        /// The file.
        fd: RawFd,
    },
    /// `fallocate(2)`.
    Allocate {
        /// The file.
        fd: RawFd,
        /// What becomes of it.
        mode: Mode,
        /// First byte.
        at: u64,
        /// Bytes.
        len: u64,
    },
}

/// Most pieces that the kernel takes (`UIO_MAXIOV`).
pub const MOST_PIECES: usize = 1024;

impl Call<'_> {
    /// Makes the call. Returns the bytes that were moved, 0 where there are none to move.
    ///
    /// # Errors
    /// What the kernel said; [`io::ErrorKind::Interrupted`] among it.
    pub fn make(&self) -> io::Result<usize> {
        let result = match *self {
            Self::Read { fd, at, pieces } => {
                let count = pieces.len().min(MOST_PIECES) as libc::c_int;
                // SAFETY: the kernel reads `count` entries of `pieces`, and writes to the guest memory that they name,
                // which is mapped for as long as the device is active.
                unsafe { libc::preadv(fd, pieces.as_ptr().cast(), count, at as libc::off_t) }
            }
            Self::Write {
                fd,
                at,
                pieces,
                durable,
            } => {
                let count = pieces.len().min(MOST_PIECES) as libc::c_int;
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above; guest memory is only read.
                unsafe {
                    libc::pwritev2(fd, pieces.as_ptr().cast(), count, at as libc::off_t, flags)
                }
            }
            // SAFETY: no memory is involved.
            Self::Sync { fd } => unsafe { libc::fdatasync(fd) as isize },
            Self::Allocate { fd, mode, at, len } => {
                let (at, len) = (at as libc::off_t, len as libc::off_t);
                // SAFETY: no memory is involved.
                unsafe { libc::fallocate(fd, mode.flags(), at, len) as isize }
            }
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// Takes the first `count` bytes away from `pieces`. Returns how many pieces are used up.
pub fn advance(pieces: &mut [IoVec], count: usize) -> usize {
    let mut left = count;
    for (index, piece) in pieces.iter_mut().enumerate() {
        if left < piece.0.iov_len {
            piece.0.iov_base = piece.0.iov_base.cast::<u8>().wrapping_add(left).cast();
            piece.0.iov_len -= left;
            return index;
        }
        left -= piece.0.iov_len;
    }
    pieces.len()
}

/// Reads or writes all of `pieces`, however often the kernel has to be asked.
///
/// # Errors
/// What the kernel said; [`io::ErrorKind::UnexpectedEof`] at the end of the file.
pub fn transfer_all(write: bool, fd: RawFd, at: u64, pieces: &mut [IoVec]) -> io::Result<()> {
    let (mut rest, mut at) = (pieces, at);
    while !rest.is_empty() {
        let call = if write {
            Call::Write {
                fd,
                at,
                pieces: rest,
                durable: false,
            }
        } else {
            Call::Read {
                fd,
                at,
                pieces: rest,
            }
        };
        match call.make() {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                at += count as u64;
                let used = advance(rest, count);
                rest = rest.get_mut(used..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
