//! Filters in place: every thread has one, a call that is not listed ends the process with its name in the last line, and
//! without any one of the rules that a VM's calls need, it does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tandem_seccomp::compiled;
use tandem_seccomp::policy::Policy;
use tests::patience;
use tests::vm::{Ended, VmBuilder};

use crate::pci::asking_on_and_on;

const BAD_SYSCALL: i32 = 148;

fn policy() -> Policy {
    Policy::parse(include_str!("../../resources/seccomp/policy.json")).unwrap()
}

/// The policy's file without `rule`.
fn filters_without(rule: &str, dir: &Path) -> PathBuf {
    let path = dir.join("filters");
    let file = compiled::file(&policy().without(rule).unwrap()).unwrap();
    fs::write(&path, file).unwrap();
    path
}

/// A VM whose entropy device is asked on and on.
fn busy() -> VmBuilder {
    let mut builder = VmBuilder::with_code(asking_on_and_on());
    builder.config["entropy"] = json!({});
    builder
}

#[test]
fn every_thread_has_a_filter_and_can_gain_no_privileges() {
    let vm = busy().vcpus(2).start();
    vm.wait_for("ready\n");
    let deadline = Instant::now() + patience();
    loop {
        let mut names = BTreeSet::new();
        let mut without = BTreeSet::new();
        for task in fs::read_dir(format!("/proc/{}/task", vm.pid())).unwrap() {
            let task = task.unwrap().path();
            let status = fs::read_to_string(task.join("status")).unwrap();
            let name = status.lines().next().unwrap().replace("Name:\t", "");
            if !(status.contains("\nNoNewPrivs:\t1\n") && status.contains("\nSeccomp:\t2\n")) {
                without.insert(name.clone());
            }
            names.insert(name);
        }
        // The console's thread takes its filter when it is first scheduled: the guest may be faster.
        if without.is_empty() && names.len() >= 5 {
            let all: Vec<_> = names.iter().map(String::as_str).collect();
            assert!(all.contains(&"vcpu 0") && all.contains(&"vcpu 1") && all.contains(&"io"));
            assert!(all.contains(&"console"), "{all:?}");
            return;
        }
        assert!(
            Instant::now() < deadline,
            "without: {without:?} of {names:?}"
        );
    }
}

/// It ended for a call that is not listed, and says so last.
#[track_caller]
fn killed_for(ended: &Ended, thread: &str, call: &str) {
    let said = format!("thread {thread} made the system call {call} (number ");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert_eq!(ended.code, BAD_SYSCALL, "{call}: {}", ended.stderr);
    assert!(
        last.starts_with(&format!("tandem-vmm: {said}")),
        "{call}: {last}"
    );
    let log = fs::read_to_string(ended.path("log")).unwrap();
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.contains(&format!("] {said}")) && log.ends_with('\n'),
        "{log}"
    );
}

#[test]
fn a_call_that_is_not_listed_is_named_in_the_last_line() {
    for (rule, thread, call) in [
        ("vcpu: ioctl if arg1 = KVM_RUN", "vcpu 0", "ioctl"),
        ("io: getrandom if arg2 = 0", "io", "getrandom"),
        ("every: clock_nanosleep", "console", "clock_nanosleep"),
        ("main: timerfd_settime", "main", "timerfd_settime"),
    ] {
        let builder = busy();
        let filters = filters_without(rule, builder.dir.path());
        let log = builder.path("log");
        let vm = builder
            .option("--seccomp-filter", filters)
            .option("--log-path", log)
            .start();
        if thread == "main" {
            vm.wait_for("ready\n");
            // Twice: it ends at once.
            vm.signal(libc::SIGTERM);
            vm.signal(libc::SIGINT);
        }
        killed_for(&vm.wait(), thread, call);
    }
}

#[test]
fn without_filters_there_are_none() {
    let vm = busy().arg("--no-seccomp").start();
    vm.wait_for("ready\n");
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    assert!(status.contains("\nSeccomp:\t0\n"), "{status}");
}
