//! TCP connections of one network interface, by smoltcp, and HTTP on them.
//!
//! smoltcp gets IPv4 packets only; Ethernet is done here: answers go to where the last segment came from, whatever address the
//! guest has given its interface. Checksums of what comes in are not looked at, as the guest leaves them to its device and
//! nothing between the two could have damaged a byte; they are made for what goes out.
//!
//! There is one socket that listens; it is replaced when it has got a connection. At most [`CONNECTIONS`] are there at a time: one
//! more takes the place of the one that has been silent longest.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Address};

use super::frame::{self, ETHERNET, Frame, TYPE_IPV4};
use super::{Mmds, count, http};
use crate::virtio::rng::get_random;

/// Ethernet address of the service: Firecracker's, which guests may have in their configuration.
pub const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Connections at a time.
pub const CONNECTIONS: usize = 30;
/// Frames that wait for the guest.
const FRAMES: usize = 32;
/// Bytes of the longest packet that is sent; the guest may ask for shorter ones.
const MTU: usize = 1500;
/// Bytes of a connection's window, and of what is sent and not acknowledged.
const RECEIVE: usize = http::MOST;
const SEND: usize = 16 << 10;
/// Where the service listens.
pub const PORT: u16 = 80;
/// A connection without a word for so long is over.
const SILENCE: Duration = Duration::from_secs(60);
/// Rounds of sending and answering before it is somebody else's turn.
const ROUNDS: usize = 64;

/// The service as one interface's guest sees it.
pub struct Stack {
    mmds: Mmds,
    address: Ipv4Addr,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    start: Instant,
}

struct Connection {
    handle: SocketHandle,
    /// Bytes of requests that are not answered yet.
    input: Vec<u8>,
    /// The answer that is on its way, and how much of it is in the socket.
    output: Vec<u8>,
    sent: usize,
    /// Nothing more is answered.
    last: bool,
    /// It was counted as established.
    counted: bool,
    /// When something came or went.
    moved: Instant,
}

impl Stack {
    /// The service at `address`, without connections.
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn new(mmds: &Mmds, address: Ipv4Addr) -> io::Result<Self> {
        let mut seed = [0; 8];
        get_random(&mut seed)?;
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from_le_bytes(seed);
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        let own = Ipv4Address::from(address.octets());
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(own.into(), 32));
        });
        // All others are on the same wire.
        let _ = interface.routes_mut().add_default_ipv4_route(own);
        Ok(Self {
            mmds: mmds.clone(),
            address,
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            start: Instant::now(),
        })
    }

    /// Whether a frame that starts with `start`, of up to [`START`](super::START) bytes, is for the service.
    pub fn is_for_it(&self, start: &[u8]) -> bool {
        frame::is_for(start, self.address)
    }

    /// Takes a frame for which [`is_for_it`](Self::is_for_it) is true. What comes of it waits in
    /// [`next_frame`](Self::next_frame).
    pub fn take(&mut self, frame: &[u8], now: Instant) {
        let mmds = self.mmds.clone();
        let counts = mmds.counts();
        count(&counts.rx_accepted);
        match frame::read(frame, self.address, MAC) {
            Frame::Request(answer) => {
                count(&counts.rx_count);
                if self.wire.sent.len() < FRAMES {
                    self.wire.sent.push_back(answer.to_vec());
                } else {
                    // The guest asks again.
                    count(&counts.tx_errors);
                }
            }
            Frame::Tcp(mac, packet) => {
                count(&counts.rx_count);
                self.wire.guest = mac;
                self.wire.received = Some(packet.to_vec());
                if frame::opens(packet) {
                    self.make_room(now);
                }
                self.work(now);
                if self.wire.received.take().is_some() {
                    // There is no room for an answer: a segment that was lost comes again.
                    count(&counts.rx_accepted_err);
                }
            }
            Frame::Unusual => count(&counts.rx_accepted_unusual),
            Frame::Wrong => count(&counts.rx_accepted_err),
        }
    }

    /// The next frame for the guest.
    pub fn next_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.wire.sent.is_empty() {
            self.work(now);
        }
        let frame = self.wire.sent.pop_front()?;
        let counts = self.mmds.counts();
        count(&counts.tx_count);
        count(&counts.tx_frames);
        let bytes = frame.len() as u64;
        counts.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(frame)
    }

    /// Whether frames wait for the guest.
    pub fn has_frames(&self) -> bool {
        !self.wire.sent.is_empty()
    }

    /// After what time [`work`](Self::work) has something to do by itself: to send something again, or to give a silent connection
    /// up. `None` while the guest must do something first.
    pub fn deadline(&mut self, now: Instant) -> Option<Duration> {
        if self.is_idle() || self.has_frames() {
            return None;
        }
        let now = self.time(now);
        let delay = self.interface.poll_delay(now, &self.sockets)?;
        // What should be done at once was tried already.
        Some(Duration::from_micros(delay.total_micros()).max(A_MOMENT))
    }

    /// Forgets all connections.
    pub fn clear(&mut self) {
        while let Some(connection) = self.connections.pop() {
            self.remove(connection);
        }
        self.wire.sent.clear();
    }

    /// Nobody is connected.
    fn is_idle(&self) -> bool {
        let mut connections = self.connections.iter();
        connections.all(|connection| self.socket(connection).is_listening())
    }

    fn socket(&self, connection: &Connection) -> &Socket<'static> {
        self.sockets.get(connection.handle)
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let passed = now.saturating_duration_since(self.start).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }

    /// Sees to it that somebody listens.
    fn make_room(&mut self, now: Instant) {
        let mut connections = self.connections.iter();
        if connections.any(|connection| self.socket(connection).is_listening()) {
            return;
        }
        if self.connections.len() >= CONNECTIONS {
            let all = self.connections.iter().enumerate();
            let worst = all.min_by_key(|(_, connection)| connection.moved);
            if let Some(index) = worst.map(|(index, _)| index) {
                let connection = self.connections.swap_remove(index);
                self.remove(connection);
            }
        }
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(RECEIVE), buffer(SEND));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(smoltcp::time::Duration::from_secs(SILENCE.as_secs())));
        // It fails for port 0 and for a socket that is in use.
        let _ = socket.listen(PORT);
        self.connections.push(Connection {
            handle: self.sockets.add(socket),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            last: false,
            counted: false,
            moved: now,
        });
    }

    fn remove(&mut self, connection: Connection) {
        if connection.counted {
            count(&self.mmds.counts().connections_destroyed);
        }
        self.sockets.remove(connection.handle);
    }

    /// Lets the connections go on, for a bounded time.
    pub fn work(&mut self, now: Instant) {
        if self.is_idle() && self.wire.received.is_none() {
            return;
        }
        let time = self.time(now);
        for _ in 0..ROUNDS {
            let wire = &mut self.wire;
            let _ = self.interface.poll(time, wire, &mut self.sockets);
            let mut moved = false;
            for connection in &mut self.connections {
                let socket = self.sockets.get_mut::<Socket>(connection.handle);
                if connection.serve(socket, &self.mmds, now) {
                    connection.moved = now;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        // The last acknowledgement is among the frames now, if there was room for it. Nothing of the connection is on a way on
        // which it could be late, so nothing is waited for.
        let all_said = self.wire.sent.len() < FRAMES;
        let mut index = 0;
        while let Some(connection) = self.connections.get(index) {
            let state = self.socket(connection).state();
            if state == State::Closed || state == State::TimeWait && all_said {
                let connection = self.connections.swap_remove(index);
                self.remove(connection);
            } else {
                index += 1;
            }
        }
    }
}

/// The least time between two looks.
const A_MOMENT: Duration = Duration::from_millis(2);

impl Connection {
    /// Reads, answers and sends. False if nothing has moved.
    fn serve(&mut self, socket: &mut Socket, mmds: &Mmds, now: Instant) -> bool {
        if !self.counted && socket.may_send() {
            self.counted = true;
            count(&mmds.counts().connections_created);
        }
        let mut moved = false;
        let room = http::MOST.saturating_sub(self.input.len());
        if self.output.is_empty() && !self.last && room > 0 && socket.can_recv() {
            let input = &mut self.input;
            let read = socket.recv(|bytes| {
                let bytes = bytes.get(..room).unwrap_or(bytes);
                input.extend_from_slice(bytes);
                (bytes.len(), ())
            });
            moved = read.is_ok();
        }
        if self.output.is_empty()
            && !self.last
            && !self.input.is_empty()
            && let Some(answer) = http::answer(&self.input, mmds, now)
        {
            self.input.drain(..answer.taken.min(self.input.len()));
            (self.output, self.sent, self.last) = (answer.bytes, 0, answer.last);
            moved = true;
        }
        let rest = self.output.get(self.sent..).unwrap_or_default();
        if !rest.is_empty() && socket.can_send() {
            let sent = socket.send_slice(rest).unwrap_or(0);
            self.sent += sent;
            moved |= sent > 0;
            if self.sent >= self.output.len() {
                self.output = Vec::new();
            }
        }
        // The guest says nothing more, so what is not a whole request by now never will be.
        let over = self.last || !socket.may_recv() && !moved;
        if self.output.is_empty() && over && socket.may_send() {
            socket.close();
            self.input = Vec::new();
            moved = true;
        }
        moved
    }
}

/// What smoltcp takes packets from and gives them to.
#[derive(Default)]
struct Wire {
    received: Option<Vec<u8>>,
    /// Frames for the guest.
    sent: VecDeque<Vec<u8>>,
    /// The guest's Ethernet address.
    guest: [u8; 6],
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sending<'a>(&'a mut Wire);

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; ETHERNET + len];
        let (header, packet) = frame.split_at_mut(ETHERNET);
        let bytes = self.0.guest.iter().chain(&MAC).chain(&TYPE_IPV4);
        for (slot, byte) in header.iter_mut().zip(bytes) {
            *slot = *byte;
        }
        let result = fill(packet);
        self.0.sent.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    /// A segment may have an answer when there is no more room for data: acknowledgements and the ends of connections.
    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        if self.sent.len() >= 2 * FRAMES {
            return None;
        }
        let packet = self.received.take()?;
        Some((Received(packet), Sending(self)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Sending<'_>> {
        (self.sent.len() < FRAMES).then_some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = checksum;
        capabilities
    }
}
