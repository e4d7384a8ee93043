//! The socket device: stock kernels talk to programs of the host, in both directions.
//!
//! The guest's side is socat. Connections carry bytes to an echo and back, and every byte is compared.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::guest_shell::GuestShell;
use tests::patience;

use crate::kernels::{Kernel, commands};

/// The guest's ports: an echo, the SHA-256 of what comes until the end, and what throws everything away.
const ECHO: u32 = 5001;
const DIGEST: u32 = 5002;
const SINK: u32 = 5003;
/// The host's: an echo.
const HOST_ECHO: u32 = 6001;
/// Sizes around the guest's buffers and beyond its credit, in bytes.
const SIZES: [usize; 10] = [
    0, 1, 100, 4051, 4052, 4097, 65_536, 100_001, 300_000, 2_500_000,
];
/// socat waits for the other direction, however slow it is.
const PATIENT: &str = "-t 1000";

/// Bytes that are not the same at any two places near to each other.
fn bytes(seed: usize, len: usize) -> Vec<u8> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn boot(kernel: Kernel) -> GuestShell {
    let mut builder = commands(kernel);
    let path = builder.path("v.sock");
    builder.config["vsock"] = json!({ "guest_cid": 3, "uds_path": path });
    let metrics = builder.path("metrics");
    builder.config["metrics"] = json!({ "metrics_path": metrics });
    let mut shell = GuestShell::boot(builder);
    listen(&mut shell);
    shell
}

/// Starts the guest's programs, and waits until they listen.
fn listen(shell: &mut GuestShell) {
    for (port, what) in [
        (ECHO, "EXEC:cat"),
        (DIGEST, "EXEC:sha256sum"),
        (SINK, "OPEN:/dev/null,wronly"),
    ] {
        let direction = if port == SINK { "-u" } else { "" };
        shell.ok(&format!(
            "setsid socat {PATIENT} {direction} VSOCK-LISTEN:{port},fork,backlog=128 {what} </dev/null >/tmp/log.{port} 2>&1 &"
        ));
    }
    let path = shell.vm().path("v.sock");
    for port in [ECHO, DIGEST, SINK] {
        let deadline = Instant::now() + patience();
        while call(&path, port).is_none() {
            assert!(Instant::now() < deadline, "nobody listens at {port}");
        }
    }
}

/// Connects to a port of the guest's; `None` if it refuses.
fn call(path: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(path).expect("the socket is there");
    stream.set_read_timeout(Some(patience())).unwrap();
    stream.set_write_timeout(Some(patience())).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => {
                assert!(line.is_empty(), "half an answer: {line:?}");
                return None;
            }
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("no answer: {error}"),
        }
    }
    let line = String::from_utf8(line).unwrap();
    let assigned = line.strip_prefix("OK ").expect("OK <port>");
    assert!(assigned.parse::<u32>().unwrap() >= 1 << 30, "{line}");
    Some(stream)
}

/// Sends bytes to the guest's echo, with an end, and compares what comes back.
fn echo(path: &Path, seed: usize, len: usize) {
    let stream = call(path, ECHO).expect("the guest listens");
    let sent = bytes(seed, len);
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::with_capacity(len);
        (&stream).read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), len);
        assert!(got == sent, "{len} bytes came back changed");
    });
}

/// Runs `count` echoes, `together` at a time.
fn echoes(path: &Path, count: usize, together: usize) {
    thread::scope(|scope| {
        for first in 0..together {
            scope.spawn(move || {
                for seed in (first..count).step_by(together) {
                    echo(path, seed, SIZES[seed % SIZES.len()]);
                }
            });
        }
    });
}

/// The host's echo. It takes all that comes even while nobody takes what it sends: socat writes and reads in turn, and would
/// wait for it for ever. It ends with the test.
fn serve_echo(path: PathBuf) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = stream.unwrap();
            let mut writer = reader.try_clone().unwrap();
            let (sender, receiver) = mpsc::channel::<Vec<u8>>();
            thread::spawn(move || {
                let mut buffer = vec![0; 50_000];
                while let Ok(count @ 1..) = reader.read(&mut buffer) {
                    sender.send(buffer[..count].to_vec()).unwrap();
                }
            });
            thread::spawn(move || {
                while let Ok(piece) = receiver.recv() {
                    writer.write_all(&piece).unwrap();
                }
                writer.shutdown(Shutdown::Write).unwrap();
            });
        }
    });
}

/// A port of the host's, as a file.
fn host_port(shell: &GuestShell, port: u32) -> PathBuf {
    shell.vm().path(&format!("v.sock_{port}"))
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// The guest's files of [`SIZES`], and `count` echoes of them through the host, `together` at a time.
fn guest_echoes(shell: &mut GuestShell, count: usize, together: usize) {
    for (index, size) in SIZES.iter().enumerate() {
        shell.ok(&format!("head -c {size} /dev/urandom >/tmp/b{index}"));
    }
    let text = shell.ok_at_most(patience() * 4, &format!(
        "one() {{ socat {PATIENT} - VSOCK-CONNECT:2:{HOST_ECHO} </tmp/b$(($1 % 10)) 2>/tmp/err.$1 | cmp - /tmp/b$(($1 % 10)) && echo same; cat /tmp/err.$1; }}
        i=0
        while [ $i -lt {count} ]; do
            for j in $(seq {together}); do one $i & i=$((i + 1)); done
            wait
        done"
    ));
    let same = text.lines().filter(|line| *line == "same").count();
    assert_eq!(same, count, "{text}");
}

fn counter(shell: &GuestShell, name: &str) -> u64 {
    let metrics = shell.vm().metrics();
    let found = find(&metrics, name);
    found.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

fn find(value: &serde_json::Value, name: &str) -> Option<u64> {
    let object = value.as_object()?;
    let here = object
        .get("vsock")
        .and_then(|vsock| vsock.get(name)?.as_u64());
    here.or_else(|| object.values().find_map(|inner| find(inner, name)))
}

/// Waits until the device has no connections.
#[track_caller]
fn all_closed(shell: &GuestShell) {
    let deadline = Instant::now() + patience();
    while counter(shell, "connections_open") > 0 {
        assert!(Instant::now() < deadline, "connections stay open");
        thread::sleep(Duration::from_millis(100));
    }
}

fn transfers(kernel: Kernel, count: usize) {
    let mut shell = boot(kernel);
    let path = shell.vm().path("v.sock");
    echoes(&path, count, 10);
    serve_echo(host_port(&shell, HOST_ECHO));
    guest_echoes(&mut shell, count, 5);
    all_closed(&shell);
    for (name, least) in [
        ("connections_by_host", count as u64),
        ("connections_by_guest", count as u64),
        ("bytes_to_guest", 1 << 20),
        ("bytes_from_guest", 1 << 20),
    ] {
        let found = counter(&shell, name);
        println!("{name} {found}");
        assert!(found >= least, "{name} {found}");
    }
    assert_eq!(counter(&shell, "connections_reset"), 0);
    assert_eq!(counter(&shell, "drops"), 0);
    let ended = shell.power_off();
    assert!(!ended.path("v.sock").exists(), "the socket is removed");
    assert_eq!(ended.stderr, "");
}

#[test]
fn cloud_6_12_transfers_200_streams() {
    transfers(Kernel::CLOUD_6_12, 100);
}

#[test]
fn generic_6_12_transfers_streams() {
    transfers(Kernel::GENERIC_6_12, 20);
}

#[test]
fn ends_and_refusals() {
    let mut shell = boot(Kernel::CLOUD_6_12);
    let path = shell.vm().path("v.sock");
    let path = path.as_path();

    // Nobody listens.
    assert!(call(path, 4999).is_none());
    let refused = shell.run("socat - VSOCK-CONNECT:2:4999");
    assert!(refused.status != 0, "{refused:?}");
    assert!(refused.text.contains("reset"), "{refused:?}");
    // There is a file, and nobody behind it.
    drop(UnixListener::bind(host_port(&shell, 4998)).unwrap());
    assert!(shell.run("socat - VSOCK-CONNECT:2:4998").status != 0);

    // Half-close: the answer comes after the end.
    let stream = call(path, DIGEST).unwrap();
    let sent = bytes(1, 1_000_000);
    (&stream).write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    (&stream).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, sha256(&sent));
    // And the other way round.
    let listener = UnixListener::bind(host_port(&shell, 6002)).unwrap();
    let digest = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(sha256(&all).as_bytes()).unwrap();
    });
    let text = shell.ok(&format!(
        "head -c 777777 /dev/urandom >/tmp/x; socat {PATIENT} - VSOCK-CONNECT:2:6002 </tmp/x; sha256sum </tmp/x"
    ));
    digest.join().unwrap();
    let (first, second) = text.split_once('\n').unwrap();
    assert_eq!(first, second);

    // A client that goes away in the middle; the guest's program ends, and others do not notice.
    for _ in 0..5 {
        let stream = call(path, ECHO).unwrap();
        (&stream).write_all(&bytes(2, 150_000)).unwrap();
        drop(stream);
    }
    echo(path, 3, 100_000);
    // A program of the guest's that is killed in the middle.
    let listener = UnixListener::bind(host_port(&shell, 6003)).unwrap();
    let signal = UnixListener::bind(host_port(&shell, 6005)).unwrap();
    let asked = shell.send(
        "socat -u OPEN:/dev/zero VSOCK-CONNECT:2:6003 & socat -u VSOCK-CONNECT:2:6005 OPEN:/dev/null,wronly; kill -9 $!; wait $!; :",
    );
    let (mut stream, _) = listener.accept().unwrap();
    let mut all = vec![0; 100_000];
    stream.read_exact(&mut all).unwrap();
    // What the guest waits for comes to its end.
    drop(signal.accept().unwrap());
    stream.read_to_end(&mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 0));
    println!("killed after {} bytes", all.len());
    let _ = shell.answer(asked, patience());

    // A reader that is slow: the guest's last byte arrives long after its program has ended.
    let listener = UnixListener::bind(host_port(&shell, 6004)).unwrap();
    let sent = 3_000_000;
    shell.ok(&format!("head -c {sent} /dev/urandom >/tmp/slow"));
    let asked = shell.send("socat -u OPEN:/tmp/slow VSOCK-CONNECT:2:6004; sha256sum </tmp/slow");
    let (mut stream, _) = listener.accept().unwrap();
    let mut all = vec![0; 10];
    stream.read_exact(&mut all).unwrap();
    // Meanwhile others go on.
    echo(path, 4, 300_000);
    let held = counter(&shell, "bytes_held");
    println!("held for a slow reader: {held}");
    assert!((1..=256 << 10).contains(&held), "{held}");
    while all.len() < sent - (300 << 10) {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "an early end");
        all.extend(&piece[..count]);
    }
    // The rest is on this side.
    let digest = shell.answer(asked, patience());
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), sent);
    assert_eq!(digest.text, sha256(&all));

    // A reader in the guest that is slow: the host's data waits in the host.
    shell.ok("setsid sh -c 'socat -u VSOCK-LISTEN:5009 OPEN:/tmp/fifo,wronly' </dev/null >/dev/null 2>&1 & mkfifo /tmp/fifo");
    let stream = loop {
        if let Some(stream) = call(path, 5009) {
            break stream;
        }
    };
    let sent = bytes(5, 1_500_000);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let deadline = Instant::now() + patience();
        while counter(&shell, "credit_stalls") == 0 {
            assert!(Instant::now() < deadline, "no stall");
        }
        assert!(!writer.is_finished());
        echo(path, 6, 300_000);
        let digest = shell.ok("sha256sum </tmp/fifo");
        assert_eq!(digest + "\n", sha256(&sent));
    });
    drop(stream);
    all_closed(&shell);
    echoes(path, 10, 5);
    let ended = shell.power_off();
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_driver_may_go_and_come_back() {
    let mut shell = boot(Kernel::CLOUD_6_12);
    let path = shell.vm().path("v.sock");
    let driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
    let name = shell.ok(&format!("cd {driver}; echo virtio*"));
    for _ in 0..3 {
        let open: Vec<_> = (0..5).map(|_| call(&path, ECHO).unwrap()).collect();
        for mut stream in &open {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        shell.ok(&format!("echo {name} >{driver}/unbind"));
        for mut stream in &open {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "an end");
        }
        assert!(call(&path, ECHO).is_none(), "there is no driver");
        shell.ok(&format!("echo {name} >{driver}/bind"));
        // The guest's programs still listen.
        let deadline = Instant::now() + patience();
        while call(&path, ECHO).is_none() {
            assert!(Instant::now() < deadline, "nobody listens any more");
        }
        echo(&path, 1, 300_000);
    }
    // The module as a whole, which nobody may be using.
    shell.ok("killall socat; while ! rmmod vmw_vsock_virtio_transport; do sleep 0.1; done");
    assert!(call(&path, ECHO).is_none());
    shell.ok("insmod /lib/modules/*-vmw_vsock_virtio_transport.ko");
    listen(&mut shell);
    echo(&path, 2, 300_000);
    // A guest that goes down with connections open.
    let mut last = call(&path, ECHO).unwrap();
    last.write_all(b"x").unwrap();
    let ended = shell.power_off();
    assert_eq!(ended.stderr, "");
    let _ = last.read(&mut [0]).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0);
}

/// Figures of a lab are good as ratios only: to a Unix socket within the guest.
#[test]
fn figures() {
    const BYTES: usize = 32 << 20;
    let mut shell = boot(Kernel::CLOUD_6_12);
    let path = shell.vm().path("v.sock");
    let rate = |time: Duration| BYTES as f64 / time.as_secs_f64() / f64::from(1 << 20);
    let zeros = format!("socat -u -b 65536 OPEN:/dev/zero,readbytes={BYTES}");
    let sink = |from: &str| {
        format!(
            "setsid socat -u -b 65536 {from} OPEN:/dev/null,wronly </dev/null >/dev/null 2>&1 &"
        )
    };

    shell.ok(&format!(
        "{} while ! [ -S /tmp/s ]; do :; done",
        sink("UNIX-LISTEN:/tmp/s")
    ));
    let start = Instant::now();
    shell.ok(&format!("{zeros} UNIX-CONNECT:/tmp/s"));
    println!("within the guest: {:.1} MiB/s", rate(start.elapsed()));

    let listener = UnixListener::bind(host_port(&shell, 6010)).unwrap();
    let asked = shell.send(&format!("{zeros} VSOCK-CONNECT:2:6010"));
    let (mut stream, _) = listener.accept().unwrap();
    let start = Instant::now();
    let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        total += count;
    }
    println!("guest to host: {:.1} MiB/s", rate(start.elapsed()));
    assert_eq!(total, BYTES);
    assert_eq!(shell.answer(asked, patience()).status, 0);

    shell.ok(&sink("VSOCK-LISTEN:5010"));
    let mut stream = loop {
        if let Some(stream) = call(&path, 5010) {
            break stream;
        }
    };
    let start = Instant::now();
    for _ in 0..BYTES / buffer.len() {
        stream.write_all(&buffer).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    // The guest closes when it has got all.
    assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    println!("host to guest: {:.1} MiB/s", rate(start.elapsed()));
    assert!(counter(&shell, "bytes_to_guest") >= BYTES as u64);

    // One connection that stays open, so that no process has to be started for what is timed.
    let mut stream = call(&path, ECHO).unwrap();
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("one byte there and back, p50: {:?}", times[100]);
    drop(stream);
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            assert!(call(&path, 4999).is_none());
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("a refused connect, p50: {:?}", times[100]);
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let start = Instant::now();
            let stream = call(&path, ECHO).unwrap();
            let time = start.elapsed();
            drop(stream);
            all_closed(&shell);
            time
        })
        .collect();
    times.sort();
    println!("a connect, p50: {:?}", times[10]);
    println!(
        "memory outside of the guest: {} KiB",
        shell.vm().footprint_kib()
    );
    shell.power_off();
}
