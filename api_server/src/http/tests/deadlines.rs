//! Clients that are too slow, with times so short that the tests need not wait.

use std::io::Write;
use std::time::Instant;

use super::*;

const SHORT: Duration = Duration::from_millis(50);

/// Everything that is not told otherwise may take for ever.
fn patient() -> Limits {
    Limits {
        request: PATIENCE,
        take: PATIENCE,
        linger: PATIENCE,
        idle: None,
        ..Limits::default()
    }
}

#[test]
fn half_a_request_has_its_time() {
    let server = Running::new(Limits {
        request: SHORT,
        ..patient()
    });
    let mut idle = server.connect();
    assert_eq!(idle.get("/a").status, 200);
    for half in ["G", "PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nx"] {
        let mut client = server.connect();
        let start = Instant::now();
        client.send(half);
        let reply = client.reply();
        assert_eq!(reply.status, 408);
        assert!(start.elapsed() >= SHORT);
        assert!(reply.body.contains("fault_message"));
    }
    // A request that comes in drops has no more time than one that stops.
    let mut drip = server.connect();
    let request = "GET /a HTTP/1.1\r\nX: "
        .bytes()
        .chain(std::iter::repeat(b'x'));
    for byte in request {
        // The answer comes while it drips.
        if drip.0.write_all(&[byte]).is_err() || has_answer(&drip) {
            break;
        }
        std::thread::yield_now();
    }
    assert_eq!(drip.reply().status, 408);
    // One that has no request at all has no such time.
    assert_eq!(idle.get("/a").status, 200);
}

fn has_answer(client: &Client) -> bool {
    super::super::socket::has_input(&client.0)
}

#[test]
fn an_idle_connection_has_its_time_where_one_is_set() {
    let server = Running::new(Limits {
        idle: Some(SHORT),
        ..patient()
    });
    let mut client = server.connect();
    assert_eq!(client.get("/a").status, 200);
    let mut silent = server.connect();
    let mut waiting = server.connect();
    waiting.send("GET /later HTTP/1.1\r\n\r\n");
    let ticket = server.called("/later");
    assert_eq!(client.rest(), "");
    assert_eq!(silent.rest(), "");
    // Who waits for the service is not idle.
    server.outbox.send(ticket, Response::empty(204));
    assert_eq!(waiting.reply().status, 204);
}

#[test]
fn an_answer_that_is_not_taken_has_its_time() {
    let server = Running::new(Limits {
        take: SHORT,
        ..patient()
    });
    let mut deaf = server.connect();
    deaf.send("GET /stream HTTP/1.1\r\n\r\n");
    let ticket = server.called("/stream");
    // More than fits into the socket, less than the server keeps.
    for _ in 0..10 {
        server.outbox.chunk(ticket, vec![b'x'; 40 << 10]);
    }
    server.gone(ticket);

    let mut deaf = server.connect();
    deaf.send("GET /big?10000000 HTTP/1.1\r\n\r\n");
    let mut client = server.connect();
    assert_eq!(client.get("/big?10000000").body.len(), 10_000_000);
    // What the socket held is all that comes: the server has closed.
    let start = Instant::now();
    while start.elapsed() < SHORT * 4 {
        assert_eq!(client.get("/a").status, 200);
    }
    assert!(deaf.rest().len() < 10_000_000);
}

#[test]
fn a_refused_client_that_goes_on_has_its_time() {
    let server = Running::new(Limits {
        linger: SHORT,
        ..patient()
    });
    let mut client = server.connect();
    client.send("PUT /a HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n");
    while client.0.write_all(&[b'x'; 1000]).is_ok() {}
    assert_eq!(server.connect().get("/a").status, 200);
}
