//! The device as a whole: a driver's queues on one side, real sockets on the other.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::super::negotiation::QueueSetup;
use super::super::testing::{NEXT, WRITE};
use super::super::{
    Activation, Broken, DeviceState, Interrupt, Memory, Progress, Ring, VirtioDevice, feature,
};
use super::packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op, shutdown};
use super::{Vsock, VsockState};

const CID: u32 = 7;
const SIZE: u16 = 64;
/// Bytes of a buffer in the rx queue.
const RX_BUFFER: u32 = 4096;
const RX_DATA: u64 = 0x10_0000;
const TX_DATA: u64 = 0x20_0000;
/// What the test's sockets have room for, where it does not matter.
const PLENTY: u32 = 1 << 20;

#[derive(Default)]
struct Interrupts([AtomicU32; 3]);

impl Interrupt for Interrupts {
    fn used(&self, queue: u16) {
        self.0[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
    }
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

/// The driver's side of one queue, at 0x4000 bytes each.
struct Queue {
    base: u64,
    available: u16,
    used: u16,
}

impl Queue {
    fn new(number: u64) -> Self {
        Self {
            base: 0x4000 * (number + 1),
            available: 0,
            used: 0,
        }
    }

    fn ring(&self, memory: &Memory) -> Ring {
        let setup = QueueSetup {
            max: SIZE,
            size: SIZE,
            enabled: true,
            areas: [self.base, self.base + 0x1000, self.base + 0x2000],
        };
        Ring::new(&setup, feature::COMMON, memory).unwrap()
    }

    fn descriptor(&self, memory: &Memory, index: u16, address: u64, len: u32, flags: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((index + 1).to_le_bytes());
        let at = GuestAddress(self.base + 16 * u64::from(index));
        memory.write_slice(&bytes, at).unwrap();
    }

    fn offer(&mut self, memory: &Memory, head: u16) {
        let slot = u64::from(self.available % SIZE);
        let at = |offset| GuestAddress(self.base + 0x1000 + offset);
        memory.write_obj(head, at(4 + 2 * slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        memory.write_obj(self.available, at(2)).unwrap();
        // An interrupt for each.
        let event = at(4 + 2 * u64::from(SIZE));
        memory.write_obj(self.used, event).unwrap();
    }

    /// The next chain that has come back.
    fn next(&mut self, memory: &Memory) -> Option<(u16, u32)> {
        let at = |offset| GuestAddress(self.base + 0x2000 + offset);
        let there: u16 = memory.read_obj(at(2)).unwrap();
        if there == self.used {
            return None;
        }
        let entry = 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let head: u32 = memory.read_obj(at(entry)).unwrap();
        Some((head as u16, memory.read_obj(at(entry + 4)).unwrap()))
    }
}

/// A guest: its driver, and the device.
struct Guest {
    memory: Memory,
    rx: Queue,
    tx: Queue,
    event: Queue,
    device: Vsock,
    interrupts: Arc<Interrupts>,
    dir: TempDir,
    /// Whether buffers of the rx queue are offered again.
    generous: bool,
    kept: Vec<u16>,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Vsock::new(CID, &dir.path().join("v.sock")).unwrap();
        Self {
            memory: Memory::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap(),
            rx: Queue::new(0),
            tx: Queue::new(1),
            event: Queue::new(2),
            device,
            interrupts: Arc::default(),
            dir,
            generous: true,
            kept: Vec::new(),
        }
    }

    fn started() -> Self {
        let mut this = Self::new();
        this.start();
        for index in 0..SIZE {
            this.offer_rx(index);
        }
        this
    }

    fn start(&mut self) {
        let rings = [&self.rx, &self.tx, &self.event].map(|queue| Some(queue.ring(&self.memory)));
        self.device.activate(Activation {
            memory: self.memory.clone(),
            rings: rings.into(),
            features: feature::COMMON,
            interrupt: self.interrupts.clone(),
        });
    }

    fn offer_rx(&mut self, index: u16) {
        let address = RX_DATA + u64::from(RX_BUFFER) * u64::from(index);
        self.rx
            .descriptor(&self.memory, index, address, RX_BUFFER, WRITE);
        self.rx.offer(&self.memory, index);
    }

    /// Serves everything until nothing is left to do, waiting for the host's side for a moment.
    fn serve(&mut self) -> Result<(), Broken> {
        for queue in [1, 0, 2] {
            while self.device.process(queue)? == Progress::More {}
        }
        while self.host_has_something(0) {
            while self.device.process_host()? == Progress::More {}
        }
        Ok(())
    }

    fn host_has_something(&self, milliseconds: i32) -> bool {
        let fd = self.device.host_event().unwrap().as_raw_fd();
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry.
        unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
    }

    /// The packets that have come in.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.serve().unwrap();
            let before = packets.len();
            while let Some((head, len)) = self.rx.next(&self.memory) {
                let address = GuestAddress(RX_DATA + u64::from(RX_BUFFER) * u64::from(head));
                let mut bytes = vec![0; len as usize];
                self.memory.read_slice(&mut bytes, address).unwrap();
                let data = bytes.split_off(HEADER_LEN);
                let header = Header::from_bytes(&bytes.try_into().unwrap());
                assert_eq!(header.len as usize, data.len());
                packets.push((header, data));
                if self.generous {
                    self.offer_rx(head);
                } else {
                    self.kept.push(head);
                }
            }
            if packets.len() == before {
                return packets;
            }
        }
    }

    /// The one packet that has come in.
    #[track_caller]
    fn one(&mut self) -> Header {
        let packets = self.received();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets[0].0
    }

    /// Waits for packets from a thread of the host's.
    fn wait(&mut self) -> Vec<(Header, Vec<u8>)> {
        for _ in 0..100 {
            let packets = self.received();
            if !packets.is_empty() {
                return packets;
            }
            self.host_has_something(100);
        }
        panic!("nothing has come");
    }

    /// Sends a packet: its header and payload cut in three.
    fn try_send(&mut self, header: &Header, data: &[u8]) -> Result<(), Broken> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(data);
        self.memory
            .write_slice(&bytes, GuestAddress(TX_DATA))
            .unwrap();
        let cuts = [0, 10, 44, bytes.len().max(44)];
        for index in 0..3 {
            let (from, to) = (cuts[index], cuts[index + 1]);
            let flags = if index < 2 { NEXT } else { 0 };
            let (at, len) = (TX_DATA + from as u64, (to - from) as u32);
            self.tx
                .descriptor(&self.memory, index as u16, at, len, flags);
        }
        self.tx.offer(&self.memory, 0);
        while self.device.process(1)? == Progress::More {}
        assert_eq!(self.tx.next(&self.memory), Some((0, 0)));
        Ok(())
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        self.try_send(header, data).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client that has asked for a port; the request that has come in.
    fn client(&mut self, port: u32) -> (UnixStream, Header) {
        let mut client = UnixStream::connect(self.path("v.sock")).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        writeln!(client, "CONNECT {port}").unwrap();
        let request = self.one();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, port));
        assert_eq!((request.src_cid, request.dst_cid), (HOST_CID, CID.into()));
        assert_eq!(request.kind, TYPE_STREAM);
        (client, request)
    }

    /// A connection that the host has asked for: the client, and what the guest's packets begin with.
    fn connection(&mut self) -> (UnixStream, Header) {
        let (client, request) = self.client(52);
        let base = answer(&request);
        self.send(&with(&base, op::RESPONSE), &[]);
        let mut line = [0; 14];
        (&client).read_exact(&mut line).unwrap();
        let ok = format!("OK {}\n", request.src_port);
        assert_eq!(&line[..], ok.as_bytes());
        (client, base)
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.device.counters();
        let found = counters.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }
}

/// What the guest's packets of that connection begin with.
fn answer(request: &Header) -> Header {
    Header {
        buf_alloc: PLENTY,
        ..request.reply(0)
    }
}

fn with(base: &Header, op: u16) -> Header {
    Header { op, ..*base }
}

fn data(base: &Header, len: usize) -> Header {
    Header {
        op: op::RW,
        len: len as u32,
        ..*base
    }
}

fn shut(base: &Header, flags: u32) -> Header {
    Header {
        op: op::SHUTDOWN,
        flags,
        ..*base
    }
}

/// A packet of the guest's to a port of the host's.
fn to_host(port: u32, op: u16) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: 1234,
        dst_port: port,
        kind: TYPE_STREAM,
        op,
        buf_alloc: PLENTY,
        ..Header::default()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 % 251) as u8).collect()
}

fn rest(client: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_guest_reads_its_cid() {
    let guest = Guest::new();
    let mut bytes = [0; 8];
    guest.device.read_config(0, &mut bytes);
    assert_eq!(u64::from_le_bytes(bytes), u64::from(CID));
    let mut bytes = [0; 8];
    guest.device.read_config(4, &mut bytes);
    assert_eq!(bytes, [0; 8]);
    guest.device.read_config(u64::MAX, &mut bytes);
}

#[test]
fn a_client_of_the_host_reaches_the_guest() {
    let mut guest = Guest::started();
    let (mut client, base) = guest.connection();
    client.write_all(b"hello guest").unwrap();
    let packets = guest.received();
    assert_eq!(packets.len(), 1);
    assert_eq!(
        (packets[0].0.op, packets[0].1.as_slice()),
        (op::RW, &b"hello guest"[..])
    );
    guest.send(&data(&base, 10), b"hello host");
    let mut got = [0; 10];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello host");

    // The guest closes: RST, and an end for the client.
    guest.send(&shut(&base, shutdown::BOTH), &[]);
    assert_eq!(guest.one().op, op::RST);
    assert_eq!(rest(&mut client), b"");
    assert_eq!(guest.counter("connections_open"), 0);
    assert_eq!(guest.counter("connections_reset"), 0);
    // Nobody has the ports any more.
    guest.send(&data(&base, 1), b"x");
    assert_eq!(guest.one().op, op::RST);
    for queue in [0, 1] {
        assert!(guest.interrupts.0[queue].load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn a_guest_reaches_a_program_of_the_host() {
    let mut guest = Guest::started();
    guest.send(&to_host(99, op::REQUEST), &[]);
    let refusal = guest.one();
    assert_eq!(
        (refusal.op, refusal.src_port, refusal.dst_port),
        (op::RST, 99, 1234)
    );
    assert_eq!(guest.counter("connections_refused"), 1);

    let program = UnixListener::bind(guest.path("v.sock_99")).unwrap();
    guest.send(&to_host(99, op::REQUEST), &[]);
    assert_eq!(guest.one().op, op::RESPONSE);
    let (mut accepted, _) = program.accept().unwrap();
    let sent = pattern(100_000);
    for piece in sent.chunks(50_000) {
        guest.send(&data(&to_host(99, 0), piece.len()), piece);
    }
    accepted.write_all(&sent[..20_000]).unwrap();
    let got: Vec<u8> = guest
        .received()
        .into_iter()
        .filter(|(header, _)| header.op == op::RW)
        .flat_map(|(_, data)| data)
        .collect();
    assert!(got == sent[..20_000]);
    guest.send(&shut(&to_host(99, 0), shutdown::BOTH), &[]);
    assert!(rest(&mut accepted) == sent);
    assert_eq!(guest.counter("bytes_from_guest"), 100_000);
    assert_eq!(guest.counter("bytes_to_guest"), 20_000);
}

#[test]
fn the_guest_may_refuse_or_be_silent() {
    let mut guest = Guest::started();
    let (mut client, request) = guest.client(52);
    guest.send(&with(&answer(&request), op::RST), &[]);
    assert_eq!(rest(&mut client), b"");
    assert!(guest.received().is_empty(), "a RST is not answered");
    assert_eq!(guest.counter("connections_refused"), 1);
    // Another port for the next one.
    let (_client, next) = guest.client(52);
    assert_ne!(next.src_port, request.src_port);
}

#[test]
fn a_client_before_the_driver_hears_no() {
    let mut guest = Guest::new();
    let mut client = UnixStream::connect(guest.path("v.sock")).unwrap();
    client.write_all(b"CONNECT 1\n").unwrap();
    assert!(guest.host_has_something(1000));
    guest.serve().unwrap();
    assert!(!guest.host_has_something(0));
    // Either end, or ECONNRESET: what it has said was not read.
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn nonsense_from_a_client_is_refused() {
    let mut guest = Guest::started();
    for line in ["GET / HTTP/1.1\r\n", "CONNECT 4294967295\n", "CONNECT\n"] {
        let mut client = UnixStream::connect(guest.path("v.sock")).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        assert!(guest.received().is_empty());
        assert_eq!(rest(&mut client), b"", "{line:?}");
    }
    assert_eq!(guest.counter("connections_refused"), 3);
}

#[test]
fn half_a_connection_may_be_closed() {
    let mut guest = Guest::started();
    // The host has said all, and waits for the answer.
    let (mut client, base) = guest.connection();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = guest.received();
    let ops: Vec<_> = packets.iter().map(|(h, _)| (h.op, h.flags)).collect();
    assert_eq!(ops, [(op::RW, 0), (op::SHUTDOWN, shutdown::SEND)]);
    guest.send(&data(&base, 6), b"answer");
    guest.send(&shut(&base, shutdown::BOTH), &[]);
    assert_eq!(rest(&mut client), b"answer");
    assert_eq!(guest.one().op, op::RST);

    // The other way round.
    let (mut client, base) = guest.connection();
    guest.send(&data(&base, 8), b"question");
    guest.send(&shut(&base, shutdown::SEND), &[]);
    assert_eq!(rest(&mut client), b"question");
    client.write_all(b"answer").unwrap();
    drop(client);
    let packets = guest.wait();
    let all: Vec<u8> = packets.iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(all, b"answer");
    let flags = packets.iter().fold(0, |flags, (header, _)| {
        assert!([op::RW, op::SHUTDOWN].contains(&header.op));
        flags | header.flags
    });
    assert_eq!(flags, shutdown::BOTH);
    guest.send(&with(&base, op::RST), &[]);
    assert_eq!(guest.counter("connections_open"), 0);
    assert_eq!(guest.counter("connections_reset"), 0);

    // The guest does not listen any more.
    let (mut client, base) = guest.connection();
    guest.send(&shut(&base, shutdown::RECEIVE), &[]);
    let error = client.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    guest.send(&data(&base, 2), b"ok");
    let mut got = [0; 2];
    client.read_exact(&mut got).unwrap();
    drop(client);
    let last = guest.one();
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, shutdown::BOTH));
}

#[test]
fn a_client_that_is_killed_ends_its_connection() {
    let mut guest = Guest::started();
    let (client, base) = guest.connection();
    drop(client);
    let packets = guest.received();
    let flags = packets
        .iter()
        .fold(0, |all, (header, _)| all | header.flags);
    assert_eq!(flags, shutdown::BOTH);
    // What the guest still sends goes nowhere, and does not hold it up.
    for _ in 0..20 {
        guest.send(&data(&base, 60_000), &pattern(60_000));
    }
    guest.send(&with(&base, op::CREDIT_REQUEST), &[]);
    let last = guest.received().pop().unwrap().0;
    assert_eq!((last.op, last.fwd_cnt), (op::CREDIT_UPDATE, 1_200_000));
    guest.send(&shut(&base, shutdown::BOTH), &[]);
    assert_eq!(guest.one().op, op::RST);
    let (_client, _) = guest.connection();
}

#[test]
fn the_guests_credit_is_kept_to() {
    let mut guest = Guest::started();
    let (mut client, request) = guest.client(52);
    let mut base = Header {
        buf_alloc: 5000,
        ..answer(&request)
    };
    guest.send(&with(&base, op::RESPONSE), &[]);
    client.write_all(&pattern(12_000)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let sum = |packets: &[(Header, Vec<u8>)]| packets.iter().map(|p| p.1.len()).sum::<usize>();
    let packets = guest.received();
    assert_eq!(sum(&packets), 5000);
    let last = packets.last().unwrap().0.op;
    assert_eq!(last, op::CREDIT_REQUEST);
    assert!(!guest.host_has_something(0), "nothing spins");
    // No room yet; it is not asked again and again.
    guest.send(&with(&base, op::CREDIT_UPDATE), &[]);
    assert!(guest.received().is_empty());
    // A nonsense count leaves no room either.
    base.fwd_cnt = 5001;
    guest.send(&with(&base, op::CREDIT_UPDATE), &[]);
    assert!(guest.received().is_empty());
    base.fwd_cnt = 4000;
    guest.send(&with(&base, op::CREDIT_UPDATE), &[]);
    let packets = guest.received();
    assert_eq!(sum(&packets), 4000);
    base.fwd_cnt = 9000;
    guest.send(&with(&base, op::CREDIT_UPDATE), &[]);
    let packets = guest.received();
    assert_eq!(sum(&packets), 3000);
    let last = packets.last().unwrap().0;
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, shutdown::SEND));
    assert_eq!(guest.counter("credit_stalls"), 2);
}

#[test]
fn a_program_that_does_not_read_holds_up_its_guest_alone() {
    let mut guest = Guest::started();
    let (mut client, base) = guest.connection();
    let piece = pattern(50_000);
    let mut sent = 0_usize;
    let mut told = (256 << 10, 0_u32);
    // As much as the guest may.
    loop {
        let room = told.0 - (sent as u32 - told.1);
        let now = piece.len().min(room as usize);
        if now == 0 {
            break;
        }
        guest.send(&data(&base, now), &piece[..now]);
        sent += now;
        guest.send(&with(&base, op::CREDIT_REQUEST), &[]);
        for (header, _) in guest.received() {
            told = (header.buf_alloc, header.fwd_cnt);
        }
    }
    assert_eq!(guest.counter("bytes_held"), 256 << 10);
    assert!(!guest.host_has_something(0), "nothing spins");
    // Others go on.
    let (mut other, other_base) = guest.connection();
    guest.send(&data(&other_base, 2), b"go");
    let mut got = [0; 2];
    other.read_exact(&mut got).unwrap();
    // The guest closes; nothing of it is lost.
    guest.send(&shut(&base, shutdown::BOTH), &[]);
    assert_eq!(guest.one().op, op::RST);
    let reader = std::thread::spawn(move || {
        let all = rest(&mut client);
        (all.len(), all)
    });
    while !reader.is_finished() {
        guest.host_has_something(10);
        guest.serve().unwrap();
    }
    let (len, all) = reader.join().unwrap();
    assert_eq!(len, sent);
    assert!(
        all.chunks(50_000)
            .all(|chunk| chunk == &piece[..chunk.len()])
    );
    assert_eq!(guest.counter("bytes_held"), 0);
}

#[test]
fn a_guest_that_ignores_its_credit_is_cut_off() {
    let mut guest = Guest::started();
    let (mut client, base) = guest.connection();
    let piece = pattern(60_000);
    let mut sent = 0;
    let end = loop {
        guest.send(&data(&base, piece.len()), &piece);
        sent += piece.len();
        assert!(sent < 2 << 20, "there is no limit");
        let packets = guest.received();
        if let Some((header, _)) = packets.iter().find(|(h, _)| h.op == op::RST) {
            break *header;
        }
    };
    assert_eq!(end.dst_port, base.src_port);
    assert_eq!(guest.counter("connections_reset"), 1);
    assert_eq!(guest.counter("connections_open"), 0);
    // What came before arrives.
    let reader = std::thread::spawn(move || rest(&mut client).len());
    while !reader.is_finished() {
        guest.host_has_something(10);
        guest.serve().unwrap();
    }
    assert_eq!(reader.join().unwrap(), sent - piece.len());
}

#[test]
fn without_buffers_nothing_is_read_and_nothing_spins() {
    let mut guest = Guest::started();
    let (mut client, _) = guest.connection();
    guest.generous = false;
    let sent = pattern(900_000);
    client.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut got = Vec::new();
    let take = |packets: Vec<(Header, Vec<u8>)>, got: &mut Vec<u8>| {
        for (header, data) in packets {
            assert_eq!(header.op, op::RW);
            got.extend(data);
        }
    };
    // As much as sockets and buffers take.
    while let Ok(bytes) = client.write(&sent[written..]) {
        written += bytes;
        take(guest.received(), &mut got);
    }
    assert_eq!(guest.kept.len(), usize::from(SIZE));
    assert!(!guest.host_has_something(0), "nothing spins");
    guest.generous = true;
    for head in std::mem::take(&mut guest.kept) {
        guest.offer_rx(head);
    }
    take(guest.received(), &mut got);
    while written < sent.len() {
        written += client.write(&sent[written..]).unwrap();
        take(guest.received(), &mut got);
    }
    assert!(got == sent);
}

#[test]
fn strays_are_answered_by_rst() {
    let mut guest = Guest::started();
    for (change, answered) in [
        (
            Header {
                kind: 2,
                ..to_host(5, op::REQUEST)
            },
            true,
        ),
        (
            Header {
                kind: 99,
                ..to_host(5, op::RW)
            },
            true,
        ),
        (
            Header {
                dst_cid: 3,
                ..to_host(5, op::REQUEST)
            },
            true,
        ),
        (
            Header {
                dst_cid: HOST_CID | 1 << 32,
                ..to_host(5, op::REQUEST)
            },
            true,
        ),
        (to_host(5, 0), true),
        (to_host(5, 77), true),
        (to_host(5, op::RESPONSE), true),
        (to_host(5, op::CREDIT_REQUEST), true),
        (to_host(u32::MAX, op::REQUEST), true),
        (
            Header {
                src_port: u32::MAX,
                ..to_host(5, op::REQUEST)
            },
            true,
        ),
        (to_host(5, op::RST), false),
        (
            Header {
                kind: 99,
                ..to_host(5, op::RST)
            },
            false,
        ),
        (
            Header {
                src_cid: 8,
                ..to_host(5, op::REQUEST)
            },
            false,
        ),
        (
            Header {
                src_cid: 1 << 32 | u64::from(CID),
                ..to_host(5, op::REQUEST)
            },
            false,
        ),
    ] {
        guest.send(&change, &[]);
        if answered {
            assert_eq!(guest.one(), change.reply(op::RST));
        } else {
            assert!(guest.received().is_empty(), "{change:?}");
        }
    }
    assert_eq!(guest.counter("drops"), 2);
    // Without rx buffers they wait, up to a point.
    guest.generous = false;
    for _ in 0..3000 {
        guest.send(&to_host(5, op::RW), &[]);
    }
    assert_eq!(guest.counter("drops"), 2 + 3000 - 1024 - u64::from(SIZE));
}

#[test]
fn what_breaks_the_rules_of_a_connection_ends_it() {
    for op in [op::REQUEST, op::RESPONSE, 0, 99] {
        let mut guest = Guest::started();
        let (mut client, base) = guest.connection();
        guest.send(&with(&base, op), &[]);
        assert_eq!(guest.one().op, op::RST, "{op}");
        assert_eq!(rest(&mut client), b"");
    }
    // Data after it has said that there is none.
    let mut guest = Guest::started();
    let (_client, base) = guest.connection();
    guest.send(&shut(&base, shutdown::SEND), &[]);
    guest.send(&data(&base, 1), b"x");
    assert_eq!(guest.one().op, op::RST);
    // Data before it has accepted.
    let (_client, request) = guest.client(1);
    guest.send(&data(&answer(&request), 1), b"x");
    assert_eq!(guest.one().op, op::RST);
}

#[test]
fn chains_that_cannot_be_are_told() {
    let header = to_host(5, op::RW);
    let mut guest = Guest::started();
    let long = Header {
        len: u32::MAX,
        ..header
    };
    assert!(guest.try_send(&long, &[1; 100]).is_err());
    let mut guest = Guest::started();
    guest.tx.descriptor(&guest.memory, 0, TX_DATA, 43, 0);
    guest.tx.offer(&guest.memory, 0);
    assert!(guest.device.process(1).is_err());
    let mut guest = Guest::started();
    guest.tx.descriptor(&guest.memory, 0, TX_DATA, 44, WRITE);
    guest.tx.offer(&guest.memory, 0);
    assert!(guest.device.process(1).is_err());
    // Buffers of the rx queue are only looked at when there is something for them.
    for (len, flags) in [(43, WRITE), (100, 0)] {
        let mut guest = Guest::new();
        guest.start();
        guest.rx.descriptor(&guest.memory, 0, RX_DATA, len, flags);
        guest.rx.offer(&guest.memory, 0);
        guest.serve().unwrap();
        assert!(guest.try_send(&header, &[]).is_err());
    }
}

#[test]
fn a_reset_ends_all_connections() {
    let mut guest = Guest::started();
    let (mut client, _) = guest.connection();
    let mut waiting = UnixStream::connect(guest.path("v.sock")).unwrap();
    guest.serve().unwrap();
    guest.device.reset();
    assert_eq!(rest(&mut client), b"");
    assert_eq!(rest(&mut waiting), b"");
    assert_eq!(guest.counter("connections_open"), 0);
    // And with a new driver there are new ones.
    let mut next = Guest {
        rx: Queue::new(0),
        tx: Queue::new(1),
        event: Queue::new(2),
        ..guest
    };
    next.memory
        .write_slice(&[0; 0x1_0000], GuestAddress(0x4000))
        .unwrap();
    next.start();
    for index in 0..SIZE {
        next.offer_rx(index);
    }
    let (_client, _) = next.connection();
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let mut guest = Guest::started();
    let (_client, base) = guest.connection();
    let saved = guest.device.save();
    let DeviceState::Vsock(VsockState {
        rings: Some([Some(rx), Some(tx), Some(_)]),
        next_port,
    }) = saved
    else {
        panic!("{saved:?}");
    };
    assert_eq!((rx.next_avail, tx.next_avail), (1, 1));
    assert!(next_port > base.dst_port);

    guest.device.reset();
    guest.start();
    guest.device.restore(&saved);
    guest.serve().unwrap();
    assert_eq!(guest.event.next(&guest.memory), None);
    guest.event.descriptor(&guest.memory, 0, TX_DATA, 8, WRITE);
    guest
        .memory
        .write_obj(u64::MAX, GuestAddress(TX_DATA))
        .unwrap();
    guest.event.offer(&guest.memory, 0);
    guest.serve().unwrap();
    assert_eq!(guest.event.next(&guest.memory), Some((0, 4)));
    let event: u32 = guest.memory.read_obj(GuestAddress(TX_DATA)).unwrap();
    assert_eq!(event, 0);
    guest.event.offer(&guest.memory, 0);
    guest.serve().unwrap();
    assert_eq!(guest.event.next(&guest.memory), None, "once");
    let (_client, request) = guest.client(52);
    assert_eq!(request.src_port, next_port);
}

#[test]
fn a_busy_listener_is_tried_again() {
    let mut guest = Guest::started();
    let program = UnixListener::bind(guest.path("v.sock_9")).unwrap();
    // SAFETY: no pointers. The backlog gets as short as it can be.
    assert_eq!(unsafe { libc::listen(program.as_raw_fd(), 0) }, 0);
    let first = Header {
        src_port: 1,
        ..to_host(9, op::REQUEST)
    };
    let second = Header {
        src_port: 2,
        ..to_host(9, op::REQUEST)
    };
    guest.send(&first, &[]);
    assert_eq!(guest.one().dst_port, 1);
    guest.send(&second, &[]);
    assert!(guest.received().is_empty());
    let Progress::Wait(time) = guest.device.process(0).unwrap() else {
        panic!("nobody would try again");
    };
    assert!(time < Duration::from_millis(50));
    let (_accepted, _) = program.accept().unwrap();
    std::thread::sleep(time);
    let next = guest.one();
    assert_eq!((next.op, next.dst_port), (op::RESPONSE, 2));
}

#[test]
fn many_connections_take_turns() {
    let mut guest = Guest::started();
    let connections: Vec<_> = (0..100).map(|_| guest.connection()).collect();
    for (index, (client, _)) in connections.iter().enumerate() {
        let mut client = client;
        client.write_all(&[index as u8; 60_000]).unwrap();
    }
    guest.generous = false;
    let mut got = [0_usize; 100];
    let mut first_of_last = None;
    let mut packets = 0;
    while got.iter().any(|bytes| *bytes < 60_000) {
        for (header, data) in guest.received() {
            let index = connections
                .iter()
                .position(|(_, base)| base.dst_port == header.src_port)
                .unwrap();
            assert!(data.iter().all(|byte| *byte == index as u8));
            got[index] += data.len();
            packets += 1;
            if got.iter().all(|bytes| *bytes > 0) {
                first_of_last.get_or_insert(packets);
            }
        }
        for head in std::mem::take(&mut guest.kept) {
            guest.offer_rx(head);
        }
    }
    // Of 1,500 packets. A turn is one buffer at first, then four; the device hears of 64 sockets at once.
    assert!(first_of_last.unwrap() <= 400, "{first_of_last:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends and a client does, in whatever order: no panic, no more than the guest's credit is sent, no more
    /// than what was announced is kept, and what arrives is what was sent.
    #[test]
    fn nothing_upsets_a_connection(
        steps in prop::collection::vec((0_u8..10, any::<u16>(), any::<u32>()), 1..60),
    ) {
        let mut guest = Guest::started();
        let (client, base) = guest.connection();
        let mut client = Some(client);
        client.as_ref().unwrap().set_nonblocking(true).unwrap();
        let mut base = Header { buf_alloc: 10_000, ..base };
        let bytes = |from: usize, len: usize| -> Vec<u8> {
            (from..from + len).map(|index| (index * 7 % 251) as u8).collect()
        };
        // Bytes that each end has written and read.
        let (mut by_guest, mut at_host, mut by_host, mut at_guest) = (0, 0, 0, 0);
        let mut told = false;
        for (kind, amount, word) in steps {
            let amount = usize::from(amount);
            let header = match kind {
                0..=2 => {
                    let len = amount % 60_000;
                    let header = data(&base, len);
                    guest.send(&header, &bytes(by_guest, len));
                    by_guest += len;
                    told = true;
                    None
                }
                3 => {
                    if let Some(client) = &mut client
                        && let Ok(len) = client.write(&bytes(by_host, amount)) {
                        by_host += len;
                    }
                    None
                }
                4 => {
                    let mut buffer = vec![0; amount];
                    if let Some(client) = &mut client
                        && let Ok(len) = client.read(&mut buffer) {
                        prop_assert!(buffer[..len] == bytes(at_host, len));
                        at_host += len;
                    }
                    None
                }
                5 => {
                    base.fwd_cnt = at_guest as u32;
                    base.buf_alloc = amount as u32;
                    Some(with(&base, op::CREDIT_UPDATE))
                }
                6 => Some(with(&base, op::CREDIT_REQUEST)),
                7 if word % 4 == 0 => Some(shut(&base, word >> 30)),
                8 if word % 8 == 0 => {
                    client = None;
                    None
                }
                9 if word % 8 == 0 => Some(Header { op: amount as u16, flags: word, ..base }),
                _ => None,
            };
            if let Some(header) = header {
                guest.send(&header, &[]);
                told = true;
            }
            for (_, data) in guest.received() {
                prop_assert!(data == bytes(at_guest, data.len()));
                at_guest += data.len();
                if !data.is_empty() && told {
                    prop_assert!((at_guest as u32).wrapping_sub(base.fwd_cnt) <= base.buf_alloc);
                }
            }
            prop_assert!(guest.counter("bytes_held") <= 256 << 10);
        }
        prop_assert!(at_host <= by_guest && at_guest <= by_host);
    }
}
