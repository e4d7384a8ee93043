//! HTTP/1.1 on a Unix socket, inside an event loop. Knows no routes, no JSON documents and no VMs.
//!
//! A [`Service`] answers requests: at once, later, or with a stream. What is not answered at once goes through the
//! [`Outbox`], from any thread, under the [`Ticket`] that came with the request.
//!
//! | module      | what lives there                                             |
//! |-------------|----------------------------------------------------------------|
//! | [`message`] | a request and a response, as the service sees them              |
//! | [`service`] | what the service promises, and the ways to answer               |
//! | [`outbox`]  | answers that come later, and streams                            |
//!
//! Sources: RFC 9110 (semantics) and RFC 9112 (HTTP/1.1), by section in the code.

mod message;
mod outbox;
mod service;

pub use message::{Request, Response};
pub use outbox::Outbox;
pub use service::{Answer, Service, Ticket};
