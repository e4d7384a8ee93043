//! A VM by requests on its control socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};
use tests::api::Api;
use tests::vm::{Vm, VmBuilder};

use crate::pci::asking_on_and_on;

/// A VM that waits for requests, and a machine for it whose guest uses its entropy device on and on.
fn waiting() -> (Vm, Value) {
    let mut builder = VmBuilder::with_code(asking_on_and_on());
    builder.config["entropy"] = json!({});
    let config = builder.config.clone();
    (builder.by_socket().start(), config)
}

fn start(vm: &Vm, config: &Value) -> Api {
    let api = vm.api();
    api.put("/boot-source", &config["boot-source"]);
    api.put("/machine-config", &config["machine-config"]);
    api.put("/entropy", &config["entropy"]);
    assert_eq!(api.state(), "Not started");
    api.action("InstanceStart");
    assert_eq!(api.state(), "Running");
    vm.wait_for("ready\n");
    api
}

/// Requests that the entropy device has served.
fn served(api: &Api) -> u64 {
    let (status, text) = api.send("GET", "/metrics", "");
    assert_eq!(status, 200);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("tandem_requests_total{device=\"entropy\"} "));
    line.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[test]
fn a_guest_is_started_paused_and_stopped() {
    let (vm, config) = waiting();
    let api = start(&vm, &config);
    while served(&api) < 10 {}
    for _ in 0..3 {
        for _ in 0..2 {
            api.set_state("Paused");
            assert_eq!(api.state(), "Paused");
        }
        let still = served(&api);
        assert_eq!(api.get("/vm/config")["entropy"], json!({}));
        assert_eq!(served(&api), still, "a paused guest does nothing");
        for _ in 0..2 {
            api.set_state("Resumed");
            assert_eq!(api.state(), "Running");
        }
        while served(&api) == still {}
    }
    let timeline = api.get("/boot-timeline");
    let marks = timeline["marks"].as_array().unwrap();
    let phases: Vec<_> = marks.iter().map(|m| m["phase"].as_str().unwrap()).collect();
    assert_eq!(phases[..2], ["process_start", "api_ready"]);
    assert!(phases.contains(&"driver_ok"), "{phases:?}");
    let socket = api.path().clone();
    api.action("Stop");
    let ended = vm.wait();
    assert_eq!(ended.code, 70, "{}", ended.stderr);
    assert!(!socket.exists());
}

#[test]
fn each_request_has_its_phase() {
    let (vm, config) = waiting();
    let api = vm.api();
    let before = api.refused("PATCH", "/vm", &json!({"state": "Paused"}));
    assert!(before.contains("before starting"), "{before}");
    start(&vm, &config);
    let drive =
        json!({"drive_id": "a", "path_on_host": vm.path("vmlinux"), "is_root_device": false});
    let action = |name| json!({ "action_type": name });
    for (path, body) in [
        ("/actions", &action("InstanceStart")),
        ("/boot-source", &config["boot-source"]),
        ("/machine-config", &config["machine-config"]),
        ("/entropy", &json!({})),
        (
            "/balloon",
            &json!({"amount_mib": 1, "deflate_on_oom": true}),
        ),
        ("/vsock", &json!({"guest_cid": 3, "uds_path": "v"})),
        ("/serial", &json!({})),
        ("/logger", &json!({})),
        ("/metrics", &json!({"metrics_path": "m"})),
        ("/vm", &config),
    ] {
        let after = api.refused("PUT", path, body);
        assert!(after.contains("after starting"), "{path}: {after}");
    }
    let machine = json!({"vcpu_count": 2});
    assert!(
        api.refused("PATCH", "/machine-config", &machine)
            .contains("after starting")
    );
    for (path, body) in [
        (
            "/drives/a",
            json!({"drive_id": "a", "path_on_host": drive["path_on_host"]}),
        ),
        ("/network-interfaces/a", json!({"iface_id": "a"})),
        ("/balloon", json!({"amount_mib": 1})),
        (
            "/balloon/statistics",
            json!({"stats_polling_interval_s": 1}),
        ),
    ] {
        let nothing = api.refused("PATCH", path, &body);
        assert!(nothing.contains("is not part of this microVM"), "{nothing}");
    }
    assert_eq!(api.state(), "Running");
    api.action("Reset");
    assert_eq!(vm.wait().code, 64);
}

#[test]
fn a_whole_configuration_is_given_and_given_back() {
    let (vm, config) = waiting();
    let api = vm.api();
    api.put("/vm", &config);
    let shown = api.get("/vm/config");
    assert_eq!(shown["boot-source"], config["boot-source"]);
    api.put("/vm", &shown);
    api.action("InstanceStart");
    vm.wait_for("ready\n");
    assert_eq!(api.get("/vm/config"), shown);
}

#[test]
fn what_cannot_start_can_be_mended() {
    let (vm, config) = waiting();
    let api = vm.api();
    api.put("/boot-source", &json!({"kernel_image_path": "/dev/null"}));
    let error = api.refused("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    assert!(error.starts_with("cannot start the microVM: "), "{error}");
    assert_eq!(api.state(), "Not started");
    start(&vm, &config);
}

#[test]
fn events_tell_of_states_marks_and_the_end() {
    let (vm, config) = waiting();
    let api = vm.api();
    let events = api.events();
    start(&vm, &config);
    while served(&api) == 0 {}
    api.set_state("Paused");
    api.set_state("Resumed");
    api.action("Stop");
    assert_eq!(vm.wait().code, 70);
    let events: Vec<_> = events.collect();
    let states: Vec<_> = events.iter().filter_map(|e| e["state"].as_str()).collect();
    assert_eq!(states, ["Not started", "Running", "Paused", "Running"]);
    let is = |phase: &str| events.iter().any(|event| event["phase"] == phase);
    assert!(is("process_start") && is("first_vcpu_entry") && is("driver_ok"));
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["exit_code"]),
        (&json!("end"), &json!(70))
    );
}

#[test]
fn a_configuration_file_may_come_with_a_socket() {
    let mut builder = VmBuilder::with_code(asking_on_and_on());
    builder.config["entropy"] = json!({});
    let mut config = builder.config.clone();
    let vm = builder.with_socket().option("--level", "Info").start();
    vm.wait_for("ready\n");
    let api = vm.api();
    assert_eq!(api.state(), "Running");
    let limiter = json!({"ops": {"size": 1, "refill_time": 3_600_000}});
    config["entropy"] = json!({ "rate_limiter": limiter });
    vm.reload(&config.to_string(), "entropy: changed");
    assert_eq!(api.get("/vm/config")["entropy"], config["entropy"]);
    vm.signal(libc::SIGTERM);
    vm.signal(libc::SIGINT);
    let socket = api.path().clone();
    // The lower number is read first if both are there.
    assert!([130, 143].contains(&vm.wait().code));
    assert!(!socket.exists());
}

#[test]
fn signals_end_it_before_the_start() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let (vm, _) = waiting();
        let api = vm.api();
        assert_eq!(api.state(), "Not started");
        // These are for a machine.
        vm.signal(libc::SIGUSR1);
        vm.signal(libc::SIGUSR2);
        assert_eq!(api.state(), "Not started");
        vm.signal(signal);
        let ended = vm.wait();
        assert_eq!(ended.code, 128 + signal, "{}", ended.stderr);
        assert!(!api.path().exists());
    }
}

#[test]
fn a_socket_is_its_owners_and_replaces_only_a_stale_one() {
    let (vm, _) = waiting();
    let api = vm.api();
    assert_eq!(api.state(), "Not started");
    let mode = fs::metadata(api.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Somebody answers there.
    let mut command = std::process::Command::new(tests::program::tandem_vmm());
    let output = command.arg("--api-sock").arg(api.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with("tandem-vmm: --api-sock"), "{error}");
    assert_eq!(api.state(), "Not started");
    // Nobody does any more.
    let builder = VmBuilder::with_code(&[]).by_socket();
    drop(UnixListener::bind(builder.path("api.sock")).unwrap());
    assert_eq!(builder.start().api().state(), "Not started");
}

#[test]
fn the_log_can_be_changed_and_counters_be_written() {
    let (vm, config) = waiting();
    let api = vm.api();
    let log = vm.path("log");
    api.put(
        "/logger",
        &json!({"log_path": log, "level": "Info", "show_level": true}),
    );
    api.put("/metrics", &json!({"metrics_path": vm.path("metrics")}));
    start(&vm, &config);
    while served(&api) < 10 {}
    api.action("FlushMetrics");
    let line = fs::read_to_string(vm.path("metrics")).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert!(line["entropy"]["requests"].as_u64() >= Some(10));
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains(":INFO] first_vcpu_entry: "), "{log}");
}
