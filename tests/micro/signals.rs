//! The power button, and stopping at once.

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use tests::patience;
use tests::vm::{Vm, VmBuilder};

use crate::guest::guest;

guest!(
    deaf,
    r#"
    say "ready\n"
    hang
    "#
);

guest!(
    listening,
    r#"
    say "ready\n"
2:
    mov edx, 0x604
    in al, dx
    test al, 1
    jz 2b
    say "pressed\n"
    power_off
    "#
);

fn ready(builder: VmBuilder) -> Vm {
    let vm = builder.option("--level", "Info").start();
    vm.wait_for("ready\n");
    vm
}

/// Waits for `text` on standard error.
#[track_caller]
fn wait_for_error(vm: &Vm, text: &str) {
    let deadline = Instant::now() + patience();
    while !vm.errors().contains(text) {
        assert!(Instant::now() < deadline, "no {text:?}: {}", vm.errors());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signals_press_the_power_button() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let vm = ready(VmBuilder::with_code(listening()));
        vm.signal(signal);
        vm.wait().expect(0, "ready\npressed\n");
    }
}

#[test]
fn a_guest_that_ignores_the_button_is_stopped_after_the_grace_time() {
    let vm = ready(VmBuilder::with_code(deaf()).option("--stop-timeout", "0.5"));
    let start = Instant::now();
    vm.signal(libc::SIGTERM);
    let ended = vm.wait();
    ended.expect(143, "ready\n");
    assert!(
        start.elapsed() >= Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    let reason = "tandem-vmm: stopped by signal 15 before the guest had switched itself off\n";
    assert!(ended.stderr.ends_with(reason), "{}", ended.stderr);
}

#[test]
fn a_second_signal_stops_at_once() {
    for (first, second, code) in [
        (libc::SIGINT, libc::SIGINT, 130),
        (libc::SIGTERM, libc::SIGINT, 130),
        (libc::SIGINT, libc::SIGTERM, 143),
    ] {
        let vm = ready(VmBuilder::with_code(deaf()).option("--stop-timeout", "600"));
        vm.signal(first);
        // Two signals that are pending at the same time may be one.
        wait_for_error(&vm, "pressing the power button");
        vm.signal(second);
        vm.wait().expect(code, "ready\n");
    }
}

#[test]
fn a_halted_guest_can_be_stopped() {
    let vm = ready(VmBuilder::with_code(halted()).option("--stop-timeout", "0"));
    vm.signal(libc::SIGTERM);
    vm.wait_at_most(Duration::from_secs(10))
        .expect(143, "ready\n");
}

#[test]
fn signals_that_were_ignored_stay_so() {
    let vm = VmBuilder::with_code(deaf())
        .option("--stop-timeout", "0.5")
        .before_exec(|| {
            // SAFETY: signal(2) with SIG_IGN takes no pointer.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        });
    let vm = ready(vm);
    vm.signal(libc::SIGHUP);
    thread::sleep(Duration::from_millis(200));
    vm.signal(libc::SIGTERM);
    vm.wait().expect(143, "ready\n");
}

#[test]
fn a_mask_from_the_parent_does_not_matter() {
    let vm = VmBuilder::with_code(halted())
        .option("--stop-timeout", "0.5")
        .before_exec(|| {
            // SAFETY: both calls write to the set on this stack, and the third only reads it.
            unsafe {
                let mut all = std::mem::zeroed();
                libc::sigfillset(&mut all);
                libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
            }
        });
    let vm = ready(vm);
    vm.signal(libc::SIGTERM);
    vm.wait().expect(143, "ready\n");
}

guest!(
    halted,
    r#"
    say "ready\n"
    cli
    hlt
    "#
);

guest!(
    chatter,
    r#"
    ready_to_receive
2:
    say "and on and on and on and on and on and on and on and on and on\n"
    jmp 2b
    "#
);

#[test]
fn a_stuck_reader_does_not_hold_up_the_end() {
    let (reader, writer) = io::pipe().unwrap();
    // Small, so that it is full soon.
    // SAFETY: F_SETPIPE_SZ takes no pointer.
    let size = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096);
    let mut vm = VmBuilder::with_code(chatter())
        .option("--stop-timeout", "0.5")
        .stdout(writer)
        .start();
    // Pipe and buffer are full when the VM has stopped using CPU time; half a second is enough for that here, and
    // where it is not the test is an easier one.
    thread::sleep(Duration::from_secs(2));
    // Input needs the serial port that the guest is writing to.
    vm.send(b"typed into the silence");
    vm.signal(libc::SIGTERM);
    let start = Instant::now();
    let ended = vm.wait();
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    // The grace time, two seconds of patience with the reader, and what a slow host needs.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(ended.stderr.contains("output was lost"), "{}", ended.stderr);
    drop(reader);
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_guest() {
    let (reader, writer) = io::pipe().unwrap();
    let vm = VmBuilder::with_code(listening_quietly())
        .stdout(writer)
        .option("--level", "Warning")
        .start();
    drop(reader);
    wait_for_error(&vm, "cannot write the guest's console output");
    vm.signal(libc::SIGTERM);
    let ended = vm.wait();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

guest!(
    listening_quietly,
    r#"
2:
    mov al, 46
    emit
    mov edx, 0x604
    in al, dx
    test al, 1
    jz 2b
    power_off
    "#
);
