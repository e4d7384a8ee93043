//! `tandem api` against the real control socket.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::program;
use tests::vm::{Vm, VmBuilder};

use crate::pci::asking_on_and_on;

/// A VM that waits for requests, and what it is to be.
fn waiting() -> (Vm, Value) {
    let mut builder = VmBuilder::with_code(asking_on_and_on());
    builder.config["entropy"] = json!({});
    let config = builder.config.clone();
    let vm = builder.by_socket().start();
    // From then on there is a socket.
    assert_eq!(vm.api().state(), "Not started");
    (vm, config)
}

fn tandem_api(vm: &Vm, arguments: &[&str]) -> Command {
    let mut command = Command::new(program::tandem());
    command.arg("api").args(arguments);
    command.env("TANDEM_SOCKET", vm.api().path());
    command
}

/// Exit code, standard output and standard error.
fn said(vm: &Vm, arguments: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = tandem_api(vm, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn done(vm: &Vm, arguments: &[&str]) {
    assert_eq!(
        said(vm, arguments),
        (0, String::new(), String::new()),
        "{arguments:?}"
    );
}

fn act(vm: &Vm, name: &str) {
    let action = json!({ "action_type": name }).to_string();
    done(vm, &["PUT", "/actions", &action]);
}

#[test]
fn a_vm_is_run_by_hand() {
    let (vm, config) = waiting();
    done(&vm, &["put", "/vm", &config.to_string()]);
    let (code, shown, _) = said(&vm, &["GET", "/vm/config"]);
    assert_eq!(code, 0);
    let read: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(read["boot-source"], config["boot-source"]);
    assert!(shown.starts_with("{\n  \""), "{shown}");
    let (code, raw, _) = said(&vm, &["--raw", "GET", "/vm/config"]);
    assert_eq!((code, raw.lines().count()), (0, 1));

    act(&vm, "InstanceStart");
    vm.wait_for("ready\n");
    let (code, metrics, _) = said(&vm, &["-i", "GET", "/metrics"]);
    assert_eq!(code, 0);
    assert!(metrics.starts_with("HTTP/1.1 200 OK\n"), "{metrics}");
    assert!(
        metrics.contains("\ntandem_requests_total{device=\"entropy\"} "),
        "{metrics}"
    );

    let (code, stdout, stderr) = said(&vm, &["PUT", "/boot-source", "{}"]);
    assert_eq!((code, stdout.as_str()), (22, ""));
    assert!(
        stderr.contains("400 Bad Request: missing field `kernel_image_path`"),
        "{stderr}"
    );
    let (code, _, stderr) = said(&vm, &["GET", "/nowhere"]);
    assert_eq!(code, 22);
    assert!(stderr.contains("no such path"), "{stderr}");

    let socket = vm.api().path().display().to_string();
    act(&vm, "Stop");
    assert_eq!(vm.wait().code, 70);
    let gone = Command::new(program::tandem())
        .args(["api", "-s", &socket, "GET", "/"])
        .output();
    assert_eq!(gone.unwrap().status.code(), Some(7));
}

#[test]
fn events_are_read_until_the_end() {
    let (vm, config) = waiting();
    done(&vm, &["PUT", "/vm", &config.to_string()]);
    let mut events = tandem_api(&vm, &["GET", "/events"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // Events before the first that is shown may be missed: something has to happen until then.
    let machine = config["machine-config"].to_string();
    let first = std::thread::scope(|scope| {
        let reader = scope.spawn(|| lines.next().unwrap().unwrap());
        done(&vm, &["PUT", "/machine-config", &machine]);
        act(&vm, "InstanceStart");
        vm.wait_for("ready\n");
        while !reader.is_finished() {
            for state in ["Paused", "Resumed"] {
                done(
                    &vm,
                    &["PATCH", "/vm", &json!({ "state": state }).to_string()],
                );
            }
        }
        reader.join().unwrap()
    });
    act(&vm, "Stop");
    let rest: Vec<_> = lines.map(|line| line.unwrap()).collect();
    assert_eq!(vm.wait().code, 70);
    let mut stderr = String::new();
    events
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(events.wait().unwrap().code(), Some(0), "{stderr}");
    let all: Vec<Value> = std::iter::once(&first)
        .chain(&rest)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let end = all.last().unwrap();
    assert_eq!(
        (&end["event"], &end["exit_code"]),
        (&json!("end"), &json!(70))
    );
    let event = |event: &Value| event["event"] == "state" || event["event"] == "mark";
    assert!(all.iter().any(event), "{all:?}");
}
