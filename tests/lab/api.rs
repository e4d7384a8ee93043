//! Stock kernels by requests on a control socket alone.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api::Api;
use tests::capture::contains;
use tests::guest_shell::GuestShell;
use tests::patience;
use tests::vm::{Vm, VmBuilder};

use crate::kernels::{Format, Kernel, boot, commands};
use crate::net::Tap;

/// A VM that waits for requests, and was given what `builder` has.
fn waiting(builder: VmBuilder) -> Vm {
    let config = builder.config.clone();
    let vm = builder.by_socket().start();
    let api = vm.api();
    api.put("/boot-source", &config["boot-source"]);
    api.put("/machine-config", &config["machine-config"]);
    vm
}

/// Waits until the statistics have a value, and returns them.
fn statistics(api: &Api, wanted: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let found = api.get("/balloon/statistics");
        if wanted(&found) {
            return found;
        }
        assert!(start.elapsed() < patience(), "{found}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_guest_with_everything_is_run_by_requests() {
    let tap = Tap::new("");
    let vm = waiting(commands(Kernel::GENERIC_6_12));
    let disks = ["disk", "other"].map(|name| vm.path(name));
    fs::write(&disks[0], vec![b'a'; 1 << 20]).unwrap();
    fs::write(&disks[1], vec![b'b'; 2 << 20]).unwrap();
    let api = vm.api();
    api.put(
        "/drives/data",
        &json!({"drive_id": "data", "path_on_host": disks[0], "is_root_device": false}),
    );
    api.put(
        "/network-interfaces/eth0",
        &json!({"iface_id": "eth0", "host_dev_name": tap.name}),
    );
    api.put(
        "/balloon",
        &json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1}),
    );
    let events = api.events();
    api.action("InstanceStart");
    // It answers while the guest boots.
    assert_eq!(api.state(), "Running");
    let mut shell = GuestShell::of(vm);
    let address = format!(
        "ip address add {}/24 dev eth0; ip link set eth0 up",
        tap.guest()
    );
    shell.ok(&address);
    shell.ok(&format!("ping -q -c 3 {}", tap.host()));
    assert_eq!(shell.ok("head -c 3 /dev/vda").trim(), "aaa");

    for _ in 0..2 {
        api.set_state("Paused");
        assert_eq!(api.state(), "Paused");
        api.set_state("Resumed");
    }
    shell.ok("true");

    let limit = json!({"bandwidth": {"size": 1 << 20, "refill_time": 100}});
    api.done(
        "PATCH",
        "/drives/data",
        &json!({"drive_id": "data", "path_on_host": disks[1], "rate_limiter": limit}),
    );
    api.done(
        "PATCH",
        "/network-interfaces/eth0",
        &json!({"iface_id": "eth0", "rx_rate_limiter": limit}),
    );
    let config = api.get("/vm/config");
    assert_eq!(config["drives"][0]["path_on_host"], json!(disks[1]));
    assert_eq!(config["drives"][0]["rate_limiter"], limit);
    assert_eq!(config["network-interfaces"][0]["rx_rate_limiter"], limit);
    assert_eq!(
        shell
            .ok("blockdev --flushbufs /dev/vda; head -c 3 /dev/vda")
            .trim(),
        "bbb"
    );
    assert_eq!(shell.ok("blockdev --getsize64 /dev/vda").trim(), "2097152");

    api.done("PATCH", "/balloon", &json!({"amount_mib": 64}));
    assert_eq!(api.get("/balloon")["amount_mib"], 64);
    let found = statistics(&api, |s| s["actual_mib"] == 64 && s["free_memory"].is_u64());
    assert_eq!(found["target_mib"], 64);
    api.done(
        "PATCH",
        "/balloon/statistics",
        &json!({"stats_polling_interval_s": 2}),
    );
    let off = json!({"stats_polling_interval_s": 0});
    assert!(
        api.refused("PATCH", "/balloon/statistics", &off)
            .contains("switched on or off")
    );

    let (status, counters) = api.send("GET", "/metrics", "");
    assert_eq!(status, 200);
    for device in ["block_data", "net_eth0", "balloon"] {
        assert!(
            counters.contains(&format!("{{device=\"{device}\"}}")),
            "{counters}"
        );
    }
    let timeline = api.get("/boot-timeline").to_string();
    for phase in [
        "api_ready",
        "first_vcpu_entry",
        "first_serial_byte",
        "driver_ok",
    ] {
        assert!(timeline.contains(phase), "{timeline}");
    }
    let ended = shell.power_off();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let events: Vec<_> = events.collect();
    let states: Vec<_> = events.iter().filter_map(|e| e["state"].as_str()).collect();
    assert_eq!(
        states,
        [
            "Not started",
            "Running",
            "Paused",
            "Running",
            "Paused",
            "Running"
        ]
    );
    assert_eq!(events.last().unwrap()["exit_code"], 0);
}

#[test]
fn ctrl_alt_del_has_the_guest_switch_itself_off() {
    let vm = waiting(boot(Kernel::CLOUD_6_12, Format::Vmlinux, "powerbutton"));
    let api = vm.api();
    api.action("InstanceStart");
    vm.wait_for("TANDEM-READY powerbutton");
    // One request is one press, which is lost on a guest that does not read its input device yet.
    let start = Instant::now();
    let felt = |bytes: &[u8]| contains(bytes, "POWERBUTTON").then_some(());
    loop {
        assert!(start.elapsed() < patience(), "the guest feels no press");
        api.action("SendCtrlAltDel");
        if vm.output().wait_until(Duration::from_secs(5), felt).is_ok() {
            break;
        }
    }
    let ended = vm.wait();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn a_kernel_that_leaves_pci_alone_finds_its_disk() {
    let vm = waiting(commands(Kernel::CLOUD_6_12).boot(
        "boot_args",
        "console=ttyS0 panic=-1 quiet pci=off tandem.test=commands",
    ));
    let disk = vm.path("disk");
    fs::write(&disk, vec![b'a'; 1 << 20]).unwrap();
    let api = vm.api();
    api.put(
        "/drives/data",
        &json!({"drive_id": "data", "path_on_host": disk, "is_root_device": false}),
    );
    api.action("InstanceStart");
    let mut shell = GuestShell::of(vm);
    assert_eq!(shell.ok("head -c 3 /dev/vda").trim(), "aaa");
    assert_eq!(shell.power_off().code, 0);
}
