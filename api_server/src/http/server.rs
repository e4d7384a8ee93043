//! The server: a socket, its clients, and one turn for each that is ready.
//!
//! Epoll reports level by level, so a turn may leave work undone: it reads once, answers a few requests, writes once. A
//! request on a kept connection costs epoll_wait, recv and send. There is one timer for all deadlines; it is armed when one
//! comes before what it is armed for, and looks at all connections when it rings.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{Connection, Late, Turn};
use super::encode;
use super::limits::Limits;
use super::message::Response;
use super::outbox::Outbox;
use super::service::Service;
use super::socket::{self, BindError, Socket};

/// What an event is about: one of these, or the place of a connection.
const LISTENER: u32 = u32::MAX;
const OUTBOX: u32 = u32::MAX - 1;
const TIMER: u32 = u32::MAX - 2;

/// Bytes that are read at once.
const READ: usize = 16 << 10;
/// Connections that are accepted before it is the others' turn.
const ACCEPTS: usize = 16;
/// Shortest time that the timer is set to. Zero would disarm it.
const SHORTEST: Duration = Duration::from_millis(1);

/// A server on a Unix socket. Add it to an event loop; its service is called there.
pub struct Server<S> {
    socket: Socket,
    service: S,
    outbox: Outbox,
    limits: Limits,
    timer: TimerFd,
    /// When the timer rings.
    armed: Option<Instant>,
    places: Vec<Option<Client>>,
    free: Vec<u32>,
    /// Who has more to do than fits in a turn.
    again: VecDeque<u32>,
    serial: u64,
    buffer: Vec<u8>,
    /// When the listener is looked at again, if it is not looked at now.
    paused: Option<Instant>,
    /// Given up for a client when there are no descriptors left.
    reserve: Option<OwnedFd>,
}

struct Client {
    stream: UnixStream,
    connection: Connection,
    /// What epoll looks for.
    interest: EventSet,
    /// Is in [`Server::again`].
    queued: bool,
    /// Our side is shut.
    shut: bool,
}

impl<S: Service> Server<S> {
    /// Makes a socket of mode 0600 at `path`, in place of one on which nobody answers, and listens. Answers that come later
    /// come through `outbox`. Dropping the server removes the socket.
    ///
    /// # Errors
    /// [`BindError`]: something else is at the path, or the host refuses.
    pub fn bind(
        path: &Path,
        limits: Limits,
        service: S,
        outbox: Outbox,
    ) -> Result<Self, BindError> {
        let socket = Socket::bind(path)?;
        let timer = TimerFd::new().map_err(|error| {
            BindError::Resources(path.to_owned(), io::Error::from_raw_os_error(error.errno()))
        })?;
        Ok(Self {
            reserve: socket.listener().try_clone().ok().map(OwnedFd::from),
            socket,
            service,
            outbox,
            limits,
            timer,
            armed: None,
            places: Vec::new(),
            free: Vec::new(),
            again: VecDeque::new(),
            serial: 0,
            buffer: Vec::new(),
            paused: None,
        })
    }

    /// The service.
    pub fn service(&mut self) -> &mut S {
        &mut self.service
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Accepts who is waiting, a few at a time.
    fn accept(&mut self, ops: &mut EventOps) {
        let mut accepted = false;
        for _ in 0..ACCEPTS {
            match self.socket.listener().accept() {
                Ok((stream, _)) => {
                    self.admit(stream, ops);
                    accepted = true;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return,
                    // This client has left again.
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    // The kernel takes a descriptor before it looks whether somebody waits. If so, there is another event.
                    Some(libc::EMFILE | libc::ENFILE) if accepted => return,
                    // Evicting refills the reserve, which the next attempt then takes.
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                        if self.reserve.take().is_some() || self.evict(ops) => {}
                    _ => {
                        log::warn!("api: cannot accept a connection for now: {error}");
                        self.pause(ops);
                        return;
                    }
                },
            }
        }
    }

    /// Looks away from the listener for a while, rather than be told again and again.
    fn pause(&mut self, ops: &mut EventOps) {
        let event = Events::with_data(self.socket.listener(), LISTENER, EventSet::empty());
        if ops.modify(event).is_ok() {
            let until = Instant::now() + self.limits.retry;
            self.paused = Some(until);
            self.arm(until);
        }
    }

    fn unpause(&mut self, ops: &mut EventOps) {
        if self.paused.take().is_some() {
            let event = Events::with_data(self.socket.listener(), LISTENER, EventSet::IN);
            if let Err(error) = ops.modify(event) {
                log::error!("api: cannot wait for connections any more: {error}");
            }
        }
    }

    /// Gives a new client a place, somebody else's if need be.
    fn admit(&mut self, stream: UnixStream, ops: &mut EventOps) {
        if self.connections() >= self.limits.connections && !self.evict(ops) {
            let response = Response::fault(503, "too many connections wait for answers");
            let mut bytes = Vec::new();
            encode::response(&mut bytes, &response, false, false);
            let _ = socket::send(&stream, &bytes);
            return;
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(None);
                (self.places.len() - 1) as u32
            }
        };
        let interest = EventSet::IN;
        if let Err(error) = ops.add(Events::with_data(&stream, place, interest)) {
            log::warn!("api: cannot wait for a client: {error}");
            self.free.push(place);
            return;
        }
        let client = Client {
            stream,
            connection: Connection::new(Instant::now()),
            interest,
            queued: false,
            shut: false,
        };
        self.keep(place, client, ops);
    }

    /// Closes the connection with which least is lost, if there is one for which the service does not work. A client whose request
    /// has just come is passed over.
    fn evict(&mut self, ops: &mut EventOps) -> bool {
        let mut ranks: Vec<_> = (0_u32..)
            .zip(&self.places)
            .filter_map(|(place, client)| Some((client.as_ref()?.connection.rank()?, place)))
            .collect();
        ranks.sort_unstable();
        let busy = |place: u32| {
            let client = self.places.get(place as usize).and_then(Option::as_ref);
            client.is_some_and(|client| socket::has_input(&client.stream))
        };
        let victim = ranks
            .iter()
            .find(|((rank, _), place)| *rank > 0 || !busy(*place))
            .or(ranks.first());
        let Some((_, place)) = victim else {
            return false;
        };
        if let Some(client) = self.take(*place) {
            self.close(*place, client, ops);
        }
        true
    }

    fn take(&mut self, place: u32) -> Option<Client> {
        self.places.get_mut(place as usize)?.take()
    }

    /// One turn of a connection.
    fn attend(&mut self, place: u32, set: EventSet, ops: &mut EventOps) {
        let Some(mut client) = self.take(place) else {
            return;
        };
        let gone = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if set.contains(EventSet::IN) || gone {
            if client.connection.wants_input(&self.limits) {
                if !self.read(place, &mut client) {
                    return self.close(place, client, ops);
                }
            } else if gone {
                return self.close(place, client, ops);
            }
        }
        self.settle(place, client, ops);
    }

    /// Reads once. False: the connection is broken.
    fn read(&mut self, place: u32, client: &mut Client) -> bool {
        self.buffer.resize(READ, 0);
        let bytes = match socket::receive(&client.stream, &mut self.buffer) {
            Ok(bytes) => bytes,
            Err(error) => {
                return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            }
        };
        let now = Instant::now();
        if bytes == 0 {
            client.connection.end(now);
            return true;
        }
        let mut turn = Turn {
            service: &mut self.service,
            limits: &self.limits,
            slot: place,
            serial: &mut self.serial,
            now,
        };
        let bytes = self.buffer.get(..bytes).unwrap_or_default();
        client.connection.receive(bytes, &mut turn);
        true
    }

    /// Goes on with what did not fit in the last turn.
    fn go_on(&mut self, place: u32, ops: &mut EventOps) {
        let Some(mut client) = self.take(place) else {
            return;
        };
        if client.queued {
            client.queued = false;
            if client.connection.wants_turn(&self.limits) {
                let mut turn = Turn {
                    service: &mut self.service,
                    limits: &self.limits,
                    slot: place,
                    serial: &mut self.serial,
                    now: Instant::now(),
                };
                client.connection.resume(&mut turn);
            }
        }
        self.settle(place, client, ops);
    }

    /// The end of a turn: writes, and keeps the connection or closes it.
    fn settle(&mut self, place: u32, mut client: Client, ops: &mut EventOps) {
        let output = client.connection.output();
        if !output.is_empty() {
            match socket::send(&client.stream, output) {
                Ok(bytes) => client.connection.took(bytes, Instant::now()),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return self.close(place, client, ops),
            }
        }
        if client.connection.is_over() {
            return self.close(place, client, ops);
        }
        if client.connection.is_lingering() && !client.shut {
            client.shut = true;
            // Tells the client that there is nothing more.
            let _ = client.stream.shutdown(Shutdown::Write);
        }
        if client.connection.wants_turn(&self.limits) && !client.queued {
            client.queued = true;
            self.again.push_back(place);
            self.outbox.wake();
        }
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, client.connection.wants_input(&self.limits));
        interest.set(EventSet::OUT, !client.connection.output().is_empty());
        if interest != client.interest {
            client.interest = interest;
            if let Err(error) = ops.modify(Events::with_data(&client.stream, place, interest)) {
                log::warn!("api: cannot wait for a client: {error}");
                return self.close(place, client, ops);
            }
        }
        self.keep(place, client, ops);
    }

    /// Puts a client back in its place.
    fn keep(&mut self, place: u32, client: Client, ops: &mut EventOps) {
        let deadline = client.connection.deadline(&self.limits);
        match self.places.get_mut(place as usize) {
            Some(there) => *there = Some(client),
            None => return self.close(place, client, ops),
        }
        if let Some(deadline) = deadline {
            self.arm(deadline);
        }
    }

    /// Ends a connection, whose place is empty already.
    fn close(&mut self, place: u32, client: Client, ops: &mut EventOps) {
        if let Err(error) = ops.remove(Events::with_data(&client.stream, place, EventSet::empty()))
        {
            log::warn!("api: cannot let go of a client: {error}");
        }
        let ticket = client.connection.ticket();
        drop(client);
        self.free.push(place);
        if let Some(ticket) = ticket {
            self.service.gone(ticket);
        }
        if self.reserve.is_none() {
            self.reserve = self.socket.listener().try_clone().ok().map(OwnedFd::from);
        }
        self.unpause(ops);
    }

    /// Hands out what came through the outbox, and gives a turn to those who wait for one.
    fn post(&mut self, ops: &mut EventOps) {
        let letters = self.outbox.take();
        let waiting = self.again.len();
        for (ticket, letter) in letters {
            let place = ticket.slot;
            let Some(mut client) = self.take(place) else {
                continue;
            };
            let mut turn = Turn {
                service: &mut self.service,
                limits: &self.limits,
                slot: place,
                serial: &mut self.serial,
                now: Instant::now(),
            };
            if client.connection.deliver(ticket, letter, &mut turn) {
                self.settle(place, client, ops);
            } else {
                self.close(place, client, ops);
            }
        }
        for _ in 0..waiting {
            if let Some(place) = self.again.pop_front() {
                self.go_on(place, ops);
            }
        }
    }

    /// Has the timer ring at `deadline`, if it does not ring before that.
    fn arm(&mut self, deadline: Instant) {
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        let time = deadline
            .saturating_duration_since(Instant::now())
            .max(SHORTEST);
        match self.timer.reset(time, None) {
            Ok(()) => self.armed = Some(deadline),
            Err(error) => log::error!("api: cannot set a timer: {error}"),
        }
    }

    /// Looks whose time is up, and sets the timer for the next.
    fn ring(&mut self, ops: &mut EventOps) {
        // Not read: it may have been set anew since it rang, and a read would then wait. Disarming has it stop.
        if let Err(error) = self.timer.clear() {
            log::error!("api: cannot clear a timer: {error}");
        }
        self.armed = None;
        let now = Instant::now();
        if let Some(until) = self.paused {
            if until <= now {
                self.unpause(ops);
            } else {
                self.arm(until);
            }
        }
        for place in 0..self.places.len() as u32 {
            let Some(mut client) = self.take(place) else {
                continue;
            };
            match client.connection.check(now, &self.limits) {
                Late::No => self.keep(place, client, ops),
                Late::Told => self.settle(place, client, ops),
                Late::Over => self.close(place, client, ops),
            }
        }
    }
}

impl<S: Service> MutEventSubscriber for Server<S> {
    fn init(&mut self, ops: &mut EventOps) {
        let events = [
            Events::with_data(self.socket.listener(), LISTENER, EventSet::IN),
            Events::with_data(&self.outbox, OUTBOX, EventSet::IN),
            Events::with_data(&self.timer, TIMER, EventSet::IN),
        ];
        for event in events {
            if let Err(error) = ops.add(event) {
                log::error!("api: cannot wait for requests: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            LISTENER => self.accept(ops),
            OUTBOX => self.post(ops),
            TIMER => self.ring(ops),
            place => {
                // A place that was given to another client in this same turn gets nothing of the one before.
                let fd = events.fd();
                let same = self
                    .places
                    .get(place as usize)
                    .and_then(Option::as_ref)
                    .is_some_and(|client| client.stream.as_raw_fd() == fd);
                if same {
                    self.attend(place, events.event_set(), ops);
                }
            }
        }
    }
}
