//! Labs as they come and go, well and badly: nothing may be left behind, and a death says why.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{Bench, eventually, kill, text};

pub fn two_ups_make_one_lab(bench: &Bench) {
    let ups: Vec<_> = (0..2)
        .map(|_| bench.lab(&["up"]).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    for up in ups {
        let output = up.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(bench.machines("default").len(), 1);
    let status = bench.lab(&["status"]).output().unwrap();
    assert!(
        status.status.success() && text(&status.stdout).contains("lab 'default' is up"),
        "{status:?}"
    );
}

pub fn killed_client(bench: &Bench) {
    bench.up();
    let running = bench.start(&[], "echo ready; sleep 9991");
    running.signal(libc::SIGKILL);
    assert_eq!(running.finish().0, 1000 + libc::SIGKILL);
    eventually(10, "the command ended", || {
        let left = bench
            .sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 999[0-9]'");
        left.stdout.is_empty()
    });
}

pub fn side_by_side(bench: &Bench) {
    bench.up();
    assert!(
        bench
            .lab(&["--name", "second", "--memory", "1024", "up"])
            .status()
            .unwrap()
            .success()
    );
    assert!(bench.sh("echo first >/run/which").status.success());
    assert!(
        bench
            .lab(&["--name", "second", "sh", "-c", "echo second >/run/which"])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(text(&bench.sh("cat /run/which").stdout), "first\n");
    let second = bench.lab(&[
        "--name",
        "second",
        "sh",
        "-c",
        "cat /run/which; free -m | awk '/Mem/{print $2}'",
    ]);
    let second = text(&{ second }.output().unwrap().stdout);
    assert!(second.starts_with("second\n"), "{second}");
    let status = text(&bench.lab(&["status"]).output().unwrap().stdout);
    assert_eq!(status.lines().count(), 2, "{status}");
    assert!(
        bench
            .lab(&["--name", "second", "down"])
            .status()
            .unwrap()
            .success()
    );
    assert!(bench.machines("second").is_empty());
    assert_eq!(bench.machines("default").len(), 1);
}

pub fn one_shot(bench: &Bench) {
    assert!(bench.lab(&["down"]).status().unwrap().success());
    let output = bench.sh("echo once; exit 6");
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(6), "once\n".into()),
        "{output:?}"
    );
    assert_eq!(bench.traces(), Vec::<String>::new());
    assert!(bench.machines("").is_empty() && bench.supervisors().is_empty());
}

pub fn one_shot_killed(bench: &Bench) {
    let running = bench.start(&["--memory", "1024"], "echo ready; sleep 100");
    assert_eq!(bench.machines("run-").len(), 1);
    running.signal(libc::SIGKILL);
    eventually(10, "machine, supervisor and state are gone", || {
        bench.machines("").is_empty() && bench.supervisors().is_empty() && bench.traces().is_empty()
    });
    // Also when the machine is not up yet.
    let mut early = bench.lab(&["true"]).spawn().unwrap();
    eventually(30, "the machine was started", || {
        !bench.machines("run-").is_empty()
    });
    kill(early.id() as i32, libc::SIGKILL);
    early.wait().unwrap();
    eventually(10, "all is gone", || {
        bench.machines("").is_empty() && bench.traces().is_empty()
    });
}

/// Runs a command until `deed` kills its lab: what the client says.
fn die(bench: &Bench, seconds: u64, deed: impl Fn()) -> String {
    bench.up();
    let running = bench.start(&[], "echo ready; sleep 1000");
    let begin = Instant::now();
    deed();
    let (code, _, errors) = running.finish();
    assert_eq!(code, 125, "{errors}");
    assert!(
        errors.contains("tandem-lab: error: the lab died: "),
        "{errors}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(seconds),
        "{:?}",
        begin.elapsed()
    );
    eventually(10, "nothing is left", || {
        let left = bench.machines("default").is_empty() && bench.supervisors().is_empty();
        // What a killed supervisor leaves is removed by the next command.
        left && !bench
            .lab(&["status"])
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
            && bench.traces().is_empty()
    });
    errors
}

pub fn killed_machine(bench: &Bench) {
    let errors = die(bench, 5, || {
        kill(bench.machines("default")[0], libc::SIGKILL)
    });
    assert!(
        errors.contains("the emulated machine ended (QEMU: signal: 9"),
        "{errors}"
    );
}

pub fn panic(bench: &Bench) {
    let errors = die(bench, 15, || {
        let _ = bench.sh("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger");
    });
    assert!(
        errors.contains("Kernel panic - not syncing: sysrq triggered crash"),
        "{errors}"
    );
}

pub fn silent_machine(bench: &Bench) {
    let errors = die(bench, 40, || {
        kill(bench.machines("default")[0], libc::SIGSTOP)
    });
    assert!(errors.contains("silent for"), "{errors}");
}

pub fn killed_supervisor(bench: &Bench) {
    let errors = die(bench, 5, || kill(bench.supervisors()[0], libc::SIGKILL));
    assert!(errors.contains("supervisor was killed"), "{errors}");
}

pub fn down(bench: &Bench) {
    bench.up();
    assert!(bench.sh("echo kept >kept").status.success());
    let output = bench.lab(&["down"]).output().unwrap();
    assert_eq!(text(&output.stdout), "lab 'default' is down\n");
    assert!(
        bench.machines("").is_empty()
            && bench.supervisors().is_empty()
            && bench.traces().is_empty()
    );
    assert_eq!(
        text(&bench.lab(&["down"]).output().unwrap().stdout),
        "lab 'default' was not up\n"
    );
    assert_eq!(
        bench.lab(&["status"]).output().unwrap().status.code(),
        Some(1)
    );
    assert_eq!(std::fs::read(bench.files.join("kept")).unwrap(), b"kept\n");
}
