//! The memory balloon: what a guest does without is seen in the memory of its process.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::guest_shell::GuestShell;
use tests::patience;
use tests::vm::Vm;

use crate::kernels::{Kernel, commands};

const MIB: u64 = 1 << 20;
/// Balloon pages in a MiB.
const PAGES: u64 = 256;

/// A guest with this much memory in MiB and this balloon, and its configuration.
fn boot(kernel: Kernel, mib: u64, balloon: Value) -> (GuestShell, Value) {
    let mut builder = commands(kernel).memory(mib);
    builder.config["balloon"] = balloon;
    builder.config["metrics"] = json!({"metrics_path": builder.path("metrics")});
    let config = builder.config.clone();
    let builder = builder.option("--level", "Info");
    (GuestShell::boot(builder), config)
}

/// Resident memory of the VM's process, in MiB.
fn resident(vm: &Vm) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

/// One of the balloon's counters.
fn counter(vm: &Vm, name: &str) -> u64 {
    let line = vm.metrics();
    let value = line["balloon"][name].as_u64();
    value.unwrap_or_else(|| panic!("no {name} in {line}"))
}

#[track_caller]
fn wait_until(vm: &Vm, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + patience();
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not come: {}\nresident: {} MiB\n{}",
            vm.metrics(),
            resident(vm),
            vm.errors()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// Sets the balloon's size and waits until the guest says that it has it.
fn resize(shell: &GuestShell, config: &mut Value, mib: u64) {
    config["balloon"]["amount_mib"] = json!(mib);
    let vm = shell.vm();
    vm.reload(&config.to_string(), "balloon: changed");
    assert_eq!(counter(vm, "target_pages"), mib * PAGES);
    wait_until(vm, "the size", || {
        counter(vm, "actual_pages") == mib * PAGES
    });
}

/// Has the guest write to so many MiB of memory, and let go of them.
fn touch(shell: &mut GuestShell, mib: u64) {
    shell.ok(&format!(
        "mount -o remount,size=100% /dev/shm && dd if=/dev/zero of=/dev/shm/x bs=1M count={mib} && rm /dev/shm/x"
    ));
}

/// A field of the guest's /proc/meminfo, in bytes.
fn meminfo(shell: &mut GuestShell, name: &str) -> u64 {
    let text = shell.ok(&format!("grep '^{name}:' /proc/meminfo"));
    let kib = text.split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

#[test]
fn memory_goes_to_the_host_and_comes_back() {
    let balloon = json!({"amount_mib": 0, "deflate_on_oom": false});
    let (mut shell, mut config) = boot(Kernel::CLOUD_6_12, 384, balloon);
    let all = meminfo(&mut shell, "MemTotal");
    touch(&mut shell, 200);
    let before = resident(shell.vm());
    resize(&shell, &mut config, 220);
    let after = resident(shell.vm());
    println!("inflated by 220 MiB: {before} MiB resident, then {after} MiB");
    assert!(before > 200 && after + 180 < before, "{before} {after}");
    assert_eq!(all - meminfo(&mut shell, "MemTotal"), 220 * MIB);
    assert!(counter(shell.vm(), "inflated_bytes") >= 220 * MIB);
    assert_eq!(counter(shell.vm(), "release_fails"), 0);

    resize(&shell, &mut config, 0);
    assert_eq!(meminfo(&mut shell, "MemTotal"), all);
    assert_eq!(
        counter(shell.vm(), "deflated_bytes"),
        counter(shell.vm(), "inflated_bytes")
    );
    let empty = resident(shell.vm());
    // It is memory as before.
    let text = shell.ok(
        "seq 1 2000000 | head -c 8388608 >/dev/shm/y; head -c 8388608 /dev/shm/y | md5sum; seq 1 2000000 | head -c 8388608 | md5sum",
    );
    let sums: Vec<_> = text.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{text}");
    touch(&mut shell, 160);
    let full = resident(shell.vm());
    println!("deflated: {empty} MiB resident, {full} MiB after 160 MiB were written");
    assert!(empty + 120 < full, "{empty} {full}");
    shell.power_off();
}

#[test]
fn a_balloon_is_there_from_the_start_and_statistics_arrive() {
    let balloon =
        json!({"amount_mib": 100, "deflate_on_oom": false, "stats_polling_interval_s": 1});
    let (mut shell, mut config) = boot(Kernel::CLOUD_6_12, 256, balloon);
    let updates = || counter(shell.vm(), "stats_updates_count");
    wait_until(shell.vm(), "the size", || {
        counter(shell.vm(), "actual_pages") == 100 * PAGES
    });
    let before = updates();
    wait_until(shell.vm(), "statistics", || updates() >= before + 3);
    let total = meminfo(&mut shell, "MemTotal");
    let line = shell.vm().metrics();
    assert_eq!(line["balloon"]["total_memory"], total, "{line}");
    let free = line["balloon"]["free_memory"].as_u64().unwrap();
    let available = line["balloon"]["available_memory"].as_u64().unwrap();
    assert!(free > MIB && free < total && available < total, "{line}");
    assert!(
        line["balloon"]["minor_faults"].as_u64().unwrap() > 100,
        "{line}"
    );
    for name in [
        "swap_in",
        "swap_out",
        "major_faults",
        "disk_caches",
        "hugetlb_allocations",
        "hugetlb_failures",
        "oom_kill",
    ] {
        assert!(line["balloon"][name].is_u64(), "no {name} in {line}");
    }
    println!("statistics: {}", line["balloon"]);

    // Switched off, and on again with another interval.
    config["balloon"]["stats_polling_interval_s"] = json!(0);
    shell.vm().reload(&config.to_string(), "balloon: changed");
    assert!(shell.vm().metrics()["balloon"]["free_memory"].is_null());
    config["balloon"]["stats_polling_interval_s"] = json!(2);
    shell.vm().reload(&config.to_string(), "balloon: changed");
    let before = counter(shell.vm(), "stats_updates_count");
    wait_until(shell.vm(), "statistics", || {
        counter(shell.vm(), "stats_updates_count") > before
    });
    // More than there is cannot be.
    config["balloon"]["amount_mib"] = json!(257);
    shell
        .vm()
        .reload(&config.to_string(), "balloon.amount_mib: is 257");
    assert_eq!(counter(shell.vm(), "target_pages"), 100 * PAGES);
    shell.power_off();
}

/// Has one process of the guest ask for more than is left beside the balloon. Returns its status.
fn take_more_than_is_left(deflate_on_oom: bool) -> (GuestShell, i32) {
    let balloon = json!({"amount_mib": 0, "deflate_on_oom": deflate_on_oom});
    let (mut shell, mut config) = boot(Kernel::CLOUD_6_12, 256, balloon);
    let left = 70;
    let amount = meminfo(&mut shell, "MemAvailable") / MIB - left;
    resize(&shell, &mut config, amount);
    // One buffer of that size, all of it written to.
    let status = shell
        .run(&format!(
            "dd if=/dev/zero of=/dev/null bs={}M count=1",
            left + 40
        ))
        .status;
    (shell, status)
}

#[test]
fn a_guest_in_need_takes_memory_back_if_it_may() {
    let (mut shell, status) = take_more_than_is_left(true);
    assert_eq!(status, 0);
    assert!(counter(shell.vm(), "deflated_bytes") > 20 * MIB);
    assert_eq!(shell.ok("dmesg | grep -c 'Out of memory' || true"), "0");
    shell.power_off();

    let (mut shell, status) = take_more_than_is_left(false);
    assert_ne!(status, 0, "there was enough");
    assert_eq!(counter(shell.vm(), "deflated_bytes"), 0);
    shell.allow("Out of memory");
    shell.allow("oom");
    shell.power_off();
}

/// Free pages go back to the host without anybody asking.
fn free_pages_are_reported(kernel: Kernel) {
    let balloon = json!({"amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true});
    let (mut shell, _) = boot(kernel, 384, balloon);
    for round in 0..2 {
        shell.ok(
            "mount -o remount,size=100% /dev/shm && dd if=/dev/zero of=/dev/shm/x bs=1M count=200",
        );
        let full = resident(shell.vm());
        assert!(full > 200, "{full}");
        shell.ok("rm /dev/shm/x");
        wait_until(shell.vm(), "the memory", || {
            resident(shell.vm()) + 150 < full
        });
        println!(
            "{}, round {round}: {full} MiB resident, then {} MiB",
            kernel.name,
            resident(shell.vm())
        );
    }
    assert!(counter(shell.vm(), "free_page_report_freed") >= 300 * MIB);
    assert_eq!(counter(shell.vm(), "release_fails"), 0);
    assert_eq!(counter(shell.vm(), "inflated_bytes"), 0);
    shell.power_off();
}

#[test]
fn free_pages_are_reported_by_cloud_6_12() {
    free_pages_are_reported(Kernel::CLOUD_6_12);
}

#[test]
fn free_pages_are_reported_by_cloud_6_1() {
    free_pages_are_reported(Kernel::CLOUD_6_1);
}

#[test]
fn free_pages_are_reported_by_generic_6_12() {
    free_pages_are_reported(Kernel::GENERIC_6_12);
}
