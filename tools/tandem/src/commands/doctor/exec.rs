//! Running another program for its answer, never longer than a time limit.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Programs print less than this when they are asked for their version; the rest is not read.
const MOST_OUTPUT: u64 = 64 * 1024;

/// What came of running a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It ended with success; what it wrote to standard output, else to standard error.
    Success(String),
    /// It ended with failure; the same, the other way round.
    Failure(String),
    /// It did not end in time and was killed.
    TimedOut,
    /// It could not be started.
    NotStarted(String),
}

/// The program's path, looked up in PATH and then where system programs live.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        // An empty or relative entry would run whatever lies in the current directory.
        .filter(|directory| directory.is_absolute())
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs the program without input and waits for its end, at most `limit`. It gets a process group
/// of its own, and the whole group is killed when time is up.
pub fn ask(program: &Path, arguments: &[&str], limit: Duration) -> Answer {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Answer::NotStarted(error.to_string()),
    };
    let deadline = Instant::now() + limit;
    let output = child.stdout.take().map(read_on_thread);
    let errors = child.stderr.take().map(read_on_thread);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            _ => break None,
        }
    };
    let Some(status) = status else {
        // SAFETY: kill takes no pointers, and the child, which is not reaped yet, leads the group.
        unsafe {
            libc::kill(-child.id().cast_signed(), libc::SIGKILL);
        }
        let _ = child.wait();
        return Answer::TimedOut;
    };
    // A grandchild may hold the pipe open: what has come until then is not waited for long.
    let collect = |receiver: Option<std::sync::mpsc::Receiver<String>>| {
        receiver
            .and_then(|r| r.recv_timeout(Duration::from_millis(200)).ok())
            .unwrap_or_default()
    };
    let (output, errors) = (collect(output), collect(errors));
    let either = |a: String, b: String| if a.trim().is_empty() { b } else { a };
    if status.success() {
        Answer::Success(either(output, errors))
    } else {
        Answer::Failure(either(errors, output))
    }
}

fn read_on_thread(from: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut from = from;
        let _ = from.by_ref().take(MOST_OUTPUT).read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
        // The rest is drained, so that the program does not block or die of it.
        let _ = std::io::copy(&mut from, &mut std::io::sink());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Answer {
        ask(Path::new("/bin/sh"), &["-c", script], limit)
    }

    #[test]
    fn answers_are_told_apart() {
        let limit = Duration::from_secs(10);
        assert_eq!(shell("echo yes", limit), Answer::Success("yes\n".into()));
        assert_eq!(
            shell("echo no >&2; exit 3", limit),
            Answer::Failure("no\n".into())
        );
        assert!(matches!(
            ask(Path::new("/nonexistent"), &[], limit),
            Answer::NotStarted(_)
        ));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        assert_eq!(
            shell("sleep 60 & sleep 60", Duration::from_millis(50)),
            Answer::TimedOut
        );
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
