//! The server with real clients.

use std::io::Read;
use std::net::Shutdown;

use super::*;

#[test]
fn answers_over_one_connection_and_over_many() {
    let server = Running::new(Limits::default());
    let mut client = server.connect();
    for path in ["/a", "/b"] {
        let reply = client.get(path);
        assert_eq!((reply.status, reply.body), (200, echoed("GET", path, "")));
    }
    for _ in 0..300 {
        assert_eq!(server.connect().get("/a").status, 200);
    }
    assert_eq!(client.get("/nothing").status, 204);
}

#[test]
fn many_requests_at_once_come_back_in_order() {
    let server = Running::new(Limits::default());
    let mut client = server.connect();
    let mut other = client.0.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for count in 0..5000 {
            let request = format!("PUT /{count} HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody");
            other.write_all(request.as_bytes()).unwrap();
        }
    });
    for count in 0..5000 {
        assert_eq!(
            client.reply().body,
            echoed("PUT", &format!("/{count}"), "body")
        );
    }
    writer.join().unwrap();
}

#[test]
fn byte_by_byte_beside_others() {
    let server = Running::new(Limits::default());
    let mut slow = server.connect();
    let mut quick = server.connect();
    for byte in b"PUT /slow HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" {
        slow.send([*byte]);
        assert_eq!(quick.get("/quick").status, 200);
    }
    assert_eq!(slow.reply().body, echoed("PUT", "/slow", "abc"));
}

#[test]
fn an_answer_that_comes_later() {
    let server = Running::new(Limits::default());
    let mut client = server.connect();
    client.send("GET /later HTTP/1.1\r\n\r\nGET /after HTTP/1.1\r\n\r\n");
    let ticket = server.called("/later");
    // It holds up nobody else.
    assert_eq!(server.connect().get("/other").status, 200);
    server.outbox.send(ticket, Response::json(202, "late"));
    assert_eq!(client.reply().body, "late");
    assert_eq!(client.reply().body, echoed("GET", "/after", ""));
    // Nobody waits for this.
    server.outbox.send(ticket, Response::empty(500));
    assert_eq!(client.get("/a").status, 200);
}

#[test]
fn the_service_is_told_of_clients_that_leave() {
    let server = Running::new(Limits::default());
    for path in ["/later", "/stream"] {
        let mut client = server.connect();
        client.send(format!("GET {path} HTTP/1.1\r\n\r\n"));
        let ticket = server.called(path);
        drop(client);
        server.gone(ticket);
        server.outbox.chunk(ticket, b"x".to_vec());
        server.outbox.send(ticket, Response::empty(204));
    }
    // With a request behind, that is never read.
    let mut client = server.connect();
    client.send("GET /later HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n");
    let ticket = server.called("/later");
    drop(client);
    server.gone(ticket);
    assert_eq!(server.connect().get("/a").status, 200);
}

#[test]
fn a_stream_goes_on_until_its_end() {
    let server = Running::new(Limits::default());
    let mut client = server.connect();
    client.send("GET /stream HTTP/1.1\r\n\r\n");
    let ticket = server.called("/stream");
    assert!(client.head().contains("chunked"));
    for text in ["one\n", "two\n"] {
        server.outbox.chunk(ticket, text.into());
        assert_eq!(client.line(), "4\r\n");
        let mut bytes = [0; 6];
        client.0.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes[..4], text.as_bytes());
    }
    // One that does not send any more still listens.
    client.0.shutdown(Shutdown::Write).unwrap();
    server.outbox.chunk(ticket, b"three\n".into());
    assert_eq!(client.line(), "6\r\n");
    server.outbox.end(ticket);
    assert_eq!(client.rest(), "three\n\r\n0\r\n\r\n");
}

#[test]
fn who_does_not_read_its_stream_is_dropped_and_others_go_on() {
    let server = Running::new(Limits::default());
    let mut deaf = server.connect();
    deaf.send("GET /stream HTTP/1.1\r\n\r\n");
    let silent = server.called("/stream");
    let mut client = server.connect();
    client.send("GET /stream HTTP/1.1\r\n\r\n");
    let heard = server.called("/stream");
    client.head();
    let piece = vec![b'x'; 32 << 10];
    let mut gone = false;
    while !gone {
        server.outbox.chunk(silent, piece.clone());
        server.outbox.chunk(heard, piece.clone());
        assert_eq!(client.line(), "8000\r\n");
        let mut bytes = vec![0; piece.len() + 2];
        client.0.read_exact(&mut bytes).unwrap();
        gone = server
            .notes
            .try_iter()
            .any(|note| note == Note::Gone(silent));
    }
    assert_eq!(server.connect().get("/a").status, 200);
}

#[test]
fn half_closed_clients_get_their_answers() {
    let server = Running::new(Limits::default());
    let mut client = server.connect();
    client.send("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n".repeat(20));
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest().matches("200 OK").count(), 40);

    let mut client = server.connect();
    client.send("GET /later HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
    client.0.shutdown(Shutdown::Write).unwrap();
    server
        .outbox
        .send(server.called("/later"), Response::empty(204));
    let rest = client.rest();
    assert!(
        rest.contains("204 No Content") && rest.contains("200 OK"),
        "{rest}"
    );

    let mut client = server.connect();
    client.send("GET /a HT");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert!(client.rest().starts_with("HTTP/1.1 400"));
}

#[test]
fn one_request_for_each_connection() {
    let server = Running::new(Limits::default());
    for request in [
        "GET /a HTTP/1.0\r\n\r\n",
        "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(request);
        let rest = client.rest();
        assert!(rest.contains("Connection: close\r\n"), "{rest}");
        assert!(rest.ends_with(&echoed("GET", "/a", "")));
    }
}

/// A request that is sent and left alone takes effect.
#[test]
fn who_leaves_at_once_was_heard() {
    let server = Running::new(Limits::default());
    let mut client = server.connect();
    client.send("PUT /gone HTTP/1.1\r\nContent-Length: 1\r\n\r\nx");
    drop(client);
    server.called("/gone");
    assert_eq!(server.connect().get("/a").status, 200);
}
