//! A configuration that is read again while the machine runs, and metrics.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};
use tests::patience;
use tests::vm::{Vm, VmBuilder};

use crate::pci::asking_on_and_on;

/// A VM whose entropy device serves one request an hour, and its configuration.
fn limited() -> (Vm, Value) {
    let mut builder = VmBuilder::with_code(asking_on_and_on());
    let ops = json!({"size": 1, "refill_time": 3_600_000});
    builder.config["entropy"] = json!({"rate_limiter": {"ops": ops}});
    builder.config["metrics"] = json!({"metrics_path": builder.path("metrics")});
    let config = builder.config.clone();
    let vm = builder.option("--level", "Info").start();
    // Before that, signals may still end it.
    vm.wait_for("ready\n");
    (vm, config)
}

fn wait_for_requests(vm: &Vm, enough: impl Fn(u64) -> bool) {
    let deadline = Instant::now() + patience();
    loop {
        let line = vm.metrics();
        let requests = line["entropy"]["requests"].as_u64().unwrap();
        assert_eq!(line["entropy"]["bytes"], requests * 64);
        if enough(requests) {
            return;
        }
        assert!(Instant::now() < deadline, "{line}");
    }
}

#[test]
fn limits_change_while_the_guest_runs() {
    let (vm, mut config) = limited();
    wait_for_requests(&vm, |requests| requests == 1);
    config["entropy"] = json!({});
    vm.reload(&config.to_string(), "entropy: changed");
    wait_for_requests(&vm, |requests| requests > 1000);
    let ops = json!({"size": 1, "refill_time": 3_600_000});
    config["entropy"] = json!({"rate_limiter": {"ops": ops}});
    fs::write(vm.path("vm.json"), config.to_string()).unwrap();
    vm.signal(libc::SIGUSR1);
    // Signals are taken in the order of their numbers: the new limit is there before the first of these lines.
    let count = || vm.metrics()["entropy"]["requests"].as_u64().unwrap();
    let before = count();
    assert!(count() <= before + 1, "the new limit lets one pass");
}

#[test]
fn what_cannot_be_changed_is_told_and_changes_nothing() {
    let (vm, mut config) = limited();
    wait_for_requests(&vm, |requests| requests == 1);
    vm.reload("{", "the configuration stays as it is: ");
    vm.reload(
        r#"{"boot-source": {}}"#,
        "missing field `kernel_image_path`",
    );
    config["machine-config"]["vcpu_count"] = json!(3);
    let refused = "machine-config.vcpu_count: cannot be changed while the machine runs";
    vm.reload(&config.to_string(), refused);
    assert!(!vm.errors().contains("changed\n"), "{}", vm.errors());
    wait_for_requests(&vm, |requests| requests == 1);
}

#[test]
fn the_last_line_is_written_at_the_end() {
    let (vm, _) = limited();
    wait_for_requests(&vm, |requests| requests == 1);
    let lines = fs::read_to_string(vm.path("metrics"))
        .unwrap()
        .lines()
        .count();
    vm.signal(libc::SIGTERM);
    vm.signal(libc::SIGINT);
    let ended = vm.wait();
    assert!(matches!(ended.code, 130 | 143), "{}", ended.stderr);
    let text = fs::read_to_string(ended.path("metrics")).unwrap();
    assert_eq!(text.lines().count(), lines + 1, "{text}");
}
