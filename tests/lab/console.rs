//! The virtio console in place of the serial port: `console=hvc0`.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::guest_shell::GuestShell;
use tests::patience;
use tests::pty::{Pty, Session};
use tests::vm::VmBuilder;

use crate::kernels::{Format, Kernel, boot, commands};

/// With a virtio console, and what the kernel is told about it.
fn with_console(mut builder: VmBuilder, args: &str) -> VmBuilder {
    builder.config["console"] = json!({});
    builder.config["metrics"] = json!({"metrics_path": builder.path("metrics")});
    builder.boot("boot_args", format!("panic=-1 {args}"))
}

fn numbered(number: usize) -> String {
    format!("{number:08} tandem 0123456789abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ")
}

/// Checks that all numbered lines are there.
#[track_caller]
fn check_numbered(text: &str, lines: usize) {
    let found = text
        .lines()
        .filter(|line| line.contains(" tandem 0123456789"));
    let mut count = 0;
    for (number, line) in found.enumerate() {
        assert_eq!(line, numbered(number));
        count += 1;
    }
    assert_eq!(count, lines);
}

#[test]
fn input_and_much_output_arrive_whole() {
    // Not the 6.1 one: it has PCI's transport as a module, and no console before its initrd loads that.
    for (kernel, format) in [
        (Kernel::CLOUD_6_12, Format::Vmlinux),
        (Kernel::GENERIC_6_12, Format::BzImage),
    ] {
        let args = "console=hvc0 quiet tandem.test=echo tandem.emit=512";
        let mut vm = with_console(boot(kernel, format, "echo"), args).start();
        vm.wait_for("TANDEM-READY echo");
        vm.send(b"a line with spaces\n");
        vm.wait_for("GOT:a line with spaces\r\n");
        // More than the terminal's own buffer holds at once.
        for round in 0..4 {
            let many: String = (0..60)
                .map(|n| format!("line {round}.{n} of many\n"))
                .collect();
            vm.send(many.as_bytes());
            for n in 0..60 {
                vm.wait_for(&format!("GOT:line {round}.{n} of many\r\n"));
            }
        }
        let counts = vm.metrics()["console"].clone();
        vm.send(b"quit\n");
        let ended = vm.wait();
        assert_eq!(ended.code, 0, "{}: {}", kernel.name, ended.stderr);
        check_numbered(&ended.text(), 512 * 16);
        assert!(
            counts["sent_bytes"].as_u64().unwrap() > 512 << 10,
            "{counts}"
        );
        assert!(
            counts["received_bytes"].as_u64().unwrap() > 4000,
            "{counts}"
        );
        assert_eq!(counts["lost_bytes"], 0);
    }
}

#[test]
fn commands_run_over_it() {
    let args = "console=hvc0 quiet tandem.test=commands";
    let mut shell = GuestShell::boot(with_console(commands(Kernel::CLOUD_6_12), args));
    assert_eq!(shell.ok("cat /sys/class/tty/console/active"), "hvc0");
    let many = shell.ok("seq 1 20000");
    assert!(many.lines().eq((1..=20000).map(|n| n.to_string())));
    // Written by someone else than the console.
    shell.ok("echo hello over the serial port >/dev/ttyS0");
    shell.vm().wait_for("hello over the serial port");
    shell.power_off();
}

/// What the kernel says before it has a driver for the console goes through the serial port, to the same place.
#[test]
fn early_messages_are_shown_as_well() {
    let args = "console=ttyS0 console=hvc0 earlyprintk=ttyS0 tandem.test=poweroff";
    let builder = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "poweroff");
    let ended = with_console(builder, args).run();
    let text = ended.text();
    assert_eq!(ended.code, 0, "{}\n{text}", ended.stderr);
    for part in [
        "Linux version 6.12",
        "printk: legacy console [hvc0] enabled",
        "TANDEM-GUEST",
    ] {
        assert!(text.contains(part), "no {part}\n{text}");
    }

    // Each to its own file: both are whole.
    let args = "console=ttyS0 console=hvc0 tandem.test=poweroff tandem.emit=64";
    let builder = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "poweroff");
    let mut builder = with_console(builder, args);
    builder.config["serial"] = json!({"serial_out_path": builder.path("serial")});
    let ended = builder.run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let serial = fs::read_to_string(ended.path("serial")).unwrap();
    assert!(serial.contains("Linux version 6.12"), "{serial}");
    check_numbered(&ended.text(), 64 * 16);
    assert!(!serial.contains("TANDEM-GUEST"), "{serial}");

    let args = "console=ttyS0 console=hvc0 quiet tandem.test=poweroff tandem.emit=64";
    let builder = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "poweroff");
    let mut builder = with_console(builder, args);
    builder.config["console"] = json!({"output_path": builder.path("console")});
    let ended = builder.run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let console = fs::read_to_string(ended.path("console")).unwrap();
    check_numbered(&console, 64 * 16);
    assert!(!ended.text().contains(" tandem 0123"), "{}", ended.text());
}

#[test]
fn a_reader_that_does_not_read_holds_up_the_console_and_loses_nothing() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let args = "console=hvc0 quiet tandem.test=poweroff tandem.emit=1024";
    let builder = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "poweroff");
    let vm = with_console(builder, args)
        .stdout(OwnedFd::from(writer))
        .start();
    // Before there is output, a signal could still end the process.
    let mut bytes = vec![0];
    reader.read_exact(&mut bytes).unwrap();
    // The pipe and the process's own buffer are full when the count stands still.
    let sent = || vm.metrics()["console"]["sent_bytes"].as_u64().unwrap();
    let deadline = Instant::now() + patience();
    let mut before = 0;
    loop {
        // Only a guest that runs on sends more; there is no sign of one that cannot.
        std::thread::sleep(Duration::from_secs(1));
        let now = sent();
        if now == before && now > 64 << 10 {
            break;
        }
        before = now;
        assert!(Instant::now() < deadline, "{now} bytes were sent");
    }
    // No more than pipe, buffer, and what the writing thread holds.
    assert!(before < 512 << 10, "{before}");
    reader.read_to_end(&mut bytes).unwrap();
    let ended = vm.wait();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    check_numbered(&String::from_utf8_lossy(&bytes), 1024 * 16);
}

fn set_size(pty: &Pty, columns: u16, rows: u16) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel only reads `size`.
    let result = unsafe { libc::ioctl(pty.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    assert_eq!(result, 0);
}

#[test]
fn the_guest_knows_the_terminals_size() {
    let pty = Pty::open();
    set_size(&pty, 101, 37);
    let args = "console=hvc0 quiet tandem.test=shell";
    let builder = with_console(boot(Kernel::CLOUD_6_12, Format::Vmlinux, "shell"), args);
    let mut session = Session::start(&pty, &builder.command());
    session.wait_for("TANDEM-READY shell");
    session.wait_for("# ");
    assert!(pty.is_raw());
    session.press(b"echo size $(stty size) end\r");
    session.wait_for("size 37 101 end");
    set_size(&pty, 99, 21);
    // The interrupt is on its way: the shell asks until it is there.
    session.press(b"while ! stty size | grep -q 21.99; do :; done; echo now $((3*7))\r");
    session.wait_for("now 21");
    session.press(b"exit\r");
    assert_eq!(session.exit_code(), 0);
}
