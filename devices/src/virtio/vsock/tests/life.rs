//! Connections: how they begin and end.

use super::*;

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
    assert_eq!(rest(&mut client), b"");
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
fn a_reset_ends_all_connections() {
    let mut guest = Guest::started();
    let (mut client, _) = guest.connection();
    let mut waiting = UnixStream::connect(guest.path("v.sock")).unwrap();
    guest.serve().unwrap();
    guest.device.reset();
    assert_eq!(rest(&mut client), b"");
    waiting.write_all(b"CONNECT 1\n").unwrap();
    guest.serve().unwrap();
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

/// The next packet of a connection set that is not in a device, taken at once.
fn take(muxer: &mut Muxer, now: Instant) -> Option<Header> {
    muxer.host_events(now);
    muxer.check(now);
    match muxer.next_packet() {
        Next::Nothing => None,
        Next::Control(header) => {
            muxer.told(&header, now);
            Some(header)
        }
        Next::Data { .. } => {
            // Nothing of a test's has data, so this finds the end.
            assert_eq!(muxer.read(&[], |_, _| Ok(())), Ok(0));
            take(muxer, now)
        }
    }
}

#[test]
fn nobody_is_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let nothing = || Cursor::new(&memory, &[]);
    let mut muxer = Muxer::new(CID, Listener::new(&path).unwrap()).unwrap();
    muxer.start();
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);

    // A client that says nothing, and one whose guest says nothing.
    let mut silent = UnixStream::connect(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 9\n").unwrap();
    let request = take(&mut muxer, start).unwrap();
    assert_eq!(request.op, op::REQUEST);
    assert_eq!(take(&mut muxer, after(9)), None);
    assert_eq!(take(&mut muxer, after(11)).unwrap().op, op::RST);
    assert_eq!(rest(&mut client), b"");
    assert_eq!(muxer.open(), 0);
    assert_eq!(take(&mut muxer, after(29)), None);
    assert_eq!(muxer.counts().refused, 1);
    assert_eq!(take(&mut muxer, after(31)), None);
    assert_eq!(rest(&mut silent), b"");
    assert_eq!(muxer.counts().refused, 2);
    assert_eq!(muxer.next_check(after(31)), None);

    // A guest that keeps a connection whose client is gone.
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 9\n").unwrap();
    let request = take(&mut muxer, start).unwrap();
    let response = with(&answer(&request), op::RESPONSE);
    muxer.take_packet(&response, nothing(), start).unwrap();
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    drop(client);
    let mut flags = 0;
    while let Some(header) = take(&mut muxer, start) {
        assert_eq!(header.op, op::SHUTDOWN);
        flags |= header.flags;
    }
    assert_eq!(flags, shutdown::BOTH);
    assert_eq!(take(&mut muxer, after(59)), None);
    assert_eq!(muxer.open(), 1);
    assert_eq!(take(&mut muxer, after(61)).unwrap().op, op::RST);
    assert_eq!(muxer.open(), 0);
    assert_eq!(muxer.counts().reset, 0);
}

#[test]
fn a_client_need_not_wait_for_its_answer() {
    let mut guest = Guest::started();
    let mut client = UnixStream::connect(guest.path("v.sock")).unwrap();
    client
        .write_all(b"CONNECT 52\nall that I have to say")
        .unwrap();
    drop(client);
    let request = guest.one();
    guest.send(&with(&answer(&request), op::RESPONSE), &[]);
    let packets = guest.received();
    let all: Vec<u8> = packets.iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(all, b"all that I have to say");
    let flags = packets
        .iter()
        .fold(0, |all, (header, _)| all | header.flags);
    assert_eq!(flags, shutdown::BOTH);
}
