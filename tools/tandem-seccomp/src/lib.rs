//! Seccomp policies: what each kind of thread of the VM process may ask of the kernel.
//!
//! | module       | what lives there                                                              |
//! |--------------|-------------------------------------------------------------------------------|
//! | [`policy`]   | the policy's document: read, checked, matched against calls                    |
//! | [`compiled`] | from policy to BPF, and the file that `tandem-vmm --seccomp-filter` takes       |
//! | [`syscalls`] | names and numbers of system calls                                              |
//! | [`trace`]    | a program run under ptrace(2): which rules do its calls need                    |
//!
//! `tandem-vmm` has this crate as a build dependency only: what it links is BPF. The policy itself is
//! `resources/seccomp/policy.json`, and says in its own words what it is.

pub mod compiled;
pub mod policy;
pub mod syscalls;
pub mod trace;

/// Kinds of threads, in the order of the compiled file.
pub const ROLES: [&str; 4] = ["main", "vcpu", "io", "console"];

/// Rules of this name are part of every kind's.
pub const EVERY: &str = "every";
