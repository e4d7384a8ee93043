//! The socket in the file system, and the few system calls that the standard library has no words for.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// Bytes of a path in an address, its end not counted.
const MOST_PATH: usize =
    size_of::<libc::sockaddr_un>() - offset_of!(libc::sockaddr_un, sun_path) - 1;
/// Mode of the socket: its owner's alone.
const MODE: u32 = 0o600;
/// How often another process is let finish what it does in the same directory, and for how long each time. That takes microseconds.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path is empty or too long.
    #[error(
        "{} has {} bytes, and the path of a socket has 1 to {MOST_PATH}; give a shorter one, or one relative to the working directory",
        .0.display(),
        .0.as_os_str().len()
    )]
    Length(PathBuf),
    /// Something else is there.
    #[error("{} is there already and is no socket; give another path, or remove it", .0.display())]
    NotASocket(PathBuf),
    /// Another process has it.
    #[error("another process answers on {}; give another path, or end that process", .0.display())]
    InUse(PathBuf),
    /// It cannot be told whether the socket that is there is used, or it cannot be removed.
    #[error("cannot replace the socket {}; remove it, or give another path", .0.display())]
    Replace(PathBuf, #[source] io::Error),
    /// The host refuses.
    #[error("cannot listen on {}; give a path in a directory that can be written to", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    /// There is nothing to wait with.
    #[error("cannot make an eventfd or a timer for {}", .0.display())]
    Resources(PathBuf, #[source] io::Error),
}

/// A listening socket, which is removed with this unless another has taken its place.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Makes the socket at `path`, in place of one on which nobody answers.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let bytes = path.as_os_str().len();
        if bytes == 0 || bytes > MOST_PATH {
            return Err(BindError::Length(path.to_owned()));
        }
        // Held from the look at what is there until the new socket listens: two processes that start at once would each take the
        // other's for stale in between.
        let _lock = lock(path);
        clear(path)?;
        let listen = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => BindError::InUse(path.to_owned()),
            _ => BindError::Listen(path.to_owned(), source),
        };
        let listener = listen_at(path).map_err(listen)?;
        let identity = fs::symlink_metadata(path)
            .map(|data| (data.dev(), data.ino()))
            .ok();
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity,
        })
    }

    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path).map(|data| (data.dev(), data.ino()));
        if there.ok().is_some_and(|there| Some(there) == self.identity) {
            // Somebody was faster: it is gone all the same.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes way at `path`, if what is there is a socket on which nobody answers.
fn clear(path: &Path) -> Result<(), BindError> {
    let replace = |source| BindError::Replace(path.to_owned(), source);
    match fs::symlink_metadata(path) {
        Ok(data) if data.file_type().is_socket() => {}
        Ok(_) => return Err(BindError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::Listen(path.to_owned(), error)),
    }
    match answers(path) {
        Ok(true) => return Err(BindError::InUse(path.to_owned())),
        Ok(false) => {}
        Err(error) => return Err(replace(error)),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(replace(error)),
        _ => Ok(()),
    }
}

/// Whether somebody listens on the socket at `path`, whatever its type. Does not wait.
fn answers(path: &Path) -> io::Result<bool> {
    let (address, length) = address(path);
    for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
        let socket = new_socket(kind | libc::SOCK_NONBLOCK)?;
        // SAFETY: the address is a whole sockaddr_un of which `length` bytes count, and outlives the call.
        let result =
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // There is one, with so many clients that this one would have to wait.
            Some(libc::EAGAIN) => return Ok(true),
            Some(libc::ECONNREFUSED) => return Ok(false),
            Some(libc::ENOENT) => return Ok(false),
            // Of another type: EPROTOTYPE is told of a living socket only.
            Some(libc::EPROTOTYPE) => {}
            _ => return Err(error),
        }
    }
    Ok(true)
}

/// Binds and listens. Nobody but the owner can connect at any time.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let socket = new_socket(libc::SOCK_STREAM)?;
    // The mode of the file is that of the socket before it is bound, less the umask: never wider than this.
    // SAFETY: no memory is involved.
    if unsafe { libc::fchmod(socket.as_raw_fd(), MODE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (address, length) = address(path);
    // SAFETY: the address is a whole sockaddr_un of which `length` bytes count, and outlives the call.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let finish = || {
        // What the umask took from the owner is given back. Before `listen` nobody can connect, whatever the mode.
        let mode = fs::symlink_metadata(path)?.permissions().mode();
        if mode & 0o777 != MODE {
            fs::set_permissions(path, Permissions::from_mode(MODE))?;
        }
        // As many as the kernel allows (net.core.somaxconn): a client that does not wait gets EAGAIN where the queue is full.
        // SAFETY: no memory is involved.
        if unsafe { libc::listen(socket.as_raw_fd(), libc::c_int::MAX) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    if let Err(error) = finish() {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

pub(super) fn new_socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The address of a path that is not too long.
pub(super) fn address(path: &Path) -> (libc::sockaddr_un, libc::socklen_t) {
    // SAFETY: all zeros is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    (
        address,
        length.min(size_of::<libc::sockaddr_un>()) as libc::socklen_t,
    )
}

/// A lock on the directory of `path`. None where there cannot be one, or where somebody holds it for long: it closes a gap of
/// microseconds, and is not worth more.
fn lock(path: &Path) -> Option<File> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(directory.unwrap_or(Path::new(OsStr::new(".")))).ok()?;
    for _ in 0..LOCK_TRIES {
        match directory.try_lock() {
            Ok(()) => return Some(directory),
            Err(fs::TryLockError::WouldBlock) => sleep(LOCK_WAIT),
            Err(fs::TryLockError::Error(_)) => break,
        }
    }
    None
}

/// Reads what is there without waiting. 0: the client sends nothing more.
pub(super) fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(stream, buffer, 0)
}

/// Whether there is something to read, which is left there.
pub(super) fn has_input(stream: &UnixStream) -> bool {
    matches!(receive_with(stream, &mut [0], libc::MSG_PEEK), Ok(1))
}

fn receive_with(stream: &UnixStream, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the buffer is writable, of the length given, and outlives the call.
    let bytes = unsafe {
        libc::recv(
            stream.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
}

/// Writes what there is room for without waiting, and without SIGPIPE where the client is gone.
pub(super) fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the bytes are readable, of the length given, and outlive the call.
    let bytes = unsafe {
        libc::send(
            stream.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
}
