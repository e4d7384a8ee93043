//! Virtio over MMIO: a driver in good order, hostile ones, and a queue that is reset.
//!
//! The device is the entropy device at 0xd0100000. Drivers keep their queue as those in `pci` do, and do without
//! interrupts.

use serde_json::json;
use tests::vm::VmBuilder;

use crate::guest::guest;

// r12: registers, rdi: the queue. Routines: 20 sets the device up and clears the queue, 22 the queue alone, 21 says
// DRIVER_OK, 60 has 64 bytes filled and prints the length that comes back.
guest!(
    driving_registers,
    r#"
    map_8_gib
    mov r12d, 0xd0100000
    mov eax, [r12]
    show32
    mov eax, [r12 + 4]
    show32
    mov eax, [r12 + 8]
    show32
    mov eax, [r12 + 0xb0]
    show32
    # A kick before anything is set up.
    mov dword ptr [r12 + 0x50], 0
    call 60f
    # What was used shows until it is acknowledged.
    mov eax, [r12 + 0x60]
    show32
    mov dword ptr [r12 + 0x64], 1
    mov eax, [r12 + 0x60]
    show32
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
    mov dword ptr [r12 + 0x50], 0
31:
    mov eax, [r12 + 0x70]
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
    # Writes at random: half of them to the control registers, one in eight of a byte.
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
    and ebx, 0xffc
    mov rdx, r15
    shr rdx, 32
    test r15d, 0x10000
    jz 51f
    and ebx, 0xfc
51:
    test r15d, 0xe0000
    jnz 52f
    mov [r12 + rbx + 3], dl
52:
    mov [r12 + rbx], edx
    dec ebp
    jnz 50b
    call 60f
    # A queue is reset: the device leaves it alone until it is set up again, with another size.
    mov dword ptr [r12 + 0xc0], 1
    mov eax, [r12 + 0xc0]
    show32
    mov eax, [r12 + 0x44]
    show32
    mov word ptr [rdi + 0x1002], 2
    mov dword ptr [r12 + 0x50], 0
    call 22f
    cmp word ptr [rdi + 0x2002], 0
    jne 62f
    mov dword ptr [r12 + 0x38], 4
    mov dword ptr [r12 + 0x44], 1
    call 63f
    # Taken back by QueueReady, and given again.
    mov dword ptr [r12 + 0x44], 0
    mov eax, [r12 + 0x44]
    show32
    call 22f
    mov dword ptr [r12 + 0x44], 1
    call 63f
62:
    power_off
20:
    mov dword ptr [r12 + 0x70], 0
    mov dword ptr [r12 + 0x70], 1
    mov dword ptr [r12 + 0x70], 3
    mov dword ptr [r12 + 0x24], 0
    mov dword ptr [r12 + 0x20], 0x10000000
    mov dword ptr [r12 + 0x24], 1
    mov dword ptr [r12 + 0x20], 0x101
    mov dword ptr [r12 + 0x70], 11
    call 22f
    mov dword ptr [r12 + 0x44], 1
    ret
22:
    mov edi, 0x300000
    mov ecx, 0x600
    xor eax, eax
    rep stosq
    mov edi, 0x300000
    mov dword ptr [r12 + 0x30], 0
    mov dword ptr [r12 + 0x38], 8
    mov dword ptr [r12 + 0x80], 0x300000
    mov dword ptr [r12 + 0x84], 0
    mov dword ptr [r12 + 0x90], 0x301000
    mov dword ptr [r12 + 0x94], 0
    mov dword ptr [r12 + 0xa0], 0x302000
    mov dword ptr [r12 + 0xa4], 0
    ret
21:
    mov dword ptr [r12 + 0x70], 15
    ret
60:
    call 20b
    call 21b
63:
    mov dword ptr [rdi], 0x303000
    mov dword ptr [rdi + 8], 64
    mov dword ptr [rdi + 12], 2
    mov word ptr [rdi + 0x1002], 1
    mov dword ptr [r12 + 0x50], 0
61:
    cmp word ptr [rdi + 0x2002], 1
    jne 61b
    mov eax, [rdi + 0x2008]
    show32
    ret
40:
    hostile_shapes 0xd0100000
    "#
);

#[test]
fn a_hostile_driver_gets_a_reset_and_the_machine_runs_on() {
    let mut builder = VmBuilder::with_code(driving_registers());
    builder.config["machine-config"]["transport"] = json!("mmio");
    builder.config["entropy"] = json!({});
    let filled = "00000040\n";
    let (none, one) = ("00000000\n", "00000001\n");
    let ended = builder.run();
    ended.expect(
        0,
        &format!(
            "74726976\n00000002\n00000004\nffffffff\n{filled}{one}{none}lnhaHmo4rit\n\
             {filled}{filled}{none}{none}{filled}{none}{filled}"
        ),
    );
    let lines = ended.stderr.lines().count();
    assert!(lines <= 40, "{lines} lines\n{}", ended.stderr);
}

guest!(
    no_pci_bus,
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
    mov r13d, 0xd0100000
    mov eax, [r13]
    show32
    mov eax, [r13 + 0x1000]
    show32
    power_off
    "#
);

#[test]
fn with_mmio_there_is_no_pci_bus_and_without_a_device_nothing() {
    for (entropy, first) in [(json!({}), "74726976"), (json!(null), "ffffffff")] {
        let mut builder = VmBuilder::with_code(no_pci_bus());
        builder.config["machine-config"]["transport"] = json!("mmio");
        builder.config["entropy"] = entropy;
        let none = "ffffffff\n";
        builder
            .run()
            .expect(0, &format!("{none}{none}{first}\n{none}"));
    }
}
