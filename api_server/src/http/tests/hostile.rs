//! Clients that mean no good, or are broken.

use std::io::ErrorKind;

use super::*;

/// Sends until the server has had enough or all is sent. What it answered.
fn push(client: &mut Client, piece: &[u8], times: usize) -> String {
    for _ in 0..times {
        match client.0.write_all(piece) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) =>
            {
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    client.rest_while_writing_ended()
}

impl Client {
    fn rest_while_writing_ended(&mut self) -> String {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
        self.rest()
    }
}

/// Resident memory of this process, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_megabytes_are_refused_and_not_kept() {
    let server = Running::new(Limits::default());
    let piece = vec![b'x'; 1 << 20];
    let chunk = [b"100000\r\n", &piece[..], b"\r\n"].concat();
    let before = resident();
    for (head, piece, status) in [
        (
            "PUT /a HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n",
            &piece,
            413,
        ),
        (
            "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &chunk,
            413,
        ),
        ("PUT /a HTTP/1.1\r\nX: ", &piece, 431),
        ("GET /", &piece, 414),
    ] {
        let mut client = server.connect();
        client.send(head);
        let answer = push(&mut client, piece, 100);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert_eq!(server.connect().get("/a").status, 200);
    }
    // Other tests of this process take memory at the same time; what is sent here is ten times as much.
    let after = resident();
    assert!(
        after < before + (40 << 10),
        "{before} KiB, then {after} KiB"
    );
}

#[test]
fn a_thousand_abandoned_connections_keep_nobody_out() {
    let server = Running::new(Limits::default());
    let mut first = server.connect();
    assert_eq!(first.get("/a").status, 200);
    // More than there are places: those who were there first and say nothing make room.
    let kept: Vec<_> = (0..1000)
        .map(|count| {
            let mut client = server.connect();
            if count % 2 == 0 {
                client.send("PUT /a HTTP/1.1\r\nContent-Le");
            }
            client
        })
        .collect();
    for _ in 0..200 {
        assert_eq!(server.connect().get("/a").status, 200);
    }
    drop(kept);
    for _ in 0..1000 {
        drop(server.connect());
    }
    assert_eq!(server.connect().get("/a").status, 200);
}

#[test]
fn places_whose_answers_are_awaited_are_not_given_away() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let server = Running::new(limits);
    let mut clients = [server.connect(), server.connect()];
    let tickets = clients.each_mut().map(|client| {
        client.send("GET /later HTTP/1.1\r\n\r\n");
        server.called("/later")
    });
    let mut one_more = server.connect();
    let rest = one_more.rest();
    assert!(
        rest.starts_with("HTTP/1.1 503 ") && rest.contains("fault_message"),
        "{rest}"
    );
    server.outbox.send(tickets[0], Response::empty(204));
    assert_eq!(clients[0].reply().status, 204);
    // Idle now: its place is another's.
    assert_eq!(server.connect().get("/a").status, 200);
    assert_eq!(clients[0].rest(), "");
    server.outbox.send(tickets[1], Response::empty(204));
    assert_eq!(clients[1].reply().status, 204);
}

#[test]
fn a_client_gone_in_the_middle_of_its_answer_ends_nothing() {
    let server = Running::new(Limits::default());
    for _ in 0..20 {
        let mut client = server.connect();
        client.send("GET /big?10000000 HTTP/1.1\r\n\r\n");
        let mut some = [0; 1000];
        client.0.read_exact(&mut some).unwrap();
        drop(client);
    }
    let mut client = server.connect();
    assert_eq!(client.get("/big?10000000").body.len(), 10_000_000);
}

/// Who asks without end and takes no answer is not listened to, and the others do not notice.
#[test]
fn who_takes_no_answers_holds_up_nobody() {
    let server = Running::new(Limits::default());
    let greedy: Vec<_> = (0..10)
        .map(|_| {
            let client = server.connect();
            client.0.set_nonblocking(true).unwrap();
            client
        })
        .collect();
    let requests = "GET /big?10000 HTTP/1.1\r\n\r\n".repeat(200);
    let mut quick = server.connect();
    for _ in 0..50 {
        for client in &greedy {
            // As much as there is room for.
            match (&client.0).write(requests.as_bytes()) {
                Ok(bytes) => assert!(bytes > 0),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(quick.get("/a").status, 200);
    }
    // No room in their sockets: nothing is taken from them any more.
    for client in &greedy {
        let error = loop {
            match (&client.0).write(requests.as_bytes()) {
                Ok(bytes) => assert!(bytes > 0),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(quick.get("/a").status, 200);
}

#[test]
fn nothing_is_smuggled() {
    let server = Running::new(Limits::default());
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 0\r\nContent-Length: 40",
        "Transfer-Encoding: xchunked",
        "Content-Length: 0\r\n Content-Length: 40",
    ] {
        let mut client = server.connect();
        client.send(format!(
            "PUT /a HTTP/1.1\r\n{framing}\r\n\r\n0\r\n\r\nPUT /smuggled HTTP/1.1\r\n\r\n"
        ));
        let rest = client.rest_while_writing_ended();
        assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "{rest}");
    }
    let seen = server.notes.try_iter().count();
    assert_eq!(seen, 0);
}

#[test]
fn bytes_that_are_no_text() {
    let server = Running::new(Limits::default());
    for bytes in [
        &b"GET /\xff\xfe HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nX\xff: y\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(bytes);
        assert!(client.rest().starts_with("HTTP/1.1 400 "));
    }
    // In a value they are allowed, and are no text for the service.
    let mut client = server.connect();
    client.send(b"PUT /a HTTP/1.1\r\nX-Test: \xff\r\nContent-Length: 1\r\n\r\n\xff");
    assert_eq!(client.reply().body, echoed("PUT", "/a", "\u{fffd}"));
}

/// A process of its own, as the number of descriptors is the whole process's.
#[test]
fn without_descriptors_clients_get_in_one_after_another() {
    if std::env::var_os("TANDEM_TEST_DESCRIPTORS").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "http::tests::hostile::without_descriptors_clients_get_in_one_after_another",
            ])
            .env("TANDEM_TEST_DESCRIPTORS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let server = Running::new(Limits::default());
    // Sockets for clients while there are some, then everything else goes.
    let mut sockets: Vec<_> = (0..20).map(|_| unconnected()).collect();
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call fills the struct that it gets.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur = 100;
    // SAFETY: the call reads the struct that it gets.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let mut fill = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fill.push(file);
    }
    let error = std::fs::File::open("/dev/null").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    let mut clients = Vec::new();
    for socket in sockets.drain(..19) {
        // Each takes the place of the one before.
        let mut client = connect(socket, &server);
        assert_eq!(client.get("/a").status, 200);
        clients.push(client);
    }
    // The last one that can be answered is kept busy: the next has to wait, and the loop does not spin.
    let mut last = clients.pop().unwrap();
    last.send("GET /later HTTP/1.1\r\n\r\n");
    let ticket = server.called("/later");
    let mut waiting = connect(sockets.pop().unwrap(), &server);
    waiting.send("GET /waited HTTP/1.1\r\n\r\n");
    let before = cpu_time();
    waiting
        .0
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let error = waiting.0.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let spent = cpu_time() - before;
    assert!(spent < Duration::from_millis(100), "{spent:?}");
    waiting.0.set_read_timeout(Some(PATIENCE)).unwrap();
    server.outbox.send(ticket, Response::empty(204));
    assert_eq!(last.reply().status, 204);
    assert_eq!(waiting.reply().status, 200);
    drop(fill);
    assert_eq!(server.connect().get("/a").status, 200);
}

/// A socket that is not connected yet.
fn unconnected() -> std::os::fd::OwnedFd {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new, and nobody else's.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

fn connect(socket: std::os::fd::OwnedFd, server: &Running) -> Client {
    use std::os::fd::AsRawFd;
    let (address, length) = super::super::socket::address(&server.path);
    // SAFETY: the address is a whole sockaddr_un of which `length` bytes count, and outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(result, 0);
    let stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client(stream)
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the struct that it gets.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
