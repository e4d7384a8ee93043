//! The metadata service, read by programs of the guest's that know nothing of it.

use std::fs;

use serde_json::{Value, json};
use tests::guest_shell::GuestShell;
use tests::vm::VmBuilder;

use crate::kernels::{Kernel, commands};
use crate::net::{Tap, power_off};

const SERVICE: &str = "169.254.169.254";

/// A VM with that document and this `mmds-config` beside its interfaces.
fn with(document: &Value, config: Value) -> VmBuilder {
    let mut builder = commands(Kernel::CLOUD_6_12);
    let path = builder.path("metadata.json");
    fs::write(&path, document.to_string()).unwrap();
    let mut section = json!({ "network_interfaces": ["eth0"] });
    for (name, value) in config.as_object().expect("an object") {
        section[name] = value.clone();
    }
    builder.config["mmds-config"] = section;
    builder.option("--metadata", path)
}

/// Boots it at `tap`, with a route to the service.
#[track_caller]
fn boot(tap: &Tap, builder: VmBuilder, fields: Value) -> GuestShell {
    let mut shell = tap.boot(builder, fields);
    shell.ok(&format!("ip route add {SERVICE} dev eth0"));
    shell
}

/// What the guest's wget prints.
#[track_caller]
fn get(shell: &mut GuestShell, path: &str, options: &str) -> String {
    shell.ok(&format!("wget -q -O - {options} 'http://{SERVICE}{path}'"))
}

/// Status line and body of the answer to a request that is written by hand. `-N` would be nice, but this nc has its own ways.
#[track_caller]
fn raw(shell: &mut GuestShell, request: &str) -> (String, String) {
    let text = shell.ok(&format!(
        "printf '{request}' | socat -t 10 - TCP:{SERVICE}:80"
    ));
    let text = text.replace('\r', "");
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let status = head.lines().next().unwrap_or_default();
    (status.into(), body.into())
}

fn document() -> Value {
    json!({
        "latest": {
            "meta-data": { "ami-id": "ami-12345678", "number": 5 },
            "user-data": "#!/bin/sh\necho hello"
        },
        "large": "0123456789".repeat(5_000),
    })
}

/// Version 1: JSON and plain text, small and large, again and again, with other traffic beside it.
#[test]
fn version_1_for_a_stock_kernel() {
    let tap = Tap::new("");
    let mut shell = boot(&tap, with(&document(), json!({})), json!({}));
    assert_eq!(get(&mut shell, "/latest/", ""), "meta-data/\nuser-data");
    let user_data = get(&mut shell, "/latest/user-data", "");
    assert_eq!(user_data, "#!/bin/sh\necho hello");
    let json = "--header 'Accept: application/json'";
    let text = get(&mut shell, "/latest/meta-data", json);
    assert_eq!(text, r#"{"ami-id":"ami-12345678","number":5}"#);
    let large = get(&mut shell, "/large", "");
    assert_eq!(large.len(), 50_000);
    assert_eq!(large, "0123456789".repeat(5_000));
    let neighbour = shell.ok(&format!("ip neigh show {SERVICE}"));
    assert!(neighbour.contains("06:01:23:45:67:01"), "{neighbour}");
    assert_eq!(
        raw(&mut shell, "GET /nothing HTTP/1.0\\r\\n\\r\\n").0,
        "HTTP/1.0 404 Not Found"
    );
    let number = "GET /latest/meta-data/number HTTP/1.0\\r\\n\\r\\n";
    assert_eq!(raw(&mut shell, number).0, "HTTP/1.0 501 Not Implemented");
    // Other traffic goes on meanwhile.
    let host = tap.host();
    let script = format!(
        "ping -q -c 300 -i 0.01 {host} > /tmp/ping & \
         for i in $(seq 200); do wget -q -O - http://{SERVICE}/latest/meta-data/ami-id || exit; echo; done | sort | uniq -c; \
         wait; cat /tmp/ping"
    );
    let text = shell.ok(&script);
    assert!(text.contains("200 ami-12345678"), "{text}");
    assert!(text.contains("300 received"), "{text}");
    let several =
        format!("for i in $(seq 20); do wget -q -O - http://{SERVICE}/large | wc -c & done; wait");
    let text = shell.ok(&several);
    assert_eq!(text.matches("50000").count(), 20, "{text}");
    let mmds = shell.vm().metrics()["mmds"].clone();
    println!(
        "{mmds}\noutside the guest: {} KiB",
        shell.vm().footprint_kib()
    );
    assert!(mmds["rx_accepted"].as_u64() > Some(900), "{mmds}");
    assert_eq!(mmds["connections_created"], 226, "{mmds}");
    assert_eq!(mmds["connections_destroyed"], 226, "{mmds}");
    for bad in ["rx_accepted_err", "rx_invalid_token", "tx_errors"] {
        assert_eq!(mmds[bad], 0, "{bad}: {mmds}");
    }
    power_off(shell);
    // Nothing of it was seen by the host.
    let seen = crate::net::run("ip", &format!("neigh show dev {}", tap.name));
    assert!(!seen.contains("169.254"), "{seen}");
}

/// Version 2, at another address and in EC2's format, without the offloads and the merged buffers.
#[test]
fn version_2_for_a_stock_kernel() {
    let tap = Tap::new("");
    let config = json!({ "version": "V2", "imds_compat": true });
    let mut shell = boot(&tap, with(&document(), config), json!({}));
    shell.ok("ethtool -K eth0 tx off rx off 2>&1");
    let get = |token: &str| {
        format!("GET /latest/meta-data HTTP/1.0\\r\\n{token}Accept: application/json\\r\\n\\r\\n")
    };
    let (status, body) = raw(&mut shell, &get(""));
    assert_eq!(status, "HTTP/1.0 401 Unauthorized");
    assert!(body.starts_with("No MMDS token provided."), "{body}");
    let (status, body) = raw(&mut shell, &get("X-metadata-token: nonsense\\r\\n"));
    assert_eq!(
        (&*status, &*body),
        ("HTTP/1.0 401 Unauthorized", "MMDS token not valid.")
    );
    for (name, lifetime) in [
        ("X-metadata-token", "X-metadata-token-ttl-seconds"),
        (
            "X-aws-ec2-metadata-token",
            "X-aws-ec2-metadata-token-ttl-seconds",
        ),
    ] {
        let put = |headers: &str| format!("PUT /latest/api/token HTTP/1.0\\r\\n{headers}\\r\\n");
        let request = put(&format!("{lifetime}: 100\\r\\n"));
        let (status, token) = raw(&mut shell, &request);
        assert_eq!(status, "HTTP/1.0 200 OK", "{token}");
        let (status, body) = raw(&mut shell, &get(&format!("{name}: {token}\\r\\n")));
        assert_eq!(status, "HTTP/1.0 200 OK", "{body}");
        assert_eq!(body.trim_end(), "ami-id\nnumber");
        let forwarded = put(&format!(
            "{lifetime}: 100\\r\\nX-Forwarded-For: 10.0.0.1\\r\\n"
        ));
        assert_eq!(raw(&mut shell, &forwarded).0, "HTTP/1.0 400 Bad Request");
        // wget has a header, too.
        let option = format!("--header '{name}: {token}'");
        let text = self::get(&mut shell, "/latest/user-data", &option);
        assert_eq!(text, "#!/bin/sh\necho hello");
    }
    let late = "PUT /latest/api/token HTTP/1.0\\r\\nX-metadata-token-ttl-seconds: 1\\r\\n\\r\\n";
    let (_, token) = raw(&mut shell, late);
    let ask = get(&format!("X-metadata-token: {token}\\r\\n"));
    let script = format!(
        "for i in $(seq 100); do printf '{ask}' | socat -t 10 - TCP:{SERVICE}:80 | grep -q ' 401 ' && exit; sleep 0.1; done; exit 1"
    );
    shell.ok(&script);
    power_off(shell);
}

/// With several queues the answer comes by any of them; without a tap that is up, it comes too.
#[test]
fn several_queues_and_a_tap_that_is_down() {
    let tap = Tap::new("multi_queue");
    let builder = with(&document(), json!({})).vcpus(2);
    let mut shell = boot(&tap, builder, json!({ "queues": 2 }));
    let script = format!(
        "for i in $(seq 10); do for cpu in 0 1; do taskset $((1 << cpu)) wget -q -O - http://{SERVICE}/large | wc -c; done; done"
    );
    let text = shell.ok(&script);
    assert_eq!(text.matches("50000").count(), 20, "{text}");
    crate::net::run("ip", &format!("link set {} down", tap.name));
    assert_eq!(
        get(&mut shell, "/latest/meta-data/ami-id", ""),
        "ami-12345678"
    );
    // No counters here: what the guest's kernel has sent elsewhere meanwhile, the tap has refused.
    assert_eq!(shell.power_off().code, 0);
}

#[test]
fn a_limit_holds_for_it_too() {
    let tap = Tap::new("");
    let bucket = json!({ "size": 20_000, "refill_time": 1000 });
    let limits = json!({ "rx_rate_limiter": { "bandwidth": bucket } });
    let mut shell = boot(&tap, with(&document(), json!({})), limits);
    let begin = std::time::Instant::now();
    assert_eq!(get(&mut shell, "/large", "").len(), 50_000);
    assert!(begin.elapsed().as_secs_f64() > 1.4, "{:?}", begin.elapsed());
    let counters = power_off(shell);
    assert!(counters["rx_throttled"].as_u64() > Some(0), "{counters}");
}

#[test]
fn an_interface_that_the_kernel_serves_is_refused() {
    let mut builder = with(&document(), json!({}));
    builder.config["network-interfaces"] = json!([
        { "iface_id": "eth0", "host_dev_name": "tap0", "backend": "vhost-net" }
    ]);
    let ended = builder.run();
    assert_eq!(ended.code, 152, "{}", ended.stderr);
    let words =
        "mmds-config.network_interfaces[0]: is \"eth0\", whose frames the host's kernel takes";
    assert!(ended.stderr.contains(words), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}
