//! passt, which gives an ordinary user's VM the host's network: a Unix stream socket with a 4-byte big-endian length before
//! each frame (passt(1); the stream of QEMU's `-netdev stream`). There is no virtio header on it, so nothing is offloaded.
//!
//! passt drops the frames that its end of the socket has no room for: a larger `net.core.wmem_max` on the host, and an MTU of up
//! to 65520, make it faster.

use std::io::{self, IoSlice, Read};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::tap::length;
use super::{OpenError, header};
use crate::virtio::{Cursor, IoVec};

/// Most bytes of a socket's path (unix(7), less the final zero).
pub const PATH_MOST: usize = 107;

/// Bytes of a length.
const PREFIX: usize = 4;
/// Bytes that are taken from the socket at once: two frames of the longest kind at least.
const BUFFER: usize = 160 << 10;

/// What a peer sends whose stream cannot be followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes")]
pub struct Nonsense(pub u32);

/// Finds the first frame of a stream: where it is in `bytes`, without its length. `None` if not all of it is there.
///
/// # Errors
/// [`Nonsense`]: no frame is so short or so long.
pub fn first_frame(bytes: &[u8]) -> Result<Option<Range<usize>>, Nonsense> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let value = u32::from_be_bytes(*prefix);
    let len = value as usize;
    if !(header::SHORTEST_FRAME..=header::LONGEST_FRAME).contains(&len) {
        return Err(Nonsense(value));
    }
    Ok((rest.len() >= len).then_some(PREFIX..PREFIX + len))
}

/// The connection to a passt process.
#[derive(Debug)]
pub struct Passt {
    path: PathBuf,
    socket: Option<UnixStream>,
    /// What was received; `filled` of it.
    buffer: Box<[u8]>,
    filled: Range<usize>,
    /// What is left of the last frame, and how much of that is sent.
    unsent: Vec<u8>,
    sent: usize,
}

impl Passt {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`OpenError`], with the remedy.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut passt = Self::unconnected(path);
        passt.connect().map_err(|error| {
            let shown = path.display();
            let remedy = match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => "give this user write access to it".into(),
                Some(libc::ENOENT | libc::ECONNREFUSED) => {
                    format!("start passt first (passt --socket {shown})")
                }
                _ => "give the path of passt's socket".into(),
            };
            OpenError {
                problem: format!("cannot connect to {shown}"),
                error,
                remedy,
            }
        })?;
        Ok(passt)
    }

    /// At the end of a connection that is there already. It does not come back once it is lost.
    ///
    /// # Errors
    /// The socket is none that can be set up.
    pub fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let mut passt = Self::unconnected(Path::new(""));
        passt.socket = Some(socket);
        Ok(passt)
    }

    fn unconnected(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            socket: None,
            buffer: vec![0; BUFFER].into(),
            filled: 0..0,
            unsent: Vec::new(),
            sent: 0,
        }
    }

    /// Connects anew, with nothing left of what was before.
    ///
    /// # Errors
    /// Nobody is there.
    pub fn connect(&mut self) -> io::Result<()> {
        self.disconnect();
        self.socket = Some(connect(&self.path)?);
        Ok(())
    }

    /// Leaves the peer.
    pub fn disconnect(&mut self) {
        self.socket = None;
        self.filled = 0..0;
        self.unsent.clear();
        self.sent = 0;
    }

    /// The socket.
    pub fn fd(&self) -> Option<RawFd> {
        self.socket.as_ref().map(UnixStream::as_raw_fd)
    }

    /// Takes a frame out of the stream. It stays in [`frame`](Self::frame) until the next call.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. All others: the connection is of no use any more.
    pub fn receive(&mut self) -> io::Result<Range<usize>> {
        loop {
            let bytes = self.buffer.get(self.filled.clone()).unwrap_or_default();
            let found = first_frame(bytes);
            if let Some(frame) =
                found.map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))?
            {
                let start = self.filled.start;
                self.filled.start += frame.end;
                return Ok(start + frame.start..start + frame.end);
            }
            // Less than a frame is left: it goes to the front.
            let left = self.filled.len();
            if self.filled.start > 0 {
                self.buffer.copy_within(self.filled.clone(), 0);
                self.filled = 0..left;
            }
            let room = self.buffer.get_mut(left..).unwrap_or_default();
            let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            match socket.read(room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => self.filled.end = left + got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The bytes of a frame that was received last.
    pub fn frame(&self, at: Range<usize>) -> &[u8] {
        self.buffer.get(at).unwrap_or_default()
    }

    /// Whether something is left of the last frame.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.unsent.len()
    }

    /// Sends what is left of the last frame.
    ///
    /// # Errors
    /// `WouldBlock`: no room for all of it now. All others: the connection is of no use any more.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.unsent.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let pieces = [IoSlice::new(rest)];
            // SAFETY: an `IoSlice` is an iovec of memory that may be read.
            self.sent += unsafe { send(socket, pieces.as_ptr().cast(), pieces.len()) }?;
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(())
    }

    /// Sends a frame; what the socket does not take at once is kept for [`flush`](Self::flush). `pieces` is room for its
    /// parts.
    ///
    /// # Errors
    /// `WouldBlock`: nothing of it is sent. All others: the connection is of no use any more.
    pub fn send(&mut self, frame: &Cursor, pieces: &mut Vec<IoVec>) -> io::Result<()> {
        self.flush()?;
        let lost = |_| io::Error::from(io::ErrorKind::InvalidData);
        let prefix = (frame.len() as u32).to_be_bytes();
        pieces.clear();
        pieces.push(IoVec(libc::iovec {
            iov_base: prefix.as_ptr().cast_mut().cast(),
            iov_len: PREFIX,
        }));
        frame.io_vecs(pieces).map_err(lost)?;
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // SAFETY: the prefix lives until the call has returned, and the frame's pieces as long as its memory.
        let done = unsafe { send(socket, pieces.as_ptr().cast(), pieces.len()) };
        pieces.clear();
        let done = done?;
        let mut rest = frame.clone();
        rest.skip(done.saturating_sub(PREFIX) as u64);
        let prefix = prefix.get(done..).unwrap_or_default();
        if !rest.is_empty() {
            self.unsent.extend_from_slice(prefix);
            let start = self.unsent.len();
            self.unsent.resize(start + rest.len() as usize, 0);
            if let Some(slot) = self.unsent.get_mut(start..) {
                rest.read(slot).map_err(lost)?;
            }
        }
        Ok(())
    }
}

/// Connects without waiting, whatever the other side does.
fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: all zeroes are a valid sockaddr_un: a family and bytes.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.as_os_str().as_bytes();
    if path.is_empty() || path.len() > PATH_MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(path) {
        *slot = *byte as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { UnixStream::from_raw_fd(fd) };
    let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the kernel reads a sockaddr_un.
    let result = unsafe { libc::connect(fd, (&raw const address).cast(), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Sends without a signal when the peer is gone.
///
/// # Safety
/// `pieces` are `count` iovecs of memory that may be read.
unsafe fn send(socket: &UnixStream, pieces: *const libc::iovec, count: usize) -> io::Result<usize> {
    loop {
        // SAFETY: all zeroes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.cast_mut();
        message.msg_iovlen = count as _;
        // SAFETY: the caller vouches for the pieces; there is no address and no control data.
        match length(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Frames are found wherever the stream is cut; what is no frame is said to be none.
        #[test]
        fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            match first_frame(&bytes) {
                Ok(Some(frame)) => prop_assert!(frame.end <= bytes.len() && frame.len() >= 14),
                Ok(None) => {}
                Err(Nonsense(len)) => prop_assert!(!(14..=65_557).contains(&len)),
            }
        }
    }

    #[test]
    fn a_frame_is_found_when_all_of_it_is_there() {
        let mut bytes = vec![0, 0, 0, 14];
        bytes.extend([7; 14]);
        for len in 0..bytes.len() {
            assert_eq!(first_frame(&bytes[..len]), Ok(None), "{len}");
        }
        assert_eq!(first_frame(&bytes), Ok(Some(4..18)));
        for len in [0_u32, 13, 65_558, u32::MAX] {
            assert_eq!(first_frame(&len.to_be_bytes()), Err(Nonsense(len)));
        }
    }
}
