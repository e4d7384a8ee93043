//! System calls on the host's sockets. None of them waits, and none raises a signal.

use std::ffi::OsStr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::super::{Broken, Cursor, IoVec};

/// Pieces that a system call takes at most (`UIO_MAXIOV` of linux/uio.h).
const MOST_PIECES: usize = 1024;
/// Bytes that the path of a socket has at most (unix(7)), without the zero at its end.
pub const MOST_PATH: usize = 107;

/// What came of a system call that may have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many bytes.
    Bytes(usize),
    /// It would have to wait.
    Later,
    /// There is nobody at the other end.
    Lost,
}

fn message(pieces: &mut [IoVec]) -> libc::msghdr {
    // SAFETY: all zeroes are a message without address, data and control data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr().cast();
    message.msg_iovlen = pieces.len().min(MOST_PIECES) as _;
    message
}

/// Makes the call until no signal comes in between.
fn outcome(mut call: impl FnMut() -> isize) -> Outcome {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Outcome::Bytes(bytes);
        }
        match io::Error::last_os_error().kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Outcome::Later,
            // ENOBUFS, ENOMEM: as if it were lost, not to try it for ever.
            _ => return Outcome::Lost,
        }
    }
}

/// Receives into guest memory: `rooms` are filled one after the other. The second value is true if the socket is
/// certainly empty now. `pieces` is only there to be used again.
///
/// # Errors
/// [`Broken`]: a room is not in memory.
pub fn receive(
    stream: &UnixStream,
    rooms: &[Cursor],
    pieces: &mut Vec<IoVec>,
) -> Result<(Outcome, bool), Broken> {
    pieces.clear();
    for room in rooms {
        room.io_vecs(pieces)?;
    }
    let mut message = message(pieces);
    let outcome = outcome(|| {
        // SAFETY: the pieces are guest memory, which `rooms` keep there; nothing of this program is in it.
        unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) }
    });
    let room: usize = pieces.iter().take(MOST_PIECES).map(IoVec::len).sum();
    // A message with descriptors (which are dropped) ends a read early; there may be more behind it.
    let whole = message.msg_flags & libc::MSG_CTRUNC == 0;
    let empty = match outcome {
        Outcome::Bytes(bytes) => bytes > 0 && bytes < room && whole,
        Outcome::Later | Outcome::Lost => true,
    };
    Ok((outcome, empty))
}

/// Sends from guest memory.
///
/// # Errors
/// [`Broken`]: the data is not in memory.
pub fn send(
    stream: &UnixStream,
    data: &Cursor,
    pieces: &mut Vec<IoVec>,
) -> Result<Outcome, Broken> {
    pieces.clear();
    data.io_vecs(pieces)?;
    let message = message(pieces);
    // SAFETY: the pieces are guest memory, which `data` keeps there, and are only read.
    let call = || unsafe {
        libc::sendmsg(
            stream.as_raw_fd(),
            &message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    Ok(outcome(call))
}

/// Sends bytes.
pub fn send_bytes(stream: &UnixStream, bytes: &[u8]) -> Outcome {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes.len()` bytes.
    outcome(|| unsafe {
        libc::send(
            stream.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    })
}

/// Receives bytes; with `MSG_PEEK` in `flags` they stay where they are.
pub fn receive_bytes(stream: &UnixStream, bytes: &mut [u8], flags: libc::c_int) -> Outcome {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most `bytes.len()` bytes.
    outcome(|| unsafe {
        libc::recv(
            stream.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            flags,
        )
    })
}

/// Connects to the socket at `path`, without waiting for a place in its backlog.
///
/// # Errors
/// `WouldBlock`: the backlog is full. `InvalidInput`: the path does not fit. Others as connect(2) says.
pub fn dial(path: &OsStr) -> io::Result<UnixStream> {
    let path = path.as_bytes();
    if path.len() > MOST_PATH || path.is_empty() || path.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the descriptor that comes back is nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_UNIX, kind, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all zeroes are an address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as _;
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as _;
    }
    let len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address has that length, and its path ends with a zero.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}

/// Whether somebody listens at `path`.
pub fn answers(path: &Path) -> bool {
    match dial(path.as_os_str()) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}
