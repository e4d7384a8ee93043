//! Requests to a VM that is put together: all of it but the machine is real.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use vmm::control::Setup;
use vmm::machine::Host;
use vmm::timeline::{Launch, Start, Timeline};

use super::*;
use crate::http::Response;

struct Fixture {
    api: Api,
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup {
            app_name: "Tandem",
            version: "1.2.3".into(),
            id: "vm-1".into(),
            host: Host {
                kernel_cache: dir.path().into(),
                boot_timer: false,
                mmds: Default::default(),
                confine: vmm::confine::unconfined,
            },
            grace: Duration::ZERO,
            timeline: Arc::new(Timeline::new(Start::now(), Launch::default())),
            configure_log: Box::new(|config| match &config.module {
                Some(_) => Err("logger.module: not\nhere".into()),
                None => Ok(()),
            }),
            reload: None,
        };
        let vmm = Arc::new(Mutex::new(Vmm::new(setup).unwrap()));
        let api = Api::new(vmm, Outbox::new().unwrap());
        Self { api, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, [0; 512]).unwrap();
        path
    }

    fn send(&mut self, method: &str, path: &str, body: &str) -> Response {
        let request = http::Request::new(method, path, body.as_bytes());
        match self.api.call(&request, Ticket::default()) {
            Answer::Now(response) => response,
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, path: &str, body: Value) {
        let answer = self.send("PUT", path, &body.to_string());
        assert_eq!(answer, Response::empty(204), "{path}: {}", text(&answer));
    }

    fn get(&mut self, path: &str) -> Value {
        let answer = self.send("GET", path, "");
        assert_eq!(answer.status, 200, "{path}: {}", text(&answer));
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// The error of a request that is refused.
    fn refused(&mut self, method: &str, path: &str, body: &str) -> String {
        let answer = self.send(method, path, body);
        assert_eq!(
            answer.status,
            400,
            "{method} {path} {body}: {}",
            text(&answer)
        );
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let fields = body.as_object().unwrap();
        assert_eq!(fields.len(), 1);
        let fault = fields["fault_message"].as_str().unwrap().to_owned();
        assert!(!fault.chars().any(char::is_control), "{fault:?}");
        fault
    }
}

fn text(response: &Response) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

#[test]
fn a_vm_is_put_together() {
    let mut fixture = Fixture::new();
    let (kernel, disk) = (fixture.file("kernel"), fixture.file("disk"));
    let defaults = fixture.get("/machine-config");
    assert_eq!(
        (&defaults["vcpu_count"], &defaults["mem_size_mib"]),
        (&json!(1), &json!(128))
    );
    fixture.put(
        "/boot-source",
        json!({"kernel_image_path": kernel, "boot_args": "quiet"}),
    );
    fixture.put(
        "/machine-config",
        json!({"vcpu_count": 2, "mem_size_mib": 256, "smt": null}),
    );
    let answer = fixture.send("PATCH", "/machine-config", r#"{"mem_size_mib": 512}"#);
    assert_eq!(answer.status, 204);
    let machine = fixture.get("/machine-config");
    assert_eq!(
        (&machine["vcpu_count"], &machine["mem_size_mib"]),
        (&json!(2), &json!(512))
    );
    for limit in [Value::Null, json!({"ops": {"size": 5, "refill_time": 100}})] {
        fixture.put(
            "/drives/root",
            json!({"drive_id": "root", "path_on_host": disk,
            "is_root_device": true, "is_read_only": false, "rate_limiter": limit}),
        );
    }
    fixture.put(
        "/drives/data/",
        json!({"drive_id": "data", "path_on_host": disk, "is_root_device": false}),
    );
    fixture.put(
        "/network-interfaces/eth0",
        json!({"iface_id": "eth0", "host_dev_name": "tap0"}),
    );
    fixture.put(
        "/network-interfaces/eth0",
        json!({"iface_id": "eth0", "host_dev_name": "tap1"}),
    );
    fixture.put("/vsock", json!({"guest_cid": 3, "uds_path": "v.sock"}));
    fixture.put("/entropy", json!({}));
    fixture.put("/serial", json!({"serial_out_path": "out"}));
    fixture.put("/balloon", json!({"amount_mib": 5, "deflate_on_oom": true}));
    fixture.put("/logger", json!({"level": "Debug"}));
    let metrics = fixture.dir.path().join("metrics");
    fixture.put("/metrics", json!({"metrics_path": metrics}));
    assert!(metrics.exists());
    let config = fixture.get("/vm/config");
    assert_eq!(config["boot-source"]["boot_args"], "quiet");
    assert_eq!(
        config["drives"].as_array().unwrap().len(),
        2,
        "the same id is replaced"
    );
    assert_eq!(config["drives"][0]["rate_limiter"]["ops"]["size"], 5);
    assert_eq!(config["network-interfaces"][0]["host_dev_name"], "tap1");
    assert_eq!(config["balloon"], fixture.get("/balloon"));
    assert_eq!(config["logger"], json!({"level": "Debug"}));
    // What is shown can be given back, to this VM or to another.
    let mut other = Fixture::new();
    other.put("/vm", config.clone());
    assert_eq!(other.get("/vm/config"), config);
}

#[test]
fn before_the_start_nothing_runs() {
    let mut fixture = Fixture::new();
    let instance = fixture.get("/");
    let expected =
        json!({"app_name": "Tandem", "id": "vm-1", "state": "Not started", "vmm_version": "1.2.3"});
    assert_eq!(instance, expected);
    assert_eq!(
        fixture.get("/version"),
        json!({"firecracker_version": FIRECRACKER_VERSION})
    );
    assert_eq!(
        fixture.get("/boot-timeline")["marks"][0]["phase"],
        "process_start"
    );
    let answer = fixture.send("GET", "/metrics", "");
    assert_eq!((answer.status, text(&answer)), (200, String::new()));
    for (method, path, body) in [
        ("PATCH", "/vm", r#"{"state": "Paused"}"#),
        ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        ("PATCH", "/drives/a", r#"{"drive_id": "a"}"#),
        ("PATCH", "/network-interfaces/a", r#"{"iface_id": "a"}"#),
        ("PATCH", "/balloon", r#"{"amount_mib": 1}"#),
        (
            "PATCH",
            "/balloon/statistics",
            r#"{"stats_polling_interval_s": 1}"#,
        ),
        ("GET", "/balloon/statistics", ""),
        ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
        ("PUT", "/actions", r#"{"action_type": "PowerButton"}"#),
        ("PUT", "/actions", r#"{"action_type": "Reset"}"#),
        ("PUT", "/actions", r#"{"action_type": "Stop"}"#),
    ] {
        let fault = fixture.refused(method, path, body);
        assert!(
            fault.contains("not supported before starting the microVM"),
            "{fault}"
        );
    }
    let fault = fixture.refused("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert!(
        fault.contains("boot-source.kernel_image_path: is empty"),
        "{fault}"
    );
    assert!(
        fixture
            .refused("GET", "/balloon", "")
            .starts_with("balloon: ")
    );
}

#[test]
fn what_is_wrong_is_named_and_changes_nothing() {
    let mut fixture = Fixture::new();
    let disk = fixture.file("disk");
    fixture.put(
        "/drives/root",
        json!({"drive_id": "root", "path_on_host": disk, "is_root_device": true}),
    );
    let before = fixture.get("/vm/config");
    let second = json!({"drive_id": "b", "path_on_host": disk, "is_root_device": true}).to_string();
    let big = format!(r#"{{"drive_id": "b", "{}": 1}}"#, "x".repeat(5000));
    for (method, path, body, expected) in [
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 33, "mem_size_mib": 128}"#,
            "machine-config.vcpu_count: is 33; give 1 to 32",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1}"#,
            "missing field `mem_size_mib`",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 18446744073709551616}"#,
            "mem_size_mib: invalid type",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "vcpu_count": 1, "mem_size_mib": 128}"#,
            "duplicate field `vcpu_count`",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 128, "ht": false}"#,
            "ht: unknown field",
        ),
        ("PUT", "/machine-config", "[1, 128]", "expected an object"),
        ("PUT", "/machine-config", "", "not valid JSON"),
        ("PUT", "/machine-config", "{} {}", "missing field"),
        ("PATCH", "/machine-config", "{}", "Empty PATCH request"),
        (
            "PATCH",
            "/machine-config",
            r#"{"mem_size_mib": 1}"#,
            "machine-config.mem_size_mib: is 1",
        ),
        (
            "PATCH",
            "/machine-config",
            "{\"vcpu_count\": 1}\u{0}",
            "nothing after it",
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id": "b", "path_on_host": "x"}"#,
            "does not match",
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id": "a"}"#,
            "drives[1].path_on_host: is missing",
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id": "a", "path_on_host": "/no/disk"}"#,
            "drives[1].path_on_host: cannot open /no/disk",
        ),
        (
            "PUT",
            "/drives/a",
            "{\"drive_id\": \"a\", \"path_on_host\": \"/\\n\"}",
            "cannot open /\\n",
        ),
        ("PUT", "/drives/b", &second, "is_root_device"),
        ("PUT", "/drives/b", &big, "xxx ..."),
        (
            "PUT",
            "/drives/a-b",
            "{}",
            "alphanumeric characters and underscores",
        ),
        ("PUT", "/drives/", "{}", "The ID cannot be empty"),
        ("PUT", "/drives", "{}", "The ID cannot be empty"),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path": "/no/kernel"}"#,
            "boot-source.kernel_image_path: cannot open /no/kernel",
        ),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path": ""}"#,
            "boot-source.kernel_image_path: is empty",
        ),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid": 2, "uds_path": "v"}"#,
            "vsock.guest_cid: is 2",
        ),
        (
            "PUT",
            "/balloon",
            r#"{"amount_mib": 129, "deflate_on_oom": false}"#,
            "balloon.amount_mib: is 129",
        ),
        (
            "PUT",
            "/logger",
            r#"{"module": "x"}"#,
            "logger.module: not\\nhere",
        ),
        (
            "PUT",
            "/logger",
            r#"{"level": "Loud"}"#,
            "level: no log level",
        ),
        (
            "PUT",
            "/metrics",
            r#"{"metrics_path": "/no/metrics"}"#,
            "metrics.metrics_path: cannot write to /no/metrics",
        ),
        ("PUT", "/vm", "{}", "missing field `boot-source`"),
        (
            "PUT",
            "/vm",
            r#"{"boot-source": {"kernel_image_path": "/no/kernel"}}"#,
            "cannot open /no/kernel",
        ),
        (
            "PUT",
            "/actions",
            r#"{"action_type": "Explode"}"#,
            "action_type: unknown variant `Explode`",
        ),
        (
            "PATCH",
            "/vm",
            r#"{"state": "Running"}"#,
            "state: unknown variant",
        ),
        ("GET", "/", "{}", "GET request cannot have a body"),
        (
            "GET",
            "/nonsense",
            "",
            "Invalid request method and/or path: GET /nonsense",
        ),
        (
            "GET",
            "/drives/a/b",
            "",
            "Invalid request method and/or path",
        ),
        (
            "DELETE",
            "/machine-config",
            "",
            "it takes GET and PUT and PATCH",
        ),
        ("get", "/", "", "Invalid request method"),
        (
            "PUT",
            "/snapshot/create",
            "{}",
            "snapshots: Tandem does not have this yet",
        ),
        ("PUT", "/snapshot/load", "[]", "snapshots"),
        ("GET", "/hotplug/memory", "", "memory hotplug"),
        ("PUT", "/pmem/a", "{}", "pmem"),
        ("PATCH", "/balloon/hinting/start", "", "hints of free pages"),
    ] {
        let fault = fixture.refused(method, path, body);
        assert!(fault.contains(expected), "{method} {path} {body}\n{fault}");
        assert!(fault.len() < 1100);
    }
    let request = http::Request::new("PUT", "/vsock", b"\xff{");
    assert!(
        matches!(fixture.api.call(&request, Ticket::default()), Answer::Now(answer) if answer.status == 400)
    );
    assert_eq!(fixture.get("/vm/config"), before);
    // Once.
    let metrics = json!({"metrics_path": fixture.dir.path().join("m")});
    fixture.put("/metrics", metrics.clone());
    assert!(
        fixture
            .refused("PUT", "/metrics", &metrics.to_string())
            .contains("is set already")
    );
}

#[test]
fn metadata_are_replaced_patched_and_shown() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.get("/mmds"), json!({}));
    let fault = fixture.refused("PATCH", "/mmds", r#"{"a": 1}"#);
    assert_eq!(fault, "The MMDS data store is not initialized.");
    fixture.put("/mmds", json!({"a": {"b": 1, "c": [null]}, "d": null}));
    let answer = fixture.send("PATCH", "/mmds", r#"{"a": {"b": null, "e": "f"}}"#);
    assert_eq!(answer, Response::empty(204));
    let expected = json!({"a": {"c": [null], "e": "f"}, "d": null});
    assert_eq!(fixture.get("/mmds"), expected);
    for body in ["1", "[]", "null", "", "{", "{} {}"] {
        fixture.refused("PUT", "/mmds", body);
        fixture.refused("PATCH", "/mmds", body);
    }
    let large = json!({"a": "x".repeat(51_200)}).to_string();
    for method in ["PUT", "PATCH"] {
        let answer = fixture.send(method, "/mmds", &large);
        assert_eq!(answer.status, 413, "{}", text(&answer));
    }
    assert_eq!(fixture.get("/mmds"), expected);
}

#[test]
fn metadata_need_an_interface() {
    let mut fixture = Fixture::new();
    let config = json!({"network_interfaces": ["eth0"], "version": "V2"});
    let fault = fixture.refused("PUT", "/mmds/config", &config.to_string());
    assert!(
        fault.starts_with("mmds-config.network_interfaces[0]: is \"eth0\""),
        "{fault}"
    );
    fixture.put(
        "/network-interfaces/eth0",
        json!({"iface_id": "eth0", "host_dev_name": "tap0"}),
    );
    fixture.put("/mmds/config", config);
    let expected = json!({"network_interfaces": ["eth0"], "version": "V2", "imds_compat": false});
    assert_eq!(fixture.get("/vm/config")["mmds-config"], expected);
    let bad = json!({"network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1"}).to_string();
    fixture.refused("PUT", "/mmds/config", &bad);
    // An interface that it is at cannot become one that it cannot be at.
    let kernel = json!({"iface_id": "eth0", "host_dev_name": "tap0", "backend": "vhost-net"});
    fixture.refused("PUT", "/network-interfaces/eth0", &kernel.to_string());
    assert_eq!(fixture.get("/vm/config")["mmds-config"], expected);
}

#[test]
fn events_are_a_stream_with_an_end_to_its_listeners() {
    let mut fixture = Fixture::new();
    let request = http::Request::new("GET", "/events", b"");
    for _ in 0..vmm::events::MOST_LISTENERS {
        let answer = fixture.api.call(&request, Ticket::default());
        assert_eq!(answer, Answer::Stream("application/x-ndjson"));
    }
    assert!(fixture.refused("GET", "/events", "").contains("too many"));
    fixture.api.gone(Ticket::default());
    assert!(fixture.api.streams.is_empty());
}

#[test]
fn every_route_is_there_once() {
    for (index, route) in ROUTES.iter().enumerate() {
        let same = |other: &&Route| (other.method, other.path) == (route.method, route.path);
        assert_eq!(ROUTES.iter().position(|other| same(&other)), Some(index));
        assert!(["GET", "PUT", "PATCH", "DELETE"].contains(&route.method));
    }
}
