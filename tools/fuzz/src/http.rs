//! Conversations over the control socket: any bytes, cut anywhere on their way, get the same answers as in one piece; what is
//! answered is HTTP; and nothing is held that is not bounded.
//!
//! The first byte of an input says how many more say how it is cut, the second what the limits are and who answers: a service that
//! tells what it was asked, or the control socket's own, with a VM that has not started. The rest is what the client sends.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api_server::http::{
    Answer, Connection, Letter, Limits, Outbox, Request, Response, Service, Ticket, Turn,
};
use api_server::routes::{Api, ROUTES};
use vmm::control::{Setup, Vmm};
use vmm::machine::Host;
use vmm::timeline::{Launch, Start, Timeline};

use crate::messages;
use crate::seeds::{Reached, Seed, seed};

/// Most bytes that say where to cut.
const MOST_CUTS: usize = 15;

/// Who answers, and what was asked.
#[derive(Default)]
struct Echo {
    api: Option<Api>,
    calls: Vec<String>,
    /// Method, path and status of what the control socket's own service answered.
    answers: Vec<String>,
    gone: usize,
}

impl Echo {
    /// The control socket's own service, with a new VM.
    fn api() -> Self {
        let setup = Setup {
            app_name: "fuzz",
            version: "1".into(),
            id: "fuzz".into(),
            host: Host {
                kernel_cache: "/nonexistent".into(),
                boot_timer: false,
                mmds: Default::default(),
                confine: vmm::confine::unconfined,
            },
            grace: Duration::ZERO,
            timeline: Arc::new(Timeline::new(Start::now(), Launch::default())),
            configure_log: Box::new(|_| Ok(())),
            reload: None,
        };
        let vmm = Vmm::new(setup).expect("descriptors");
        let outbox = Outbox::new().expect("a descriptor");
        Self {
            api: Some(Api::new(Arc::new(Mutex::new(vmm)), outbox)),
            ..Self::default()
        }
    }
}

/// Whether a request would have the VM open files at paths that a fuzzer makes up, and write to them.
fn writes_files(request: &Request<'_>) -> bool {
    let body: serde_json::Value = serde_json::from_slice(request.body).unwrap_or_default();
    match request.path.trim_end_matches('/') {
        "/actions" => body["action_type"] == "InstanceStart",
        "/metrics" => body["metrics_path"] != "/dev/null",
        "/vm" => body.get("metrics").is_some(),
        _ => false,
    }
}

impl Service for Echo {
    fn call(&mut self, request: &Request<'_>, ticket: Ticket) -> Answer {
        assert!(request.path.starts_with('/') || request.path == "*");
        assert!(!request.path.contains(char::is_control) || !request.path.is_ascii());
        let text = format!("{request:?}");
        self.calls.push(text.clone());
        if let Some(api) = &mut self.api {
            if writes_files(request) {
                return Answer::Now(Response::empty(204));
            }
            let answer = api.call(request, ticket);
            let status = match &answer {
                Answer::Now(response) => response.status.to_string(),
                Answer::Later => "later".into(),
                Answer::Stream(_) => "stream".into(),
            };
            self.answers
                .push(format!("{} {} {status}", request.method, request.path));
            return answer;
        }
        match request.path {
            "/later" => Answer::Later,
            "/stream" => Answer::Stream("text/plain"),
            "/nothing" => Answer::Now(Response::empty(204)),
            _ => Answer::Now(Response::json(200, text)),
        }
    }

    fn gone(&mut self, ticket: Ticket) {
        self.gone += 1;
        if let Some(api) = &mut self.api {
            api.gone(ticket);
        }
    }
}

/// What a client has of it.
struct Heard {
    bytes: Vec<u8>,
    service: Echo,
    /// Which kinds of answers there were.
    later: u64,
    streams: u64,
}

/// Has the conversation, in these pieces.
fn converse<'a>(service: Echo, pieces: impl Iterator<Item = &'a [u8]>, limits: &Limits) -> Heard {
    let now = Instant::now();
    let mut connection = Connection::new(now);
    let mut heard = Heard {
        bytes: Vec::new(),
        service,
        later: 0,
        streams: 0,
    };
    let mut serial = 0;
    let mut pieces = pieces.map(Some).chain([None]);
    let mut ended = false;
    let mut largest = 0;
    loop {
        let mut turn = Turn {
            service: &mut heard.service,
            limits,
            slot: 0,
            serial: &mut serial,
            now,
        };
        if let Some(ticket) = connection.ticket() {
            let letters = if connection.streams() {
                heard.streams += 1;
                let chunk = |text: &str| Letter::Chunk(text.into());
                vec![chunk("a\r\n"), chunk("0\r\n\r\n"), Letter::End]
            } else {
                heard.later += 1;
                vec![Letter::Response(Response::json(202, "later"))]
            };
            for letter in letters {
                assert!(connection.deliver(ticket, letter, &mut turn));
            }
        } else if connection.wants_turn(limits) {
            connection.resume(&mut turn);
        } else if connection.wants_input(limits) {
            match pieces.next() {
                Some(Some(piece)) => {
                    largest = largest.max(piece.len());
                    connection.receive(piece, &mut turn);
                }
                _ => {
                    connection.end(now);
                    ended = true;
                }
            }
        } else if connection.output().is_empty() {
            assert!(connection.is_over(), "{connection:?}");
            break;
        }
        // Vectors grow by doubling.
        let bound = 2 * (2 * limits.head + limits.body + 2 * largest)
            + 4 * (limits.output + largest + 4096);
        assert!(connection.held() <= bound, "{} bytes", connection.held());
        heard.bytes.extend_from_slice(connection.output());
        let taken = connection.output().len();
        connection.took(taken, now);
        if connection.is_over() && ended {
            break;
        }
        if connection.is_over() {
            // Nothing that comes now is heard.
            let calls = heard.service.calls.len();
            let mut turn = Turn {
                service: &mut heard.service,
                limits,
                slot: 0,
                serial: &mut serial,
                now,
            };
            connection.receive(b"GET / HTTP/1.1\r\n\r\n", &mut turn);
            assert!(connection.output().is_empty());
            assert_eq!(heard.service.calls.len(), calls);
            break;
        }
    }
    heard
}

/// Reads the answers, and counts them by their status.
fn read(mut bytes: &[u8], reached: &mut Reached, service: &Echo) {
    let mut answers = 0;
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.expect("an answer has a head") + 4;
        let head = std::str::from_utf8(&bytes[..end]).expect("it is text");
        let status = head.strip_prefix("HTTP/1.1 ").expect("it is HTTP");
        *reached.entry(status[..3].to_owned()).or_default() += 1;
        bytes = &bytes[end..];
        if status.starts_with("100 ") {
            continue;
        }
        let asked = service.calls.get(answers);
        answers += 1;
        if asked.is_some_and(|asked| asked.contains("method: \"HEAD\""))
            || status.starts_with("204 ")
        {
            continue;
        }
        if head.contains("\r\nTransfer-Encoding: chunked\r\n") {
            let body: &[u8] = b"3\r\na\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n";
            bytes = bytes.strip_prefix(body).expect("the stream's chunks");
            continue;
        }
        let length = head.split("\r\nContent-Length: ").nth(1);
        let Some(length) = length else {
            // A stream to a client that knows no chunks ends with the connection.
            assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
            assert_eq!(bytes, b"a\r\n0\r\n\r\n");
            break;
        };
        let length = length
            .split("\r\n")
            .next()
            .and_then(|length| length.parse().ok());
        let (body, rest) = bytes.split_at(length.expect("a length"));
        if !status.starts_with('2') {
            let body: serde_json::Value = serde_json::from_slice(body).expect("JSON");
            assert!(body["fault_message"].is_string());
            assert!(!status.starts_with("500 "), "{body}");
            // What is answered by the server itself is the last of it.
            let last = head.contains("\r\nConnection: close\r\n");
            assert!(!last || rest.is_empty(), "nothing follows a refusal");
        }
        bytes = rest;
    }
    // One answer for each call, and one more for what is refused.
    assert!((service.calls.len()..=service.calls.len() + 1).contains(&answers));
}

/// Runs the target.
///
/// # Panics
/// The cuts make a difference, or what is answered is no HTTP.
pub fn run(data: &[u8]) -> Reached {
    messages::begin();
    let mut reached = Reached::new();
    let [count, small, rest @ ..] = data else {
        return reached;
    };
    let (cuts, stream) = rest.split_at((usize::from(*count) & MOST_CUTS).min(rest.len()));
    let mut limits = Limits::default();
    if small & 1 != 0 {
        limits.head = 64;
        limits.body = 16;
        limits.output = 100;
        limits.turn = 2;
    }
    let mut sizes = cuts.iter().map(|size| usize::from(*size).max(1)).cycle();
    let mut behind = stream;
    let pieces = std::iter::from_fn(|| {
        let size = sizes.next().unwrap_or(1);
        let (piece, more) = behind.split_at(size.min(behind.len()));
        behind = more;
        (!piece.is_empty()).then_some(piece)
    });
    let heard = if small & 2 != 0 {
        converse(Echo::api(), pieces, &limits)
    } else {
        let heard = converse(Echo::default(), pieces, &limits);
        let whole = stream.chunks(stream.len().max(1));
        let whole = converse(Echo::default(), whole, &limits);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&heard.bytes), text(&whole.bytes));
        assert_eq!(heard.service.calls, whole.service.calls);
        heard
    };
    for answer in &heard.service.answers {
        *reached.entry(answer.clone()).or_default() += 1;
    }
    read(&heard.bytes, &mut reached, &heard.service);
    reached.insert("calls".into(), heard.service.calls.len() as u64);
    reached.insert("later".into(), heard.later);
    reached.insert("streams".into(), heard.streams);
    reached.insert("gone".into(), heard.service.gone as u64);
    messages::end();
    reached
}

/// Its seeds: one for each kind of request, answer and refusal.
pub fn seeds() -> Vec<Seed> {
    let talk = |small: u8, cuts: &[u8], text: &str| {
        let mut bytes = vec![cuts.len() as u8, small];
        bytes.extend_from_slice(cuts);
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    let line = "HTTP/1.1\r\n";
    // To the control socket's own service.
    let api = |requests: &[(&str, &str, &str)]| {
        let requests = requests.iter().map(|(method, path, body)| {
            let length = body.len();
            format!("{method} {path} {line}Content-Length: {length}\r\n\r\n{body}")
        });
        talk(2, &[250], &requests.collect::<String>())
    };
    let all: Vec<_> = ROUTES
        .iter()
        .map(|route| (route.method, route.path))
        .collect();
    let every = |from: usize, to: usize, body: &str| {
        let requests: Vec<_> = all
            .iter()
            .skip(from)
            .take(to - from)
            .map(|(method, path)| (*method, *path, if *method == "GET" { "" } else { body }))
            .collect();
        let text = requests
            .iter()
            .map(|(method, path, body)| (*method, path.replace(['{', '}'], ""), *body))
            .collect::<Vec<_>>();
        let text: Vec<_> = text
            .iter()
            .map(|(method, path, body)| (*method, path.as_str(), *body))
            .collect();
        api(&text)
    };
    vec![
        seed(
            "routes-1",
            every(0, 20, "{}"),
            &["GET / 200", "GET /version 200", "PUT /drives/drive_id 400"],
        ),
        seed(
            "routes-2",
            every(20, all.len(), "{}"),
            &[
                "GET /boot-timeline 200",
                "GET /events stream",
                "PUT /snapshot/create 400",
            ],
        ),
        seed(
            "routes-none",
            every(0, all.len(), ""),
            &["PUT /vsock 400", "PATCH /vm 400"],
        ),
        seed(
            "put-together",
            api(&[
                (
                    "PUT",
                    "/boot-source",
                    r#"{"kernel_image_path":"/proc/self/exe","boot_args":"a"}"#,
                ),
                (
                    "PUT",
                    "/machine-config",
                    r#"{"vcpu_count":2,"mem_size_mib":256}"#,
                ),
                ("PATCH", "/machine-config", r#"{"mem_size_mib":128}"#),
                (
                    "PUT",
                    "/drives/a",
                    r#"{"drive_id":"a","path_on_host":"/dev/null","is_root_device":true}"#,
                ),
                (
                    "PUT",
                    "/network-interfaces/n",
                    r#"{"iface_id":"n","host_dev_name":"tap0"}"#,
                ),
                ("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"v"}"#),
                ("PUT", "/entropy", "{}"),
                ("PUT", "/serial", "{}"),
                (
                    "PUT",
                    "/balloon",
                    r#"{"amount_mib":1,"deflate_on_oom":true}"#,
                ),
                ("PUT", "/logger", r#"{"level":"Info"}"#),
                ("PUT", "/metrics", r#"{"metrics_path":"/dev/null"}"#),
                ("GET", "/vm/config", ""),
                ("GET", "/balloon", ""),
            ]),
            &[
                "PUT /boot-source 204",
                "PUT /machine-config 204",
                "PATCH /machine-config 204",
                "PUT /network-interfaces/n 204",
                "PUT /vsock 204",
                "PUT /entropy 204",
                "PUT /balloon 204",
                "PUT /logger 204",
                "GET /vm/config 200",
                "GET /balloon 200",
            ],
        ),
        seed(
            "too-early",
            api(&[
                ("PATCH", "/vm", r#"{"state":"Paused"}"#),
                ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
                (
                    "PATCH",
                    "/drives/a",
                    r#"{"drive_id":"a","path_on_host":"/x"}"#,
                ),
                ("GET", "/balloon/statistics", ""),
                (
                    "PUT",
                    "/vm",
                    r#"{"boot-source":{"kernel_image_path":"/proc/self/exe"}}"#,
                ),
                (
                    "PUT",
                    "/machine-config",
                    r#"{"vcpu_count":18446744073709551616,"mem_size_mib":1,"mem_size_mib":1}"#,
                ),
            ]),
            &[
                "PATCH /vm 400",
                "PUT /actions 400",
                "PATCH /drives/a 400",
                "PUT /vm 204",
                "PUT /machine-config 400",
            ],
        ),
        seed(
            "get",
            talk(
                0,
                &[5],
                &format!("GET /a?b=c {line}Host: x\r\nX: y\r\n\r\n"),
            ),
            &["200", "calls"],
        ),
        seed(
            "put",
            talk(
                0,
                &[20, 3],
                &format!(
                    "PUT /a {line}Content-Length: 7\r\nExpect: 100-continue\r\n\r\n{{\"a\":1}}"
                ),
            ),
            &["200", "100"],
        ),
        seed(
            "chunked",
            talk(
                0,
                &[1, 2, 3],
                &format!(
                    "PATCH /a%20b {line}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;c=d\r\ne\r\n0\r\nT: u\r\n\r\n"
                ),
            ),
            &["200"],
        ),
        seed(
            "nothing",
            talk(
                0,
                &[],
                &format!("\r\nGET /nothing {line}\r\nGET http://x/nothing {line}\r\n"),
            ),
            &["204"],
        ),
        seed(
            "later",
            talk(0, &[60], &format!("GET /later {line}\r\nGET /a {line}\r\n")),
            &["later", "202", "200"],
        ),
        seed(
            "stream",
            talk(
                0,
                &[60],
                &format!("GET /stream {line}\r\nGET /a {line}\r\n"),
            ),
            &["streams", "200"],
        ),
        seed(
            "stream-1.0",
            talk(0, &[60], "GET /stream HTTP/1.0\r\n\r\n"),
            &["streams", "200"],
        ),
        seed(
            "head",
            talk(
                0,
                &[60],
                &format!("HEAD /stream {line}\r\nHEAD /a {line}\r\n"),
            ),
            &["gone", "200"],
        ),
        seed(
            "close",
            talk(
                0,
                &[200],
                &format!("GET /a {line}Connection: close\r\n\r\nGET / {line}\r\n"),
            ),
            &["200"],
        ),
        seed(
            "old",
            talk(
                0,
                &[9],
                "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /a HTTP/1.0\r\n\r\n",
            ),
            &["200"],
        ),
        seed(
            "many",
            talk(1, &[255], &format!("GET /a {line}\r\n").repeat(10)),
            &["200"],
        ),
        seed(
            "half",
            talk(
                0,
                &[3],
                &format!("PUT /a {line}Content-Length: 7\r\n\r\n{{"),
            ),
            &["400"],
        ),
        seed(
            "smuggled",
            talk(
                0,
                &[99],
                &format!(
                    "PUT /a {line}Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                ),
            ),
            &["400"],
        ),
        seed(
            "large",
            talk(
                1,
                &[99],
                &format!("PUT /a {line}Content-Length: 17\r\n\r\n"),
            ),
            &["413"],
        ),
        seed(
            "large-chunk",
            talk(
                1,
                &[99],
                &format!("PUT /a {line}Transfer-Encoding: chunked\r\n\r\n11\r\n"),
            ),
            &["413"],
        ),
        seed(
            "long",
            talk(1, &[7], &format!("GET /{} {line}\r\n", "a".repeat(64))),
            &["414"],
        ),
        seed(
            "headers",
            talk(
                1,
                &[7],
                &format!("GET / {line}X: {}\r\n\r\n", "a".repeat(64)),
            ),
            &["431"],
        ),
        seed(
            "expect",
            talk(0, &[7], &format!("PUT / {line}Expect: tea\r\n\r\n")),
            &["417"],
        ),
        seed(
            "coding",
            talk(
                0,
                &[7],
                &format!("PUT / {line}Transfer-Encoding: br\r\n\r\n"),
            ),
            &["501"],
        ),
        seed("version", talk(0, &[7], "GET / HTTP/3.0\r\n\r\n"), &["505"]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
