//! The shipped policy's filters in the kernel: what is listed passes, what is not is trapped, rule by rule.
//!
//! A child process takes the filter under test, on top of one that answers every call with ENOSYS, so that nothing that
//! passes does anything: where two filters disagree, the kernel takes the stricter answer, and a trap is stricter.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};
use tandem_seccomp::policy::{Call, Policy, Rule};
use tandem_seccomp::{ROLES, compiled};

/// Numbers that are tried; the highest of Linux 6.18 is 469.
const NUMBERS: std::ops::RangeInclusive<i64> = 0..=512;
/// Calls that the child makes to tell what it has seen. They are in every kind's filter.
const CHILDS_OWN: [i64; 3] = [
    libc::SYS_rt_sigreturn,
    libc::SYS_exit_group,
    libc::SYS_write,
];

fn policy() -> Policy {
    Policy::parse(include_str!("../../../resources/seccomp/policy.json")).unwrap()
}

/// A call that the rule lets through.
fn example(rule: &Rule) -> Call {
    let mut arguments = [0; 6];
    for condition in &rule.conditions {
        arguments[usize::from(condition.argument)] |= u64::from(condition.value);
    }
    Call {
        number: rule.number,
        arguments,
    }
}

/// Calls that are like the rule's, but for a bit that it asks for.
fn near_misses(rule: &Rule) -> Vec<Call> {
    let mut calls = Vec::new();
    for condition in &rule.conditions {
        for bit in (0..32).filter(|bit| condition.mask >> bit & 1 == 1) {
            let mut call = example(rule);
            call.arguments[usize::from(condition.argument)] ^= 1 << bit;
            calls.push(call);
        }
    }
    calls
}

static TRAPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_sigsys(_: libc::c_int) {
    TRAPPED.store(true, Ordering::Relaxed);
}

unsafe fn install(program: &[sock_filter]) -> bool {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr() as *mut libc::sock_filter,
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies the program, whose instructions have the kernel's layout.
    unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) == 0 }
}

/// Which of `calls` are trapped where `filter` is in place.
fn trapped(filter: &[sock_filter], calls: &[Call]) -> Vec<bool> {
    let free = [CHILDS_OWN.as_slice(), &[libc::SYS_seccomp]].concat();
    let answers: BpfProgram = SeccompFilter::new(
        free.into_iter()
            .map(|number| (number, Vec::new()))
            .collect(),
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .unwrap()
    .try_into()
    .unwrap();
    let mut results = vec![b'?'; calls.len()];
    let (mut reader, writer) = io::pipe().unwrap();
    let out = writer.as_raw_fd();
    // SAFETY: the child allocates nothing and takes no lock, and ends by _exit; its calls have no effect, as the lower filter
    // answers them. A call of the child's own is not among them.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigsys as *const () as usize;
            libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut());
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if !install(&answers) || !install(filter) {
                libc::_exit(1);
            }
            for (call, result) in calls.iter().zip(&mut results) {
                TRAPPED.store(false, Ordering::Relaxed);
                let [a, b, c, d, e, f] = call.arguments;
                libc::syscall(call.number, a, b, c, d, e, f);
                *result = b'.' + u8::from(TRAPPED.load(Ordering::Relaxed));
            }
            let mut rest = results.as_slice();
            while !rest.is_empty() {
                let written = libc::write(out, rest.as_ptr().cast(), rest.len());
                rest = rest.get(written.max(0) as usize..).unwrap_or_default();
            }
            libc::_exit(0);
        }
        child
    };
    assert!(child > 0);
    drop(writer);
    let mut seen = Vec::new();
    reader.read_to_end(&mut seen).unwrap();
    let mut status = 0;
    // SAFETY: waitpid writes `status`.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!((status, seen.len()), (0, calls.len()), "the child told all");
    seen.into_iter().map(|result| result == b'/').collect()
}

/// uretprobe and uprobe: the kernel asks no filter, and a call from outside its own trampoline is SIGILL
/// (kernel/seccomp.c, arch/x86/kernel/uprobes.c).
const PROBES: [i64; 2] = [335, 336];

fn testable(call: &Call) -> bool {
    !CHILDS_OWN.contains(&call.number) && !PROBES.contains(&(call.number & !0x4000_0000))
}

#[test]
fn what_is_listed_passes_and_nothing_else() {
    let policy = policy();
    for role in ROLES {
        let mut calls = Vec::new();
        for number in NUMBERS {
            for argument in [0, u64::MAX, 1 << 32] {
                calls.push(Call {
                    number,
                    arguments: [argument; 6],
                });
            }
            // The x32 table.
            calls.push(Call {
                number: number | 0x4000_0000,
                arguments: [0; 6],
            });
        }
        for rule in policy.rules() {
            calls.push(example(rule));
            calls.extend(near_misses(rule));
        }
        calls.retain(testable);
        let filter = compiled::filter(&policy, role).unwrap();
        let results = trapped(&filter, &calls);
        let passed = results.iter().filter(|trapped| !**trapped).count();
        assert!(
            (50..calls.len() / 2).contains(&passed),
            "{role}: {passed} passed"
        );
        for (call, trapped) in calls.iter().zip(results) {
            let listed = policy.matching(role, call).next().is_some();
            assert_eq!(trapped, !listed, "{role}: {call:x?}");
        }
        for number in CHILDS_OWN {
            let call = Call {
                number,
                arguments: [7; 6],
            };
            assert!(
                policy.matching(role, &call).next().is_some(),
                "{role}: {number}"
            );
        }
    }
}

#[test]
fn without_its_rule_a_call_is_trapped() {
    let policy = policy();
    for role in ROLES {
        for rule in policy
            .rules_of(role)
            .filter(|rule| testable(&example(rule)))
        {
            let call = example(rule);
            let filter = compiled::filter(&policy.without(&rule.text).unwrap(), role).unwrap();
            let [trapped] = trapped(&filter, &[call])[..] else {
                panic!("one call, one result");
            };
            // Kinds that include others may have a rule twice.
            let twice = policy.matching(role, &call).count() > 1;
            assert_eq!(trapped, !twice, "{role} without {rule}");
        }
    }
}

#[test]
fn rules_are_of_use() {
    let policy = policy();
    for rule in policy.rules() {
        let list = rule.list.as_str();
        let of_list = policy.rules().iter().filter(|other| other.list == list);
        let same = of_list.filter(|other| other.allows(&example(rule))).count();
        assert_eq!(same, 1, "{rule}: said once");
    }
    // Nothing may be made executable, nor programs run, files made, or processes.
    let never = [
        (libc::SYS_execve, [0; 6]),
        (libc::SYS_ptrace, [0; 6]),
        (libc::SYS_bpf, [0; 6]),
        (libc::SYS_mmap, [0, 4096, 7, 0x22, 0, 0]),
        (libc::SYS_mprotect, [0, 4096, 5, 0, 0, 0]),
        (libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        (libc::SYS_open, [0, libc::O_CREAT as u64, 0, 0, 0, 0]),
        (libc::SYS_socket, [libc::AF_INET as u64, 1, 0, 0, 0, 0]),
    ];
    for role in ROLES {
        for (number, arguments) in never {
            let call = Call { number, arguments };
            assert!(
                policy.matching(role, &call).next().is_none(),
                "{role}: {call:x?}"
            );
        }
    }
}
