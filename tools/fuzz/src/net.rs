//! Network device at a passt that is made up: frames of all kinds both ways, a stream that is cut anywhere or makes no
//! sense, a peer that does not read, goes away and comes back; limits, queue resets, migration. And, as functions, what a tap's
//! driver may ask for: offloads in a frame's header, commands of the control queue.
//!
//! What the device sends is read as passt reads it: it must be whole frames, whatever the driver gives.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use devices::virtio::net::header::{LONGEST_FRAME, SHORTEST_FRAME};
use devices::virtio::net::passt::{Passt, first_frame};
use devices::virtio::net::{Link, Net, Options, control, feature, header};
use devices::virtio::rate_limiter::RateLimiterConfig;
use devices::virtio::{Update, VirtioDevice};
use tempfile::TempDir;

use crate::entropy::limits;
use crate::script::{Chain, Move, Reader, Spoil};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

/// The other side of a device's connection.
struct Peer {
    socket: UnixStream,
    /// What came and is not a whole frame yet.
    rest: Vec<u8>,
}

struct Host {
    directory: TempDir,
    listener: UnixListener,
    peer: Option<Peer>,
    mtu: Option<u16>,
    /// Frames that the device sent, and bytes that did not fit into the socket.
    frames: u64,
    returns: u64,
}

impl Host {
    fn new(choice: u8) -> std::io::Result<Self> {
        let directory = TempDir::new()?;
        let listener = UnixListener::bind(directory.path().join("passt"))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            directory,
            listener,
            peer: None,
            mtu: (choice & 2 != 0).then_some(1500),
            frames: 0,
            returns: 0,
        })
    }

    /// Takes a connection, if there is one.
    fn accept(&mut self) {
        if let Ok((socket, _)) = self.listener.accept() {
            socket.set_nonblocking(true).expect("a socket");
            self.returns += u64::from(self.peer.is_some());
            self.peer = Some(Peer {
                socket,
                rest: Vec::new(),
            });
        }
    }

    /// Reads up to `most` bytes of what the device sent.
    fn read(&mut self, most: usize) {
        let Some(peer) = &mut self.peer else {
            return;
        };
        let mut left = most;
        let mut bytes = [0; 65536];
        while left > 0 {
            let len = left.min(bytes.len());
            match peer.socket.read(&mut bytes[..len]) {
                Ok(0) => break,
                Ok(got) => {
                    peer.rest.extend_from_slice(&bytes[..got]);
                    left -= got;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => break,
            }
        }
        while let Some(frame) = first_frame(&peer.rest).expect("frames are sound") {
            assert!((SHORTEST_FRAME..=LONGEST_FRAME).contains(&frame.len()));
            peer.rest.drain(..frame.end);
            self.frames += 1;
        }
    }
}

impl Rig for Host {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        // What is left of the connection before is of no use.
        self.accept();
        let passt = Passt::open(&self.directory.path().join("passt"));
        let options = Options {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: self.mtu,
            pairs: 1,
            rx_limits: RateLimiterConfig::default(),
            tx_limits: RateLimiterConfig::default(),
        };
        let link = Link::Passt(passt.expect("somebody listens"));
        let device = Net::new(options, link).expect("an epoll");
        self.accept();
        Box::new(device)
    }

    fn host(&mut self, bytes: &[u8]) {
        let mut from = Reader::new(bytes);
        self.accept();
        match from.u8() % 5 {
            // A frame of some length, all of it or a part.
            0 => {
                let (len, part) = (usize::from(from.u16()), usize::from(from.u16()));
                let mut stream = (len as u32).to_be_bytes().to_vec();
                stream.resize(4 + len, 0x42);
                let end = if part == 0 {
                    stream.len()
                } else {
                    part.min(stream.len())
                };
                self.send(&stream[..end]);
            }
            1 => self.send(from.bytes(usize::MAX)),
            2 => {
                let count = from.u8();
                let frame = [&[0, 0, 0, 60][..], &[7; 60]].concat();
                self.send(&frame.repeat(count.into()));
            }
            3 => self.read(usize::from(from.u16()) << 4),
            _ => {
                self.peer = None;
                self.accept();
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        let mut from = Reader::new(bytes);
        let rx = limits(&mut from);
        let tx = limits(&mut from);
        Some(Update::Net { rx, tx })
    }

    fn look(&mut self) {
        self.accept();
    }

    fn reached(&self) -> Vec<(&'static str, u64)> {
        vec![("frames", self.frames), ("returns", self.returns)]
    }
}

impl Host {
    fn send(&mut self, bytes: &[u8]) {
        if let Some(peer) = &mut self.peer {
            // As much as there is room for.
            let _ = peer.socket.write(bytes);
        }
    }
}

/// What a driver at a tap may ask for: checked by a reading of their own of header and command.
fn ask(from: &mut Reader, reached: &mut Reached) {
    let mut note = |name: &str| *reached.entry(name.into()).or_default() += 1;
    let features = match from.u8() % 3 {
        0 => u64::MAX,
        1 => from.u64(),
        _ => feature::CSUM | feature::HOST_TSO4 | feature::MQ | feature::CTRL_GUEST_OFFLOADS,
    };
    let frame = SHORTEST_FRAME + usize::from(from.u16());
    let bytes: [u8; header::LEN] = from.array();
    if let Ok(seen) = header::check(bytes, frame, features) {
        let word = |at: usize| usize::from(u16::from_le_bytes([seen[at], seen[at + 1]]));
        let (sum, kind) = (seen[0], seen[1]);
        assert!(sum == 0 || (sum == 1 && word(6) + word(8) + 2 <= frame));
        assert!(sum == 0 || features & feature::CSUM != 0);
        assert!(matches!(kind, 0 | 1 | 4 | 5 | 0x81 | 0x84), "{kind}");
        assert!(kind == 0 || (word(4) > 0 && sum == 1 && word(2) <= frame));
        assert_eq!(word(10), 0);
        note(if kind == 0 { "plain" } else { "offloaded" });
    } else {
        note("unsound");
    }
    let pairs = u16::from(from.u8() % 16);
    let command = from.counted();
    match control::parse(&command, features, pairs) {
        Some(control::Command::Pairs(count)) => {
            assert!((1..=pairs).contains(&count));
            note("pairs");
        }
        Some(control::Command::Offloads(bits)) => {
            assert_eq!(bits & !(features & feature::GUEST_OFFLOADS), 0);
            note("offloads");
        }
        None => note("refused"),
    }
    let _ = header::check_len(from.u32().into());
    let stream = from.counted();
    if let Ok(Some(frame)) = first_frame(&stream) {
        assert!(frame.end <= stream.len());
    }
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    let mut script = Reader::new(data);
    let choice = script.u8();
    if choice & 1 != 0 {
        let mut reached = Reached::new();
        while !script.is_empty() {
            ask(&mut script, &mut reached);
        }
        return reached;
    }
    let mut host = Host::new(choice).expect("a socket");
    session::follow(&mut host, &mut script)
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let send = |len: u16| Chain {
        padding: len,
        cuts: vec![5, 20],
        ..Chain::new(1, &[0; header::LEN + 1], &[])
    };
    let room = |lengths: &[u16]| Chain::new(0, &[], lengths).offer();
    let host = |bytes: &[u8]| Move::Host(bytes.to_vec());
    let exchange = [
        Move::ReadConfig(0, 8),
        Move::ReadConfig(6, 2),
        send(60).offer(),
        send(1500).offer(),
        send(9000).offer(),
        Move::Kick(1),
        host(&[3, 255, 255]),
        host(&[0, 60, 0]),
        room(&[1526]),
        room(&[12, 0, 600]),
        Move::Kick(0),
        host(&[0, 200, 5]),
        room(&[1000]),
        room(&[1000]),
        Move::Kick(0),
        Move::Migrate,
        host(&[2, 3]),
    ];
    let bad = [
        send(1).offer(),
        send(65535).offer(),
        Chain {
            padding: 100,
            ..Chain::new(1, &[1, 1, 66, 0, 200, 0, 34, 0, 16, 0, 0, 0, 9], &[])
        }
        .offer(),
        Move::Kick(1),
        host(&[0, 60, 0, 20, 0]),
        room(&[60]),
        room(&[2000]),
        Move::Kick(0),
        host(&[&[1][..], &[7; 44]].concat()),
        host(&[1, 255, 255, 255, 255]),
    ];
    let lost = [
        host(&[4]),
        send(60).offer(),
        Move::Kick(1),
        host(&[3, 1, 0]),
        send(60).offer(),
        Move::Kick(1),
        host(&[3, 255, 255]),
    ];
    let nonsense = [room(&[100]), host(&[1, 255, 255, 255, 255]), Move::Kick(0)];
    let mut full = Vec::new();
    for _ in 0..8 {
        full.push(send(65000).offer());
        full.push(Move::Kick(1));
    }
    full.extend([host(&[3, 255, 255]), host(&[3, 255, 255]), Move::Quiesce]);
    let limited = [
        // A request each second, both ways.
        Move::Update(vec![
            2, 0, 0, 0, 0, 1, 0, 232, 3, 2, 0, 0, 0, 0, 1, 0, 232, 3,
        ]),
        send(60).offer(),
        send(60).offer(),
        Move::Kick(1),
        room(&[100]),
        room(&[100]),
        host(&[2, 3]),
        Move::Kick(0),
        Move::RestartQueue(0, 8),
        Move::RestartQueue(1, 8),
    ];
    let narrow = [
        Move::Restart(feature::MRG_RXBUF, 4, 0),
        room(&[100]),
        room(&[20]),
        Move::Kick(0),
        host(&[2, 3]),
    ];
    let spoil = Some(Spoil {
        descriptor: 0,
        field: 2,
        value: 2,
    });
    let spoilt = [
        Chain { spoil, ..send(60) }.offer(),
        Move::Kick(1),
        Chain::new(0, &[1], &[100]).offer(),
        Move::Kick(0),
        host(&[2, 1]),
    ];
    let mut asked = vec![1];
    for (flags, kind, command) in [
        (1, 1, &[4, 0, 2, 0][..]),
        (0, 0, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]),
        (1, 9, &[9, 9]),
    ] {
        asked.extend([0, 100, 0, flags, kind, 66, 0, 100, 0, 34, 0, 16, 0, 0, 0, 4]);
        asked.extend((command.len() as u16).to_le_bytes());
        asked.extend(command);
        asked.extend([0, 0, 0, 0]);
        asked.extend([18, 0, 0, 0, 0, 14]);
        asked.extend([3; 14]);
    }
    vec![
        seed(
            "exchange",
            Move::script(0, &exchange),
            &[
                "tx_packets",
                "rx_packets",
                "frames",
                "completed",
                "migrations",
            ],
        ),
        seed(
            "bad",
            Move::script(2, &bad),
            &[
                "tx_dropped_short",
                "tx_dropped_header",
                "rx_packets",
                "link_lost",
            ],
        ),
        seed(
            "lost",
            Move::script(0, &lost),
            &["link_lost", "config_changes", "tx_dropped_link_down"],
        ),
        seed("nonsense", Move::script(0, &nonsense), &["link_lost"]),
        seed("full", Move::script(0, &full), &["tx_no_room", "frames"]),
        seed(
            "limited",
            Move::script(0, &limited),
            &["tx_throttled", "rx_throttled", "rx_packets"],
        ),
        seed(
            "narrow",
            Move::script(0, &narrow),
            &["rx_dropped_no_fit", "rx_packets"],
        ),
        seed("spoilt", Move::script(0, &spoilt), &["broken"]),
        seed(
            "asked",
            asked,
            &[
                "plain",
                "offloaded",
                "unsound",
                "pairs",
                "offloads",
                "refused",
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
