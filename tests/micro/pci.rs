//! Virtio over PCI: a driver in good order, hostile ones, and pause.
//!
//! The device is the entropy device at 00:01.0. Drivers keep their queue of 8 at 0x300000 (descriptors), 0x301000
//! (available) and 0x302000 (used), and do without interrupts.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tests::patience;
use tests::vm::VmBuilder;
use vm_memory::{Bytes, GuestAddress};
use vmm::config::EntropyConfig;

use crate::guest::guest;
use crate::machine::build_with;

// r12: the BAR, r13: configuration space, rdi: the queue. Routines: 20 sets the device up and clears the queue, 21
// says DRIVER_OK, 60 has 64 bytes filled and prints the length that comes back.
guest!(
    driving,
    r#"
    map_8_gib
    mov r12d, 0xf0008000
    mov r13d, 0xe0008000
    mov edx, 0xcf8
    mov eax, 0x80000800
    out dx, eax
    mov edx, 0xcfc
    in eax, dx
    show32
    mov eax, [r13]
    show32
    mov eax, [r12 + 0x14]
    show32
    mov word ptr [r13 + 4], 6
    # A kick before anything is set up.
    mov word ptr [r12 + 0x3000], 0
    call 60f
    # Every shape in the table must end in NEEDS_RESET.
    lea r14, [rip + 40f]
30:
    call 20f
    mov rax, [r14]
    mov [rdi], rax
    mov rax, [r14 + 8]
    mov [rdi + 8], rax
    mov ax, [r14 + 18]
    mov [rdi + 0x1004], ax
    mov ax, [r14 + 16]
    mov [rdi + 0x1002], ax
    call 21f
    mov word ptr [r12 + 0x3000], 0
31:
    mov al, [r12 + 0x14]
    test al, 64
    jz 31b
    mov al, [r14 + 20]
    emit
    add r14, 24
    cmp byte ptr [r14 + 20], 0
    jne 30b
    mov al, 10
    emit
    call 60f
    # Writes at random, one in 16 to configuration space; the device is put back to its place after those.
    mov r15, 88172645463325252
    mov ebp, 20000
50:
    mov rax, r15
    shl rax, 13
    xor r15, rax
    mov rax, r15
    shr rax, 7
    xor r15, rax
    mov rax, r15
    shl rax, 17
    xor r15, rax
    mov rbx, r15
    and ebx, 0x7ffc
    mov rdx, r15
    shr rdx, 32
    test ebx, 0x3c0
    jnz 51f
    shr ebx, 3
    and ebx, 0xffc
    mov [r13 + rbx], edx
    mov dword ptr [r13 + 0x10], 0xf0008000
    mov word ptr [r13 + 4], 6
    jmp 52f
51:
    # Half of them to the common configuration.
    test edx, 0x10000
    jz 53f
    and ebx, 0x3c
    test edx, 0x20000
    jz 53f
    mov [r12 + rbx + 3], dl
53:
    mov [r12 + rbx], edx
52:
    dec ebp
    jnz 50b
    mov dword ptr [r13 + 0x10], 0xf0008000
    mov word ptr [r13 + 4], 6
    call 60f
    # And at another place.
    mov word ptr [r13 + 4], 0
    mov dword ptr [r13 + 0x10], 0xf8000000
    mov word ptr [r13 + 4], 6
    mov r12d, 0xf8000000
    call 60f
    power_off
20:
    mov edi, 0x300000
    mov ecx, 0x600
    xor eax, eax
    rep stosq
    mov edi, 0x300000
    mov byte ptr [r12 + 0x14], 0
    mov byte ptr [r12 + 0x14], 1
    mov byte ptr [r12 + 0x14], 3
    mov dword ptr [r12 + 8], 0
    mov dword ptr [r12 + 12], 0x10000000
    mov dword ptr [r12 + 8], 1
    mov dword ptr [r12 + 12], 1
    mov byte ptr [r12 + 0x14], 11
    mov word ptr [r12 + 0x16], 0
    mov word ptr [r12 + 0x18], 8
    mov dword ptr [r12 + 0x20], 0x300000
    mov dword ptr [r12 + 0x24], 0
    mov dword ptr [r12 + 0x28], 0x301000
    mov dword ptr [r12 + 0x2c], 0
    mov dword ptr [r12 + 0x30], 0x302000
    mov dword ptr [r12 + 0x34], 0
    mov word ptr [r12 + 0x1c], 1
    ret
21:
    mov byte ptr [r12 + 0x14], 15
    ret
60:
    call 20b
    mov dword ptr [rdi], 0x303000
    mov dword ptr [rdi + 8], 64
    mov dword ptr [rdi + 12], 2
    mov word ptr [rdi + 0x1002], 1
    call 21b
    mov word ptr [r12 + 0x3000], 0
61:
    cmp word ptr [rdi + 0x2002], 1
    jne 61b
    mov eax, [rdi + 0x2008]
    show32
    ret
40:
    hostile_shapes 0xf0008000
    "#
);

#[test]
fn a_hostile_driver_gets_a_reset_and_the_machine_runs_on() {
    let mut builder = VmBuilder::with_code(driving());
    builder.config["entropy"] = json!({});
    let filled = "00000040\n";
    let ended = builder.run();
    ended.expect(
        0,
        &format!("10441af4\n10441af4\nffffffff\n{filled}lnhaHmo4rit\n{filled}{filled}{filled}"),
    );
    let lines = ended.stderr.lines().count();
    assert!(lines <= 40, "{lines} lines\n{}", ended.stderr);
}

guest!(
    no_bus,
    r#"
    map_8_gib
    mov edx, 0xcf8
    mov eax, 0x80000000
    out dx, eax
    mov edx, 0xcfc
    in eax, dx
    show32
    mov r13d, 0xe0000000
    mov eax, [r13]
    show32
    power_off
    "#
);

#[test]
fn without_a_device_there_is_no_bus() {
    VmBuilder::with_code(no_bus())
        .run()
        .expect(0, "ffffffff\nffffffff\n");
}

// Has the device fill buffers for ever.
guest!(
    asking_on_and_on,
    r#"
    say "ready\n"
    map_8_gib
    mov r12d, 0xf0008000
    mov r13d, 0xe0008000
    mov word ptr [r13 + 4], 6
    mov edi, 0x300000
    mov dword ptr [rdi], 0x303000
    mov dword ptr [rdi + 8], 64
    mov dword ptr [rdi + 12], 2
    mov byte ptr [r12 + 0x14], 3
    mov dword ptr [r12 + 8], 1
    mov dword ptr [r12 + 12], 1
    mov byte ptr [r12 + 0x14], 11
    mov word ptr [r12 + 0x18], 8
    mov dword ptr [r12 + 0x20], 0x300000
    mov dword ptr [r12 + 0x28], 0x301000
    mov dword ptr [r12 + 0x30], 0x302000
    mov word ptr [r12 + 0x1c], 1
    mov byte ptr [r12 + 0x14], 15
2:
    # Seven more than are done: the device always has something to do.
    mov ax, [rdi + 0x2002]
    add ax, 7
    mov [rdi + 0x1002], ax
    mov word ptr [r12 + 0x3000], 0
    jmp 2b
    "#
);

#[test]
fn a_limit_is_kept() {
    let dir = TempDir::new().unwrap();
    let ops = json!({"size": 10, "refill_time": 100, "one_time_burst": 5});
    let entropy = json!({"rate_limiter": {"ops": ops}});
    let mut machine = build_with(asking_on_and_on(), &dir, |config| {
        config.entropy = serde_json::from_value(entropy).unwrap();
    });
    let start = Instant::now();
    machine.start().unwrap();
    thread::sleep(Duration::from_secs(1));
    let done: u16 = machine.memory().read_obj(GuestAddress(0x30_2002)).unwrap();
    let most = 15.0 + start.elapsed().as_secs_f64() * 100.0;
    assert!(done > 15 && f64::from(done) <= most + 1.0, "{done}, {most}");
}

#[test]
fn a_pause_stops_device_work_too() {
    let dir = TempDir::new().unwrap();
    let mut machine = build_with(asking_on_and_on(), &dir, |config| {
        config.entropy = Some(EntropyConfig::default());
    });
    machine.start().unwrap();
    let done = |machine: &vmm::machine::Machine| -> u16 {
        machine.memory().read_obj(GuestAddress(0x30_2002)).unwrap()
    };
    let mut before = 0;
    for round in 0..20 {
        let deadline = Instant::now() + patience();
        while done(&machine) == before {
            assert!(Instant::now() < deadline, "the device does nothing");
            thread::yield_now();
        }
        machine.pause();
        before = done(&machine);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(done(&machine), before, "round {round}");
        machine.resume();
    }
}
