//! One connection: a socket of the host's, and a flow of packets to and from the guest (5.10.6.5).
//!
//! It never waits. What the host's socket does not take is kept, up to what was announced to the guest; what the guest has
//! no room for stays in the host's socket. Nothing here knows of queues or of other connections.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::super::{Broken, Cursor, IoVec};
use super::credit::{Incoming, Outgoing};
use super::packet::{Header, op, shutdown};
use super::stream::{self, Outcome};

/// How long a guest may take to answer a request.
pub const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long the host's listener may have a full backlog: as long as a Linux guest waits for its connect(2).
pub const DIAL_TIME: Duration = Duration::from_secs(2);
/// How long until it is tried again.
pub const DIAL_AGAIN: Duration = Duration::from_millis(10);
/// How long a guest may keep a connection that its host has closed.
pub const CLOSING_TIME: Duration = Duration::from_secs(60);
/// Chains that are filled from one read at most.
pub const BURST: usize = 16;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest has asked for it, and the host's listener is busy.
    Dialing,
    /// The host has asked for it, and the guest has not answered.
    Requested,
    /// Data may flow.
    Open,
    /// The host's socket is gone, and the guest was told. It has to agree by a RST.
    Closing,
    /// Over; the guest has to hear of it by a RST.
    Dead,
    /// Over.
    Gone,
}

/// What a connection has to tell the guest apart from data. A bit each.
mod due {
    pub const REQUEST: u8 = 1;
    pub const RESPONSE: u8 = 2;
    pub const CREDIT_UPDATE: u8 = 4;
    pub const CREDIT_REQUEST: u8 = 8;
}

/// Why a connection is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides have had their say.
    Closed,
    /// It never began: nobody listens, or in time.
    Refused,
    /// It was cut off.
    Reset,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// The host's end. `None` while dialing, and when it is of no more use.
    stream: Option<UnixStream>,
    /// The host's port: what a client of the host's is told.
    port: u32,
    phase: Phase,
    end: Option<End>,
    outgoing: Outgoing,
    incoming: Incoming,
    /// What the host has not taken yet: never more than `incoming` counts.
    backlog: VecDeque<u8>,
    due: u8,
    /// Shutdown flags that the guest has sent, that it has to hear, and that it has heard.
    from_guest: u32,
    to_tell: u32,
    told: u32,
    /// The host's socket may have data.
    readable: bool,
    /// There is an end behind the data in the host's socket.
    ending: bool,
    /// Nobody takes data at the host's end any more.
    host_deaf: bool,
    /// The guest was asked for room, and has not had any since.
    asked: bool,
    /// Chains for the next read.
    appetite: usize,
    /// When it has to have got somewhere.
    pub deadline: Option<Instant>,
    /// Whether it is in the list of those that have something to send. For its owner.
    pub listed: bool,
    /// Whether `epoll` looks for room in the host's socket. For its owner.
    pub watched: bool,
    /// When it began, for one that is dialing.
    since: Instant,
}

impl Connection {
    fn new(port: u32, window: u32, phase: Phase, now: Instant) -> Self {
        Self {
            stream: None,
            port,
            phase,
            end: None,
            outgoing: Outgoing::default(),
            incoming: Incoming::new(window),
            backlog: VecDeque::new(),
            due: 0,
            from_guest: 0,
            to_tell: 0,
            told: 0,
            readable: false,
            ending: false,
            host_deaf: false,
            asked: false,
            appetite: 1,
            deadline: None,
            listed: false,
            watched: false,
            since: now,
        }
    }

    /// One that the host asks for, by `stream`. The guest may send `window` bytes ahead.
    pub fn from_host(stream: UnixStream, port: u32, window: u32, now: Instant) -> Self {
        Self {
            stream: Some(stream),
            due: due::REQUEST,
            deadline: now.checked_add(REQUEST_TIME),
            ..Self::new(port, window, Phase::Requested, now)
        }
    }

    /// One that the guest asks for by `request`. It has no host socket yet.
    pub fn from_guest(request: &Header, window: u32, now: Instant) -> Self {
        let mut this = Self::new(request.dst_port, window, Phase::Dialing, now);
        this.outgoing.told(request.buf_alloc, request.fwd_cnt);
        this
    }

    /// The host's socket of a connection that the guest has asked for.
    pub fn connected(&mut self, stream: UnixStream) {
        self.stream = Some(stream);
        self.phase = Phase::Open;
        self.due |= due::RESPONSE;
        self.readable = true;
        self.deadline = None;
    }

    /// The host's listener is busy. False if it has been for too long.
    #[must_use]
    pub fn busy(&mut self, now: Instant) -> bool {
        self.deadline = now.checked_add(DIAL_AGAIN);
        now.saturating_duration_since(self.since) < DIAL_TIME
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why it is dead, if it is; once.
    pub fn take_end(&mut self) -> Option<End> {
        self.end.take()
    }

    /// The host's socket.
    pub fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    /// Whether it waits for room in the host's socket.
    pub fn wants_to_write(&self) -> bool {
        !self.backlog.is_empty() && self.stream.is_some()
    }

    /// Bytes that are kept for the host.
    pub fn held(&self) -> usize {
        self.backlog.len()
    }

    /// What is left for the host when the connection is over: its socket, and bytes for it.
    pub fn leftovers(&mut self) -> Option<(UnixStream, VecDeque<u8>)> {
        if !matches!(self.phase, Phase::Dead | Phase::Gone) {
            return None;
        }
        let stream = self.stream.take()?;
        let backlog = std::mem::take(&mut self.backlog);
        (!backlog.is_empty()).then_some((stream, backlog))
    }

    /// It ends, and the guest has to hear of it.
    pub fn kill(&mut self, end: End) {
        if !matches!(self.phase, Phase::Dead | Phase::Gone) {
            self.phase = Phase::Dead;
            self.end = Some(end);
            self.deadline = None;
        }
    }

    /// Takes a packet of the guest's. What breaks the rules of a connection ends it.
    ///
    /// # Errors
    /// [`Broken`]: the payload is not in memory.
    pub fn take_packet(
        &mut self,
        header: &Header,
        payload: Cursor,
        pieces: &mut Vec<IoVec>,
    ) -> Result<(), Broken> {
        if header.op == op::RST {
            let end = match self.phase {
                Phase::Dialing | Phase::Requested => End::Refused,
                Phase::Closing => End::Closed,
                _ => End::Reset,
            };
            self.kill(end);
            self.phase = Phase::Gone;
            return Ok(());
        }
        if matches!(self.phase, Phase::Dead | Phase::Gone) {
            return Ok(());
        }
        self.outgoing.told(header.buf_alloc, header.fwd_cnt);
        if self.outgoing.room() > 0 {
            self.asked = false;
        }
        match (self.phase, header.op) {
            (Phase::Requested, op::RESPONSE) => self.answered(),
            (Phase::Open | Phase::Closing, op::RW) => {
                return self.take_data(header, payload, pieces);
            }
            (Phase::Open | Phase::Closing, op::SHUTDOWN) => self.guest_shuts_down(header.flags),
            (Phase::Open | Phase::Closing, op::CREDIT_UPDATE) => {}
            (Phase::Open | Phase::Closing, op::CREDIT_REQUEST) => self.due |= due::CREDIT_UPDATE,
            _ => self.kill(End::Reset),
        }
        Ok(())
    }

    /// The guest has accepted.
    fn answered(&mut self) {
        let line = format!("OK {}\n", self.port);
        let sent = self
            .stream
            .as_ref()
            .map(|stream| stream::send_bytes(stream, line.as_bytes()));
        self.phase = Phase::Open;
        self.deadline = None;
        self.readable = true;
        // Nothing was sent there before, so there is room; unless the client did not wait for it.
        if sent != Some(Outcome::Bytes(line.len())) {
            self.host_is_deaf();
        }
    }

    fn take_data(
        &mut self,
        header: &Header,
        mut payload: Cursor,
        pieces: &mut Vec<IoVec>,
    ) -> Result<(), Broken> {
        // A guest that has shut its sending down, or sends more than there is room for.
        if self.from_guest & shutdown::SEND != 0 || !self.incoming.receive(header.len) {
            self.kill(End::Reset);
            return Ok(());
        }
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.host_deaf) {
            while self.backlog.is_empty() && !payload.is_empty() {
                match stream::send(stream, &payload, pieces)? {
                    Outcome::Bytes(bytes) if bytes > 0 => {
                        payload.skip(bytes as u64);
                        self.incoming.forward(bytes as u32);
                    }
                    Outcome::Bytes(_) | Outcome::Later => break,
                    Outcome::Lost => {
                        self.host_is_deaf();
                        break;
                    }
                }
            }
        }
        if self.host_deaf || self.stream.is_none() {
            self.incoming.forward(payload.len() as u32);
        } else {
            // No more than there is credit for.
            let start = self.backlog.len();
            self.backlog.resize(start + payload.len() as usize, 0);
            let (first, second) = self.backlog.as_mut_slices();
            let split = start.min(first.len());
            payload.read(first.split_at_mut(split).1)?;
            payload.read(second.split_at_mut(start - split).1)?;
        }
        self.look_for_news();
        Ok(())
    }

    fn look_for_news(&mut self) {
        if self.incoming.news() {
            self.due |= due::CREDIT_UPDATE;
        }
    }

    fn guest_shuts_down(&mut self, flags: u32) {
        self.from_guest |= flags & shutdown::BOTH;
        if self.from_guest == shutdown::BOTH {
            // The guest is done with it. What is left for the host goes on without it.
            return self.kill(End::Closed);
        }
        if self.from_guest & shutdown::RECEIVE != 0 {
            self.readable = false;
            self.shut(Shutdown::Read);
            if self.host_deaf {
                self.to_tell = shutdown::BOTH;
            }
        }
        self.finish_sending();
    }

    /// Tells the host that there is no more, once it has got all.
    fn finish_sending(&mut self) {
        if self.from_guest & shutdown::SEND != 0 && self.backlog.is_empty() {
            self.shut(Shutdown::Write);
        }
    }

    fn shut(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            // It fails where the other end is closed already.
            let _ = stream.shutdown(how);
        }
    }

    /// The host does not take any more data.
    fn host_is_deaf(&mut self) {
        self.host_deaf = true;
        self.backlog = VecDeque::new();
        self.incoming.forward(u32::MAX);
        self.to_tell |= shutdown::RECEIVE;
        if self.from_guest & shutdown::RECEIVE != 0 {
            self.to_tell = shutdown::BOTH;
        }
    }

    /// What `epoll` says of the host's socket: it has data, or its end; there is room; it is closed.
    pub fn host_event(&mut self, readable: bool, ending: bool, writable: bool, closed: bool) {
        self.ending |= ending || closed;
        // What comes before the guest has accepted is looked at then: also what a client leaves behind that is gone.
        if self.phase != Phase::Open {
            return;
        }
        if self.from_guest & shutdown::RECEIVE == 0 && self.to_tell & shutdown::SEND == 0 {
            self.readable |= readable || ending || closed;
        }
        if closed && !self.host_deaf {
            self.host_is_deaf();
        }
        if writable {
            self.flush();
        }
    }

    /// Sends what was kept for the host.
    fn flush(&mut self) {
        if let Some(stream) = &self.stream {
            match drain(stream, &mut self.backlog) {
                Some(bytes) => self.incoming.forward(bytes as u32),
                None => self.host_is_deaf(),
            }
        }
        self.look_for_news();
        self.finish_sending();
    }

    /// Whether there is a packet for the guest.
    pub fn has_packet(&mut self) -> bool {
        self.control().is_some() || self.wants_data()
    }

    /// The next packet that is not data: its operation and flags. It is due until [`told`](Self::told) says otherwise.
    pub fn control(&mut self) -> Option<(u16, u32)> {
        match self.phase {
            Phase::Dead => return Some((op::RST, 0)),
            Phase::Gone | Phase::Dialing => return None,
            Phase::Requested | Phase::Open | Phase::Closing => {}
        }
        let news = self.to_tell & !self.told;
        let order = [
            (due::REQUEST, op::REQUEST),
            (due::RESPONSE, op::RESPONSE),
            (due::CREDIT_UPDATE, op::CREDIT_UPDATE),
            (due::CREDIT_REQUEST, op::CREDIT_REQUEST),
        ];
        let next = order.iter().find(|(bit, _)| self.due & bit != 0);
        match next {
            Some((_, op)) => Some((*op, 0)),
            None if news != 0 => Some((op::SHUTDOWN, self.to_tell)),
            None => None,
        }
    }

    /// The guest has been sent that packet.
    pub fn told(&mut self, op: u16, flags: u32, now: Instant) {
        match op {
            op::RST => self.phase = Phase::Gone,
            op::REQUEST => self.due &= !due::REQUEST,
            op::RESPONSE => self.due &= !due::RESPONSE,
            op::CREDIT_UPDATE => self.due &= !due::CREDIT_UPDATE,
            op::CREDIT_REQUEST => self.due &= !due::CREDIT_REQUEST,
            op::SHUTDOWN => {
                self.told |= flags;
                if self.told == shutdown::BOTH {
                    self.phase = Phase::Closing;
                    self.stream = None;
                    self.deadline = now.checked_add(CLOSING_TIME);
                }
            }
            _ => {}
        }
    }

    /// Completes the header of a packet for the guest. `len` bytes of data are with it.
    pub fn header(&mut self, base: &Header, op: u16, flags: u32, len: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.incoming.announce();
        self.outgoing.sent(len);
        if op == op::RW {
            // It says the same.
            self.due &= !due::CREDIT_UPDATE;
        }
        Header {
            op,
            flags,
            len,
            buf_alloc,
            fwd_cnt,
            ..*base
        }
    }

    /// Whether there may be data for the guest, and it has room.
    pub fn wants_data(&self) -> bool {
        self.phase == Phase::Open && self.readable && self.outgoing.room() > 0
    }

    /// Whether there may be data for the guest and it has no room; true once each time it comes to that. The guest is
    /// asked then.
    pub fn stalls(&mut self) -> bool {
        let stalls = self.phase == Phase::Open
            && self.readable
            && self.outgoing.room() == 0
            && !std::mem::replace(&mut self.asked, true);
        if stalls {
            self.due |= due::CREDIT_REQUEST;
        } else if self.outgoing.room() > 0 {
            self.asked = false;
        }
        stalls
    }

    /// How much the guest has room for, in bytes, and how many chains are worth a try.
    pub fn room(&self) -> (u32, usize) {
        (self.outgoing.room(), self.appetite)
    }

    /// Reads data of the host's into `rooms`; returns how much. There is none for now if that is 0.
    ///
    /// # Errors
    /// [`Broken`]: a room is not in memory.
    pub fn read(&mut self, rooms: &[Cursor], pieces: &mut Vec<IoVec>) -> Result<u32, Broken> {
        let Some(stream) = &self.stream else {
            self.readable = false;
            return Ok(0);
        };
        let (outcome, empty) = stream::receive(stream, rooms, pieces)?;
        // What came last was told together with the end.
        self.readable = !empty || self.ending;
        match outcome {
            Outcome::Bytes(0) => {
                self.readable = false;
                self.to_tell |= shutdown::SEND;
                Ok(0)
            }
            Outcome::Bytes(bytes) => {
                // What was filled will be again.
                self.appetite = if empty {
                    1
                } else {
                    (self.appetite * 4).min(BURST)
                };
                Ok(bytes as u32)
            }
            Outcome::Later => {
                self.readable = false;
                Ok(0)
            }
            Outcome::Lost => {
                self.kill(End::Reset);
                Ok(0)
            }
        }
    }
}

/// Sends what it can of `backlog`; returns how much. `None`: there is nobody to take it.
pub fn drain(stream: &UnixStream, backlog: &mut VecDeque<u8>) -> Option<usize> {
    let mut total = 0;
    while !backlog.is_empty() {
        match stream::send_bytes(stream, backlog.as_slices().0) {
            Outcome::Bytes(bytes) if bytes > 0 => {
                backlog.drain(..bytes);
                total += bytes;
            }
            Outcome::Bytes(_) | Outcome::Later => return Some(total),
            Outcome::Lost => return None,
        }
    }
    // Most connections never need it again.
    *backlog = VecDeque::new();
    Some(total)
}
