//! Every way in which a machine ends, and its exit code. (A lost vCPU needs a complete KVM: it is among the lab tests.)

use tests::vm::VmBuilder;

use crate::guest::guest;

guest!(power_off_by_acpi, "outb 0x600, 0x34\nhang");
guest!(reset_by_acpi, "outb 0x602, 1\nhang");
guest!(reset_by_keyboard, "outb 0x64, 0xfe\nhang");
guest!(panic_by_device, "outb 0x505, 1\nhang");

#[test]
fn power_off_is_0() {
    let ended = VmBuilder::with_code(power_off_by_acpi()).run();
    ended.expect(0, "");
    assert_eq!(ended.stderr, "");
}

#[test]
fn reset_is_64() {
    for code in [reset_by_acpi(), reset_by_keyboard()] {
        let ended = VmBuilder::with_code(code).run();
        ended.expect(64, "");
        assert_eq!(ended.one_line(), "tandem-vmm: the guest reset itself");
    }
}

#[test]
fn panic_is_65() {
    let ended = VmBuilder::with_code(panic_by_device()).run();
    ended.expect(65, "");
    assert_eq!(ended.one_line(), "tandem-vmm: the guest's kernel panicked");
}

// Values that mean nothing must do nothing.
guest!(
    almost,
    r#"
    outb 0x600, 0x14
    outb 0x600, 0x24
    outb 0x602, 0
    outb 0x60, 0xfe
    outb 0x64, 0xff
    outb 0x505, 0
    say "still here\n"
    power_off
    "#
);

#[test]
fn other_values_in_the_same_registers_do_nothing() {
    VmBuilder::with_code(almost())
        .run()
        .expect(0, "still here\n");
}

guest!(
    triple_fault,
    r#"
    push 0
    push 0
    lidt [rsp]
    ud2
    "#
);

#[test]
fn triple_fault_is_66() {
    let ended = VmBuilder::with_code(triple_fault()).run();
    ended.expect(66, "");
    assert_eq!(ended.one_line(), "tandem-vmm: triple fault on vCPU 0");
}

// No KVM emulates SSE arithmetic, and memory-mapped I/O is always emulated.
guest!(
    not_emulated,
    r#"
    mov rax, cr4
    or eax, 0x600
    mov cr4, rax
    mov eax, 0x20000000
    .balign 32
    addps xmm0, [rax]
    hang
    "#
);

#[test]
fn what_kvm_cannot_emulate_is_67_with_place_and_bytes() {
    let ended = VmBuilder::with_code(not_emulated()).run();
    ended.expect(67, "");
    let line = ended.one_line();
    assert!(
        line.starts_with("tandem-vmm: KVM could not go on with vCPU 0: "),
        "{line}"
    );
    assert!(line.contains("at rip 0x100020: 0f 58 00 eb fe"), "{line}");
}

guest!(
    jump_into_nothing,
    r#"
    mov eax, 0x20000000
    jmp rax
    "#
);

#[test]
fn code_where_there_is_no_memory_is_67_with_the_place() {
    let ended = VmBuilder::with_code(jump_into_nothing()).run();
    ended.expect(67, "");
    let line = ended.one_line();
    assert!(
        line.contains("at rip 0x20000000, no readable code there"),
        "{line}"
    );
}
