//! Packets and chains that should not be.

use super::*;

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
