//! What the tests stand on.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A state directory, and a directory for files that host and lab share.
pub struct Bench {
    pub runtime: PathBuf,
    pub files: PathBuf,
}

impl Bench {
    pub fn new() -> Self {
        let base = PathBuf::from(format!("/tmp/tandem-lab-test-{}", std::process::id()));
        let bench = Bench {
            runtime: base.join("run"),
            files: base.join("files"),
        };
        fs::create_dir_all(&bench.runtime).unwrap();
        fs::create_dir_all(&bench.files).unwrap();
        bench
    }

    /// `tools/lab` with these arguments.
    pub fn lab(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab"));
        command
            .args(arguments)
            .current_dir(&self.files)
            .stdin(Stdio::null());
        command
            .env("TANDEM_LAB", "emulated")
            .env("XDG_RUNTIME_DIR", &self.runtime);
        command
            .env_remove("TANDEM_LAB_NAME")
            .env("TANDEM_LAB_SILENCE_SECONDS", "15");
        command
    }

    /// A shell script in the lab: its output.
    pub fn sh(&self, script: &str) -> Output {
        self.lab(&["sh", "-c", script]).output().unwrap()
    }

    /// Makes sure that the lab of the default name is up.
    pub fn up(&self) {
        let output = self.lab(&["up"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Starts a script, and waits until it printed `ready`.
    pub fn start(&self, options: &[&str], script: &str) -> Running {
        let arguments = [options, &["sh", "-c", script]].concat();
        let mut command = self.lab(&arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut errors = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut errors)
                .unwrap();
            panic!("not ready: {line:?} {errors}");
        }
        Running { child, stdout }
    }

    /// The machines of this test: those whose command line names its state directory.
    pub fn machines(&self, name: &str) -> Vec<i32> {
        let mark = format!("{}/tandem-lab/{name}", self.runtime.display());
        processes(|line| line.contains("qemu-system") && line.contains(&mark))
    }

    pub fn supervisors(&self) -> Vec<i32> {
        let mark = self.runtime.display().to_string();
        processes(|line| line.contains("__supervise") && line.contains(&mark))
    }

    /// Names of labs with anything left in the state directory.
    pub fn traces(&self) -> Vec<String> {
        let entries = fs::read_dir(self.runtime.join("tandem-lab"))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    /// Stops everything; what was left nevertheless is the answer.
    pub fn end(self) -> Vec<String> {
        let _ = self.lab(&["down", "--all"]).output();
        let mut left = self.traces();
        for pid in self.machines("").into_iter().chain(self.supervisors()) {
            left.push(format!("process {pid}"));
            kill(pid, libc::SIGKILL);
        }
        let _ = fs::remove_dir_all(self.runtime.parent().unwrap());
        left
    }
}

/// A client in the middle of its command.
pub struct Running {
    pub child: Child,
    pub stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }

    /// Exit code (or 1000 + the signal that killed the client), the rest of its output, and its errors.
    pub fn finish(mut self) -> (i32, String, String) {
        let (mut output, mut errors) = (String::new(), String::new());
        self.stdout.read_to_string(&mut output).unwrap();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        let status = self.child.wait().unwrap();
        (
            status
                .code()
                .unwrap_or_else(|| 1000 + status.signal().unwrap()),
            output,
            errors,
        )
    }
}

fn processes(wanted: impl Fn(&str) -> bool) -> Vec<i32> {
    let mut found = vec![];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if wanted(&String::from_utf8_lossy(&line)) {
            found.push(pid);
        }
    }
    found
}

pub fn kill(pid: i32, signal: i32) {
    let _ = tandem_lab::sys::process::kill(pid, signal);
}

/// Waits up to that many seconds for something to become true.
pub fn eventually(seconds: u64, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "not after {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
