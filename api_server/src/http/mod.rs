//! HTTP/1.1 on a Unix socket, inside an event loop. Knows no routes, no JSON documents and no VMs.
//!
//! A [`Service`] answers requests: at once, later, or with a stream. What is not answered at once goes through the
//! [`Outbox`], from any thread, under the [`Ticket`] that came with the request. A [`Server`] is added to an `event-manager`
//! loop, and everything happens there: no threads, no runtime.
//!
//! | module         | what lives there                                                         |
//! |----------------|----------------------------------------------------------------------------|
//! | `message`      | a request and a response, as the service sees them                          |
//! | `service`      | what the service promises, and the ways to answer                           |
//! | `outbox`       | answers that come later, and streams                                        |
//! | `limits`       | how much of everything a client gets                                        |
//! | `server`       | the socket, its clients, their turns and deadlines                          |
//! | `socket`       | the socket in the file system                                               |
//! | `connection`   | one client's conversation: bytes in, bytes out, without a socket            |
//! | `head`         | the head of a request: where it ends, what it says of the content            |
//! | `target`       | its path and its query                                                      |
//! | `content`      | content while it comes                                                      |
//! | `chunked`      | content in chunks                                                           |
//! | `encode`       | responses to bytes                                                          |
//!
//! Who sends nothing, half a request or a hundred megabytes, or takes no answer, holds nobody up and costs a bounded amount:
//! [`Limits`] has the amounts. What the server itself refuses, it answers as JSON with a `fault_message`, and closes.
//!
//! Sources: RFC 9110 (semantics) and RFC 9112 (HTTP/1.1), by section in the code.

mod chunked;
mod connection;
mod content;
mod encode;
mod head;
mod limits;
mod message;
mod outbox;
mod server;
mod service;
mod socket;
mod target;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Turn};
pub use limits::Limits;
pub use message::{Request, Response};
pub use outbox::{Letter, Outbox};
pub use server::Server;
pub use service::{Answer, Service, Ticket};
pub use socket::BindError;
