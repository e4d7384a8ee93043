//! A program run under ptrace(2): which rules do its calls need.
//!
//! The process that is asked becomes the program, so that its number, its streams and its parent are what they would be; a
//! process of its own watches it. Each thread is watched from its seccomp(2) on, by its name: the first thread is `main`,
//! `vcpu N` and `console` are what they say, and all others are `io`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::policy::{Call, Policy};
use crate::syscalls;

/// Becomes `program` (its path, then its arguments), watched. Returns why it could not.
pub fn become_watched(policy: Policy, dir: PathBuf, program: &[OsString]) -> String {
    match start(policy, dir, program) {
        Ok(error) | Err(error) => format!("cannot run the program watched: {error}"),
    }
}

fn start(policy: Policy, dir: PathBuf, program: &[OsString]) -> io::Result<io::Error> {
    let [path, arguments @ ..] = program else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (mut ready, tell) = io::pipe()?;
    // SAFETY: no other thread exists; getpid, fork, prctl, setsid and _exit take no pointers.
    unsafe {
        let target = libc::getpid();
        // Where only ancestors may watch (Yama), this one allows it.
        libc::prctl(libc::PR_SET_PTRACER, libc::c_ulong::MAX);
        match libc::fork() {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // A child of nobody who waits for children.
                libc::setsid();
                if libc::fork() == 0 {
                    drop(ready);
                    let watched = watch(&policy, target, tell);
                    let file = dir.join(format!("{target}-{}", libc::getpid()));
                    let _ = fs::write(file, watched.unwrap_or_else(|error| format!("! {error}\n")));
                }
                libc::_exit(0);
            }
            child => {
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
        }
    }
    drop(tell);
    // The watching process closes its end, or says why it does not watch, when it is there.
    let mut problem = String::new();
    ready.read_to_string(&mut problem)?;
    if !problem.is_empty() {
        return Err(io::Error::other(problem));
    }
    drop(ready);
    Ok(Command::new(path).args(arguments).exec())
}

/// Lines that are kept at most: pointers among the arguments make many of one call.
const MAX_LINES: usize = 2000;

/// What is known of a thread.
#[derive(Default)]
struct Thread {
    /// Its kind, once it has a filter.
    role: Option<&'static str>,
}

/// `struct ptrace_syscall_info` at a call's entry (linux/ptrace.h), which not every C library's bindings have.
#[repr(C)]
#[derive(Default)]
struct SyscallInfo {
    op: u8,
    padding: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    number: u64,
    arguments: [u64; 6],
    rest: u64,
}

const PTRACE_GET_SYSCALL_INFO: i64 = 0x420e;
const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;

fn ptrace(request: i64, tid: libc::pid_t, address: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: whoever gives an address for `data` gives one that the request may write to.
    match unsafe { libc::ptrace(request as _, tid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn watch(policy: &Policy, target: libc::pid_t, mut tell: io::PipeWriter) -> io::Result<String> {
    // The program's streams are not this process's to keep open.
    for fd in 0..3 {
        // SAFETY: nothing here uses these descriptors.
        unsafe { libc::close(fd) };
    }
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
    if let Err(error) = ptrace(libc::PTRACE_SEIZE as _, target, 0, options as usize) {
        let _ = write!(tell, "{error}");
        return Err(error);
    }
    // Stopped once, it stops at each call from then on.
    ptrace(libc::PTRACE_INTERRUPT as _, target, 0, 0)?;
    drop(tell);
    let mut threads = BTreeMap::<libc::pid_t, Thread>::new();
    let mut lines = BTreeSet::new();
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes `status`.
        let tid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL) };
        if tid < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                // Nobody is left.
                _ => break,
            }
        }
        if !libc::WIFSTOPPED(status) {
            threads.remove(&tid);
            continue;
        }
        let thread = threads.entry(tid).or_default();
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let mut deliver = 0;
        if signal == libc::SIGTRAP | 0x80 {
            if let Some(call) = entered(tid)? {
                if let Some(role) = thread.role {
                    let line = needed(policy, role, &call);
                    lines.extend(line.filter(|_| lines.len() < MAX_LINES));
                } else if call.number == libc::SYS_seccomp {
                    thread.role = Some(role_of(target, tid));
                }
            }
        } else if event == libc::PTRACE_EVENT_STOP {
            if matches!(
                signal,
                libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
            ) {
                // The whole process is stopped, and stays it.
                let _ = ptrace(libc::PTRACE_LISTEN as _, tid, 0, 0);
                continue;
            }
        } else if event == 0 {
            deliver = signal as usize;
        }
        // It fails for a thread that was killed meanwhile.
        let _ = ptrace(libc::PTRACE_SYSCALL as _, tid, 0, deliver);
    }
    Ok(lines.into_iter().collect())
}

/// The call that a stopped thread is about to make; `None` if it comes back from one.
fn entered(tid: libc::pid_t) -> io::Result<Option<Call>> {
    let mut info = SyscallInfo::default();
    let size = size_of_val(&info);
    match ptrace(PTRACE_GET_SYSCALL_INFO, tid, size, &raw mut info as usize) {
        // Killed meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => other?,
    };
    if info.op != PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    Ok(Some(Call {
        number: info.number as i64,
        arguments: info.arguments,
    }))
}

fn role_of(target: libc::pid_t, tid: libc::pid_t) -> &'static str {
    if tid == target {
        return "main";
    }
    let name = fs::read_to_string(format!("/proc/{target}/task/{tid}/comm")).unwrap_or_default();
    match name.trim_end() {
        "console" => "console",
        name if name.starts_with("vcpu ") => "vcpu",
        _ => "io",
    }
}

/// The rule that a call needs, or the call itself if there is none. A call that several rules allow needs none of them.
fn needed(policy: &Policy, role: &str, call: &Call) -> Option<String> {
    let mut rules = policy.matching(role, call);
    match (rules.next(), rules.next()) {
        (Some(rule), None) => Some(format!("{role} needs {rule}\n")),
        (Some(_), Some(_)) => None,
        (None, _) => {
            let name = syscalls::name(call.number).unwrap_or("?");
            let arguments = call.arguments.map(|argument| format!("{argument:#x}"));
            Some(format!(
                "! {role}: {name}({}) {}\n",
                arguments.join(", "),
                call.number
            ))
        }
    }
}
