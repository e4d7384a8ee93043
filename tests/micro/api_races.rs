//! Requests at the same time as others, as the start, and as signals: each is before or after, never between.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::patience;
use tests::vm::{Vm, VmBuilder};

use crate::guest::guest;

pub const START: &str = r#"{"action_type": "InstanceStart"}"#;
const STOP: &str = r#"{"action_type": "Stop"}"#;

guest!(
    spinning,
    r#"
    say "ready\n"
2:
    jmp 2b
    "#
);

/// A VM that waits for requests, with what `change` makes of its configuration.
pub fn waiting(change: impl FnOnce(&mut VmBuilder)) -> (Vm, Value) {
    let mut builder = VmBuilder::with_code(spinning());
    change(&mut builder);
    let config = builder.config.clone();
    // A guest without a driver for the power button is not waited for.
    let vm = builder.by_socket().option("--stop-timeout", "0").start();
    assert_eq!(vm.api().state(), "Not started");
    (vm, config)
}

/// One that is to be started.
pub fn configured(change: impl FnOnce(&mut VmBuilder)) -> Vm {
    let (vm, config) = waiting(change);
    vm.api().put("/vm", &config);
    vm
}

/// A drive `a`, whose image can be `a.img` or `b.img`.
pub fn with_drive(builder: &mut VmBuilder) {
    for name in ["a.img", "b.img"] {
        fs::write(builder.path(name), [0; 8192]).unwrap();
    }
    builder.config["drives"] = json!([
        {"drive_id": "a", "path_on_host": builder.path("a.img"), "is_root_device": false}
    ]);
}

/// A request on a connection that is kept.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").into()
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// What the descriptors of its process are.
pub fn descriptors(vm: &Vm) -> Vec<PathBuf> {
    let all = fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap();
    // One that is closed meanwhile has no name any more.
    all.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .collect()
}

/// Connections to its control socket: all its sockets but that which listens.
pub fn connections(vm: &Vm) -> usize {
    let is_socket = |path: &PathBuf| path.to_string_lossy().starts_with("socket:");
    let sockets: HashSet<_> = descriptors(vm).into_iter().filter(is_socket).collect();
    sockets.len() - 1
}

/// The number of its descriptors, once it has no connections any more.
#[track_caller]
pub fn without_connections(vm: &Vm) -> usize {
    wait_until("no connections", || connections(vm) == 0);
    descriptors(vm).len()
}

/// Threads of its vCPUs.
fn vcpus(vm: &Vm) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", vm.pid())).unwrap();
    let is_vcpu = |task: &fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap();
        name.starts_with("vcpu")
    };
    tasks.map(Result::unwrap).filter(is_vcpu).count()
}

/// What comes of `act` in as many threads, which begin at the same time.
fn at_once<T: Send>(count: usize, act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(count);
    let (barrier, act) = (&barrier, &act);
    thread::scope(|scope| {
        let one = |n| {
            scope.spawn(move || {
                barrier.wait();
                act(n)
            })
        };
        let threads: Vec<_> = (0..count).map(one).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn of_several_starts_one_starts_it() {
    for _ in 0..6 {
        let vm = configured(|builder| builder.config["machine-config"]["vcpu_count"] = json!(2));
        let api = vm.api();
        let events = api.events();
        let answers = at_once(6, |_| api.send("PUT", "/actions", START));
        let done = answers.iter().filter(|(status, _)| *status == 204).count();
        assert_eq!(done, 1, "{answers:?}");
        for (status, answer) in answers.iter().filter(|(status, _)| *status != 204) {
            assert_eq!(*status, 400, "{answer}");
            let words = "not supported after starting the microVM";
            assert!(answer.contains(words), "{answer}");
        }
        assert_eq!(api.state(), "Running");
        vm.wait_for("ready\n");
        assert_eq!(vcpus(&vm), 2);
        let machines = descriptors(&vm);
        let is_machine = |path: &&PathBuf| path.ends_with("anon_inode:kvm-vm");
        assert_eq!(machines.iter().filter(is_machine).count(), 1);
        api.action("Stop");
        let ended = vm.wait();
        assert_eq!((ended.code, ended.stdout.as_slice()), (70, &b"ready\n"[..]));
        let events: Vec<_> = events.collect();
        let states: Vec<_> = events.iter().filter_map(|e| e["state"].as_str()).collect();
        assert_eq!(states, ["Not started", "Running"]);
    }
}

#[test]
fn a_stop_is_before_the_start_or_after_it() {
    for _ in 0..12 {
        let vm = configured(|_| {});
        let api = vm.api();
        let bodies = [START, STOP];
        let answers = at_once(2, |n| api.send("PUT", "/actions", bodies[n]));
        assert_eq!(answers[0].0, 204, "{answers:?}");
        if answers[1].0 != 204 {
            assert_eq!(answers[1].0, 400, "{answers:?}");
            let words = "not supported before starting the microVM";
            assert!(answers[1].1.contains(words), "{answers:?}");
            assert_eq!(api.state(), "Running");
            api.action("Stop");
        }
        let socket = api.path().clone();
        assert_eq!(vm.wait().code, 70);
        assert!(!socket.exists());
    }
}

#[test]
fn a_stop_that_comes_with_the_start_is_heard() {
    let vm = configured(|_| {});
    let mut client = vm.api().connect();
    let both = [
        request("PUT", "/actions", START),
        request("PUT", "/actions", STOP),
    ];
    client.write_all(&both.concat()).unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 204").count(), 2, "{answers}");
    assert_eq!(vm.wait().code, 70);
}

#[test]
fn a_signal_during_the_start_ends_it() {
    let mut started = 0;
    for round in 0..24 {
        let vm = configured(|_| {});
        let api = vm.api();
        let mut client = api.connect();
        let start = request("PUT", "/actions", START);
        at_once(2, |n| match n {
            // It may be over already.
            0 => drop((&client).write_all(&start)),
            // Later and later: before the request, while it is carried out, and after it.
            _ => {
                for _ in 0..round * 4000 {
                    std::hint::spin_loop();
                }
                vm.signal(libc::SIGTERM);
            }
        });
        let mut answer = String::new();
        // It may be over before it has read the request: then there is no answer, or a reset.
        let _ = client.read_to_string(&mut answer);
        let is_start = answer.starts_with("HTTP/1.1 204");
        let too_late = answer.contains("the microVM is over");
        assert!(is_start || too_late || answer.is_empty(), "{answer}");
        started += usize::from(is_start);
        let ended = vm.wait();
        assert_eq!(ended.code, 128 + libc::SIGTERM, "{}", ended.stderr);
        assert!(!api.path().exists());
    }
    // The last signals come long after the request.
    assert!(started > 0);
}

/// What a client does while another one starts the VM: path, method, and the body with a number in it.
type Change<'a> = (&'a str, &'a str, &'a (dyn Fn(usize) -> Value + Sync));

#[test]
fn what_is_configured_during_the_start_counts_or_is_refused() {
    for _ in 0..5 {
        let vm = configured(|_| {});
        let api = vm.api();
        let machine = |n: usize| json!({ "vcpu_count": 1 + n % 4 });
        let serial = |n: usize| json!({ "serial_out_path": vm.path(&format!("serial-{n}")) });
        let vsock =
            |n: usize| json!({ "guest_cid": 3 + n, "uds_path": vm.path(&format!("vsock-{n}")) });
        let changes: [Change<'_>; 3] = [
            ("PATCH", "/machine-config", &machine),
            ("PUT", "/serial", &serial),
            ("PUT", "/vsock", &vsock),
        ];
        let accepted = AtomicUsize::new(0);
        // Each client's last number that was accepted.
        let last = at_once(1 + changes.len(), |client| {
            let Some((method, path, body)) = changes.get(client) else {
                wait_until("changes", || accepted.load(Ordering::Relaxed) >= 30);
                api.action("InstanceStart");
                return 0;
            };
            let mut last = 0;
            loop {
                let body = body(last + 1).to_string();
                let (status, answer) = api.send(method, path, &body);
                if status != 204 {
                    assert_eq!(status, 400, "{answer}");
                    assert!(answer.contains("after starting the microVM"), "{answer}");
                    break;
                }
                last += 1;
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            for n in 1..5 {
                api.refused(method, path, &body(last + n));
            }
            last
        });
        let shown = api.get("/vm/config");
        let count = 1 + last[0] % 4;
        assert_eq!(shown["machine-config"]["vcpu_count"], json!(count));
        assert_eq!(shown["serial"], serial(last[1]));
        assert_eq!(shown["vsock"]["guest_cid"], vsock(last[2])["guest_cid"]);
        // And the machine is what is shown.
        assert_eq!(vcpus(&vm), count);
        for n in 1..last[1] + 5 {
            let said = || fs::read_to_string(vm.path(&format!("serial-{n}"))).unwrap_or_default();
            if n == last[1] {
                wait_until("the guest's word", || said() == "ready\n");
            }
            assert_eq!(said().is_empty(), n != last[1], "{n} of {last:?}");
        }
        for n in 1..last[2] + 5 {
            let there = vm.path(&format!("vsock-{n}")).exists();
            assert_eq!(there, n == last[2], "{n} of {last:?}");
        }
    }
}

#[test]
fn pauses_and_changes_of_many_clients_leave_a_sound_state() {
    let vm = configured(with_drive);
    let api = vm.api();
    let events = api.events();
    api.action("InstanceStart");
    vm.wait_for("ready\n");
    let images = [vm.path("a.img"), vm.path("b.img")];
    let before = without_connections_but(&vm, 1);
    at_once(5, |client| {
        for n in 0..60 {
            match client {
                0..3 => {
                    let state = ["Paused", "Resumed"][n % 2];
                    let body = json!({ "state": state }).to_string();
                    let (status, answer) = api.send("PATCH", "/vm", &body);
                    let given_up =
                        state == "Paused" && answer.contains("was resumed before it had paused");
                    assert!(status == 204 || (status == 400 && given_up), "{answer}");
                }
                3 => {
                    let image = json!(images[(n + 1) % 2]);
                    let body = json!({ "drive_id": "a", "path_on_host": image });
                    api.done("PATCH", "/drives/a", &body);
                    assert_eq!(api.get("/vm/config")["drives"][0]["path_on_host"], image);
                }
                _ => assert!(["Running", "Paused"].contains(&api.state().as_str())),
            }
        }
    });
    let open = descriptors(&vm);
    assert!(open.contains(&images[0]) && !open.contains(&images[1]));
    for (state, shown) in [("Paused", "Paused"), ("Resumed", "Running")] {
        api.set_state(state);
        assert_eq!(api.state(), shown);
    }
    assert_eq!(without_connections_but(&vm, 1), before);
    api.action("Stop");
    assert_eq!(vm.wait().code, 70);
    let events: Vec<_> = events.collect();
    let states: Vec<_> = events.iter().filter_map(|e| e["state"].as_str()).collect();
    assert_eq!(states[..2], ["Not started", "Running"]);
    assert!(states.len() > 3);
    // No state is told twice.
    assert!(states.windows(2).all(|two| two[0] != two[1]), "{states:?}");
}

/// The number of its descriptors, once it has `kept` connections only.
fn without_connections_but(vm: &Vm, kept: usize) -> usize {
    wait_until("fewer connections", || connections(vm) == kept);
    descriptors(vm).len()
}
