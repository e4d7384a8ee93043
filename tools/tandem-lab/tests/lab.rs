//! The lab as its users see it: `tools/lab`, always emulated, with a state directory of the test's own.
//!
//! Run by name: `cargo test -p tandem-lab --test lab [-- FILTER]`. It has a `main` of its own because its tests share
//! one machine, in order, and because what it started must be gone at the end, whatever happened.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "lab/commands.rs"]
mod commands;
#[path = "lab/lives.rs"]
mod lives;
#[path = "lab/support.rs"]
mod support;
#[path = "lab/terminal.rs"]
mod terminal;

use std::panic::catch_unwind;
use std::time::Instant;

use support::Bench;

type Test = (&'static str, fn(&Bench));

const TESTS: &[Test] = &[
    ("two ups at once make one lab", lives::two_ups_make_one_lab),
    ("exit codes are the command's", commands::exit_codes),
    ("arguments arrive as they are", commands::arguments),
    (
        "eight megabytes through standard input and output",
        commands::binary_streams,
    ),
    ("standard error is apart", commands::standard_error),
    ("environment, directory and umask", commands::environment),
    ("input that nobody reads", commands::unread_input),
    ("output that nobody reads", commands::unread_output),
    (
        "the host's changes are seen",
        commands::host_changes_are_seen,
    ),
    (
        "what is written is the host's at once",
        commands::writes_are_seen,
    ),
    ("signals reach the command", commands::signals),
    ("out of time is 124, and nothing goes on", commands::timeout),
    ("more commands than slots", commands::many_at_once),
    (
        "background processes are not waited for",
        commands::background,
    ),
    ("a terminal, its size and its keys", terminal::terminal),
    ("/dev/kvm is complete", commands::kvm_is_complete),
    ("a lab in the lab is direct", commands::lab_in_lab),
    ("its own failures are 125", commands::own_failures),
    ("a killed client's command ends", lives::killed_client),
    ("two labs side by side", lives::side_by_side),
    ("a lab for one command leaves nothing", lives::one_shot),
    (
        "a killed client of a lab for one command leaves nothing",
        lives::one_shot_killed,
    ),
    ("a killed machine is noticed at once", lives::killed_machine),
    ("a panic is told with the console's words", lives::panic),
    ("a stopped machine is noticed", lives::silent_machine),
    (
        "a killed supervisor leaves nothing",
        lives::killed_supervisor,
    ),
    ("down leaves nothing", lives::down),
];

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let chosen: Vec<&Test> = TESTS
        .iter()
        .filter(|(name, _)| name.contains(&filter))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    let bench = Bench::new();
    let mut failed = vec![];
    for (name, test) in &chosen {
        let begin = Instant::now();
        let passed = catch_unwind(|| test(&bench)).is_ok();
        let verdict = if passed { "ok" } else { "FAILED" };
        println!(
            "test {name} ... {verdict} ({:.1} s)",
            begin.elapsed().as_secs_f64()
        );
        if !passed {
            failed.push(name);
        }
    }
    let left = bench.end();
    let verdict = if failed.is_empty() && left.is_empty() {
        "ok"
    } else {
        "FAILED"
    };
    if !left.is_empty() {
        println!("left behind: {left:?}");
    }
    let good = chosen.len() - failed.len();
    println!(
        "\ntest result: {verdict}. {good} passed; {} failed; 0 ignored; 0 measured; 0 filtered out\n",
        failed.len()
    );
    std::process::exit(i32::from(verdict != "ok"));
}
