//! What the service promises, and the ways to answer.

use super::message::{Request, Response};

/// Names a request for as long as its answer is not complete. Never used twice in the life of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Place of the connection.
    pub(super) slot: u32,
    /// Number of the request, counted from 1.
    pub(super) serial: u64,
}

/// How a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With this.
    Now(Response),
    /// With what comes through [`Outbox::send`](super::Outbox::send). Later requests of the same connection wait for it.
    Later,
    /// 200 and a body of this content type that comes in pieces, through [`Outbox::chunk`](super::Outbox::chunk) and
    /// [`Outbox::end`](super::Outbox::end).
    Stream(&'static str),
}

/// Answers requests. Called in the event loop: what takes time is to be answered [`Later`](Answer::Later).
pub trait Service {
    /// Answers one request.
    fn call(&mut self, request: &Request<'_>, ticket: Ticket) -> Answer;

    /// The client of an answer that was to come [`Later`](Answer::Later), or of a [`Stream`](Answer::Stream), left before
    /// the answer was complete, or was dropped for not reading it. What comes under this ticket now is thrown away.
    fn gone(&mut self, _ticket: Ticket) {}
}
