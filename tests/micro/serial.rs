//! Serial output whole and exact; input with back-pressure.

use std::fs::{self, File};
use std::io::Write;
use std::thread;

use serde_json::json;
use tests::vm::{Ended, VmBuilder};

use crate::guest::guest;

guest!(
    hello,
    r#"
    say "Hello, world!\r\n\tall of it: \x7f\377 end"
    power_off
    "#
);

#[test]
fn output_is_exact() {
    let ended = VmBuilder::with_code(hello()).run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stdout, b"Hello, world!\r\n\tall of it: \x7f\xff end");
    assert_eq!(ended.stderr, "");
}

// Echoes 65536 bytes.
guest!(
    echo,
    r#"
    mov ecx, 65536
2:
    receive
    out dx, al
    dec ecx
    jnz 2b
    power_off
    "#
);

const ECHO_LEN: u32 = 65536;

/// Bytes of all values, without a short period.
fn pattern(len: u32) -> Vec<u8> {
    (0..len)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[track_caller]
fn check_pattern(ended: &Ended, seen: &[u8], len: u32) {
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(seen.len(), len as usize, "{}", ended.stderr);
    let expected = pattern(len);
    let wrong = seen
        .iter()
        .zip(&expected)
        .position(|(seen, expected)| seen != expected);
    assert_eq!(wrong, None, "first wrong byte");
}

#[test]
fn input_from_a_pipe_arrives_whole() {
    let mut vm = VmBuilder::with_code(echo()).start();
    let mut stdin = vm.take_stdin().unwrap();
    let sender = thread::spawn(move || stdin.write_all(&pattern(ECHO_LEN)).unwrap());
    let ended = vm.wait();
    sender.join().unwrap();
    check_pattern(&ended, &ended.stdout, ECHO_LEN);
}

#[test]
fn input_from_a_file_arrives_whole() {
    let builder = VmBuilder::with_code(echo());
    let path = builder.path("input");
    fs::write(&path, pattern(ECHO_LEN)).unwrap();
    let ended = builder.stdin(File::open(path).unwrap()).run();
    check_pattern(&ended, &ended.stdout, ECHO_LEN);
}

// Reads and drops whatever is there, as a driver does that probes the port, and only then is ready to receive.
guest!(
    prober,
    r#"
    mov ecx, 2000
2:
    mov edx, 0x3f8
    in al, dx
    dec ecx
    jnz 2b
    mov ecx, 5
3:
    receive
    out dx, al
    dec ecx
    jnz 3b
    power_off
    "#
);

#[test]
fn a_driver_that_probes_the_port_eats_no_input() {
    let builder = VmBuilder::with_code(prober());
    let path = builder.path("input");
    fs::write(&path, "hello").unwrap();
    let ended = builder.stdin(File::open(path).unwrap()).run();
    ended.expect(0, "hello");
}

// Input that nobody takes must stay with the sender: the guest reads only when it is told to by the event register.
guest!(
    late_reader,
    r#"
    say "ready\n"
2:
    mov edx, 0x604
    in al, dx
    test al, 1
    jz 2b
    mov ecx, 65536
3:
    receive
    out dx, al
    dec ecx
    jnz 3b
    power_off
    "#
);

#[test]
fn input_waits_for_a_guest_that_does_not_read() {
    let mut vm = VmBuilder::with_code(late_reader())
        .option("--stop-timeout", "600")
        .start();
    let mut stdin = vm.take_stdin().unwrap();
    let sender = thread::spawn(move || stdin.write_all(&pattern(ECHO_LEN)).unwrap());
    vm.wait_for("ready\n");
    thread::sleep(std::time::Duration::from_millis(300));
    vm.signal(libc::SIGTERM);
    let ended = vm.wait();
    sender.join().unwrap();
    check_pattern(&ended, &ended.stdout["ready\n".len()..], ECHO_LEN);
}

// Looks for input for a while; there must be none.
guest!(
    no_input,
    r#"
    mov ecx, 2000
2:
    mov edx, 0x3fd
    in al, dx
    test al, 1
    jnz 3f
    dec ecx
    jnz 2b
    say "nothing came\n"
    power_off
3:
    say "something came\n"
    power_off
    "#
);

#[test]
fn no_input_is_no_input() {
    let null = File::open("/dev/null").unwrap();
    VmBuilder::with_code(no_input())
        .stdin(null)
        .run()
        .expect(0, "nothing came\n");
    VmBuilder::with_code(no_input())
        .without_stdin()
        .run()
        .expect(0, "nothing came\n");
    let mut vm = VmBuilder::with_code(no_input()).start();
    drop(vm.take_stdin());
    vm.wait().expect(0, "nothing came\n");
}

#[test]
fn a_vm_without_input_uses_no_cpu_time_for_it() {
    let null = File::open("/dev/null").unwrap();
    for builder in [
        VmBuilder::with_code(idle()).stdin(null),
        VmBuilder::with_code(idle()),
    ] {
        let mut vm = builder.start();
        // The end of a pipe, for the second.
        drop(vm.take_stdin());
        vm.wait_for("idle\n");
        let before = cpu_ticks(vm.pid());
        thread::sleep(std::time::Duration::from_secs(1));
        let used = cpu_ticks(vm.pid()) - before;
        assert!(used < 20, "{used} of 100 ticks");
    }
}

guest!(
    idle,
    r#"
    say "idle\n"
    cli
2:
    hlt
    jmp 2b
    "#
);

/// User and system time of a process so far, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    // Fields 14 and 15 of proc_pid_stat(5); the first one here is the third.
    let field = |number: usize| {
        fields
            .split_whitespace()
            .nth(number - 3)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    field(14) + field(15)
}

// Prints the pattern at once. Its length is 2 to the power of the command line's first letter, from `A` for 1.
guest!(
    print_much,
    r#"
    mov cl, [0x20000]
    sub cl, 64
    mov r12d, 1
    shl r12d, cl
    mov edi, 0x400000
    xor ecx, ecx
2:
    imul eax, ecx, 0x9e3779b1
    shr eax, 24
    stosb
    inc ecx
    cmp ecx, r12d
    jne 2b
    mov esi, 0x400000
    mov ecx, r12d
    mov edx, 0x3f8
    rep outsb
    power_off
    "#
);

/// A guest that prints much, and how many bytes: a MiB, or an eighth of it where each byte takes 0.1 ms.
fn much() -> (VmBuilder, u32) {
    let (letter, length) = if tests::in_emulated_lab() {
        ("Q", 1 << 17)
    } else {
        ("T", 1 << 20)
    };
    (
        VmBuilder::with_code(print_much()).boot("boot_args", letter),
        length,
    )
}

#[test]
fn much_output_arrives_whole_through_a_pipe() {
    let (builder, length) = much();
    let ended = builder.run();
    check_pattern(&ended, &ended.stdout, length);
}

#[test]
fn much_output_arrives_whole_in_a_file() {
    let (mut builder, length) = much();
    let path = builder.path("console");
    builder.config["serial"] = json!({ "serial_out_path": path });
    let ended = builder.run();
    assert_eq!(ended.text(), "");
    check_pattern(&ended, &fs::read(path).unwrap(), length);
}
