//! The real program, as root, with real namespaces, device nodes and control groups.
//!
//! | file      | what is proved                                                              |
//! |-----------|-----------------------------------------------------------------------------|
//! | `inside`  | what the process in a jail is, as the kernel tells it                        |
//! | `attacks` | what is refused, and that nothing is followed, changed or left               |
//! | `prepared` | the same for a jail that is there already, with files in it                 |
//! | `probe`   | (the program that is locked in)                                              |

// Test code throughout: what is broken ends in a panic that says so.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod attacks;
mod inside;
mod prepared;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest time that anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// An ordinary user and group that nothing of the host's belongs to.
const USER: u32 = 61_234;
const GROUP: u32 = 61_235;

/// The static program `probe.rs`, built once.
fn probe() -> &'static [u8] {
    static PROBE: OnceLock<Vec<u8>> = OnceLock::new();
    PROBE.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let built = dir.path().join("probe");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/jail/probe.rs");
        let status = Command::new("rustc")
            .args(["--edition=2024", "-Ctarget-feature=+crt-static", "-o"])
            .args([&built, Path::new(source)])
            .status()
            .expect("rustc is on the PATH");
        assert!(
            status.success(),
            "the probe cannot be built (static: libc6-dev has what it takes)"
        );
        fs::read(built).unwrap()
    })
}

/// A place for jails, and a program to lock in.
struct Place {
    dir: TempDir,
    id: String,
}

impl Place {
    fn new() -> Self {
        // SAFETY: geteuid takes nothing.
        let user = unsafe { libc::geteuid() };
        assert_eq!(
            user, 0,
            "jails are made by root: run this test as root, or by tools/test"
        );
        let dir = TempDir::new().unwrap();
        // Directories for temporary files are often mounted nodev, and not every file system has device nodes.
        let mount = ["-t", "tmpfs", "-o", "mode=755", "jails"];
        let status = Command::new("mount")
            .args(mount)
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "root can mount a tmpfs");
        fs::create_dir(dir.path().join("base")).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        // Control groups have no directory of the test's own: the name does it.
        let id = dir.path().file_name().unwrap().to_str().unwrap();
        let id = id.replace(|character: char| !character.is_ascii_alphanumeric(), "-");
        let place = Self {
            id: format!("t{id}"),
            dir,
        };
        let exec = place.exec();
        fs::write(&exec, probe()).unwrap();
        fs::set_permissions(&exec, fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base(&self) -> PathBuf {
        self.path("base")
    }

    fn exec(&self) -> PathBuf {
        self.path("bin/tandem-probe")
    }

    /// The jail's root on the host.
    fn root(&self) -> PathBuf {
        self.base().join("tandem-probe").join(&self.id).join("root")
    }

    /// The jailer with what it needs at least; what is given again replaces it.
    fn jailer<S: AsRef<OsStr>>(&self, more: &[S]) -> Command {
        let more: Vec<&OsStr> = more.iter().map(AsRef::as_ref).collect();
        let own = more.split(|word| *word == "--").next().unwrap_or_default();
        let given = |flag: &str| own.contains(&OsStr::new(flag));
        let program = std::env::var_os("TANDEM_JAILER")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_tandem-jailer").into());
        let mut command = Command::new(program);
        let (user, group) = (USER.to_string(), GROUP.to_string());
        for (flag, value) in [
            ("--id", self.id.as_ref()),
            ("--exec-file", self.exec().as_os_str()),
            ("--uid", user.as_ref()),
            ("--gid", group.as_ref()),
            ("--chroot-base-dir", self.base().as_os_str()),
        ] {
            if !given(flag) {
                command.arg(flag).arg(value);
            }
        }
        command.args(more).stdin(Stdio::null());
        command
    }

    /// Runs the jailer to its end, which comes if nothing stays in the jail, or not in this process.
    fn run<S: AsRef<OsStr>>(&self, more: &[S]) -> Output {
        let mut command = self.jailer(more);
        // What stays in the jail would keep pipes open: it is told to end.
        command.output().expect("the jailer starts")
    }

    /// Runs the jailer, which must refuse: its one line.
    #[track_caller]
    fn refused<S: AsRef<OsStr>>(&self, code: i32, more: &[S]) -> String {
        let output = self.run(more);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        let line = text.strip_suffix('\n').unwrap_or_default();
        let line = line.strip_prefix("tandem-jailer: ").unwrap_or_default();
        assert!(
            !line.is_empty() && !line.contains('\n'),
            "not one line: {text:?}"
        );
        line.to_owned()
    }

    /// Starts the jailer and waits for what the probe says.
    #[track_caller]
    fn start<S: AsRef<OsStr>>(&self, more: &[S]) -> Inmate {
        let child = self.jailer(more).spawn().expect("the jailer starts");
        self.inmate(child)
    }

    #[track_caller]
    fn inmate(&self, child: Child) -> Inmate {
        let mut inmate = Inmate {
            pid: child.id(),
            child,
            report: String::new(),
        };
        let deadline = Instant::now() + PATIENCE;
        inmate.report = loop {
            if let Ok(report) = fs::read_to_string(self.root().join("run/report")) {
                break report;
            }
            if let Some(status) = inmate.child.try_wait().unwrap() {
                assert!(status.success(), "the jailer failed: {status}");
            }
            assert!(Instant::now() < deadline, "nothing from the jail");
            thread::sleep(Duration::from_millis(2));
        };
        if let Ok(pid) = fs::read_to_string(self.root().join("tandem-probe.pid")) {
            inmate.pid = pid.parse().expect("a number and nothing else");
        }
        inmate
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

/// Removes a control group. The last process in it may be a zombie still, which somebody else reaps.
#[track_caller]
fn remove_group(group: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = fs::remove_dir(group) {
        assert!(Instant::now() < deadline, "{}: {error}", group.display());
        thread::sleep(Duration::from_millis(2));
    }
}

/// The probe in its jail. Dropping it kills it.
struct Inmate {
    child: Child,
    /// Number of the process in the jail.
    pid: u32,
    report: String,
}

impl Inmate {
    /// A file of the process in `/proc`.
    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// A line of its `/proc/PID/status`.
    fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(self.proc("status")).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.expect("the kernel has that field")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// What its report has in the lines that begin with `word`.
    fn said(&self, word: &str) -> Vec<&str> {
        self.report
            .lines()
            .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
            .collect()
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        // SAFETY: kill takes no pointer. The process is the jailer's child or this one's, and has only this to end it.
        unsafe { libc::kill(self.pid as libc::pid_t, libc::SIGKILL) };
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + PATIENCE;
        // The kernel, or the first process, reaps what is not this process's child.
        while self.proc("root").read_link().is_ok() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}
