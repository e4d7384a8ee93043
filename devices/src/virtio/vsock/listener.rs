//! The host's end: the socket at `uds_path`, what its clients say first, and the sockets of programs that the guest calls.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::stream::{self, Outcome};

/// Bytes that the first line of a client has at most. Firecracker's limit, too.
pub const MOST_LINE: usize = 32;

/// Why the host's end could not be made. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("a program that runs listens on {} already; stop it, or give another path", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} exists already and is not a socket; remove it, or give another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket could not be made.
    #[error("cannot make the socket {}: {error}; give a path in a directory that exists and can be written to", .path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The host is out of descriptors.
    #[error("cannot wait for the socket {}: {error}; allow this process more open files", .path.display())]
    Wait {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// A listening socket, and its file: it is removed with this.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    identity: Option<(u64, u64)>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let there = fs::symlink_metadata(path).ok()?;
    Some((there.dev(), there.ino()))
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens on any more, as a killed process leaves it, is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn new(path: &Path) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Bind {
            path: path.into(),
            error,
        };
        if let Ok(there) = fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(ListenError::NotASocket(path.into()));
            }
            if stream::answers(path) {
                return Err(ListenError::InUse(path.into()));
            }
            fs::remove_file(path).map_err(failed)?;
        }
        let socket = UnixListener::bind(path).map_err(failed)?;
        let this = Self {
            socket,
            path: path.into(),
            identity: identity(path),
        };
        this.socket.set_nonblocking(true).map_err(failed)?;
        Ok(this)
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// A client, if there is one.
    ///
    /// # Errors
    /// As accept(2); `WouldBlock` if there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        // All use of it is by calls that do not wait.
        self.socket.accept().map(|(stream, _)| stream)
    }

    /// Connects to the program that has the guest's calls to `port`.
    ///
    /// # Errors
    /// As [`stream::dial`].
    pub fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        stream::dial(&path)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // What somebody else has put there stays.
        if self.identity.is_some() && self.identity == identity(&self.path) {
            // If it cannot be removed, the next one finds it dead.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A client that has not said yet what it wants.
#[derive(Debug, Default)]
pub struct Greeting {
    line: [u8; MOST_LINE],
    len: usize,
}

/// What a client has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Not all of it.
    NotYet,
    /// It wants that port of the guest's.
    Connect(u32),
    /// Nothing of use.
    Nonsense,
}

impl Greeting {
    /// Reads as much as there is of the first line, and nothing behind it.
    pub fn read(&mut self, stream: &UnixStream) -> Said {
        loop {
            let Some(room) = self
                .line
                .get_mut(self.len..)
                .filter(|room| !room.is_empty())
            else {
                return Said::Nonsense;
            };
            let there = match stream::receive_bytes(stream, room, libc::MSG_PEEK) {
                Outcome::Bytes(bytes) if bytes > 0 => bytes,
                Outcome::Later => return Said::NotYet,
                Outcome::Bytes(_) | Outcome::Lost => return Said::Nonsense,
            };
            let end = room.iter().take(there).position(|byte| *byte == b'\n');
            let wanted = end.map_or(there, |end| end + 1);
            let (taken, _) = room.split_at_mut(wanted.min(room.len()));
            match stream::receive_bytes(stream, taken, 0) {
                Outcome::Bytes(bytes) if bytes == wanted => self.len += bytes,
                _ => return Said::Nonsense,
            }
            if end.is_some() {
                let line = self.line.get(..self.len).unwrap_or_default();
                return parse(line).map_or(Said::Nonsense, Said::Connect);
            }
        }
    }
}

/// The port in `CONNECT <port>`. As in Firecracker, upper and lower case and the amount of white space do not matter.
pub fn parse(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let word = words.next()?;
    let port = words.next()?;
    let known = word.eq_ignore_ascii_case("connect") && words.next().is_none();
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|_| known && digits)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn lines_are_read_as_firecracker_reads_them() {
        for line in [
            "CONNECT 52\n",
            "connect 52\n",
            "Connect\t52 \r\n",
            " CONNECT  0052\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Some(52), "{line:?}");
        }
        for line in [
            "",
            "\n",
            "CONNECT\n",
            "CONNECT x\n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "CONNECT 1 2\n",
            "GET / HTTP/1.1\r\n",
            "CONNECT\u{a0}1\n",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff\n"), None);
    }

    #[test]
    fn nothing_behind_the_line_is_taken() {
        let (mut client, host) = UnixStream::pair().unwrap();
        let mut greeting = Greeting::default();
        for piece in ["CON", "NECT ", "7"] {
            client.write_all(piece.as_bytes()).unwrap();
            assert_eq!(greeting.read(&host), Said::NotYet);
        }
        client.write_all(b"\nand more").unwrap();
        assert_eq!(greeting.read(&host), Said::Connect(7));
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = String::new();
        (&host).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "and more");
    }

    #[test]
    fn a_line_without_an_end_is_nonsense() {
        let (mut client, host) = UnixStream::pair().unwrap();
        client.write_all(&[b'C'; MOST_LINE]).unwrap();
        assert_eq!(Greeting::default().read(&host), Said::Nonsense);
        drop(client);
        assert_eq!(Greeting::default().read(&host), Said::Nonsense);
    }

    #[test]
    fn only_dead_sockets_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Listener::new(&path).unwrap();
        assert!(matches!(Listener::new(&path), Err(ListenError::InUse(_))));
        assert!(path.exists(), "it is the first one's");
        drop(first);
        assert!(!path.exists());

        // std leaves the file behind.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Listener::new(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(second);
        assert!(path.exists());
        assert!(matches!(
            Listener::new(&path),
            Err(ListenError::NotASocket(_))
        ));

        let nowhere = dir.path().join("no/v.sock");
        let error = Listener::new(&nowhere).unwrap_err().to_string();
        assert!(error.contains("No such file or directory"), "{error}");
    }

    #[test]
    fn a_guest_reaches_the_socket_of_its_port() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = Listener::new(&path).unwrap();
        let missing = listener.dial(5).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let program = UnixListener::bind(dir.path().join("v.sock_5")).unwrap();
        let mut guest = listener.dial(5).unwrap();
        let (mut accepted, _) = program.accept().unwrap();
        guest.write_all(b"x").unwrap();
        drop(guest);
        let mut got = String::new();
        accepted.read_to_string(&mut got).unwrap();
        assert_eq!(got, "x");
        drop(program);
        let refused = listener.dial(5).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
