//! Socket device: packets of all kinds from a guest, programs of the host's that listen, call, read, write, close halves and go
//! away; other rings, resets, migration.
//!
//! Packets without a valid address go nowhere at once, so most get one here.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use devices::virtio::VirtioDevice;
use devices::virtio::vsock::Vsock;
use devices::virtio::vsock::packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op, shutdown};
use tempfile::TempDir;

use crate::script::{Chain, Move, Reader};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

const GUEST_CID: u32 = 3;
/// Ports of the host that somebody listens on.
const PORTS: [u32; 2] = [1000, 1001];
/// The port that the first client of the host's gets.
const FIRST_CLIENT: u32 = 1 << 30;
/// Sockets that the host's programs have at a time.
const MOST_SOCKETS: usize = 16;

struct Programs {
    directory: TempDir,
    listeners: Vec<UnixListener>,
    sockets: Vec<UnixStream>,
    accepted: u64,
    came: u64,
    sent: u64,
}

impl Programs {
    fn new() -> std::io::Result<Self> {
        let directory = TempDir::new()?;
        let mut listeners = Vec::new();
        for port in PORTS {
            let listener = UnixListener::bind(directory.path().join(format!("v_{port}")))?;
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
        Ok(Self {
            directory,
            listeners,
            sockets: Vec::new(),
            accepted: 0,
            came: 0,
            sent: 0,
        })
    }

    fn keep(&mut self, socket: UnixStream) {
        let nonblocking = socket.set_nonblocking(true);
        nonblocking.expect("a socket");
        if self.sockets.len() < MOST_SOCKETS {
            self.sockets.push(socket);
        }
    }

    fn call(&mut self, words: &[u8]) {
        if let Ok(mut socket) = UnixStream::connect(self.directory.path().join("v")) {
            socket.set_nonblocking(true).expect("a socket");
            let _ = socket.write(words);
            self.keep(socket);
        }
    }
}

impl Rig for Programs {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        let device = Vsock::new(GUEST_CID, &self.directory.path().join("v"));
        Box::new(device.expect("nobody else is there"))
    }

    fn host(&mut self, bytes: &[u8]) {
        let mut from = Reader::new(bytes);
        let (what, which) = (from.u8() % 8, usize::from(from.u8()));
        match what {
            0 => {
                let port = from.u16();
                return self.call(format!("CONNECT {port}\n").as_bytes());
            }
            1 => return self.call(from.bytes(64)),
            _ => {}
        }
        if self.sockets.is_empty() {
            return;
        }
        let which = which % self.sockets.len();
        let socket = &mut self.sockets[which];
        match what {
            2 | 3 => {
                let bytes = vec![0x33; usize::from(from.u16())];
                self.sent += socket.write(&bytes).unwrap_or(0) as u64;
            }
            4 | 5 => {
                let mut bytes = vec![0; usize::from(from.u16())];
                self.came += socket.read(&mut bytes).unwrap_or(0) as u64;
            }
            6 => {
                let how = match from.u8() % 3 {
                    0 => Shutdown::Read,
                    1 => Shutdown::Write,
                    _ => Shutdown::Both,
                };
                // It may be over already.
                let _ = socket.shutdown(how);
            }
            _ => drop(self.sockets.swap_remove(which)),
        }
    }

    fn look(&mut self) {
        for index in 0..self.listeners.len() {
            if let Ok((socket, _)) = self.listeners[index].accept() {
                self.accepted += 1;
                self.keep(socket);
            }
        }
    }

    fn polish(&mut self, queue: u8, bytes: &mut Vec<u8>) {
        let payload = bytes.len().wrapping_sub(HEADER_LEN) as u32;
        let Some(first) = bytes.first_chunk_mut::<HEADER_LEN>() else {
            return;
        };
        // One in eight stays as it is.
        if queue != 1 || first[0] & 7 == 7 {
            return;
        }
        let mut header = Header::from_bytes(first);
        (header.src_cid, header.dst_cid) = (GUEST_CID.into(), HOST_CID);
        header.kind = TYPE_STREAM;
        if header.len == 0 {
            header.len = payload;
        }
        *first = header.to_bytes();
    }

    fn reached(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("accepted", self.accepted),
            ("came", self.came),
            ("sent", self.sent),
        ]
    }
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    let mut script = Reader::new(data);
    script.u8();
    let mut programs = Programs::new().expect("sockets in a temporary directory");
    let reached = session::follow(&mut programs, &mut script);
    assert!(reached["came"] <= reached["bytes_from_guest"] + 32 * reached["connections_by_host"]);
    assert!(reached["bytes_to_guest"] <= reached["sent"] + 64 * (MOST_SOCKETS as u64 + 1));
    reached
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let packet = |guest: u32, host: u32, op: u16, flags: u32, payload: &[u8]| {
        let header = Header {
            src_port: guest,
            dst_port: host,
            op,
            flags,
            buf_alloc: 65536,
            ..Header::default()
        };
        let bytes = [&header.to_bytes()[..], payload].concat();
        Chain {
            cuts: vec![HEADER_LEN as u16],
            ..Chain::new(1, &bytes, &[])
        }
        .offer()
    };
    let send = Move::Kick(1);
    let room = |count: usize| {
        let mut moves: Vec<_> = (0..count)
            .map(|_| Chain::new(0, &[], &[HEADER_LEN as u16, 4096]).offer())
            .collect();
        moves.push(Move::Kick(0));
        moves
    };
    let host = |bytes: &[u8]| Move::Host(bytes.to_vec());
    let guest_calls = [
        room(8),
        vec![
            Move::ReadConfig(0, 8),
            packet(5, 1000, op::REQUEST, 0, &[]),
            packet(6, 7777, op::REQUEST, 0, &[]),
            send.clone(),
            packet(5, 1000, op::RW, 0, b"hello"),
            packet(5, 1000, op::CREDIT_REQUEST, 0, &[]),
            send.clone(),
            host(&[4, 0, 100, 0]),
            host(&[2, 0, 200, 0]),
            packet(5, 1000, op::CREDIT_UPDATE, 0, &[]),
            packet(5, 1000, op::SHUTDOWN, shutdown::SEND, &[]),
            send.clone(),
            host(&[2, 0, 200, 0]),
            packet(5, 1000, op::SHUTDOWN, shutdown::BOTH, &[]),
            packet(9, 9, op::RW, 0, b"nobody"),
            send.clone(),
        ],
        room(4),
    ]
    .concat();
    let host_calls = [
        room(8),
        vec![
            host(&[0, 0, 80, 0]),
            host(&[1, 0, b'C', b'O', b'N']),
            host(&[1, 0, b'G', b'E', b'T', b'\n']),
            packet(80, FIRST_CLIENT, op::RESPONSE, 0, &[]),
            send.clone(),
            host(&[2, 0, 255, 255]),
            host(&[2, 0, 255, 255]),
        ],
        room(20),
        vec![
            packet(80, FIRST_CLIENT, op::RW, 0, &[9; 100]),
            send.clone(),
            host(&[4, 0, 255, 0]),
            host(&[6, 0, 1]),
            host(&[0, 0, 81, 0]),
            packet(81, FIRST_CLIENT + 1, op::RST, 0, &[]),
            send.clone(),
            host(&[7, 0]),
            Chain::new(2, &[], &[4]).offer(),
            Move::Kick(2),
            Move::Migrate,
            Move::Kick(2),
        ],
    ]
    .concat();
    let far = Header {
        src_cid: 7,
        dst_cid: 99,
        len: 1 << 31,
        ..Header::default()
    };
    let raw = [
        Chain::new(1, &far.to_bytes(), &[]).offer(),
        send.clone(),
        Move::Restart(0, 8, 0),
        Chain::new(1, &[1; 20], &[]).offer(),
        send.clone(),
        Move::Restart(1 << 29, 8, 4),
        packet(5, 1001, op::REQUEST, 0, &[]),
        packet(5, 1001, 99, 0, &[]),
        send.clone(),
        Chain::new(0, &[], &[10]).offer(),
        Move::Kick(0),
    ];
    let stranger = [
        Chain::new(1, &Header { len: 0, ..far }.to_bytes(), &[]).offer(),
        packet(5, u32::MAX, op::REQUEST, 0, &[]),
        packet(u32::MAX, 5, op::REQUEST, 0, &[]),
        send.clone(),
    ];
    let stall = [
        room(2),
        vec![
            packet(5, 1000, op::REQUEST, 0, &[]),
            send.clone(),
            host(&[2, 0, 255, 255]),
            host(&[2, 0, 255, 255]),
        ],
        room(40),
        vec![host(&[2, 0, 255, 255])],
        room(20),
    ]
    .concat();
    vec![
        seed(
            "guest-calls",
            Move::script(0, &guest_calls),
            &[
                "connections_by_guest",
                "accepted",
                "came",
                "bytes_to_guest",
                "connections_refused",
            ],
        ),
        seed(
            "host-calls",
            Move::script(0, &host_calls),
            &[
                "connections_by_host",
                "bytes_from_guest",
                "bytes_to_guest",
                "came",
                "migrations",
            ],
        ),
        seed(
            "raw",
            Move::script(0, &raw),
            &["broken", "connections_by_guest"],
        ),
        seed(
            "stranger",
            Move::script(0, &stranger),
            &["drops", "completed"],
        ),
        seed(
            "stall",
            Move::script(0, &stall),
            &["credit_stalls", "bytes_to_guest"],
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
