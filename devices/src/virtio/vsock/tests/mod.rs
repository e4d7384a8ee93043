//! The device as a whole: a driver's queues on one side, real sockets on the other.

mod flow;
mod life;
mod rules;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::super::negotiation::QueueSetup;
use super::super::testing::{NEXT, WRITE};
use super::super::{
    Activation, Broken, Cursor, DeviceState, Interrupt, Memory, Progress, Ring, VirtioDevice,
    feature,
};
use super::listener::Listener;
use super::muxer::{Muxer, Next};
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
