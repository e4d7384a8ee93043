//! Findings about programs: container engines, other VMMs and helpers; where they are, which
//! version, and whether an engine's daemon answers. Each is asked on its own thread, all at once.

use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::exec::{self, Answer};
use super::report::{Finding, Section};

/// A version is known without looking at anything: a program that takes longer is broken.
const VERSION_LIMIT: Duration = Duration::from_secs(3);
const DAEMON_LIMIT: Duration = Duration::from_secs(3);

/// A program that may be there.
struct Program {
    name: &'static str,
    version: &'static [&'static str],
    /// Arguments that succeed only if the program's daemon answers.
    daemon: Option<&'static [&'static str]>,
    /// How to start the daemon, or to get the program where it is wanted by default.
    remedy: &'static str,
}

const fn program(name: &'static str) -> Program {
    Program {
        name,
        version: &["--version"],
        daemon: None,
        remedy: "",
    }
}

const ENGINES: &[Program] = &[
    Program {
        daemon: Some(&["version", "--format", "{{.Server.Version}}"]),
        remedy: "systemctl start docker, and as a user: sudo usermod -aG docker $USER",
        ..program("docker")
    },
    program("podman"),
    Program {
        daemon: Some(&["version", "--format", "{{.Server}}"]),
        remedy: "systemctl start containerd, and run as root",
        ..program("nerdctl")
    },
    program("containerd"),
    Program {
        daemon: Some(&["--connect-timeout", "2s", "version"]),
        remedy: "systemctl start containerd, and run as root",
        ..program("ctr")
    },
    program("runc"),
    program("crun"),
    program("youki"),
];

const VMMS: &[Program] = &[
    program("firecracker"),
    program("cloud-hypervisor"),
    program("qemu-system-x86_64"),
];

const HELPERS: &[Program] = &[program("passt"), program("qemu-img")];

/// One section for each kind of program.
pub fn sections() -> Vec<Section> {
    let kinds = [
        ("engines", "Container engines", ENGINES),
        ("vmms", "Other VMMs", VMMS),
        ("helpers", "Helpers", HELPERS),
    ];
    thread::scope(|scope| {
        let asked = kinds.map(|(id, title, programs)| {
            let threads: Vec<_> = programs
                .iter()
                .map(|program| scope.spawn(|| finding(program)))
                .collect();
            (id, title, threads)
        });
        asked
            .into_iter()
            .map(|(id, title, threads)| {
                let findings = threads.into_iter().filter_map(|thread| thread.join().ok());
                Section::new(id, title, findings.collect())
            })
            .collect()
    })
}

fn finding(program: &Program) -> Finding {
    let name = program.name;
    let Some(path) = exec::find(name) else {
        return Finding::info(name, name, "not found").with(json!({ "found": false }));
    };
    let version = match exec::ask(&path, program.version, VERSION_LIMIT) {
        Answer::Success(text) => version_in(&text),
        other => {
            let why = explain(&other);
            let value = format!("{}: {why}", path.display());
            let remedy = "the program is broken: reinstall or remove it";
            return Finding::warning(name, name, value, remedy)
                .with(json!({ "found": true, "path": path, "version": null }));
        }
    };
    let value = format!("{version} at {}", path.display());
    let daemon = program.daemon.map(|arguments| daemon(&path, arguments));
    let details = json!({
        "found": true,
        "path": path,
        "version": version,
        "daemon_answers": daemon.as_ref().map(Result::is_ok),
    });
    let finding = match daemon {
        None => Finding::ok(name, name, value),
        Some(Ok(())) => Finding::ok(name, name, format!("{value}; daemon answers")),
        Some(Err(why)) => Finding::warning(
            name,
            name,
            format!("{value}; daemon does not answer: {why}"),
            program.remedy,
        ),
    };
    finding.with(details)
}

fn daemon(path: &Path, arguments: &[&str]) -> Result<(), String> {
    match exec::ask(path, arguments, DAEMON_LIMIT) {
        Answer::Success(_) => Ok(()),
        other => Err(explain(&other)),
    }
}

/// An answer in one line of reasonable length.
fn explain(answer: &Answer) -> String {
    match answer {
        Answer::Success(text) | Answer::Failure(text) => {
            let line = text.lines().map(str::trim).find(|line| !line.is_empty());
            let line = line.unwrap_or("it failed without a word");
            printable(line).chars().take(120).collect()
        }
        Answer::TimedOut => "no answer in time".to_owned(),
        Answer::NotStarted(error) => format!("cannot be started: {error}"),
    }
}

/// The first word of the output that looks like a version, else its first line.
fn version_in(text: &str) -> String {
    let looks = |word: &&str| {
        let digits = word.strip_prefix('v').unwrap_or(word);
        digits.starts_with(|c: char| c.is_ascii_digit()) && digits.contains(['.', '-', '_'])
    };
    let word = text
        .split_whitespace()
        .map(|word| word.trim_matches([',', ';', '(', ')']))
        .find(looks);
    let found = word
        .or_else(|| text.lines().next())
        .unwrap_or("version unknown");
    printable(found).chars().take(60).collect()
}

/// Another program's words do not get to move our cursor.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, expected) in [
            ("Docker version 28.2.2, build e6534b4\n", "28.2.2"),
            ("podman version 4.3.1", "4.3.1"),
            (
                "runc version 1.1.5+ds1\ncommit: 1.1.5\nspec: 1.0.2-dev\n",
                "1.1.5+ds1",
            ),
            ("crun version 1.8.1\ncommit: f8a096be\n", "1.8.1"),
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1+b1",
                "1.6.20~ds1",
            ),
            ("Firecracker v1.13.1\n", "v1.13.1"),
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n",
                "7.2.22",
            ),
            (
                "passt 0.0~git20230309.7c7625d-1\nCopyright",
                "0.0~git20230309.7c7625d-1",
            ),
            ("ctr github.com/containerd/containerd v2.0.0", "v2.0.0"),
            ("something else\n", "something else"),
            ("", "version unknown"),
        ] {
            assert_eq!(version_in(text), expected, "{text}");
        }
    }

    #[test]
    fn another_programs_words_are_tamed() {
        assert_eq!(
            explain(&Answer::Failure("\n\x1b[31mno\n more".into())),
            " [31mno"
        );
        assert_eq!(
            explain(&Answer::Failure(String::new())),
            "it failed without a word"
        );
        assert_eq!(explain(&Answer::Failure("x".repeat(500))).len(), 120);
    }
}
