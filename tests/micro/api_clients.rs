//! Clients that leave, are killed, flood it or send nonsense: the process lives, is as it was, and keeps nothing of them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tests::program;
use tests::vm::Vm;

use crate::api_races::{
    configured, connections, request, wait_until, waiting, with_drive, without_connections,
};

/// A VM with a drive that runs.
fn running() -> Vm {
    let vm = configured(with_drive);
    vm.api().action("InstanceStart");
    vm.wait_for("ready\n");
    vm
}

/// A connection on which this was sent.
fn sent(vm: &Vm, bytes: &[u8]) -> UnixStream {
    let mut client = vm.api().connect();
    client.write_all(bytes).unwrap();
    client
}

/// What comes back until the end.
fn said(mut client: UnixStream) -> String {
    let mut answer = Vec::new();
    // A connection that is ended with some of the request unread is reset.
    let _ = client.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn motion(state: &str) -> Vec<u8> {
    request("PATCH", "/vm", &json!({ "state": state }).to_string())
}

#[test]
fn who_leaves_before_the_answer_was_heard_all_the_same() {
    let vm = running();
    let api = vm.api();
    let before = without_connections(&vm);
    for round in 0..20 {
        for (state, shown) in [("Paused", "Paused"), ("Resumed", "Running")] {
            let client = sent(&vm, &motion(state));
            if round % 2 == 0 {
                client.shutdown(Shutdown::Write).unwrap();
            }
            drop(client);
            wait_until(state, || api.state() == shown);
        }
        let image = json!(vm.path(["b.img", "a.img"][round % 2]));
        let body = json!({ "drive_id": "a", "path_on_host": image }).to_string();
        drop(sent(&vm, &request("PATCH", "/drives/a", &body)));
        wait_until("the new image", || {
            api.get("/vm/config")["drives"][0]["path_on_host"] == image
        });
    }
    assert_eq!(without_connections(&vm), before);
    assert_eq!(api.state(), "Running");
}

#[test]
fn who_leaves_in_the_middle_of_an_answer_ends_nothing() {
    let vm = running();
    let before = without_connections(&vm);
    let shown = vm.api().get("/vm/config");
    let many = request("GET", "/vm/config", "").repeat(400);
    let events = request("GET", "/events", "");
    for _ in 0..20 {
        for bytes in [&many, &events] {
            let mut client = sent(&vm, bytes);
            // Some of it has come, the rest is under way.
            client.read_exact(&mut [0; 100]).unwrap();
        }
    }
    assert_eq!(without_connections(&vm), before);
    assert_eq!(vm.api().get("/vm/config"), shown);
    assert_eq!(vm.api().state(), "Running");
}

#[test]
fn events_that_nobody_reads_hold_up_nobody() {
    let vm = running();
    let api = vm.api();
    let listeners: Vec<_> = (0..4)
        .map(|_| sent(&vm, &request("GET", "/events", "")))
        .collect();
    wait_until("listeners", || connections(&vm) == listeners.len());
    for _ in 0..200 {
        for (state, shown) in [("Paused", "Paused"), ("Resumed", "Running")] {
            api.set_state(state);
            assert_eq!(api.state(), shown);
        }
    }
    api.action("Stop");
    assert_eq!(vm.wait().code, 70);
    // What there was room for is whole and in order.
    for listener in listeners {
        let told = said(listener);
        let states: Vec<_> = told.split(r#""state":""#).skip(1).collect();
        assert!(states.len() > 10, "{told}");
        for (n, state) in states.iter().enumerate() {
            assert!(state.starts_with(["Running", "Paused"][n % 2]), "{told}");
        }
    }
}

/// A client that is a process of its own.
fn curl(vm: &Vm, arguments: &[&str]) -> Child {
    let mut command = Command::new("curl");
    command.args(["--silent", "--no-buffer", "--unix-socket"]);
    command.arg(vm.api().path()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("curl is installed")
}

/// Ends it by SIGKILL.
fn kill(mut client: Child) {
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn killed_clients_leave_nothing() {
    let vm = running();
    let api = vm.api();
    let before = without_connections(&vm);
    let shown = api.get("/vm/config");
    for _ in 0..3 {
        // In the middle of a request.
        let arguments = ["--upload-file", "-", "http://localhost/drives/a"];
        let mut client = curl(&vm, &arguments);
        let half = br#"{"drive_id": "a", "path_on_host": "/dev"#;
        client.stdin.as_mut().unwrap().write_all(half).unwrap();
        wait_until("its connection", || connections(&vm) == 1);
        kill(client);
        // In the middle of an answer.
        let mut client = curl(&vm, &["http://localhost/events"]);
        let mut line = String::new();
        let mut stdout = BufReader::new(client.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("Running"), "{line}");
        kill(client);
        let mut command = Command::new(program::tandem());
        command.args(["api", "GET", "/events"]);
        command.env("TANDEM_SOCKET", api.path());
        command.stdout(Stdio::piped());
        let mut client = command.spawn().unwrap();
        let mut stdout = BufReader::new(client.stdout.take().unwrap());
        line.clear();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("Running"), "{line}");
        kill(client);
    }
    assert_eq!(without_connections(&vm), before);
    assert_eq!(api.get("/vm/config"), shown);
    api.set_state("Paused");
    assert_eq!(api.state(), "Paused");
}

#[test]
fn a_thousand_abandoned_connections_and_half_requests_keep_nobody_out() {
    let vm = running();
    let api = vm.api();
    let before = without_connections(&vm);
    let memory = resident(&vm);
    let whole = motion("Paused");
    let mut open = Vec::new();
    for n in 0..1000 {
        // Nothing at all, or any part of a request but the whole.
        open.push(sent(&vm, &whole[..n % whole.len()]));
        if n % 20 == 0 {
            assert_eq!(api.state(), "Running");
        }
        if open.len() == 250 {
            open.clear();
        }
    }
    assert_eq!(api.state(), "Running");
    drop(open);
    assert_eq!(without_connections(&vm), before);
    assert_eq!(api.state(), "Running");
    let grown = resident(&vm).saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more");
}

/// Resident memory in KiB, but for that of files and of the guest.
fn resident(vm: &Vm) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().split(' ').next());
    number.unwrap().parse().unwrap()
}

#[test]
fn a_hundred_megabytes_are_refused_and_not_kept() {
    let vm = running();
    let before = without_connections(&vm);
    let memory = resident(&vm);
    let length = 100 << 20;
    let head = format!("PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let chunked = "PUT /vm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6400000\r\n";
    for head in [head.as_str(), chunked] {
        let mut client = sent(&vm, head.as_bytes());
        let piece = vec![b'7'; 1 << 20];
        // It may have had enough of it at any time.
        let _ = (0..100).try_for_each(|_| client.write_all(&piece));
        let answer = said(client);
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer:?}");
        assert_eq!(vm.api().state(), "Running");
    }
    let grown = resident(&vm).saturating_sub(memory);
    assert!(grown < 4096, "{grown} KiB more");
    assert_eq!(without_connections(&vm), before);
}

#[test]
fn nonsense_is_refused_with_the_field_named_and_changes_nothing() {
    let (vm, _) = waiting(|_| {});
    let api = vm.api();
    let before = without_connections(&vm);
    let shown = api.get("/vm/config");
    let huge = "18446744073709551616";
    for (path, body, words) in [
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": HUGE}"#,
            "mem_size_mib",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": HUGE, "mem_size_mib": 16}"#,
            "vcpu_count",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "vcpu_count": 2, "mem_size_mib": 16}"#,
            "vcpu_count",
        ),
        (
            "/entropy",
            r#"{"rate_limiter": {"ops": {"size": HUGE, "refill_time": 1}}}"#,
            "rate_limiter.ops.size",
        ),
        (
            "/vsock",
            r#"{"guest_cid": HUGE, "uds_path": "v"}"#,
            "guest_cid",
        ),
        (
            "/balloon",
            r#"{"amount_mib": HUGE, "deflate_on_oom": true}"#,
            "amount_mib",
        ),
        ("/serial", r#"{"serial_out_path": HUGE}"#, "serial_out_path"),
        (
            "/vm",
            r#"{"boot-source": {"kernel_image_path": "a"}, "boot-source": {"kernel_image_path": "b"}}"#,
            "boot-source",
        ),
    ] {
        let body = body.replace("HUGE", huge);
        let (status, answer) = api.send("PUT", path, &body);
        assert!(status == 400 && answer.contains(words), "{body}: {answer}");
    }
    for (head, body, status) in [
        ("PUT /machine-config", &b"{\"vcpu_count\xff\": 1}"[..], 400),
        ("PUT /logger", b"{\"log_path\": \"\xc0\x80\"}", 400),
        ("PUT /vm\u{fffd}", b"{}", 400),
        ("PUT /boot-source", &[0; 64], 400),
    ] {
        let head = format!(
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = said(sent(&vm, &[head.as_bytes(), body].concat()));
        let line = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&line), "{head}: {answer}");
    }
    let long = format!("PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: {huge}\r\n\r\n");
    let answer = said(sent(&vm, long.as_bytes()));
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(api.get("/vm/config"), shown);
    assert_eq!(api.state(), "Not started");
    assert_eq!(without_connections(&vm), before);
}
