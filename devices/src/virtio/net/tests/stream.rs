//! A passt of the test's own, at the other end of a real socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::passt::Passt;
use super::super::{Link, NetState, header};
use super::harness::{Driver, MERGED, WRITE, ethernet, frame};
use crate::virtio::rate_limiter::{BucketConfig, RateLimiterConfig};
use crate::virtio::{DeviceState, Progress, RingState, Update};

const RX: usize = 0;
const TX: usize = 1;

struct Peer {
    listener: UnixListener,
    stream: UnixStream,
    _dir: TempDir,
}

fn connected() -> (Link, Peer) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let passt = Passt::open(&path).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let patience = Some(Duration::from_secs(10));
    stream.set_read_timeout(patience).unwrap();
    let peer = Peer {
        listener,
        stream,
        _dir: dir,
    };
    (Link::Passt(passt), peer)
}

fn started(features: u64) -> (Driver, Peer) {
    let (link, peer) = connected();
    (Driver::start(link, 1, features), peer)
}

impl Peer {
    fn receive(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).unwrap();
        let mut bytes = vec![0; u32::from_be_bytes(prefix) as usize];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(&prefixed(frame)).unwrap();
    }
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

#[test]
fn what_the_driver_sends_arrives_however_it_is_cut() {
    let (mut driver, mut peer) = started(MERGED);
    for (len, mark, cut) in [
        (1500, 1, 5000),
        (300, 2, 12),
        (60, 3, 5),
        (1500, 4, 1000),
        (1500, 5, 24),
    ] {
        driver.transmit(0, &frame(len, mark), cut);
        driver.kick(TX);
        assert_eq!(peer.receive(), ethernet(len, mark));
        assert_eq!(driver.used(TX).len(), 1);
    }
    assert_eq!(
        (driver.count("tx_packets"), driver.count("tx_bytes")),
        (5, 4860)
    );
}

#[test]
fn what_is_no_frame_is_dropped_and_given_back() {
    let (mut driver, mut peer) = started(MERGED);
    driver.offer(TX, &[0], 0);
    driver.offer(TX, &[11], 0);
    driver.offer(TX, &[12, 13], 0);
    driver.offer(TX, &[2000], WRITE);
    driver.offer(TX, &[12, 65_558], 0);
    driver.offer(TX, &[0, 0, 0], 0);
    // A header that asks for a checksum that was not offered.
    let mut bad = frame(60, 1);
    bad[0] = 1;
    driver.transmit(0, &bad, 100);
    driver.transmit(0, &frame(60, 2), 100);
    driver.kick(TX);
    assert_eq!(peer.receive(), ethernet(60, 2));
    assert_eq!(driver.used(TX).len(), 8);
    let dropped = ["tx_dropped_short", "tx_dropped_long", "tx_dropped_header"];
    assert_eq!(dropped.map(|name| driver.count(name)), [5, 1, 1]);
    assert_eq!(driver.events.broken.load(Ordering::Relaxed), 0);
}

#[test]
fn a_frame_is_merged_from_small_buffers() {
    let (mut driver, mut peer) = started(MERGED);
    let chains: Vec<_> = [&[100_u32, 50][..], &[12], &[500], &[1500], &[1500]]
        .iter()
        .map(|lengths| driver.offer(RX, lengths, WRITE))
        .collect();
    driver.kick(RX);
    peer.send(&ethernet(1000, 7));
    driver.wait_and_turn();
    // 1012 bytes with the header.
    let used = driver.used(RX);
    let lengths: Vec<_> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lengths, [150, 12, 500, 350]);
    let heads: Vec<_> = chains.iter().take(4).map(|(head, _)| *head).collect();
    assert_eq!(
        used.iter().map(|(head, _)| *head).collect::<Vec<_>>(),
        heads
    );
    let mut bytes = Vec::new();
    for ((_, places), pieces) in chains.iter().zip([&[100, 50][..], &[12], &[500], &[350]]) {
        for (at, len) in places.iter().zip(pieces) {
            bytes.extend(driver.bytes(*at, *len));
        }
    }
    assert_eq!(&bytes[..header::LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
    assert_eq!(&bytes[header::LEN..], ethernet(1000, 7));
    assert_eq!(driver.events.used[RX].load(Ordering::Relaxed), 1);
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    let (mut driver, mut peer) = started(MERGED);
    let mut places = Vec::new();
    for _ in 0..20 {
        places.push(driver.offer(RX, &[2000], WRITE).1[0]);
    }
    driver.kick(RX);
    let stream: Vec<u8> = (0..20)
        .flat_map(|mark| prefixed(&ethernet(60 + usize::from(mark), mark)))
        .collect();
    for piece in stream.chunks(7) {
        peer.stream.write_all(piece).unwrap();
        driver.turn();
    }
    assert_eq!(driver.used(RX).len(), 20);
    for (mark, at) in (0..20).zip(places) {
        let bytes = driver.bytes(at, header::LEN + 60 + usize::from(mark));
        assert_eq!(bytes[10..12], [1, 0], "one buffer");
        assert_eq!(
            &bytes[header::LEN..],
            ethernet(60 + usize::from(mark), mark)
        );
    }
    assert!(!driver.readable());
}

#[test]
fn without_buffers_frames_wait_and_nothing_spins() {
    let (mut driver, mut peer) = started(MERGED);
    driver.kick(RX);
    peer.send(&ethernet(3000, 1));
    driver.wait_and_turn();
    assert!(!driver.readable(), "nothing to be done without buffers");
    assert_eq!(driver.count("rx_no_buffers"), 1);
    // Not enough yet: the frame goes on waiting, part of it in place. A kick that is old makes no difference.
    driver.offer(RX, &[2000], WRITE);
    for _ in 0..3 {
        let progress = driver.worker.lock().service(RX as u16);
        assert!(matches!(progress, Progress::Wait(_)));
    }
    assert!(driver.used(RX).is_empty() && !driver.readable());
    driver.offer(RX, &[2000], WRITE);
    driver.kick(RX);
    let lengths = |used: Vec<(u16, u32)>| used.iter().map(|(_, len)| *len).collect::<Vec<_>>();
    assert_eq!(lengths(driver.used(RX)), [2000, 1012]);
    assert_eq!(driver.count("rx_packets"), 1);

    // Without any hope it is dropped in the end, and the buffers are there for others.
    driver.offer(RX, &[2000], WRITE);
    peer.send(&ethernet(3000, 2));
    driver.wait_and_turn();
    let begin = Instant::now();
    while driver.count("rx_dropped_no_fit") == 0 {
        assert!(begin.elapsed().as_secs() < 60, "it is never dropped");
        let _ = driver.worker.lock().service(RX as u16);
    }
    assert!(begin.elapsed().as_millis() > 500, "{:?}", begin.elapsed());
    peer.send(&ethernet(60, 3));
    driver.wait_and_turn();
    assert_eq!(lengths(driver.used(RX)), [72]);
}

#[test]
fn unmerged_frames_fit_one_buffer_or_are_dropped() {
    let (mut driver, mut peer) = started(0);
    let (head, places) = driver.offer(RX, &[12, 600], WRITE);
    driver.kick(RX);
    peer.send(&ethernet(601, 1));
    peer.send(&ethernet(600, 2));
    driver.wait_and_turn();
    driver.turn();
    assert_eq!(driver.used(RX), [(head, 612)]);
    assert_eq!(driver.bytes(places[1], 600), ethernet(600, 2));
    assert_eq!(
        driver.bytes(places[0], 12),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
    assert_eq!(driver.count("rx_dropped_no_fit"), 1);
}

#[test]
fn a_full_socket_holds_frames_up_and_loses_none() {
    let (mut driver, mut peer) = started(MERGED);
    let mut sent = 0_u8;
    while driver.count("tx_no_room") == 0 {
        driver.transmit(0, &frame(60_000, sent), 4096);
        driver.kick(TX);
        sent += 1;
        assert!(sent < 50, "the socket is never full");
    }
    assert!(!driver.readable(), "no room, nothing to do");
    let mut given = driver.used(TX).len();
    for mark in 0..sent {
        assert_eq!(peer.receive(), ethernet(60_000, mark));
        driver.turn();
    }
    given += driver.used(TX).len();
    assert_eq!(given, usize::from(sent));
    assert_eq!(driver.count("tx_packets"), u64::from(sent));
}

#[test]
fn a_peer_that_goes_is_missed_and_found_again() {
    let (mut driver, mut peer) = started(MERGED);
    driver.offer(RX, &[2000], WRITE);
    driver.kick(RX);
    assert_eq!(driver.status(), 1);
    // In the middle of a frame.
    peer.stream
        .write_all(&prefixed(&ethernet(100, 1))[..50])
        .unwrap();
    peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(
        driver.worker.lock().service_host(),
        Progress::Wait(_)
    ));
    assert_eq!((driver.status(), driver.count("link_lost")), (0, 1));
    assert_eq!(driver.events.config.load(Ordering::Relaxed), 1);
    assert!(!driver.readable());
    driver.transmit(0, &frame(100, 2), 4096);
    driver.kick(TX);
    assert_eq!(
        (driver.used(TX).len(), driver.count("tx_dropped_link_down")),
        (1, 1)
    );

    // The listener takes whoever comes.
    let _ = driver.worker.lock().service_host();
    (peer.stream, _) = peer.listener.accept().unwrap();
    assert_eq!(driver.status(), 1);
    assert_eq!(driver.events.config.load(Ordering::Relaxed), 2);
    peer.send(&ethernet(100, 3));
    driver.wait_and_turn();
    assert_eq!(driver.used(RX).len(), 1);
    driver.transmit(0, &frame(100, 4), 4096);
    driver.kick(TX);
    assert_eq!(peer.receive(), ethernet(100, 4));
}

#[test]
fn nonsense_breaks_the_link_and_nothing_else() {
    for len in [0_u32, 13, 65_558, u32::MAX] {
        let (mut driver, mut peer) = started(MERGED);
        driver.offer(RX, &[2000], WRITE);
        driver.kick(RX);
        peer.stream.write_all(&len.to_be_bytes()).unwrap();
        let _ = driver.worker.lock().service_host();
        assert_eq!((driver.status(), driver.count("link_lost")), (0, 1));
        assert_eq!(driver.events.broken.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_peer_that_does_not_come_back_is_looked_for_again() {
    let (driver, mut peer) = started(MERGED);
    let path = peer._dir.path().join("socket");
    std::fs::remove_file(&path).unwrap();
    peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    for _ in 0..3 {
        let progress = driver.worker.lock().service_host();
        assert!(matches!(progress, Progress::Wait(time) if time.as_millis() >= 1000));
        assert_eq!(driver.status(), 0);
    }
    assert_eq!(driver.count("link_lost"), 1);
    peer.listener = UnixListener::bind(&path).unwrap();
    assert_eq!(driver.worker.lock().service_host(), Progress::Done);
    assert_eq!(driver.status(), 1);
}

#[test]
fn a_connection_that_was_given_does_not_come_back() {
    let (mine, mut other) = UnixStream::pair().unwrap();
    let mut driver = Driver::start(Link::Passt(Passt::over(mine).unwrap()), 1, MERGED);
    driver.offer(RX, &[2000], WRITE);
    driver.kick(RX);
    other.write_all(&prefixed(&ethernet(60, 1))).unwrap();
    driver.wait_and_turn();
    assert_eq!(driver.used(RX).len(), 1);
    drop(other);
    driver.wait_and_turn();
    let _ = driver.worker.lock().service_host();
    assert_eq!((driver.status(), driver.count("link_lost")), (0, 1));
}

#[test]
fn drivers_that_break_the_rules_must_reset() {
    // A buffer without room for the header; one to be read.
    for (lengths, flags) in [(&[11_u32][..], WRITE), (&[2000], 0)] {
        let (mut driver, mut peer) = started(MERGED);
        driver.offer(RX, lengths, flags);
        peer.send(&ethernet(60, 1));
        driver.wait_and_turn();
        assert_eq!(driver.events.broken.load(Ordering::Relaxed), 1);
        assert!(!driver.readable(), "it stands still");
        // After that it begins anew.
        driver.worker.lock().stop();
    }
}

#[test]
fn limits_hold_up_both_directions_and_can_be_lifted() {
    let (link, mut peer) = connected();
    let bucket = |size| BucketConfig {
        size,
        one_time_burst: None,
        refill_time: 3_600_000,
    };
    let limits = |size| RateLimiterConfig {
        bandwidth: None,
        ops: Some(bucket(size)),
    };
    let mut driver = Driver::with_limits(link, 1, MERGED, limits(3));
    for mark in 0..5 {
        driver.offer(RX, &[2000], WRITE);
        driver.transmit(0, &frame(60, mark), 4096);
        peer.send(&ethernet(60, mark));
    }
    let progress = driver.worker.lock().service(TX as u16);
    assert!(matches!(progress, Progress::Wait(time) if time.as_secs() > 1000));
    let progress = driver.worker.lock().service(RX as u16);
    assert!(matches!(progress, Progress::Wait(_)));
    assert!(
        !driver.readable(),
        "frames that must wait do not keep the loop busy"
    );
    assert_eq!((driver.used(RX).len(), driver.used(TX).len()), (3, 3));
    let update = Update::Net {
        rx: limits(0),
        tx: limits(0),
    };
    driver.worker.lock().device().update(&update).unwrap();
    driver.kick(RX);
    driver.kick(TX);
    assert_eq!((driver.used(RX).len(), driver.used(TX).len()), (2, 2));
    assert!(driver.count("rx_throttled") >= 1 && driver.count("tx_throttled") >= 1);
}

#[test]
fn what_is_saved_leaves_no_buffer_behind() {
    let (mut driver, mut peer) = started(MERGED);
    for _ in 0..3 {
        driver.offer(RX, &[2000], WRITE);
    }
    driver.kick(RX);
    peer.send(&ethernet(60, 1));
    driver.wait_and_turn();
    let DeviceState::Net(state) = driver.worker.lock().device().save() else {
        panic!("another device's state");
    };
    let position = |next| {
        Some(RingState {
            next_avail: next,
            next_used: next,
        })
    };
    assert_eq!(
        state,
        NetState {
            rings: vec![position(1), position(0), None],
            pairs: 1,
            offloads: 0,
            mac: [2, 0, 0, 0, 0, 1],
        }
    );
    driver.worker.lock().stop();
    driver.activate(MERGED);
    driver
        .worker
        .lock()
        .device()
        .restore(&DeviceState::Net(state));
    peer.send(&ethernet(60, 2));
    driver.wait_and_turn();
    assert_eq!(driver.used(RX).len(), 2, "one before, one after");
}

#[test]
fn after_a_reset_nothing_is_touched() {
    let (mut driver, mut peer) = started(MERGED);
    driver.offer(RX, &[2000], WRITE);
    driver.kick(RX);
    driver.worker.lock().stop();
    peer.send(&ethernet(60, 1));
    assert!(!driver.readable());
    let _ = driver.worker.lock().service_host();
    driver.kick(RX);
    assert!(driver.used(RX).is_empty());
}
