//! Debug port, clock, boot timer, string I/O, interrupts.

use std::process::Command;

use tests::vm::VmBuilder;

use crate::guest::guest;

guest!(
    debug_line,
    r#"
    mov edx, 0xe9
    in al, dx
    cmp al, 0xe9
    jne 4f
    lea rsi, [rip + 3f]
2:
    lodsb
    test al, al
    jz 4f
    out dx, al
    jmp 2b
3:
    .asciz "a line for the log\nhalf a line"
4:
    power_off
    "#
);

#[test]
fn debug_port_lines_are_in_the_log_at_level_debug() {
    let builder = VmBuilder::with_code(debug_line()).option("--level", "Debug");
    let log = builder.path("log");
    let ended = builder.option("--log-path", &log).run();
    ended.expect(0, "");
    assert_eq!(ended.stderr, "");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(
        log.contains("guest debug port: a line for the log\n"),
        "{log}"
    );

    let ended = VmBuilder::with_code(debug_line())
        .option("--level", "Info")
        .run();
    assert!(
        !ended.stderr.contains("a line for the log"),
        "{}",
        ended.stderr
    );
}

guest!(
    date,
    r#"
    .irp register, 0x32, 0x09, 0x08, 0x07
    outb 0x70, \register
    mov edx, 0x71
    in al, dx
    shl r12d, 8
    movzx eax, al
    or r12d, eax
    .endr
    mov eax, r12d
    show32
    power_off
    "#
);

#[test]
fn the_cmos_clock_shows_the_hosts_date() {
    let today = || {
        let output = Command::new("date")
            .args(["-u", "+%Y%m%d"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let before = today();
    let ended = VmBuilder::with_code(date()).run();
    // Midnight may have passed meanwhile.
    assert!(
        [before, today()].contains(&ended.text()),
        "{}",
        ended.text()
    );
}

guest!(
    init_reached,
    r#"
    map_8_gib
    mov eax, 0xc0000000
    mov byte ptr [rax], 123
    power_off
    "#
);

guest!(
    init_reached_the_old_way,
    r#"
    map_8_gib
    mov eax, 0xd0000000
    mov byte ptr [rax], 123
    power_off
    "#
);

#[test]
fn the_boot_timer_marks_that_init_is_reached() {
    for code in [init_reached(), init_reached_the_old_way()] {
        let builder = VmBuilder::with_code(code);
        let path = builder.path("timeline.json");
        let ended = builder.option("--boot-timeline", path).run();
        ended.expect(0, "");
        let timeline = ended.json("timeline.json");
        let phases: Vec<_> = timeline["marks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mark| &mark["phase"])
            .collect();
        assert_eq!(
            phases,
            [
                "process_start",
                "config_complete",
                "memory_ready",
                "kernel_loaded",
                "machine_ready",
                "first_vcpu_entry",
                "init_reached",
                "shutdown"
            ]
        );
        assert_eq!(timeline["exit_code"], 0);
        for clock in ["wall_us", "cpu_us"] {
            let times: Vec<_> = timeline["marks"]
                .as_array()
                .unwrap()
                .iter()
                .map(|mark| mark[clock].as_u64())
                .collect();
            assert!(
                times.is_sorted() && times.iter().all(Option::is_some),
                "{timeline}"
            );
        }
    }
}

#[test]
fn without_the_option_there_is_no_boot_timer() {
    let ended = VmBuilder::with_code(init_reached())
        .option("--level", "Info")
        .run();
    ended.expect(0, "");
    assert!(
        ended.stderr.contains("first_vcpu_entry"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("init_reached"), "{}", ended.stderr);
}

guest!(
    strings,
    r#"
    lea rsi, [rip + 2f]
    mov ecx, 12
    mov edx, 0x3f8
    rep outsb
    # Each element of a repeated read is a read of its own.
    mov edi, 0x40000
    mov ecx, 1000
    mov edx, 0xe9
    rep insb
    mov edi, 0x40000
    mov ecx, 1000
    mov al, 0xe9
    repe scasb
    jne 4f
    say "all read\n"
    # A read of what is not there is all ones, however wide.
    mov edx, 0x900
    in eax, dx
    show32
    mov edx, 0x900
    in ax, dx
    movzx eax, ax
    show32
4:
    power_off
2:
    .ascii "all written\n"
    "#
);

#[test]
fn string_and_wide_port_io() {
    VmBuilder::with_code(strings())
        .run()
        .expect(0, "all written\nall read\nffffffff\n0000ffff\n");
}

// Takes serial input and the power button by interrupts: PIC, IRQ 4 and 9 as vectors 0x24 and 0x29.
guest!(
    by_interrupt,
    r#"
    lea rax, [rip + 20f]
    mov edi, 0x50240
    call 10f
    lea rax, [rip + 30f]
    mov edi, 0x50290
    call 10f
    lidt [rip + 40f]
    outb 0x20, 0x11
    outb 0xa0, 0x11
    outb 0x21, 0x20
    outb 0xa1, 0x28
    outb 0x21, 4
    outb 0xa1, 2
    outb 0x21, 1
    outb 0xa1, 1
    outb 0x21, 0xeb
    outb 0xa1, 0xfd
    outb 0x3f9, 1
    ready_to_receive
    say "ready\n"
    sti
2:
    hlt
    jmp 2b
10:
    mov [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    ret
20:
    mov edx, 0x3fd
    in al, dx
    test al, 1
    jz 21f
    mov edx, 0x3f8
    in al, dx
    mov r12d, eax
    say "got "
    mov eax, r12d
    emit
    say "\n"
    jmp 20b
21:
    outb 0x20, 0x20
    iretq
30:
    mov edx, 0x604
    in al, dx
    and eax, 1
    show32
    power_off
40:
    .word 0xfff
    .quad 0x50000
    "#
);

#[test]
fn serial_input_and_power_button_interrupt() {
    let mut vm = VmBuilder::with_code(by_interrupt()).start();
    vm.wait_for("ready\n");
    vm.send(b"a");
    vm.wait_for("got a\n");
    vm.send(b"bc");
    vm.wait_for("got c\n");
    vm.signal(libc::SIGTERM);
    vm.wait()
        .expect(0, "ready\ngot a\ngot b\ngot c\n00000001\n");
}
