//! The host's sockets that are not connections: clients that have not said what they want, and programs that have not taken
//! all that a closed connection has left for them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::super::connection::{self, Connection};
use super::super::listener::{Greeting, Said};
use super::super::packet::PORT_ANY;
use super::{FIRST_PORT, Key, MOST_CONNECTIONS, Muxer, Token, interest};

/// Clients at a time that have not said what they want.
const MOST_GREETINGS: usize = 256;
/// How long a client may take to say it.
const GREETING_TIME: Duration = Duration::from_secs(30);
/// Bytes that are kept, in all, for hosts' programs whose guest's end is closed.
const MOST_LEFT: usize = 64 << 20;
/// How long no clients are accepted when the process is out of descriptors.
pub(super) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Clients that are accepted in a turn.
const ACCEPTS_A_TURN: usize = 32;

/// A host's socket without a connection.
pub(super) enum Loose {
    /// A client that has not said what it wants.
    Greeting {
        stream: UnixStream,
        greeting: Greeting,
        deadline: Instant,
    },
    /// A program that has not taken all that the guest has sent.
    Left {
        stream: UnixStream,
        backlog: VecDeque<u8>,
    },
}

impl Muxer {
    /// Keeps what an ended connection has for the host, until the host takes it.
    pub(super) fn keep_leftovers(&mut self, connection: &mut Connection) {
        let Some((stream, backlog)) = connection.leftovers() else {
            return;
        };
        self.left += backlog.len();
        let number = self.number();
        let event = EpollEvent::new(
            EventSet::OUT | EventSet::EDGE_TRIGGERED,
            Token::Loose(number).pack(),
        );
        let fd = stream.as_raw_fd();
        if self.epoll.ctl(ControlOperation::Modify, fd, event).is_ok() {
            self.loose.insert(number, Loose::Left { stream, backlog });
        } else {
            self.left -= backlog.len();
            self.counts.drops += 1;
        }
        while self.left > MOST_LEFT {
            let mut all = self.loose.iter();
            let oldest = all
                .find_map(|(number, loose)| matches!(loose, Loose::Left { .. }).then_some(*number));
            let Some(oldest) = oldest else { break };
            self.drop_loose(oldest);
            self.counts.drops += 1;
            if self.limit.allow() {
                log::warn!("data of the guest's is lost: programs do not read their sockets");
            }
        }
    }

    /// A number for a socket without a connection. Not [`PORT_ANY`].
    fn number(&mut self) -> u32 {
        loop {
            let number = self.next_loose;
            self.next_loose = number.wrapping_add(1) % PORT_ANY;
            if !self.loose.contains_key(&number) {
                return number;
            }
        }
    }

    pub(super) fn drop_loose(&mut self, number: u32) {
        match self.loose.remove(&number) {
            Some(Loose::Left { backlog, .. }) => {
                self.left = self.left.saturating_sub(backlog.len())
            }
            Some(Loose::Greeting { .. }) => self.greetings = self.greetings.saturating_sub(1),
            None => {}
        }
    }

    pub(super) fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_A_TURN {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) => {
                    let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::ConnectionAborted];
                    if !kinds.contains(&error.kind()) {
                        self.stop_accepting(&error, now);
                    }
                    return;
                }
            };
            if self.greetings >= MOST_GREETINGS {
                self.counts.refused += 1;
                continue;
            }
            let number = self.number();
            let event = EpollEvent::new(interest(false), Token::Loose(number).pack());
            let fd = stream.as_raw_fd();
            if self.epoll.ctl(ControlOperation::Add, fd, event).is_err() {
                self.counts.refused += 1;
                continue;
            }
            let deadline = now + GREETING_TIME;
            self.greetings += 1;
            self.loose.insert(
                number,
                Loose::Greeting {
                    stream,
                    greeting: Greeting::default(),
                    deadline,
                },
            );
            self.check_at(Some(deadline));
            // Most have said it by now.
            self.loose_event(number, now);
        }
    }

    /// The process is out of descriptors: a listener that stays readable would keep the loop busy.
    fn stop_accepting(&mut self, error: &io::Error, now: Instant) {
        if self.limit.allow() {
            log::warn!("cannot accept a client of a vsock device: {error}");
        }
        let fd = self.listener.socket().as_raw_fd();
        let event = EpollEvent::default();
        if self.epoll.ctl(ControlOperation::Delete, fd, event).is_ok() {
            self.accept_again = now.checked_add(ACCEPT_AGAIN);
            self.check_at(self.accept_again);
        }
    }

    pub(super) fn loose_event(&mut self, number: u32, now: Instant) {
        match self.loose.get_mut(&number) {
            Some(Loose::Greeting {
                stream, greeting, ..
            }) => match greeting.read(stream) {
                Said::NotYet => {}
                Said::Nonsense => {
                    self.counts.refused += 1;
                    self.drop_loose(number);
                }
                Said::Connect(port) => {
                    self.greetings = self.greetings.saturating_sub(1);
                    if let Some(Loose::Greeting { stream, .. }) = self.loose.remove(&number) {
                        self.call_guest(stream, port, now);
                    }
                }
            },
            Some(Loose::Left { stream, backlog }) => {
                let result = connection::drain(stream, backlog);
                let done = backlog.is_empty();
                if let Some(bytes) = result {
                    self.left = self.left.saturating_sub(bytes);
                }
                if done || result.is_none() {
                    self.drop_loose(number);
                }
            }
            None => {}
        }
    }

    /// A client calls the guest.
    fn call_guest(&mut self, stream: UnixStream, port: u32, now: Instant) {
        // Without a driver there is nobody to talk to. A client that comes too early hears it at once, but not before it has
        // said what it wants: to write to a closed socket is an error that programs do not get over as easily.
        let room = self.connections.len() < MOST_CONNECTIONS;
        if !self.active || !room || port == PORT_ANY {
            self.counts.refused += 1;
            return;
        }
        // There are more ports than connections.
        let key = loop {
            let key = Key {
                host: self.next_port,
                guest: port,
            };
            self.next_port = FIRST_PORT | (self.next_port.wrapping_add(1) & (FIRST_PORT - 1));
            if !self.connections.contains_key(&key) {
                break key;
            }
        };
        let event = EpollEvent::new(interest(false), Token::Connection(key).pack());
        let fd = stream.as_raw_fd();
        if self.epoll.ctl(ControlOperation::Modify, fd, event).is_err() {
            self.counts.refused += 1;
            return;
        }
        self.counts.by_host += 1;
        let connection = Connection::from_host(stream, key.host, self.window(), now);
        self.connections.insert(key, connection);
        self.settle(key);
    }
}
