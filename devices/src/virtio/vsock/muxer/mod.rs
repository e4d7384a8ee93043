//! All connections of a device, and the host's sockets that are not connections (yet, or any more).
//!
//! Sockets of connections are looked at edge by edge: one that has data is listed, and asked until it has no more. While the
//! guest takes nothing, nobody looks at them, so nothing spins. Those who have something for the guest take turns.
//!
//! | file    | what lives there                                                                   |
//! |---------|------------------------------------------------------------------------------------|
//! | `guest` | packets for the guest: whose turn it is                                             |
//! | `host`  | clients that have not said what they want, and what closed connections have left     |

mod guest;
mod host;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::{Broken, Cursor, IoVec};
use super::connection::{Connection, End, Phase};
use super::listener::Listener;
use super::packet::{HOST_CID, Header, PORT_ANY, TYPE_STREAM, op};
use crate::limit::LogLimit;
pub use guest::Next;
use host::{ACCEPT_AGAIN, Loose};

/// Connections at a time. Firecracker's limit, too.
pub const MOST_CONNECTIONS: usize = 1023;
/// Bytes that the guest may send ahead in a connection, while there are [`FEW`] of them, and beyond that.
const WINDOW: u32 = 256 << 10;
const SMALL_WINDOW: u32 = 64 << 10;
const FEW: usize = 64;
/// Answers to packets of no connection that wait for the guest.
const MOST_STRAYS: usize = 1024;
/// Where the ports of the host's clients begin. Firecracker's choice, too.
const FIRST_PORT: u32 = 1 << 30;
/// Events that are looked at in a turn.
const EVENTS_A_TURN: usize = 64;

/// A connection's ports: the host's and the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The host's.
    pub host: u32,
    /// The guest's. Never [`PORT_ANY`].
    pub guest: u32,
}

/// What an event of the host's is about, as `epoll` keeps it.
#[derive(Clone, Copy)]
enum Token {
    Listener,
    Connection(Key),
    Loose(u32),
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Self::Listener => u64::MAX,
            Self::Connection(key) => u64::from(key.host) << 32 | u64::from(key.guest),
            Self::Loose(number) => u64::from(number) << 32 | u64::from(PORT_ANY),
        }
    }

    fn unpack(data: u64) -> Self {
        let (host, guest) = ((data >> 32) as u32, data as u32);
        match (host, guest) {
            (PORT_ANY, PORT_ANY) => Self::Listener,
            (_, PORT_ANY) => Self::Loose(host),
            _ => Self::Connection(Key { host, guest }),
        }
    }
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Connections that were begun by the host, and by the guest.
    pub by_host: u64,
    /// See there.
    pub by_guest: u64,
    /// Of those or before, refused by either side.
    pub refused: u64,
    /// Cut off.
    pub reset: u64,
    /// Packets to the guest.
    pub packets_to_guest: u64,
    /// Packets from the guest.
    pub packets_from_guest: u64,
    /// Bytes of data to the guest.
    pub bytes_to_guest: u64,
    /// Bytes of data from the guest.
    pub bytes_from_guest: u64,
    /// How often there was data for a guest that had no room.
    pub credit_stalls: u64,
    /// Packets that were not answered, and data for programs that were too slow for too long.
    pub drops: u64,
}

/// All connections of a device.
pub struct Muxer {
    guest_cid: u64,
    listener: Listener,
    epoll: Epoll,
    /// Whether there is a driver.
    active: bool,
    connections: HashMap<Key, Connection>,
    /// Those that may have something for the guest, in turn.
    ready: VecDeque<Key>,
    /// Answers to packets of no connection.
    strays: VecDeque<Header>,
    loose: BTreeMap<u32, Loose>,
    next_loose: u32,
    greetings: usize,
    /// Bytes in all that is left.
    left: usize,
    next_port: u32,
    /// No deadline is before this.
    next_check: Option<Instant>,
    accept_again: Option<Instant>,
    pieces: Vec<IoVec>,
    counts: Counts,
    limit: LogLimit,
}

/// How connections are watched: by edges.
fn interest(writable: bool) -> EventSet {
    let all = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if writable { all | EventSet::OUT } else { all }
}

impl Muxer {
    /// For a guest with that CID.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(guest_cid: u32, listener: Listener) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let this = Self {
            guest_cid: guest_cid.into(),
            listener,
            epoll,
            active: false,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            strays: VecDeque::new(),
            loose: BTreeMap::new(),
            next_loose: 0,
            greetings: 0,
            left: 0,
            next_port: FIRST_PORT,
            next_check: None,
            accept_again: None,
            pieces: Vec::new(),
            counts: Counts::default(),
            limit: LogLimit::default(),
        };
        this.listen()?;
        Ok(this)
    }

    fn listen(&self) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, Token::Listener.pack());
        let socket = self.listener.socket().as_raw_fd();
        self.epoll.ctl(ControlOperation::Add, socket, event)
    }

    /// Readable while the host has something.
    pub fn host_event(&self) -> BorrowedFd<'_> {
        // SAFETY: `epoll` keeps it open for as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }

    /// There is a driver from now on.
    pub fn start(&mut self) {
        self.active = true;
    }

    /// There is no driver any more: all connections end, without a word to it. What is left for the host stays,
    /// and so do clients that have not said what they want.
    pub fn stop(&mut self) {
        self.active = false;
        self.counts.reset += self.connections.len() as u64;
        for (_, mut connection) in std::mem::take(&mut self.connections) {
            connection.kill(End::Reset);
            self.keep_leftovers(&mut connection);
        }
        self.ready.clear();
        self.strays.clear();
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Connections that there are.
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Bytes that are kept for hosts' programs.
    pub fn held(&self) -> usize {
        self.left
            + self
                .connections
                .values()
                .map(Connection::held)
                .sum::<usize>()
    }

    /// The port that the next client gets, if it is free.
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Begins at that port.
    pub fn set_next_port(&mut self, port: u32) {
        self.next_port = port;
    }

    /// How long until [`check`](Self::check) has something to do.
    pub fn next_check(&self, now: Instant) -> Option<Duration> {
        self.next_check.map(|at| at.saturating_duration_since(now))
    }

    fn check_at(&mut self, at: Option<Instant>) {
        if let Some(at) = at {
            self.next_check = Some(self.next_check.map_or(at, |before| before.min(at)));
        }
    }

    /// Takes a packet of the guest's, whose header has been checked against its chain.
    ///
    /// # Errors
    /// [`Broken`]: the payload is not in memory.
    pub fn take_packet(
        &mut self,
        header: &Header,
        payload: Cursor,
        now: Instant,
    ) -> Result<(), Broken> {
        self.counts.packets_from_guest += 1;
        if header.src_cid != self.guest_cid {
            self.counts.drops += 1;
            return Ok(());
        }
        let key = Key {
            host: header.dst_port,
            guest: header.src_port,
        };
        let known = header.dst_cid == HOST_CID
            && header.kind == TYPE_STREAM
            && key.host != PORT_ANY
            && key.guest != PORT_ANY;
        if !known {
            self.answer_stray(header);
            return Ok(());
        }
        if let Some(connection) = self.connections.get_mut(&key) {
            if header.op == op::RW {
                self.counts.bytes_from_guest += u64::from(header.len);
            }
            connection.take_packet(header, payload, &mut self.pieces)?;
            self.settle(key);
        } else if header.op == op::REQUEST {
            self.take_request(key, header, now);
        } else {
            self.answer_stray(header);
        }
        Ok(())
    }

    /// There is no such connection. A RST is not answered, or there would be no end.
    fn answer_stray(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        if self.strays.len() < MOST_STRAYS {
            self.strays.push_back(header.reply(op::RST));
        } else {
            self.counts.drops += 1;
        }
    }

    fn window(&self) -> u32 {
        if self.connections.len() < FEW {
            WINDOW
        } else {
            SMALL_WINDOW
        }
    }

    /// The guest calls a program of the host's.
    fn take_request(&mut self, key: Key, header: &Header, now: Instant) {
        if self.connections.len() >= MOST_CONNECTIONS {
            self.counts.refused += 1;
            return self.answer_stray(header);
        }
        self.counts.by_guest += 1;
        let connection = Connection::from_guest(header, self.window(), now);
        self.connections.insert(key, connection);
        self.dial(key, now);
        self.settle(key);
    }

    fn dial(&mut self, key: Key, now: Instant) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match self.listener.dial(key.host) {
            Ok(stream) => {
                let token = Token::Connection(key).pack();
                let event = EpollEvent::new(interest(false), token);
                let added = self
                    .epoll
                    .ctl(ControlOperation::Add, stream.as_raw_fd(), event);
                match added {
                    Ok(()) => connection.connected(stream),
                    Err(_) => connection.kill(End::Refused),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !connection.busy(now) {
                    connection.kill(End::Refused);
                }
            }
            Err(error) => {
                connection.kill(End::Refused);
                let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
                if !nobody.contains(&error.kind()) && self.limit.allow() {
                    log::warn!("cannot connect the guest to port {}: {error}", key.host);
                }
            }
        }
    }

    /// Brings everything about a connection in line with its state. Due after anything was done with it.
    fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match connection.take_end() {
            Some(End::Refused) => self.counts.refused += 1,
            Some(End::Reset) => self.counts.reset += 1,
            Some(End::Closed) | None => {}
        }
        if connection.stalls() {
            self.counts.credit_stalls += 1;
        }
        let deadline = connection.deadline;
        match connection.phase() {
            Phase::Dead | Phase::Gone => {
                let gone = connection.phase() == Phase::Gone;
                if connection.stream().is_some() {
                    let mut ended = self.connections.remove(&key);
                    if let Some(ended) = &mut ended {
                        self.keep_leftovers(ended);
                    }
                    if let Some(ended) = ended {
                        self.connections.insert(key, ended);
                    }
                }
                if gone {
                    self.connections.remove(&key);
                }
            }
            _ => {
                let wants = connection.wants_to_write();
                if wants != connection.watched
                    && let Some(stream) = connection.stream()
                {
                    let event = EpollEvent::new(interest(wants), Token::Connection(key).pack());
                    let fd = stream.as_raw_fd();
                    match self.epoll.ctl(ControlOperation::Modify, fd, event) {
                        Ok(()) => connection.watched = wants,
                        // It would never be written again.
                        Err(_) => connection.kill(End::Reset),
                    }
                }
            }
        }
        self.check_at(deadline);
        if let Some(connection) = self.connections.get_mut(&key)
            && connection.has_packet()
            && !connection.listed
        {
            connection.listed = true;
            self.ready.push_back(key);
        }
    }

    /// Looks at what the host has: a bounded piece of work.
    pub fn host_events(&mut self, now: Instant) {
        let mut events = [EpollEvent::default(); EVENTS_A_TURN];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted && self.limit.allow() {
                    log::error!("cannot wait for the sockets of a vsock device: {error}");
                }
                return;
            }
        };
        for event in events.iter().take(count) {
            let set = event.event_set();
            let closed = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
            match Token::unpack(event.data()) {
                Token::Listener => self.accept(now),
                Token::Loose(number) => self.loose_event(number, now),
                Token::Connection(key) => {
                    if let Some(connection) = self.connections.get_mut(&key) {
                        let [readable, ending, writable] =
                            [EventSet::IN, EventSet::READ_HANG_UP, EventSet::OUT]
                                .map(|kind| set.contains(kind));
                        connection.host_event(readable, ending, writable, closed);
                        self.settle(key);
                    }
                }
            }
        }
    }

    /// Does what is due by now.
    pub fn check(&mut self, now: Instant) {
        if self.next_check.is_none_or(|at| now < at) {
            return;
        }
        self.next_check = None;
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = match self.listen() {
                Ok(()) => None,
                Err(_) => now.checked_add(ACCEPT_AGAIN),
            };
        }
        self.check_at(self.accept_again);
        let late = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let all = self.connections.iter();
        let due: Vec<Key> = all
            .filter(|(_, connection)| late(connection.deadline))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            if let Some(connection) = self.connections.get_mut(&key) {
                match connection.phase() {
                    Phase::Dialing => self.dial(key, now),
                    Phase::Requested => connection.kill(End::Refused),
                    _ => connection.kill(End::Closed),
                }
            }
            self.settle(key);
        }
        let deadline = |loose: &Loose| match loose {
            Loose::Greeting { deadline, .. } => Some(*deadline),
            Loose::Left { .. } => None,
        };
        let all = self.loose.iter();
        let due: Vec<u32> = all
            .filter(|(_, loose)| late(deadline(loose)))
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            self.counts.refused += 1;
            self.drop_loose(number);
        }
        let connections = self.connections.values().filter_map(|c| c.deadline);
        let next = connections.chain(self.loose.values().filter_map(deadline));
        let next = next.min();
        self.check_at(next);
    }
}
