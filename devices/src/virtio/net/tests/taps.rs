//! Taps of the kernel's, each test in a network namespace of its own, with a packet socket as the host's side. An ordinary user
//! cannot make one: then it is left to the lab's tests.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::tap::Tap;
use super::super::{Link, feature, header};
use super::harness::{Driver, MERGED, WRITE, ethernet, frame, poll};

/// ETH_P_802_EX1, which `harness::ethernet` uses.
const PROTOCOL: u16 = 0x88b5;

/// A network namespace for this thread. `None`: not without privilege.
fn namespace() -> Option<()> {
    // SAFETY: unshare(2) takes a number; a network namespace changes nothing of the other threads.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let tun = File::open("/dev/net/tun").is_ok();
    if result < 0 || !tun {
        eprintln!("left out: no network namespace, or no /dev/net/tun");
        return None;
    }
    Some(())
}

#[track_caller]
fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// A tap that is up, and the host's side of it.
fn tap(queues: u16) -> Option<(Tap, File)> {
    namespace()?;
    let tap = Tap::open("tap0", queues).unwrap();
    // Quiet: nothing but what the tests send.
    std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1").ok();
    ip("link set tap0 up");
    Some((tap, packet_socket()))
}

fn packet_socket() -> File {
    let protocol = i32::from(PROTOCOL.to_be());
    // SAFETY: socket(2) takes numbers; the descriptor is new.
    let socket = unsafe {
        File::from_raw_fd(libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        ))
    };
    // SAFETY: all zeroes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = PROTOCOL.to_be();
    // SAFETY: a string with its end.
    address.sll_ifindex = unsafe { libc::if_nametoindex(c"tap0".as_ptr()) } as i32;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: an address of that length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    socket
}

fn receive(socket: &mut File) -> Vec<u8> {
    assert!(poll(socket.as_raw_fd(), libc::POLLIN, 10_000), "no frame");
    let mut bytes = vec![0; 70_000];
    let len = socket.read(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

#[test]
fn frames_go_both_ways_however_they_are_cut() {
    let Some((tap, mut host)) = tap(1) else {
        return;
    };
    let mut driver = Driver::start(Link::Tap(tap), 1, MERGED);
    for (len, mark, cut) in [(1514, 1, 9000), (60, 2, 5), (1514, 3, 33), (14, 4, 12)] {
        driver.transmit(0, &frame(len, mark), cut);
        driver.kick(1);
        assert_eq!(receive(&mut host), ethernet(len, mark));
        assert_eq!(driver.used(1).len(), 1);
    }
    let chains: Vec<_> = [&[10_u32, 600][..], &[12], &[500], &[1000], &[2000]]
        .iter()
        .map(|lengths| driver.offer(0, lengths, WRITE))
        .collect();
    driver.kick(0);
    assert!(!driver.readable());
    host.write_all(&ethernet(1514, 9)).unwrap();
    driver.wait_and_turn();
    let used = driver.used(0);
    let lengths: Vec<_> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lengths, [610, 12, 500, 404]);
    let mut bytes = Vec::new();
    for ((_, places), pieces) in chains.iter().zip([&[10, 600][..], &[12], &[500], &[404]]) {
        for (at, len) in places.iter().zip(pieces) {
            bytes.extend(driver.bytes(*at, *len));
        }
    }
    assert_eq!(bytes[10..12], [4, 0], "num_buffers, in two buffers");
    assert_eq!(&bytes[header::LEN..], ethernet(1514, 9));
    // Nothing behind the frame's end.
    let (_, places) = &chains[3];
    assert_eq!(driver.bytes(GuestAddress(places[0].0 + 404), 16), [0; 16]);
    assert_eq!(driver.count("rx_packets"), 1);
}

#[test]
fn a_frame_that_is_longer_than_those_before_is_whole_too() {
    let Some((tap, mut host)) = tap(1) else {
        return;
    };
    ip("link set tap0 mtu 9000");
    let mut driver = Driver::start(Link::Tap(tap), 1, MERGED);
    for _ in 0..20 {
        driver.offer(0, &[1000], WRITE);
    }
    driver.kick(0);
    for (len, mark, chains) in [(60, 1, 1), (9014, 2, 10), (300, 3, 1)] {
        host.write_all(&ethernet(len, mark)).unwrap();
        driver.wait_and_turn();
        driver.turn();
        let used = driver.used(0);
        let total: u32 = used.iter().map(|(_, len)| *len).sum();
        assert_eq!((used.len(), total as usize), (chains, len + header::LEN));
    }
    // Eight are left: too few. It waits for more, and gets them.
    host.write_all(&ethernet(9014, 4)).unwrap();
    driver.wait_and_turn();
    assert!(driver.used(0).is_empty() && !driver.readable());
    for _ in 0..3 {
        driver.offer(0, &[1000], WRITE);
    }
    driver.kick(0);
    assert_eq!(driver.used(0).len(), 10);
    assert_eq!(
        (
            driver.count("rx_packets"),
            driver.count("rx_dropped_no_fit")
        ),
        (4, 0)
    );
}

#[test]
fn a_frame_that_does_not_fit_one_buffer_is_dropped() {
    let Some((tap, mut host)) = tap(1) else {
        return;
    };
    let mut driver = Driver::start(Link::Tap(tap), 1, 0);
    let (head, places) = driver.offer(0, &[112], WRITE);
    driver.kick(0);
    host.write_all(&ethernet(101, 1)).unwrap();
    host.write_all(&ethernet(100, 2)).unwrap();
    driver.wait_and_turn();
    driver.turn();
    assert_eq!(driver.used(0), [(head, 112)]);
    let bytes = driver.bytes(places[0], 128);
    assert_eq!((bytes[0], &bytes[10..12]), (0, &[1, 0][..]));
    assert_eq!(bytes[12..112], ethernet(100, 2));
    assert_eq!(bytes[112..], [0; 16]);
    assert_eq!(driver.count("rx_dropped_no_fit"), 1);
}

#[test]
fn without_buffers_nothing_spins() {
    let Some((tap, mut host)) = tap(1) else {
        return;
    };
    let mut driver = Driver::start(Link::Tap(tap), 1, MERGED);
    host.write_all(&ethernet(60, 1)).unwrap();
    driver.wait_and_turn();
    assert!(!driver.readable());
    let (head, _) = driver.offer(0, &[2000], WRITE);
    driver.kick(0);
    assert_eq!(driver.used(0), [(head, 72)]);
    driver.worker.lock().stop();
    host.write_all(&ethernet(60, 1)).unwrap();
    assert!(!driver.readable(), "nobody listens any more");
}

#[test]
fn a_tap_that_is_deleted_is_a_link_that_is_down() {
    for starved in [false, true] {
        let Some((tap, _host)) = tap(1) else {
            return;
        };
        let mut driver = Driver::start(Link::Tap(tap), 1, MERGED);
        if starved {
            ip("link set tap0 down");
            driver.transmit(0, &frame(60, 1), 100);
            driver.kick(1);
            assert_eq!((driver.used(1).len(), driver.count("tx_errors")), (1, 1));
            assert_eq!(driver.status(), 1, "down is not gone");
        } else {
            driver.offer(0, &[2000], WRITE);
            driver.kick(0);
        }
        ip("link del tap0");
        if starved {
            driver.transmit(0, &frame(60, 1), 100);
            driver.kick(1);
        } else {
            driver.wait_and_turn();
        }
        assert_eq!((driver.status(), driver.count("link_lost")), (0, 1));
        assert_eq!(driver.events.config.load(Ordering::Relaxed), 1);
        assert!(!driver.readable());
        driver.used(1);
        driver.transmit(0, &frame(60, 1), 100);
        driver.kick(1);
        assert_eq!(driver.used(1).len(), 1);
        driver.worker.lock().stop();
        driver.activate(MERGED);
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn only_the_pairs_that_the_driver_wants_are_used() {
    let Some((tap, mut host)) = tap(3) else {
        return;
    };
    let features = MERGED | feature::CTRL_VQ | feature::MQ;
    let mut driver = Driver::start(Link::Tap(tap), 3, features);
    for queue in [0, 2, 4] {
        for _ in 0..30 {
            driver.offer(queue, &[2000], WRITE);
        }
        driver.kick(queue);
    }
    let mut spread = |driver: &mut Driver| {
        for mark in 0..30 {
            host.write_all(&ethernet(60, mark)).unwrap();
        }
        driver.turn();
        [0, 2, 4].map(|queue| driver.used(queue).len())
    };
    assert_eq!(
        spread(&mut driver),
        [30, 0, 0],
        "one, until it asks for more"
    );
    let command = |driver: &mut Driver, bytes: &[u8]| {
        let (_, places) = driver.offer(6, &[2, 8, 1], 0);
        // The answer is to be written.
        let last = driver.last_descriptor(6);
        driver.make_writable(6, last);
        driver.memory.write_slice(&bytes[..2], places[0]).unwrap();
        let mut data = [0; 8];
        data[..bytes.len() - 2].copy_from_slice(&bytes[2..]);
        driver.memory.write_slice(&data, places[1]).unwrap();
        driver.resize(6, last - 1, bytes.len() as u32 - 2);
        driver.kick(6);
        assert_eq!(driver.used(6).len(), 1);
        driver.bytes(places[2], 1)[0]
    };
    assert_eq!(command(&mut driver, &[4, 0, 3, 0]), 0);
    assert_eq!(command(&mut driver, &[4, 0, 4, 0]), 1, "too many");
    assert_eq!(command(&mut driver, &[4, 0, 0, 0]), 1);
    assert_eq!(command(&mut driver, &[9, 9, 9]), 1, "unknown");
    assert_eq!(
        (driver.count("commands"), driver.count("commands_refused")),
        (4, 3)
    );
    for pair in 0..3 {
        driver.transmit(pair, &frame(60, pair as u8), 100);
        driver.kick(2 * pair + 1);
        assert_eq!(driver.used(2 * pair + 1).len(), 1);
    }
    assert_eq!(driver.count("tx_packets"), 3);
    assert_eq!(command(&mut driver, &[4, 0, 1, 0]), 0);
    // What is left in a queue that was given up still goes out.
    driver.transmit(2, &frame(60, 7), 100);
    driver.kick(5);
    assert_eq!((driver.used(5).len(), driver.count("tx_packets")), (1, 4));
    assert_eq!(driver.count("tx_errors"), 0);
}

#[test]
fn taps_that_cannot_be_had_say_why() {
    if namespace().is_none() {
        return;
    }
    let held = Tap::open("held", 1).unwrap();
    let error = Tap::open("held", 1).unwrap_err().to_string();
    assert!(error.contains("another process has it"), "{error}");
    drop(held);
    ip("tuntap add dev one mode tap");
    let error = Tap::open("one", 2).unwrap_err().to_string();
    assert!(error.contains("multi_queue"), "{error}");
    ip("tuntap add dev many mode tap multi_queue");
    Tap::open("many", 1).unwrap();
    Tap::open("many", 4).unwrap();
    ip("tuntap add dev tun mode tun");
    for name in ["tun", "lo"] {
        let error = Tap::open(name, 1).unwrap_err().to_string();
        assert!(error.contains("no tap"), "{error}");
    }
    assert!(Tap::open("a-name-of-16-byte", 1).is_err());
}

#[test]
fn commands_come_by_the_third_queue_of_a_driver_that_knows_no_pairs_and_not_too_fast() {
    let Some((tap, _host)) = tap(2) else {
        return;
    };
    let features = MERGED | feature::CTRL_VQ | feature::CTRL_GUEST_OFFLOADS | feature::GUEST_CSUM;
    let mut driver = Driver::start(Link::Tap(tap), 2, features);
    let mut answers = Vec::new();
    for offloads in [0_u64, feature::GUEST_CSUM, feature::GUEST_TSO4] {
        let (_, places) = driver.offer(2, &[10, 1], 0);
        driver.make_writable(2, driver.last_descriptor(2));
        let mut bytes = vec![5, 0];
        bytes.extend(offloads.to_le_bytes());
        driver.memory.write_slice(&bytes, places[0]).unwrap();
        driver.kick(2);
        assert_eq!(driver.used(2).len(), 1);
        answers.push(driver.bytes(places[1], 1)[0]);
    }
    assert_eq!(answers, [0, 0, 1]);
    let begin = Instant::now();
    let (mut offered, mut done) = (0, 0);
    while offered < 300 {
        for _ in 0..8 {
            driver.offer(2, &[2], 0);
            offered += 1;
        }
        while done < offered {
            driver.kick(2);
            done += driver.used(2).len();
        }
    }
    // A hundred at once, and as many in each second after that.
    assert!(
        begin.elapsed() > Duration::from_millis(1800),
        "{:?}",
        begin.elapsed()
    );
}
