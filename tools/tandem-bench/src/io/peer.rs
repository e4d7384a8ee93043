//! Both ends of the network jobs for which iperf3 has no mode: round trips over TCP, and packets over UDP.
//!
//! The guest's end is this very program, put into its initramfs; the host's end are threads of the benchmark. Round trips
//! are of one byte each way, one after the other, on one connection without Nagle's delay. Packets are UDP datagrams of 64
//! bytes one way, never more than [`WINDOW`] of them under way: the receiver acknowledges every [`ACK_EVERY`]th, so that the
//! rate is what arrives and not what is thrown away. A window that was lost is given up after [`PATIENCE`].

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::stats::Summary;

const WINDOW: u64 = 128;
const ACK_EVERY: u64 = 32;
const PATIENCE: Duration = Duration::from_millis(10);
const PACKET: usize = 64;
/// The host sends no longer than that, whoever asks.
const LONGEST_MS: u64 = 3_600_000;
/// Round trips before those that count.
const WARM_UP: usize = 100;

// First byte of a datagram: what it is. A number follows.
/// To the host: a packet that counts. The number is its place.
const TO_HOST: u8 = b'h';
/// To the guest, likewise.
const TO_GUEST: u8 = b'g';
/// Acknowledges all before the number; the number of those that arrived comes after it.
const ACK: u8 = b'a';
/// Asks the host to send for that many milliseconds.
const SEND: u8 = b's';
/// Asks it to stop before that.
const STOP: u8 = b'e';

/// The guest's end of `io`'s network jobs
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    mode: Mode,
    /// The host's end
    host: SocketAddr,
    /// For how long
    millis: u64,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    RoundTrips,
    ToHost,
    ToGuest,
}

/// Does it, and prints the outcome as JSON.
pub fn run(args: &Args) -> Result<ExitCode> {
    let time = Duration::from_millis(args.millis);
    let outcome = match args.mode {
        Mode::RoundTrips => round_trips(args.host, time),
        Mode::ToHost => to_host(args.host, time),
        Mode::ToGuest => to_guest(args.host, time),
    };
    outcome
        .and_then(|outcome| Ok(serde_json::to_string(&outcome)?))
        .map(|text| println!("{text}"))
        .map_err(|error| Error::new(format!("no answer from {}: {error}", args.host)))?;
    Ok(ExitCode::SUCCESS)
}

/// What the guest found.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Outcome {
    /// Round trips, or packets that arrived.
    pub count: u64,
    /// The time that they took.
    pub seconds: f64,
    /// Median round trip in microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile in microseconds.
    pub p99_us: Option<f64>,
    /// How often a window was given up.
    pub lost_windows: Option<u64>,
}

/// Starts the host's ends at this address and port, one for TCP and one for UDP; they live as long as the process.
pub fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let socket = UdpSocket::bind(address)?;
    thread::Builder::new().name("echo".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // A guest that is gone ends its connection only.
            let _ = echo(stream);
        }
    })?;
    thread::Builder::new()
        .name("packets".into())
        .spawn(move || {
            // An unreachable guest is an error at the next call on the socket, and no more than that.
            loop {
                let _ = packets(&socket);
            }
        })?;
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // The next guest's turn comes even if this one's connection never ends.
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn packets(socket: &UdpSocket) -> io::Result<()> {
    let mut receiver = Receiver::default();
    loop {
        socket.set_read_timeout(None)?;
        let Message {
            kind, number, from, ..
        } = receive(socket)?;
        match kind {
            TO_HOST => {
                if number == 0 {
                    receiver = Receiver::default();
                }
                if receiver.take(number) {
                    socket.send_to(&receiver.acknowledgement(), from)?;
                }
            }
            SEND => {
                let time = Duration::from_millis(number.min(LONGEST_MS));
                send_packets(socket, from, TO_GUEST, time)?;
            }
            _ => {}
        }
    }
}

/// Round trips from the guest to the host and back.
pub fn round_trips(host: SocketAddr, time: Duration) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect_timeout(&host, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut byte = [0];
    let mut trip = || {
        stream
            .write_all(b"x")
            .and_then(|()| stream.read_exact(&mut byte))
    };
    for _ in 0..WARM_UP {
        trip()?;
    }
    let mut nanos = Vec::new();
    let start = Instant::now();
    let mut last = start;
    while last - start < time {
        trip()?;
        let now = Instant::now();
        nanos.push((now - last).as_nanos() as f64);
        last = now;
    }
    let times = Summary::of(&nanos);
    Ok(Outcome {
        count: nanos.len() as u64,
        seconds: (last - start).as_secs_f64(),
        p50_us: times.map(|times| times.p50 / 1e3),
        p99_us: times.map(|times| times.p99 / 1e3),
        lost_windows: None,
    })
}

/// Packets from the guest to the host.
pub fn to_host(host: SocketAddr, time: Duration) -> io::Result<Outcome> {
    let socket = guest_socket(host)?;
    send_packets(&socket, host, TO_HOST, time)
}

/// Packets from the host to the guest.
pub fn to_guest(host: SocketAddr, time: Duration) -> io::Result<Outcome> {
    let socket = guest_socket(host)?;
    // Longer than is measured: the end is not the host's.
    let wanted = time + Duration::from_secs(2);
    socket.send_to(&packet(SEND, wanted.as_millis() as u64)[..9], host)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut receiver = Receiver::default();
    let mut start = None;
    loop {
        let Message {
            kind, number, from, ..
        } = receive(&socket)?;
        let now = Instant::now();
        let start = *start.get_or_insert(now);
        if kind != TO_GUEST {
            continue;
        }
        if receiver.take(number) {
            socket.send_to(&receiver.acknowledgement(), from)?;
        }
        let passed = now - start;
        if passed >= time {
            // What is under way takes its time; the host stops at any of them.
            for _ in 0..3 {
                socket.send_to(&packet(STOP, 0)[..9], host)?;
            }
            return Ok(Outcome {
                count: receiver.count,
                seconds: passed.as_secs_f64(),
                p50_us: None,
                p99_us: None,
                lost_windows: Some(receiver.missed / WINDOW),
            });
        }
    }
}

fn guest_socket(host: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(if host.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    })
}

/// Counts packets and says when to acknowledge them.
#[derive(Debug, Default)]
struct Receiver {
    count: u64,
    next: u64,
    missed: u64,
}

impl Receiver {
    /// Notes a packet; true if it is time to acknowledge.
    fn take(&mut self, number: u64) -> bool {
        self.count += 1;
        self.missed += number.saturating_sub(self.next);
        self.next = self.next.max(number.saturating_add(1));
        // By number, not by count: where one is lost, the next is acknowledged in time all the same.
        number.is_multiple_of(ACK_EVERY)
    }

    fn acknowledgement(&self) -> [u8; PACKET] {
        let mut bytes = packet(ACK, self.next);
        bytes[9..17].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }
}

/// Sends packets within the window for some time; what has arrived by the last acknowledgement counts.
fn send_packets(
    socket: &UdpSocket,
    to: SocketAddr,
    kind: u8,
    time: Duration,
) -> io::Result<Outcome> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut sent, mut acknowledged, mut arrived, mut lost) = (0, 0, 0, 0);
    let mut stopped = false;
    let start = Instant::now();
    loop {
        let passed = start.elapsed();
        if passed >= time || stopped {
            return Ok(Outcome {
                count: arrived,
                seconds: passed.as_secs_f64(),
                p50_us: None,
                p99_us: None,
                lost_windows: Some(lost),
            });
        }
        while sent - acknowledged < WINDOW {
            socket.send_to(&packet(kind, sent), to)?;
            sent += 1;
        }
        match receive(socket) {
            Ok(message) if message.kind == ACK && message.from == to && message.number <= sent => {
                acknowledged = acknowledged.max(message.number);
                arrived = arrived.max(message.second);
            }
            Ok(message) => stopped = message.kind == STOP && message.from == to,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                acknowledged = sent;
                lost += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn packet(kind: u8, number: u64) -> [u8; PACKET] {
    let mut bytes = [0; PACKET];
    bytes[0] = kind;
    bytes[1..9].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[derive(Debug)]
struct Message {
    kind: u8,
    number: u64,
    /// Only an acknowledgement has one.
    second: u64,
    from: SocketAddr,
}

fn receive(socket: &UdpSocket) -> io::Result<Message> {
    let mut bytes = [0; PACKET];
    loop {
        let (length, from) = socket.recv_from(&mut bytes)?;
        let number = |at: usize| {
            let bytes = bytes.get(at..length.min(at + 8))?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        if let Some(first) = number(1) {
            return Ok(Message {
                kind: bytes[0],
                number: first,
                second: number(9).unwrap_or(0),
                from,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> SocketAddr {
        // A port that TCP gives is as a rule free for UDP, too.
        for _ in 0..20 {
            let free = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            if serve(free).is_ok() {
                return free;
            }
        }
        panic!("no port is free");
    }

    #[test]
    fn round_trips_are_counted_and_timed() {
        let time = Duration::from_millis(100);
        let outcome = round_trips(host(), time).unwrap();
        assert!(outcome.count > 10 && outcome.seconds >= 0.1, "{outcome:?}");
        let (p50, p99) = (outcome.p50_us.unwrap(), outcome.p99_us.unwrap());
        assert!(p50 > 0.0 && p99 >= p50, "{outcome:?}");
    }

    #[test]
    fn packets_arrive_both_ways_and_again() {
        let (host, time) = (host(), Duration::from_millis(100));
        for _ in 0..2 {
            for outcome in [to_host(host, time), to_guest(host, time)] {
                let outcome = outcome.unwrap();
                assert!(
                    outcome.count > WINDOW && outcome.seconds >= 0.1,
                    "{outcome:?}"
                );
            }
        }
    }

    #[test]
    fn lost_packets_are_not_counted_and_do_not_stop_the_sender() {
        // This receiver loses every window but the first.
        let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = deaf.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let answer = thread::spawn(move || {
            let mut receiver = Receiver::default();
            while let Ok(Message { number, from, .. }) = receive(&deaf) {
                if receiver.take(number) && number < WINDOW {
                    deaf.send_to(&receiver.acknowledgement(), from).unwrap();
                }
                if number >= 2 * WINDOW {
                    return receiver.count;
                }
            }
            0
        });
        let outcome = send_packets(&sender, to, TO_HOST, Duration::from_millis(200)).unwrap();
        assert!(outcome.count < WINDOW, "{outcome:?}");
        assert!(outcome.lost_windows.unwrap() >= 2, "{outcome:?}");
        assert!(answer.join().unwrap() > WINDOW);
    }

    #[test]
    fn acknowledgements_go_by_number() {
        let mut receiver = Receiver::default();
        let acks: Vec<_> = (0..=64).filter(|&number| receiver.take(number)).collect();
        assert_eq!(acks, [0, 32, 64]);
        // 65 to 95 are lost.
        assert!(receiver.take(96));
        assert_eq!(receiver.next, 97);
        assert_eq!((receiver.count, receiver.missed), (66, 31));
    }
}
