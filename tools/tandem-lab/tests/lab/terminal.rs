//! A command on a terminal: the client gets one of the test's, and the command must have one as good.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use tandem_lab::spec::Terminal;
use tandem_lab::sys::process::{self, ChildSetup};
use tandem_lab::sys::{self, terminal};

use crate::support::Bench;

const PATIENCE: Duration = Duration::from_secs(30);

/// Reads until `wanted` was seen.
fn read_until(terminal: &mut File, seen: &mut String, wanted: &str) {
    assert!(
        read_for(PATIENCE, terminal, seen, wanted),
        "no {wanted:?} in {seen:?}"
    );
}

/// Presses Ctrl-C until `wanted` was seen. A key that comes between bash's look for signals and its read(2) has its trap wait for the next.
fn interrupt_until(terminal: &mut File, seen: &mut String, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        terminal.write_all(b"\x03").unwrap();
        if read_for(Duration::from_secs(2), terminal, seen, wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "no {wanted:?} in {seen:?}");
    }
}

/// Reads until `wanted` was seen, which is true, or for that time.
fn read_for(time: Duration, terminal: &mut File, seen: &mut String, wanted: &str) -> bool {
    let deadline = Instant::now() + time;
    let mut bytes = [0; 4096];
    while !seen.contains(wanted) {
        if Instant::now() >= deadline {
            return false;
        }
        let mut entries = [sys::poll_entry(
            std::os::fd::AsRawFd::as_raw_fd(terminal),
            libc::POLLIN,
        )];
        if sys::poll(&mut entries, 100).unwrap() > 0 {
            let count = terminal.read(&mut bytes).unwrap_or(0);
            assert!(count > 0, "the end before {wanted:?} in {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
    true
}

pub fn terminal(bench: &Bench) {
    bench.up();
    let (mut ours, theirs) = terminal::open_terminal(Terminal {
        rows: 33,
        columns: 101,
    })
    .unwrap();
    let script = "tty; stty size; trap 'stty size' WINCH; trap 'echo interrupted' INT; echo ready; \
                  while ! read line; do :; done; echo \"line=$line\"; exit 4";
    // Bash: its read ends when a trap was run.
    let mut command = bench.lab(&["bash", "-c", script]);
    command
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs.try_clone().unwrap())
        .stderr(theirs);
    let setup = ChildSetup {
        new_session: true,
        controlling_terminal: true,
        ..ChildSetup::default()
    };
    process::set_up_child(&mut command, setup, vec![]);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut seen = String::new();
    read_until(&mut ours, &mut seen, "ready\r\n");
    assert!(
        seen.contains("/dev/pts/") && seen.contains("33 101"),
        "{seen:?}"
    );
    interrupt_until(&mut ours, &mut seen, "interrupted\r\n");
    terminal::set_window(
        &ours,
        Terminal {
            rows: 44,
            columns: 120,
        },
    )
    .unwrap();
    // Bash runs the trap when the read ends.
    interrupt_until(&mut ours, &mut seen, "44 120\r\n");
    ours.write_all(b"hello\r").unwrap();
    read_until(&mut ours, &mut seen, "line=hello\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(4), "{seen:?}");
}
