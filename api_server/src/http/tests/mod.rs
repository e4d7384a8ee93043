//! A small service, and what the tests of conversations and of the server have in common.

mod conversation;
mod deadlines;
mod hostile;
mod server;
mod socket;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use tempfile::TempDir;

use super::{Answer, Limits, Outbox, Request, Response, Server, Service, Ticket};

/// Longer than anything here takes; a test that waits for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the service was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Note {
    Called(Ticket, String),
    Gone(Ticket),
}

/// Answers with what it was asked; `/later` later, `/stream` with a stream, `/big` with as many bytes as the query says.
struct Echo(Sender<Note>);

impl Service for Echo {
    fn call(&mut self, request: &Request<'_>, ticket: Ticket) -> Answer {
        let _ = self.0.send(Note::Called(ticket, request.path.to_owned()));
        match request.path {
            "/later" => Answer::Later,
            "/stream" => Answer::Stream("application/x-ndjson"),
            "/big" => {
                let size = request.query.unwrap().parse().unwrap();
                Answer::Now(Response::json(200, vec![b'x'; size]))
            }
            "/nothing" => Answer::Now(Response::empty(204)),
            path => Answer::Now(Response::json(
                200,
                format!(
                    "{} {path} {:?} {:?} {:?}",
                    request.method,
                    request.query,
                    request.header("X-Test"),
                    String::from_utf8_lossy(request.body)
                ),
            )),
        }
    }

    fn gone(&mut self, ticket: Ticket) {
        let _ = self.0.send(Note::Gone(ticket));
    }
}

/// What [`Echo`] answers to this.
fn echoed(method: &str, path: &str, body: &str) -> String {
    format!("{method} {path} None None {body:?}")
}

/// A server in a loop of its own.
struct Running {
    path: PathBuf,
    outbox: Outbox,
    notes: Receiver<Note>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Running {
    fn new(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let outbox = Outbox::new().unwrap();
        let (sender, notes) = channel();
        let server = Server::bind(&path, limits, Echo(sender), outbox.clone()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (ready, is_ready) = channel();
        let thread = std::thread::spawn(move || {
            let mut events = EventManager::new().unwrap();
            let id = events.add_subscriber(server);
            ready.send(()).unwrap();
            while !stopped.load(Ordering::Acquire) {
                events.run().unwrap();
            }
            drop(events.remove_subscriber(id));
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        Self {
            path,
            outbox,
            notes,
            stop,
            thread: Some(thread),
            _directory: directory,
        }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    /// The next request that the service was given for this path.
    fn called(&self, path: &str) -> Ticket {
        loop {
            match self.notes.recv_timeout(PATIENCE).unwrap() {
                Note::Called(ticket, called) if called == path => return ticket,
                _ => {}
            }
        }
    }

    /// Waits until the service is told that this client is gone.
    fn gone(&self, ticket: Ticket) {
        while self.notes.recv_timeout(PATIENCE).unwrap() != Note::Gone(ticket) {}
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.outbox.wake();
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap();
            assert!(!self.path.exists());
        }
    }
}

/// A response as a client sees it.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

/// A client of few words.
struct Client(UnixStream);

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    fn get(&mut self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        self.reply()
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    fn head(&mut self) -> String {
        let mut head = self.line();
        while !head.ends_with("\r\n\r\n") {
            head += &self.line();
        }
        head
    }

    fn reply(&mut self) -> Reply {
        let head = self.head();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        Reply {
            status: head[9..12].parse().unwrap(),
            head,
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// Everything until the server closes.
    fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        String::from_utf8(rest).unwrap()
    }
}
