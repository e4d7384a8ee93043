//! How much of everything a client gets.

use std::time::Duration;

/// Bounds of a server. The defaults suit a control socket; tests have shorter times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a request's line and headers, with the empty line at their end. Beyond: 431, or 414 for the line alone.
    pub head: usize,
    /// Most bytes of a request's content (`--http-api-max-payload-size`). Beyond: 413.
    pub body: usize,
    /// Most connections. One more takes the place of that which has been idle for longest.
    pub connections: usize,
    /// Bytes that wait for a client to take them, from which on its next request waits too.
    pub output: usize,
    /// Most bytes of a stream that wait for its client. Beyond, it is dropped.
    pub stream: usize,
    /// Requests of a connection that are answered before it is another one's turn.
    pub turn: usize,
    /// Time for a complete request, from its first byte. Beyond: 408.
    pub request: Duration,
    /// Time in which a client takes some of what waits for it. Beyond, it is dropped.
    pub take: Duration,
    /// Time for which a connection without a request is kept. For ever by default: who waits for an hour with the next
    /// request finds the connection as it was, unless others needed the place.
    pub idle: Option<Duration>,
    /// Time for which the rest of a refused request is read and thrown away, so that its client can read the answer: what
    /// is closed with bytes unread has the client lose it.
    pub linger: Duration,
    /// Time after which a connection is accepted again, where there was no descriptor for it.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 8 << 10,
            body: 51_200,
            connections: 128,
            output: 64 << 10,
            stream: 256 << 10,
            turn: 8,
            request: Duration::from_secs(30),
            take: Duration::from_secs(30),
            idle: None,
            linger: Duration::from_secs(5),
            retry: Duration::from_millis(100),
        }
    }
}
