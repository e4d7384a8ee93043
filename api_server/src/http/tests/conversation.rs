//! Conversations without a socket.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::connection::{Connection, Late, Turn};
use super::super::outbox::Letter;
use super::*;

/// A connection with its service, and a clock that stands still.
struct Talk {
    connection: Connection,
    service: Echo,
    notes: Receiver<Note>,
    limits: Limits,
    serial: u64,
    now: Instant,
}

impl Talk {
    fn new() -> Self {
        let (sender, notes) = channel();
        let now = Instant::now();
        Self {
            connection: Connection::new(now),
            service: Echo(sender),
            notes,
            limits: Limits::default(),
            serial: 0,
            now,
        }
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Connection, &mut Turn<'_, Echo>) -> R) -> R {
        let mut turn = Turn {
            service: &mut self.service,
            limits: &self.limits,
            slot: 7,
            serial: &mut self.serial,
            now: self.now,
        };
        act(&mut self.connection, &mut turn)
    }

    /// The client says this, and takes whatever comes. As the server does it: nothing is read while nothing is wanted.
    fn say(&mut self, bytes: &[u8]) -> String {
        let mut said = Vec::new();
        let mut rest = Some(bytes);
        loop {
            if self.connection.wants_input(&self.limits)
                && let Some(bytes) = rest.take()
            {
                self.with(|connection, turn| connection.receive(bytes, turn));
            } else if self.connection.wants_turn(&self.limits) {
                self.with(|connection, turn| connection.resume(turn));
            } else if self.connection.output().is_empty() {
                return String::from_utf8(said).unwrap();
            }
            let output = self.connection.output();
            said.extend_from_slice(output);
            let length = output.len();
            self.connection.took(length, self.now);
        }
    }

    fn end(&mut self) -> String {
        self.connection.end(self.now);
        self.say(b"")
    }

    fn deliver(&mut self, ticket: Ticket, letter: Letter) -> bool {
        self.with(|connection, turn| connection.deliver(ticket, letter, turn))
    }
}

/// Status of each answer, told by its head.
fn statuses(said: &str) -> Vec<u16> {
    said.match_indices("HTTP/1.1 ")
        .filter_map(|(at, text)| said.get(at + text.len()..)?.get(..3)?.parse().ok())
        .collect()
}

#[test]
fn requests_are_answered_in_order() {
    let mut talk = Talk::new();
    let said = talk.say(
        b"\r\n\r\nGET /a?b=c HTTP/1.1\r\nHost: x\r\nx-TEST:  y \r\n\r\nPUT /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyz\r\n\
          PATCH http://localhost/c%20d HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n1;e=f\r\nc\r\n0\r\nT: u\r\n\r\n\
          OPTIONS * HTTP/1.1\r\n\r\nDELETE /nothing HTTP/1.1\r\n\r\n",
    );
    let bodies = [
        r#"GET /a Some("b=c") Some("y") """#,
        r#"PUT /b None None "xyz""#,
        r#"PATCH /c d None None "abc""#,
        r#"OPTIONS * None None """#,
    ];
    assert_eq!(statuses(&said), [200, 200, 200, 200, 204]);
    let mut at = 0;
    for body in bodies {
        at += said[at..].find(body).expect(body);
    }
    assert!(!talk.connection.is_over());
    assert_eq!(talk.end(), "");
    assert!(talk.connection.is_over());
}

#[test]
fn a_request_waits_for_the_one_before() {
    let mut talk = Talk::new();
    assert_eq!(
        talk.say(b"GET /later HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n"),
        ""
    );
    let ticket = talk.connection.ticket().unwrap();
    assert!(!talk.connection.wants_input(&talk.limits));
    assert!(talk.connection.rank().is_none());
    let wrong = Ticket {
        serial: ticket.serial + 1,
        ..ticket
    };
    assert!(talk.deliver(wrong, Letter::Response(Response::empty(500))));
    assert!(talk.deliver(ticket, Letter::Chunk(b"x".to_vec())));
    assert_eq!(talk.say(b""), "");
    assert!(talk.deliver(ticket, Letter::Response(Response::json(202, "late"))));
    let said = talk.say(b"");
    assert_eq!(statuses(&said), [202, 200]);
    assert!(said.ends_with(&echoed("GET", "/a", "")));
    // It is answered once.
    assert!(talk.deliver(ticket, Letter::Response(Response::empty(204))));
    assert_eq!(talk.say(b""), "");
}

#[test]
fn a_stream_is_chunks_and_the_connection_goes_on() {
    let mut talk = Talk::new();
    let said = talk.say(b"GET /stream HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n");
    assert!(said.contains("Transfer-Encoding: chunked\r\n") && said.ends_with("\r\n\r\n"));
    assert!(said.contains("Content-Type: application/x-ndjson\r\n"));
    assert!(!said.contains("Content-Length"));
    let ticket = talk.connection.ticket().unwrap();
    assert!(talk.deliver(ticket, Letter::Chunk(b"0123456789abcdef".to_vec())));
    assert_eq!(talk.say(b""), "10\r\n0123456789abcdef\r\n");
    assert!(talk.deliver(ticket, Letter::End));
    let said = talk.say(b"");
    assert!(said.starts_with("0\r\n\r\nHTTP/1.1 200"));
    assert!(said.ends_with(&echoed("GET", "/a", "")));
}

#[test]
fn a_stream_that_is_not_read_is_given_up() {
    let mut talk = Talk::new();
    talk.say(b"GET /stream HTTP/1.1\r\n\r\n");
    let ticket = talk.connection.ticket().unwrap();
    let chunk = vec![b'x'; 64 << 10];
    for _ in 0..3 {
        assert!(talk.deliver(ticket, Letter::Chunk(chunk.clone())));
    }
    assert!(!talk.deliver(ticket, Letter::Chunk(chunk.repeat(2))));
    assert!(!talk.deliver(ticket, Letter::Lost));
}

#[test]
fn http_1_0_gets_what_it_understands() {
    let mut talk = Talk::new();
    let said =
        talk.say(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n");
    assert!(said.contains("Connection: keep-alive\r\n"));
    let said = talk.say(b"PUT /a HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(said, "");
    assert_eq!(statuses(&talk.say(b"x")), [200]);
    let said = talk.say(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(said.contains("Connection: close\r\n") && !said.contains("chunked"));
    let ticket = talk.connection.ticket().unwrap();
    assert!(talk.deliver(ticket, Letter::Chunk(b"abc".to_vec())));
    assert_eq!(talk.say(b""), "abc");
    assert!(!talk.connection.is_over());
    assert!(talk.deliver(ticket, Letter::End));
    assert_eq!(talk.say(b""), "");
    assert!(talk.connection.is_over());

    let mut talk = Talk::new();
    assert!(
        talk.say(b"GET /a HTTP/1.0\r\n\r\n")
            .contains("Connection: close\r\n")
    );
    assert!(talk.connection.is_over());
}

#[test]
fn close_is_the_last_word() {
    let mut talk = Talk::new();
    let said =
        talk.say(b"GET /a HTTP/1.1\r\nConnection: foo, Close\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
    assert_eq!(statuses(&said), [200]);
    assert!(said.contains("Connection: close\r\n"));
    // There are bytes behind: the client is let read the answer before it is cut off.
    assert!(!talk.connection.is_over());
    assert!(talk.connection.is_lingering());
    assert_eq!(talk.end(), "");
    assert!(talk.connection.is_over());
}

#[test]
fn head_has_no_content() {
    let mut talk = Talk::new();
    let said = talk.say(b"HEAD /a HTTP/1.1\r\n\r\n");
    assert!(
        said.contains("Content-Length: 20\r\n") && said.ends_with("\r\n\r\n"),
        "{said}"
    );
    let said = talk.say(b"HEAD /stream HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n");
    assert_eq!(statuses(&said), [200, 200]);
    let notes: Vec<_> = talk.notes.try_iter().collect();
    assert!(matches!(notes[2], Note::Gone(_)), "{notes:?}");
}

#[test]
fn content_is_asked_for_where_it_is_wanted() {
    let mut talk = Talk::new();
    let ask = |framing: &str| {
        format!("PUT /a HTTP/1.1\r\n{framing}\r\nExpect: 100-Continue\r\n\r\n").into_bytes()
    };
    let asked = "HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(talk.say(&ask("Content-Length: 2")), asked);
    assert!(talk.say(b"xy").ends_with(&echoed("PUT", "/a", "xy")));
    assert_eq!(talk.say(&ask("Transfer-Encoding: chunked")), asked);
    assert!(
        talk.say(b"1\r\nx\r\n0\r\n\r\n")
            .ends_with(&echoed("PUT", "/a", "x"))
    );
    assert_eq!(statuses(&talk.say(&ask("Content-Length: 0"))), [200]);
    assert_eq!(statuses(&talk.say(&ask("X: y"))), [200]);
    let large = format!("Content-Length: {}", talk.limits.body + 1);
    assert_eq!(statuses(&talk.say(&ask(&large))), [413]);
    let said = Talk::new().say(b"PUT /a HTTP/1.1\r\nExpect: tea\r\nContent-Length: 1\r\n\r\n");
    assert_eq!(statuses(&said), [417]);
}

#[test]
fn what_is_wrong_is_refused_in_json_and_ends_the_connection() {
    let limits = Limits::default();
    let long = "x".repeat(limits.head);
    let with = |header: &str| format!("PUT / HTTP/1.1\r\n{header}\r\n\r\n");
    let headers = |count: usize| with(&vec!["a: b"; count].join("\r\n"));
    let cases = [
        ("PUT / HTTP/2.0\r\n\r\n".into(), 505),
        ("PUT / HTTP/1.2\r\n\r\n".into(), 505),
        ("PUT / http/1.1\r\n\r\n".into(), 400),
        ("PUT / HTTP/1.1x\r\n\r\n".into(), 400),
        ("PUT /\r\n\r\n".into(), 400),
        ("PUT\r\n\r\n".into(), 400),
        ("PUT  / HTTP/1.1\r\n\r\n".into(), 400),
        ("PUT / HTTP/1.1 \r\n\r\n".into(), 400),
        (" PUT / HTTP/1.1\r\n\r\n".into(), 400),
        ("P(T / HTTP/1.1\r\n\r\n".into(), 400),
        ("CONNECT localhost:80 HTTP/1.1\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\n".into(), 400),
        ("\nGET / HTTP/1.1\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r".to_owned() + "x", 400),
        ("\rGET / HTTP/1.1\r\n\r\n".into(), 400),
        ("GET /\0 HTTP/1.1".into(), 400),
        ("GET /\u{7f} HTTP/1.1".into(), 400),
        ("GET /ä HTTP/1.1\r\n\r\n".into(), 400),
        ("GET /%ff HTTP/1.1\r\n\r\n".into(), 400),
        ("GET vm HTTP/1.1\r\n\r\n".into(), 400),
        (with("a"), 400),
        (with("a : b"), 400),
        (with(": b"), 400),
        (with("a: b\r\n c"), 400),
        (with("a: b\r\n\tc: d"), 400),
        (with(" a: b"), 400),
        (with("a: \u{1}"), 400),
        (with("Host: a\r\nhost: a"), 400),
        (with("Content-Length: 1\r\ncontent-length: 1"), 400),
        (with("Content-Length: 1, 1"), 400),
        (with("Content-Length: +1"), 400),
        (with("Content-Length: -1"), 400),
        (with("Content-Length: 0x1"), 400),
        (with("Content-Length: 1 1"), 400),
        (with("Content-Length:"), 400),
        (with("Content-Length: 51201"), 413),
        (with("Content-Length: 18446744073709551616"), 413),
        (with(&format!("Content-Length: {}", "9".repeat(1000))), 413),
        (with("Content-Length: 1\r\nTransfer-Encoding: chunked"), 400),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 1"), 400),
        (
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            400,
        ),
        (with("Transfer-Encoding: identity"), 501),
        (with("Transfer-Encoding: gzip, chunked"), 501),
        (with("Transfer-Encoding: chunked, chunked"), 501),
        (with("Transfer-Encoding: \u{b}chunked"), 400),
        (
            "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            400,
        ),
        (with("Transfer-Encoding: chunked\r\n\r\nx"), 400),
        (with("Transfer-Encoding: chunked\r\n\r\nc801"), 413),
        (headers(64), 200),
        (headers(65), 431),
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), 414),
        (with(&format!("a: {long}")), 431),
        (long.clone() + "x", 414),
    ];
    for (bytes, status) in cases {
        let mut talk = Talk::new();
        let said = talk.say(bytes.as_bytes());
        assert_eq!(statuses(&said), [status], "{bytes:?} {said}");
        if status == 200 {
            continue;
        }
        assert!(said.contains("Connection: close\r\n"), "{said}");
        assert!(
            said.contains("Content-Type: application/json\r\n"),
            "{said}"
        );
        let (_, body) = said.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(
            body["fault_message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        assert_eq!(talk.notes.try_iter().count(), 0, "{bytes:?}");
        // Nothing that follows is a request.
        assert_eq!(talk.say(b"GET / HTTP/1.1\r\n\r\n"), "");
        assert_eq!(talk.connection.held(), 0);
    }
}

#[test]
fn half_a_request_is_told_so() {
    for half in [
        "G",
        "GET / HTTP/1.1\r\n",
        "PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx",
        "\r",
    ] {
        let mut talk = Talk::new();
        assert_eq!(talk.say(half.as_bytes()), "");
        assert_eq!(statuses(&talk.end()), [400], "{half:?}");
        assert!(talk.connection.is_over());
    }
    let mut talk = Talk::new();
    assert_eq!(talk.say(b"\r\n\r\n"), "");
    assert_eq!(talk.end(), "");
    assert!(talk.connection.is_over());
}

#[test]
fn each_thing_has_its_time() {
    let second = Duration::from_secs(1);
    let mut talk = Talk::new();
    talk.limits.idle = Some(second * 100);
    let start = talk.now;
    assert_eq!(
        talk.connection.deadline(&talk.limits),
        Some(start + second * 100)
    );
    talk.say(b"\r\nGET ");
    talk.now = start + second;
    // Bytes one by one do not make it longer.
    talk.say(b"/");
    let limit = talk.limits.request;
    assert_eq!(talk.connection.deadline(&talk.limits), Some(start + limit));
    talk.say(b" HTTP/1.1\r\nContent-Length: 1\r\n\r\n");
    assert_eq!(talk.connection.deadline(&talk.limits), Some(start + limit));
    assert_eq!(
        talk.connection.check(start + limit - second, &talk.limits),
        Late::No
    );
    assert_eq!(
        talk.connection.check(start + limit, &talk.limits),
        Late::Told
    );
    assert_eq!(statuses(&talk.say(b"")), [408]);
    assert!(talk.connection.is_lingering());
    let end = start + limit + talk.limits.linger;
    talk.say(b"more");
    assert_eq!(talk.connection.deadline(&talk.limits), Some(end));
    assert_eq!(talk.connection.check(end, &talk.limits), Late::Over);

    // An answer that is not taken, whatever else the client sends.
    let mut talk = Talk::new();
    talk.with(|connection, turn| connection.receive(b"GET / HTTP/1.1\r\n\r\n", turn));
    let start = talk.now;
    talk.now += second;
    talk.with(|connection, turn| connection.receive(b"G", turn));
    let deadline = start + talk.limits.take;
    assert_eq!(talk.connection.deadline(&talk.limits), Some(deadline));
    talk.connection.took(1, talk.now);
    assert_eq!(talk.connection.check(deadline, &talk.limits), Late::No);
    assert_eq!(
        talk.connection.check(deadline + second, &talk.limits),
        Late::Over
    );

    // The service has all the time in the world.
    let mut talk = Talk::new();
    talk.limits.idle = Some(second);
    talk.say(b"GET /later HTTP/1.1\r\n\r\nGET ");
    assert_eq!(talk.connection.deadline(&talk.limits), None);
}

#[test]
fn what_waits_for_the_client_is_bounded() {
    let mut talk = Talk::new();
    let request = b"GET /big?30000 HTTP/1.1\r\n\r\n";
    talk.with(|connection, turn| connection.receive(&request.repeat(7), turn));
    // Over the limit by one answer at most, and nothing is read now.
    let waiting = talk.connection.output().len();
    assert!(waiting > talk.limits.output && waiting < talk.limits.output + 31_000);
    assert!(
        !talk.connection.wants_input(&talk.limits) && !talk.connection.wants_turn(&talk.limits)
    );
    assert_eq!(statuses(&talk.say(b"")).len(), 7);
}

/// Bytes of a conversation that goes well for a while.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let request = prop_oneof![
        Just("GET /a HTTP/1.1\r\n\r\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("GET /a?b HTTP/1.1\r\nX-Test: c\r\nHost: d\r\n\r\n".to_owned()),
        Just("HEAD /nothing HTTP/1.1\r\n\r\n".to_owned()),
        "[a-z\r\n]{0,40}".prop_map(|body| {
            format!("PUT /b HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }),
        ("[a-z\r\n]{1,20}", "[a-z\r\n]{1,20}").prop_map(|(one, two)| {
            format!(
                "PATCH /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n{:x}\r\n{one}\r\n{:X};x=y\r\n{two}\r\n0\r\nT: u\r\n\r\n",
                one.len(),
                two.len()
            )
        }),
        Just("GET /d HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned()),
        Just("GET /d HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned()),
        Just("PUT /e HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
        Just("PUT /e HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\nx".to_owned()),
        Just("GET / HTTP/1.1\nX: y\r\n\r\n".to_owned()),
        "[ -~]{0,30}\r\n",
    ];
    (
        prop::collection::vec(request, 0..12),
        prop::collection::vec(any::<u8>(), 0..20),
    )
        .prop_map(|(requests, garbage)| {
            let mut bytes = requests.concat().into_bytes();
            bytes.extend(garbage);
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 500 } else { 20_000 }))]

    #[test]
    fn answers_do_not_depend_on_how_the_bytes_arrive(
        bytes in conversation(),
        cuts in prop::collection::vec(1_usize..30, 1..50),
        turn in 1_usize..10,
    ) {
        let mut whole = Talk::new();
        let mut expected = whole.say(&bytes);
        expected += &whole.end();

        let mut talk = Talk::new();
        talk.limits.turn = turn;
        let mut said = String::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            said += &talk.say(piece);
            rest = behind;
        }
        said += &talk.end();
        prop_assert_eq!(said, expected);
        prop_assert_eq!(talk.notes.try_iter().collect::<Vec<_>>(), whole.notes.try_iter().collect::<Vec<_>>());
        prop_assert!(talk.connection.is_over());
    }
}
