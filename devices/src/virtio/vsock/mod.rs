//! Socket device (5.10): stream sockets between the guest and programs of the host, which use Unix sockets.
//!
//! | file         | what lives there                                                                     |
//! |--------------|--------------------------------------------------------------------------------------|
//! | [`packet`]     | the header of a packet, and the numbers in it                                        |
//! | [`credit`]     | who may send how much (5.10.6.3)                                                      |
//! | [`connection`] | one connection: a host's socket, and a flow of packets                               |
//! | [`listener`]   | the socket at `uds_path`, and what its clients say first                              |
//! | [`muxer`]      | all connections, and who has something for the guest next                            |
//! | [`stream`]     | system calls on the host's sockets                                                   |
//! | `device`     | [`Vsock`]: the queues                                                                |
//!
//! The host's side is Firecracker's. A program that connects to `uds_path` and sends `CONNECT <port>\n` is connected to
//! that port of the guest's, and gets `OK <its own port>\n` first; its socket is closed where the guest refuses, or has no
//! driver (yet). A guest that connects to CID 2 is connected to the Unix socket `uds_path_<port>`. Closing half of a
//! connection, and cutting it off, go through both ways.
//!
//! Data goes straight between guest memory and sockets. Only what a program does not take at once is kept: at most 256 KiB
//! for a connection, 64 KiB where there are many, which is what the guest is told that it may send ahead. It is kept until the
//! program takes it, even when the guest has closed its end.

pub mod connection;
pub mod credit;
mod device;
pub mod listener;
pub mod muxer;
pub mod packet;
pub mod stream;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockState};
pub use listener::ListenError;
pub use stream::MOST_PATH;
