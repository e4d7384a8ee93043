//! Runs the real `tandem doctor`, on whatever machine this is, and checks that exit code, text and
//! JSON agree with each other.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn tandem(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> (Option<i32>, String, Output) {
    let output = tandem(arguments).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout.clone()).unwrap(),
        output,
    )
}

fn json(arguments: &[&str]) -> (Option<i32>, Value) {
    let (code, text, _) = output(arguments);
    (code, serde_json::from_str(&text).unwrap())
}

fn findings(report: &Value) -> Vec<&Value> {
    let sections = report["sections"].as_array().unwrap();
    sections
        .iter()
        .flat_map(|section| section["findings"].as_array().unwrap())
        .collect()
}

fn finding<'a>(report: &'a Value, id: &str) -> Option<&'a Value> {
    findings(report)
        .into_iter()
        .find(|finding| finding["id"] == id)
}

fn assert_whole(code: Option<i32>, report: &Value) {
    assert_eq!(report["schema"], "tandem.doctor/1");
    assert_eq!(code.map(Value::from), Some(report["exit_code"].clone()));
    let verdict = match code {
        Some(0) => "stock_kernels",
        Some(1) => "unusable",
        Some(2) => "simple_code",
        _ => "a documented exit code",
    };
    assert_eq!(report["verdict"], verdict);
    assert_eq!(report["can_run_stock_kernels"], code == Some(0));
    for finding in findings(report) {
        let status = finding["status"].as_str().unwrap();
        assert!(
            ["ok", "info", "warning", "problem"].contains(&status),
            "{finding}"
        );
        let bad = ["warning", "problem"].contains(&status);
        assert_eq!(
            bad,
            finding["remedy"].as_str().is_some_and(|r| !r.is_empty()),
            "{finding}"
        );
    }
    for section in report["sections"].as_array().unwrap() {
        let list = section["findings"].as_array().unwrap();
        let mut ids: Vec<_> = list.iter().map(|one| one["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), list.len(), "ids are unique in {section}");
    }
}

#[test]
fn exit_code_text_and_json_agree() {
    let (code, report) = json(&["doctor", "--json"]);
    assert_whole(code, &report);

    let (text_code, text, raw) = output(&["doctor"]);
    assert_eq!(text_code, code);
    assert!(raw.stderr.is_empty(), "{raw:?}");
    assert!(!text.contains('\x1b'), "no colour in a pipe");
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let lines: Vec<_> = text.lines().collect();
    for finding in findings(&report) {
        let title = finding["title"].as_str().unwrap();
        let word = match finding["status"].as_str().unwrap() {
            "info" => "-",
            word => word,
        };
        // Times and free pages may differ from run to run; titles and status do not.
        let head = format!("  {word:7}  {title}");
        assert!(
            lines.iter().any(|line| line.starts_with(&head)),
            "{head:?} is not in\n{text}"
        );
    }
    let count = |status: &str| {
        findings(&report)
            .iter()
            .filter(|f| f["status"] == status)
            .count()
    };
    let last = format!(
        "Problems: {}. Warnings: {}. Exit code: {}.",
        count("problem"),
        count("warning"),
        code.unwrap()
    );
    assert_eq!(lines.last(), Some(&last.as_str()));
}

#[test]
fn plain_code_runs_on_any_kvm_that_opens() {
    let (code, report) = json(&["doctor", "--json"]);
    if finding(&report, "device").unwrap()["status"] != "ok" {
        assert_eq!(code, Some(1));
        assert!(finding(&report, "check_plain").is_none());
        return;
    }
    let plain = finding(&report, "check_plain").unwrap();
    assert_eq!(plain["details"]["outcome"], "passed", "{plain}");
    let failed = findings(&report)
        .iter()
        .filter(|finding| finding["details"]["outcome"] == "failed")
        .count();
    assert_eq!(failed == 0, code == Some(0));
}

#[test]
fn without_kvm_the_code_is_1_and_the_remedy_is_there() {
    for path in ["/nonexistent/kvm", "/dev/null", "/proc"] {
        let (code, report) = json(&["doctor", "--json", "--kvm", path]);
        assert_eq!(code, Some(1));
        assert_whole(code, &report);
        assert_eq!(finding(&report, "device").unwrap()["status"], "problem");
    }
    let (code, text, _) = output(&["doctor", "--kvm", "/nonexistent/kvm"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("VMs cannot run here."));
}

#[test]
fn wrong_usage_has_a_code_of_its_own() {
    for wrong in [
        &["doctor", "--nonsense"][..],
        &["no-such-command"],
        &["doctor", "extra"],
        &[],
    ] {
        let (code, text, raw) = output(wrong);
        assert_eq!(code, Some(64), "{wrong:?}");
        assert!(text.is_empty() && !raw.stderr.is_empty());
    }
}

#[test]
fn help_documents_the_exit_codes() {
    for help in [["doctor", "--help"], ["doctor", "-h"], ["help", "doctor"]] {
        let (code, text, _) = output(&help);
        assert_eq!(code, Some(0));
        for said in [
            "Exit codes:",
            "  0   ",
            "  1   ",
            "  2   ",
            "  64  ",
            "--json",
        ] {
            assert!(text.contains(said), "{said:?} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
    let (code, text, _) = output(&["--version"]);
    assert_eq!(
        (code, text.trim()),
        (Some(0), concat!("tandem ", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn a_reader_that_goes_away_changes_nothing() {
    let expected = tandem(&["doctor", "--kvm", "/nonexistent"])
        .output()
        .unwrap()
        .status
        .code();
    for arguments in [&["doctor", "--kvm", "/nonexistent"][..], &["--help"]] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let child = tandem(arguments)
            .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let code = if arguments == ["--help"] {
            Some(0)
        } else {
            expected
        };
        assert_eq!(output.status.code(), code, "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = tandem(&["doctor"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the report"));
}

#[test]
fn colour_is_for_terminals_and_no_color_turns_it_off() {
    if !Path::new("/dev/ptmx").exists() {
        return;
    }
    let on_terminal = |no_color: &str| {
        // script(1) of util-linux gives the command a terminal.
        let mut child = Command::new("script")
            .args([
                "-qec",
                &format!("{} doctor --kvm /none", env!("CARGO_BIN_EXE_tandem")),
            ])
            .arg("/dev/null")
            .env("TERM", "xterm")
            .env("NO_COLOR", no_color)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut text = String::new();
        child.stdout.take()?.read_to_string(&mut text).ok()?;
        child.wait().ok()?;
        Some(text)
    };
    let (Some(coloured), Some(plain)) = (on_terminal(""), on_terminal("1")) else {
        return;
    };
    assert!(coloured.contains("\x1b[31m"), "{coloured:?}");
    assert!(!plain.contains('\x1b'), "{plain:?}");
}
