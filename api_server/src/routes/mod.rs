//! The control socket's requests: paths and JSON bodies to [`vmm::request`], and back.
//!
//! | file         | what lives there                                                         |
//! |--------------|-----------------------------------------------------------------------------|
//! | `table`      | [`ROUTES`]: every method and path, with what reads its body                     |
//! | `configure`  | requests that put a VM together                                                 |
//! | `operate`    | requests to one that runs, and those that look at it                            |
//! | `missing`    | what Firecracker has and Tandem does not                                        |
//! | `answer`     | the VM's answers as documents                                                   |
//! | `prometheus` | counters in Prometheus' text format                                             |
//!
//! A request is read completely before the VM hears of it. What is wrong with it, and what the VM refuses, is 400 with
//! `{"fault_message": "..."}`: Firecracker's clients know no other.

mod answer;
mod configure;
mod missing;
mod operate;
mod prometheus;
mod table;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm::control::{Vmm, without_controls};
use vmm::events::Event;
use vmm::request::Request;

use crate::config::DocumentError;
use crate::http::{self, Answer, Outbox, Service, Ticket};
use crate::json::{self, JsonError};

pub use table::{ROUTES, Route, find};

/// The version of Firecracker whose interface this is, as its clients ask for it.
pub const FIRECRACKER_VERSION: &str = "1.16.0";

/// Longest text of an error in bytes: a body's own words may be part of it.
const MOST_FAULT: usize = 1000;

/// What a request asks for, once it is read.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// Something of the VM.
    Vm(Request),
    /// Counters as Prometheus reads them.
    Prometheus,
    /// The version of the interface.
    Version,
    /// All that happens from now on.
    Events,
}

impl From<Request> for Call {
    fn from(request: Request) -> Self {
        Self::Vm(request)
    }
}

/// What is wrong with a request, in one line.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl From<JsonError> for Fault {
    fn from(error: JsonError) -> Self {
        Self(error.to_string())
    }
}

impl From<DocumentError> for Fault {
    fn from(error: DocumentError) -> Self {
        Self(error.to_string())
    }
}

impl Fault {
    /// As an answer.
    fn response(&self) -> http::Response {
        fault(400, &self.0)
    }
}

/// An error's answer: one line without control characters, of bounded length.
fn fault(status: u16, text: &str) -> http::Response {
    let mut text = without_controls(text);
    if text.len() > MOST_FAULT {
        let end = (0..=MOST_FAULT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(" ...");
    }
    http::Response::fault(status, &text)
}

/// What a route's reader gets of a request.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The name in the path, for a route that has one.
    pub id: &'a str,
    /// The body.
    pub body: &'a [u8],
}

impl Input<'_> {
    /// The body as an object.
    ///
    /// # Errors
    /// [`Fault`], which names the field.
    pub fn object<T: serde::de::DeserializeOwned>(&self) -> Result<T, Fault> {
        Ok(json::parse(self.body)?)
    }
}

/// The service of a control socket.
pub struct Api {
    vmm: Arc<Mutex<Vmm>>,
    outbox: Outbox,
    /// Streams of events, and whether somebody still reads them.
    streams: HashMap<Ticket, Arc<AtomicBool>>,
}

impl Api {
    /// Answers for `vmm`; what takes time goes through `outbox`.
    pub fn new(vmm: Arc<Mutex<Vmm>>, outbox: Outbox) -> Self {
        Self {
            vmm,
            outbox,
            streams: HashMap::new(),
        }
    }

    fn vmm(&self) -> MutexGuard<'_, Vmm> {
        self.vmm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(
        &self,
        request: Request,
        ticket: Ticket,
        make: fn(answer::Told) -> http::Response,
    ) -> Answer {
        let outbox = self.outbox.clone();
        let reply = Box::new(move |told| outbox.send(ticket, make(told)));
        match self.vmm().handle(request, reply) {
            Some(told) => Answer::Now(make(told)),
            None => Answer::Later,
        }
    }

    /// Has all that happens to the VM written to the stream, a line of JSON each.
    fn stream(&mut self, ticket: Ticket) -> Answer {
        let outbox = self.outbox.clone();
        let wanted = Arc::new(AtomicBool::new(true));
        let still_wanted = wanted.clone();
        let listens = self.vmm().listen(Box::new(move |event| {
            let wanted = still_wanted.load(Ordering::Relaxed);
            if wanted {
                tell(&outbox, ticket, event);
            }
            wanted
        }));
        if !listens {
            return Answer::Now(fault(400, "too many clients listen to events; close some"));
        }
        self.streams.insert(ticket, wanted);
        Answer::Stream("application/x-ndjson")
    }
}

/// An event as a line of JSON. After the last one the stream is over.
fn tell(outbox: &Outbox, ticket: Ticket, event: &Event) {
    match serde_json::to_vec(event) {
        Ok(mut line) => {
            line.push(b'\n');
            outbox.chunk(ticket, line);
        }
        Err(error) => log::error!("cannot write an event: {error}"),
    }
    if matches!(event, Event::End { .. }) {
        outbox.end(ticket);
    }
}

impl Service for Api {
    fn call(&mut self, request: &http::Request<'_>, ticket: Ticket) -> Answer {
        let answer = match table::find(request) {
            Ok(Call::Vm(request)) => self.ask(request, ticket, answer::document),
            Ok(Call::Prometheus) => self.ask(Request::Counters, ticket, prometheus::document),
            Ok(Call::Version) => Answer::Now(answer::version()),
            Ok(Call::Events) => self.stream(ticket),
            Err(fault) => Answer::Now(fault.response()),
        };
        let (method, path) = (request.method, request.path);
        match &answer {
            Answer::Now(response) if response.status >= 400 => log::warn!(
                "{method} {path}: {}",
                String::from_utf8_lossy(&response.body)
            ),
            Answer::Now(response) => log::debug!("{method} {path}: {}", response.status),
            Answer::Later | Answer::Stream(_) => log::debug!("{method} {path}"),
        }
        answer
    }

    fn gone(&mut self, ticket: Ticket) {
        // The listener goes with the next event.
        if let Some(wanted) = self.streams.remove(&ticket) {
            wanted.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
