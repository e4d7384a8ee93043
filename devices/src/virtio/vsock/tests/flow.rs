//! Data: credit, buffers, turns.

use super::*;

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
