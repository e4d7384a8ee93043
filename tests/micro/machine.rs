//! Pause and resume, several vCPUs, memory of the process.

use std::fs::{self, File, OpenOptions};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tests::elf::Elf;
use tests::patience;
use tests::vm::VmBuilder;
use vm_memory::{Bytes, GuestAddress};
use vmm::config::{BootSource, VmConfig};
use vmm::console::Output;
use vmm::exit::ExitReason;
use vmm::machine::{Host, Machine, MachineBuilder};
use vmm::timeline::{Start, Timeline};

use crate::guest::guest;

guest!(
    counting,
    r#"
2:
    inc qword ptr [0xf000]
    jmp 2b
    "#
);

const COUNTER: GuestAddress = GuestAddress(0xf000);

fn build(code: &[u8], dir: &TempDir) -> Machine {
    build_with(code, dir, |_| {})
}

/// A machine of 16 MiB, with what `change` makes of its configuration.
pub fn build_with(code: &[u8], dir: &TempDir, change: impl FnOnce(&mut VmConfig)) -> Machine {
    let kernel = dir.path().join("vmlinux");
    fs::write(&kernel, Elf::new(code).to_bytes()).unwrap();
    let mut config = VmConfig::new(BootSource::new(kernel));
    config.machine_config.mem_size_mib = 16;
    change(&mut config);
    let host = Host {
        kernel_cache: dir.path().join("cache"),
        boot_timer: false,
        mmds: Default::default(),
        confine: vmm::confine::unconfined,
    };
    let null: File = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let output = Output::new(null);
    let timeline = Arc::new(Timeline::new(Start::now(), Default::default()));
    MachineBuilder::new(&config, &host, timeline)
        .build(&output)
        .unwrap()
}

fn counter(machine: &Machine) -> u64 {
    machine.memory().read_obj(COUNTER).unwrap()
}

#[track_caller]
fn wait_for_progress(machine: &Machine, from: u64) {
    let deadline = Instant::now() + patience();
    while counter(machine) == from {
        assert!(Instant::now() < deadline, "the guest does not run");
        thread::yield_now();
    }
}

#[test]
fn a_paused_machine_stands_still_and_a_resumed_one_runs() {
    let dir = TempDir::new().unwrap();
    let mut machine = build(counting(), &dir);
    machine.start().unwrap();
    wait_for_progress(&machine, 0);
    for round in 0..100 {
        machine.pause();
        let paused = counter(&machine);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(counter(&machine), paused, "round {round}");
        machine.resume();
        wait_for_progress(&machine, paused);
    }
    assert_eq!(machine.exit_reason(), None);
    machine.end(ExitReason::PowerOff);
    assert_eq!(machine.exit_reason(), Some(ExitReason::PowerOff));
}

#[test]
fn a_machine_that_is_dropped_while_paused_or_running_or_new_goes_away() {
    for (start, pause) in [(false, false), (true, false), (true, true)] {
        let dir = TempDir::new().unwrap();
        let mut machine = build(counting(), &dir);
        if start {
            machine.start().unwrap();
            wait_for_progress(&machine, 0);
        }
        if pause {
            machine.pause();
        }
        drop(machine);
    }
}

// Starts all other vCPUs by INIT and SIPI. Each marks its APIC id, which CPUID tells, and counts. The number of them is
// the first letter of the command line, from `A` for 1.
guest!(
    start_others,
    r#"
    map_8_gib
    lea rsi, [rip + 20f]
    mov edi, 0x18000
    mov ecx, 128
    rep movsb
    movzx r12d, byte ptr [0x20000]
    sub r12d, 64
    mov r8d, 0xfee00000
    mov dword ptr [r8 + 0x300], 0xc4500
    mov ecx, 100000
2:
    dec ecx
    jnz 2b
    mov dword ptr [r8 + 0x300], 0xc4618
3:
    cmp [0xf000], r12d
    jne 3b
    mov eax, [0xf010]
    show32
    power_off
20:
    .code16
    xor ax, ax
    mov ds, ax
    mov eax, 1
    cpuid
    shr ebx, 24
    lock bts dword ptr [0xf010], ebx
    lock inc dword ptr [0xf000]
21:
    hlt
    jmp 21b
    .fill 128, 1, 0xf4
    "#
);

#[test]
fn all_vcpus_start() {
    for (vcpus, others, ids) in [
        (2, "A", "00000002\n"),
        (3, "B", "00000006\n"),
        (32, "_", "fffffffe\n"),
    ] {
        VmBuilder::with_code(start_others())
            .vcpus(vcpus)
            .boot("boot_args", others)
            .run()
            .expect(0, ids);
    }
}

guest!(
    resting,
    r#"
    say "ready\n"
    receive
    power_off
    "#
);

/// Resident memory outside of the guest's that a VM process may have.
const FOOTPRINT_KIB: u64 = 2560;

#[test]
fn the_process_is_small() {
    for entropy in [json!(null), json!({})] {
        let mut builder = VmBuilder::with_code(resting()).memory(128);
        builder.config["entropy"] = entropy.clone();
        let mut vm = builder.start();
        vm.wait_for("ready\n");
        let kib = vm.footprint_kib();
        println!("memory outside the guest, entropy device {entropy}: {kib} KiB");
        assert!(kib < FOOTPRINT_KIB, "{kib} KiB");
        vm.send(b"x");
        vm.wait().expect(0, "ready\n");
    }
}
