//! Whole-system tests: the real `tandem-vmm` binary, driven as a user drives it.
//!
//! Two suites. `micro/` runs guests of a few instructions on any `/dev/kvm`; `lab/` boots stock kernels and runs where
//! `/dev/kvm` is complete (`tools/lab`). No test is skipped: what cannot run fails and names the remedy. This library is
//! what both are written with:
//!
//! | module          | what lives there                                                           |
//! |-----------------|----------------------------------------------------------------------------|
//! | [`program`]     | which programs are tested                                                  |
//! | [`vm`]          | a VM to be: configuration, options, streams; and the process once it runs  |
//! | [`api`]         | a client of a control socket                                               |
//! | [`capture`]     | what a process prints, collected while it runs                             |
//! | [`elf`]         | vmlinux files around guest code of a few bytes                             |
//! | [`guest_shell`] | shell commands in a guest, over its serial console                         |
//! | [`kernel_log`]  | words by which a kernel says that something is wrong                       |
//! | [`pty`]         | a terminal of the test's own                                               |
//! | [`footprint`]   | memory of a VM process outside its guest                                   |
//! | [`artifacts`]   | kernels and initramfs images                                               |

// All of this is test code: a test that finds the world broken ends with a panic that says so.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

pub mod api;
pub mod artifacts;
pub mod capture;
pub mod elf;
pub mod footprint;
pub mod guest_shell;
pub mod kernel_log;
pub mod program;
pub mod pty;
pub mod vm;

use std::time::Duration;

/// How long anything may take that must come. Only a failing test ever waits this long.
pub fn patience() -> Duration {
    if in_emulated_lab() {
        Duration::from_secs(180)
    } else {
        // A software KVM emulates some guests instruction by instruction, and tests run side by side.
        Duration::from_secs(120)
    }
}

/// Whether this runs in the emulated lab, where everything is 10 to 50 times slower.
pub fn in_emulated_lab() -> bool {
    std::env::var_os("TANDEM_IN_LAB").is_some()
}
