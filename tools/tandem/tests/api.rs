//! Runs the real `tandem api` against servers on Unix sockets that say what each test needs, right or wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

/// A server of one connection, and the socket it listens on.
struct Server<T> {
    socket: PathBuf,
    thread: JoinHandle<T>,
    _directory: tempfile::TempDir,
}

impl<T: Send + 'static> Server<T> {
    fn new(serve: impl FnOnce(UnixStream) -> T + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || serve(listener.accept().unwrap().0));
        Self {
            socket,
            thread,
            _directory: directory,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tandem(arguments);
        command.env("TANDEM_SOCKET", &self.socket);
        command
    }
}

fn tandem(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command
        .arg("api")
        .args(arguments)
        .env_remove("TANDEM_SOCKET")
        .stdin(Stdio::null());
    command
}

/// The head of a request and its body.
fn request(stream: &UnixStream) -> (Vec<String>, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let length = head
        .iter()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    (head, body)
}

/// A server that answers with these bytes and says what it was asked.
fn answering(answer: &'static [u8]) -> Server<(Vec<String>, Vec<u8>)> {
    Server::new(move |mut stream| {
        let request = request(&stream);
        stream.write_all(answer).unwrap();
        request
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Exit code, standard output and standard error.
fn said(output: &Output) -> (i32, &str, &str) {
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: x\r\nContent-Length: 14\r\n\r\n{\"b\":1,\"a\":[]}";

#[test]
fn a_document_is_readable() {
    let server = answering(OK);
    let output = server.command(&["get", "/vm/config"]).output().unwrap();
    assert_eq!(said(&output), (0, "{\n  \"b\": 1,\n  \"a\": []\n}\n", ""));
    let (head, body) = server.thread.join().unwrap();
    assert_eq!(head[0], "GET /vm/config HTTP/1.1");
    assert!(head.contains(&"Host: localhost".to_owned()));
    assert!(body.is_empty());
    assert!(!head.iter().any(|line| line.starts_with("Content-")));
}

#[test]
fn raw_and_include_are_exact() {
    let server = answering(OK);
    let output = server.command(&["--raw", "GET", "/"]).output().unwrap();
    assert_eq!(said(&output), (0, "{\"b\":1,\"a\":[]}", ""));
    let server = answering(OK);
    let output = server.command(&["-i", "GET", "/"]).output().unwrap();
    let (code, shown, _) = said(&output);
    assert_eq!(code, 0);
    let expected = "HTTP/1.1 200 OK\nContent-Type: application/json\nServer: x\nContent-Length: 14\n\n{\n  \"b\"";
    assert!(shown.starts_with(expected), "{shown}");
}

#[test]
fn a_body_is_sent_from_wherever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body.json");
    std::fs::write(&file, "{\"x\": 1}").unwrap();
    let at_file = format!("@{}", file.display());
    for arguments in [
        &["PUT", "/x", "{\"x\": 1}"][..],
        &["PUT", "/x", "-d", "{\"x\": 1}"],
        &["PUT", "/x", "-d", &at_file],
        &["PUT", "/x", &at_file],
        &["PUT", "/x", "-"],
        &["PUT", "/x", "--data", "@-"],
    ] {
        let server = answering(b"HTTP/1.1 204 No Content\r\n\r\n");
        let stdin = std::fs::File::open(&file).unwrap();
        let output = server.command(arguments).stdin(stdin).output().unwrap();
        assert_eq!(said(&output), (0, "", ""), "{arguments:?}");
        let (head, body) = server.thread.join().unwrap();
        assert_eq!(text(&body), "{\"x\": 1}");
        assert!(head.contains(&"Content-Type: application/json".to_owned()));
    }
}

#[test]
fn headers_can_be_given() {
    let server = answering(OK);
    let arguments = ["GET", "/", "-H", "X-A: 1", "-H", "accept: text/plain"];
    assert!(server.command(&arguments).status().unwrap().success());
    let (head, _) = server.thread.join().unwrap();
    assert!(head.contains(&"X-A: 1".to_owned()));
    let accepts: Vec<_> = head
        .iter()
        .filter(|line| line.to_lowercase().starts_with("accept:"))
        .collect();
    assert_eq!(accepts, ["accept: text/plain"]);
}

#[test]
fn a_refusal_is_told() {
    const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n{\"fault_message\":\"a: \\u001b is b\"}";
    let server = answering(REFUSED);
    let output = server.command(&["PUT", "/a", "{}"]).output().unwrap();
    let message = "tandem api: 400 Bad Request: a: \\u001b is b\n";
    assert_eq!(said(&output), (22, "", message));
    let server = answering(REFUSED);
    let output = server
        .command(&["--raw", "PUT", "/a", "{}"])
        .output()
        .unwrap();
    assert_eq!(
        said(&output),
        (22, "{\"fault_message\":\"a: \\u001b is b\"}", "")
    );
    let server = answering(b"HTTP/1.0 503 \r\n\r\n");
    let output = server.command(&["GET", "/a"]).output().unwrap();
    assert_eq!(said(&output), (22, "", "tandem api: 503\n"));
    let server = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnope\n");
    let output = server.command(&["GET", "/a"]).output().unwrap();
    assert_eq!(said(&output), (22, "", "tandem api: 404 Not Found: nope\n"));
}

#[test]
fn an_answer_before_the_end_of_the_request_counts() {
    // The server reads the head only, and goes.
    let server = Server::new(|mut stream: UnixStream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        let answer = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).unwrap();
    });
    let mut child = server
        .command(&["PUT", "/mmds", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let body = vec![b' '; 8 << 20];
    child.stdin.take().unwrap().write_all(&body).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(22), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("413 Payload Too Large"));
}

#[test]
fn what_is_not_an_answer_is_told() {
    for (answer, code, message) in [
        (&b""[..], 52, "without an answer"),
        (b"HTTP/1.1 200", 18, "in the middle"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 8, "not HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
            18,
            "in the middle",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nab",
            8,
            "length",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab",
            8,
            "coding",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            18,
            "in the middle",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nab",
            8,
            "chunk",
        ),
    ] {
        let server = answering(answer);
        let output = server.command(&["--raw", "GET", "/"]).output().unwrap();
        let (found, _, stderr) = said(&output);
        assert_eq!(found, code, "{}: {stderr}", text(answer));
        assert!(stderr.contains(message), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn continue_is_not_the_answer() {
    let server =
        answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
    let output = server.command(&["PUT", "/", "{}"]).output().unwrap();
    assert_eq!(said(&output), (0, "x", ""));
}

#[test]
fn a_silent_server_is_waited_for_no_longer_than_asked() {
    // Until the client has gone.
    let server = Server::new(|mut stream: UnixStream| stream.read_to_end(&mut Vec::new()));
    let output = server
        .command(&["--timeout", "1", "GET", "/"])
        .output()
        .unwrap();
    let (code, _, stderr) = said(&output);
    assert_eq!(code, 28, "{stderr}");
    assert!(stderr.contains("1 s"), "{stderr}");
    server.thread.join().unwrap().unwrap();
}

#[test]
fn a_socket_that_is_none_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name| directory.path().join(name).to_str().unwrap().to_owned();
    let (missing, file, stale) = (path("missing"), path("file"), path("stale"));
    std::fs::write(&file, "").unwrap();
    drop(UnixListener::bind(&stale).unwrap());
    for (socket, message) in [
        (&missing, "--api-sock"),
        (&file, "is not a socket"),
        (&stale, "nobody listens"),
    ] {
        let output = tandem(&["--socket", socket, "GET", "/"]).output().unwrap();
        let (code, stdout, stderr) = said(&output);
        assert_eq!((code, stdout), (7, ""));
        assert!(
            stderr.contains(message) && stderr.contains(socket),
            "{stderr}"
        );
    }
    for arguments in [
        &["GET", "/"][..],
        &["GET"],
        &["/vm"],
        &["GET", "vm"],
        &["--list", "GET"],
    ] {
        assert_eq!(
            tandem(arguments).output().unwrap().status.code(),
            Some(64),
            "{arguments:?}"
        );
    }
}

const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn events_are_shown_as_they_happen() {
    let (next, wanted) = std::sync::mpsc::channel::<&[u8]>();
    let server = Server::new(move |mut stream: UnixStream| {
        request(&stream);
        stream.write_all(STREAM).unwrap();
        for line in wanted {
            stream.write_all(line).unwrap();
        }
    });
    let mut child = server
        .command(&["GET", "/events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line
    };
    // Each is read before the next is sent, and a line may come in two pieces.
    next.send(b"8\r\n{\"a\":1}\n\r\n").unwrap();
    assert_eq!(line(), "{\"a\": 1}\n");
    next.send(b"4\r\n{\"b\"\r\n").unwrap();
    next.send(b"4\r\n:2}\n\r\n").unwrap();
    assert_eq!(line(), "{\"b\": 2}\n");
    next.send(b"0\r\n\r\n").unwrap();
    assert_eq!(line(), "");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_stream_ends_when_nobody_reads_it() {
    let server = Server::new(|mut stream: UnixStream| {
        request(&stream);
        stream.write_all(STREAM).unwrap();
        stream.write_all(b"3\r\n{}\n\r\n").unwrap();
        // No more events: the client has to see by itself that its reader left.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let mut child = server
        .command(&["GET", "/events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    server.thread.join().unwrap();
}

#[test]
fn a_stream_that_breaks_off_is_told() {
    let server = Server::new(|mut stream: UnixStream| {
        request(&stream);
        stream.write_all(STREAM).unwrap();
        stream.write_all(b"3\r\n{}\n\r\n").unwrap();
    });
    let output = server.command(&["GET", "/events"]).output().unwrap();
    let (code, stdout, stderr) = said(&output);
    assert_eq!((code, stdout), (18, "{}\n"), "{stderr}");
}

#[test]
fn the_list_has_every_tag() {
    let output = tandem(&["--list"]).output().unwrap();
    let (code, stdout, _) = said(&output);
    assert_eq!(code, 0);
    assert!(stdout.contains("GET    /machine-config"), "{stdout}");
    assert!(
        stdout.lines().all(|line| line.chars().count() <= 110),
        "{stdout}"
    );
}
