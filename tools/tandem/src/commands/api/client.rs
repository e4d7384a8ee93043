//! HTTP/1.1 over a Unix socket: one connection, one request, one answer.
//!
//! The socket does not block; all waiting is done in one place, [`wait`], which also sees a reader of standard output
//! go away. An answer that comes while the request is still being sent (a body that is too large) is taken.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::body::{Broken, Chunk, Framing};
use crate::exit;

/// Longest head of an answer, in bytes.
const MOST_HEAD: usize = 64 << 10;
/// Most headers of an answer.
const MOST_HEADERS: usize = 64;

/// Why there is no 2xx answer on standard output. The texts are for standard error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// The body to send could not be read.
    #[error("{0}")]
    Input(String),
    /// Nobody listens.
    #[error("{0}")]
    Connect(String),
    /// The request could not be sent.
    #[error("the request could not be sent: {0}")]
    Send(io::Error),
    /// The answer could not be received.
    #[error("the answer could not be received: {0}")]
    Receive(io::Error),
    /// Nothing came.
    #[error("the connection was closed without an answer")]
    Nothing,
    /// Not all of it came.
    #[error("the connection was closed in the middle of the answer")]
    BrokeOff,
    /// Nothing came in time.
    #[error("nothing came from the other side for {0} s; give --timeout SECONDS for more patience")]
    Slow(u64),
    /// It is not HTTP.
    #[error("what answers is not HTTP, or breaks its rules: {0}")]
    NotHttp(String),
    /// The answer is another than 2xx; empty if it was shown in full.
    #[error("{0}")]
    Refused(String),
    /// Standard output does not take it.
    #[error("standard output: {0}")]
    Output(io::Error),
}

impl Failure {
    /// The exit code, curl's number where it has one.
    pub fn code(&self) -> u8 {
        match self {
            Self::Connect(_) => 7,
            Self::NotHttp(_) => 8,
            Self::BrokeOff => 18,
            Self::Refused(_) => 22,
            Self::Input(_) => 26,
            Self::Slow(_) => 28,
            Self::Nothing => 52,
            Self::Send(_) => 55,
            Self::Receive(_) => 56,
            Self::Usage(_) => exit::USAGE,
            Self::Output(_) => exit::IO,
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::NotHttp(broken.to_string())
    }
}

/// A request.
#[derive(Debug)]
pub struct Outgoing<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Beyond those that every request has; one of the same name takes its place.
    pub headers: &'a [(String, String)],
    pub body: Option<&'a [u8]>,
}

impl Outgoing<'_> {
    fn head(&self) -> String {
        let mut usual = vec![
            ("Host", "localhost".to_owned()),
            (
                "User-Agent",
                concat!("tandem/", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
            ("Accept", "*/*".to_owned()),
            ("Connection", "close".to_owned()),
        ];
        if let Some(body) = self.body {
            usual.push(("Content-Type", "application/json".to_owned()));
            usual.push(("Content-Length", body.len().to_string()));
        }
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        let given = |name: &str| {
            self.headers
                .iter()
                .any(|(other, _)| other.eq_ignore_ascii_case(name))
        };
        for (name, value) in usual.iter().filter(|(name, _)| !given(name)) {
            head += &format!("{name}: {value}\r\n");
        }
        for (name, value) in self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\n"
    }
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Minor version: 0 or 1.
    pub version: u8,
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Reads one from the front of `input`: the head and its length. `None` if there is not all of it yet.
    fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, Failure> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(input) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if input.len() <= MOST_HEAD => return Ok(None),
            Ok(httparse::Status::Partial) => {
                return Err(Failure::NotHttp("a head without end".into()));
            }
            Err(error) => return Err(Failure::NotHttp(error.to_string())),
        };
        let text = |header: &httparse::Header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_owned(), value)
        };
        let head = Self {
            version: response.version.unwrap_or(1),
            status: response.code.unwrap_or(0),
            reason: response.reason.unwrap_or("").to_owned(),
            headers: response.headers.iter().map(text).collect(),
        };
        Ok(Some((head, length)))
    }

    /// The value of the first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(other, _)| other.eq_ignore_ascii_case(name))?;
        Some(found.1.as_str())
    }

    /// Whether the request was done.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Where the body ends, in an answer to that method.
    fn framing(&self, method: &str) -> Result<Framing, Failure> {
        if method == "HEAD" || matches!(self.status, 204 | 304) {
            return Ok(Framing::Length(0));
        }
        if let Some(coding) = self.header("transfer-encoding") {
            return match coding.to_ascii_lowercase().as_str() {
                "chunked" => Ok(Framing::Chunks(Chunk::Size)),
                _ => Err(Failure::NotHttp(format!("the transfer coding {coding:?}"))),
            };
        }
        let Some(length) = self.header("content-length") else {
            return Ok(Framing::UntilClosed);
        };
        if length.is_empty() || !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(Failure::NotHttp(format!("the length {length:?}")));
        }
        let length = length
            .parse()
            .map_err(|_| Failure::NotHttp(format!("the length {length:?}")))?;
        Ok(Framing::Length(length))
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    limit: Option<Duration>,
}

impl Client {
    /// Connects to the socket; `limit` is for each wait from then on.
    ///
    /// # Errors
    /// [`Failure::Connect`].
    pub fn connect(socket: &Path, limit: Option<Duration>) -> Result<Self, Failure> {
        let at = socket.display();
        let failed = |error: io::Error| {
            let is_socket = socket
                .metadata()
                .is_ok_and(|meta| meta.file_type().is_socket());
            Failure::Connect(match error.kind() {
                ErrorKind::NotFound => {
                    format!("no socket at {at}; is there a tandem-vmm with --api-sock {at}?")
                }
                ErrorKind::ConnectionRefused if is_socket => {
                    format!("nobody listens at {at}: the process that did has ended")
                }
                ErrorKind::ConnectionRefused => {
                    format!("{at} is not a socket; give the path of --api-sock")
                }
                ErrorKind::PermissionDenied => {
                    format!("{at}: {error}; a control socket is its owner's alone")
                }
                _ => format!("cannot connect to {at}: {error}"),
            })
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_nonblocking(true).map_err(Failure::Receive)?;
        Ok(Self { stream, limit })
    }

    /// Sends the request and receives the head of its answer.
    ///
    /// # Errors
    /// [`Failure`], for what goes wrong with the connection. An answer that refuses is none.
    pub fn send(mut self, request: &Outgoing) -> Result<Answer, Failure> {
        let head = request.head();
        let sent = self
            .write(head.as_bytes())
            .and_then(|()| self.write(request.body.unwrap_or_default()));
        // Whoever refuses a request may close before having read it all, and the answer is there.
        let mut unsent = match sent {
            Err(Failure::Send(error)) if is_gone(&error) => Some(error),
            other => {
                other?;
                None
            }
        };
        let mut waiting = Vec::new();
        loop {
            while let Some((head, length)) = Head::parse(&waiting)? {
                waiting.drain(..length);
                if !(100..200).contains(&head.status) {
                    let framing = head.framing(request.method)?;
                    return Ok(Answer {
                        head,
                        client: self,
                        framing,
                        waiting,
                    });
                }
            }
            match (self.receive(&mut waiting, false), unsent) {
                (Ok(Received::Some), still) => unsent = still,
                (Ok(_) | Err(Failure::Receive(_)), Some(error)) => {
                    return Err(Failure::Send(error));
                }
                (Ok(_), None) if waiting.is_empty() => return Err(Failure::Nothing),
                (Ok(_), None) => return Err(Failure::BrokeOff),
                (Err(error), _) => return Err(error),
            }
        }
    }

    /// Writes all of it, unless an answer comes before that.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let ready = wait(
                        &self.stream,
                        libc::POLLIN | libc::POLLOUT,
                        self.limit,
                        false,
                    )?;
                    if ready.events & libc::POLLOUT == 0 && ready.events & libc::POLLIN != 0 {
                        return Ok(());
                    }
                }
                Err(error) => return Err(Failure::Send(error)),
            }
        }
        Ok(())
    }

    /// `patient` is [`Answer::next`]'s.
    fn receive(&mut self, into: &mut Vec<u8>, patient: bool) -> Result<Received, Failure> {
        let limit = self.limit.filter(|_| !patient);
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Received::End),
                Ok(count) => {
                    into.extend(buffer.get(..count).unwrap_or_default());
                    return Ok(Received::Some);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if wait(&self.stream, libc::POLLIN, limit, patient)?.reader_left {
                        return Ok(Received::NoReader);
                    }
                }
                Err(error) => return Err(Failure::Receive(error)),
            }
        }
    }
}

/// The other side has closed while it was being written to.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// Bytes.
    Some,
    /// The end of the connection.
    End,
    /// Nothing, and nobody reads standard output any more.
    NoReader,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Answer {
    pub head: Head,
    client: Client,
    framing: Framing,
    waiting: Vec<u8>,
}

impl Answer {
    /// Whether it is known how long the body is.
    pub fn has_length(&self) -> bool {
        matches!(self.framing, Framing::Length(_))
    }

    /// Appends the next bytes of the body to `output`; false where it is over. `patient` is for streams: there is no
    /// limit to the wait then, and standard output that nobody reads any more ends it.
    ///
    /// # Errors
    /// [`Failure`], for what goes wrong with the connection.
    pub fn next(&mut self, output: &mut Vec<u8>, patient: bool) -> Result<bool, Failure> {
        let before = output.len();
        loop {
            self.framing.take(&mut self.waiting, output)?;
            if output.len() > before {
                return Ok(true);
            }
            if self.framing.is_over() {
                return Ok(false);
            }
            match self.client.receive(&mut self.waiting, patient)? {
                Received::Some => {}
                Received::NoReader => return Ok(false),
                Received::End if self.framing == Framing::UntilClosed => return Ok(false),
                Received::End => return Err(Failure::BrokeOff),
            }
        }
    }
}

struct Ready {
    /// poll(2)'s.
    events: libc::c_short,
    /// Standard output is a pipe or a socket that nobody reads any more.
    reader_left: bool,
}

/// Waits until the stream is ready, or the reader of standard output leaves where that is `watched`.
fn wait(
    stream: &UnixStream,
    events: libc::c_short,
    limit: Option<Duration>,
    watched: bool,
) -> Result<Ready, Failure> {
    let until = limit.map(|limit| Instant::now() + limit);
    let poll_for = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    loop {
        // A descriptor below zero is passed over. No event is asked for: errors are told without.
        let stdout = if watched { libc::STDOUT_FILENO } else { -1 };
        let mut fds = [poll_for(stream.as_raw_fd(), events), poll_for(stdout, 0)];
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, so that a rest of less than a millisecond is waited for.
        let left = left.map_or(-1, |left| {
            i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
        });
        // SAFETY: `fds` is an array of that many pollfd, alive during the call.
        let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, left) };
        let [socket, stdout] = fds;
        match count {
            0 => {
                let seconds = limit.map_or(0, |limit| limit.as_secs());
                return Err(Failure::Slow(seconds));
            }
            1.. => {
                return Ok(Ready {
                    events: socket.revents,
                    reader_left: socket.revents == 0 && stdout.revents & libc::POLLERR != 0,
                });
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(Failure::Receive(error));
                }
            }
        }
    }
}
