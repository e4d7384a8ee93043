//! How a stock kernel's machine ends, and talking to it meanwhile.

use crate::kernels::{Format, Kernel, boot};

#[test]
fn reboot_is_64() {
    for (kernel, vcpus) in [(Kernel::CLOUD_6_12, 1), (Kernel::CLOUD_6_1, 2)] {
        let ended = boot(kernel, Format::Vmlinux, "reboot").vcpus(vcpus).run();
        assert_eq!(ended.code, 64, "{}\n{}", ended.stderr, ended.text());
        assert_eq!(ended.one_line(), "tandem-vmm: the guest reset itself");
    }
}

#[test]
fn panic_is_65() {
    for (kernel, vcpus) in [
        (Kernel::CLOUD_6_12, 1),
        (Kernel::CLOUD_6_12, 2),
        (Kernel::CLOUD_6_1, 1),
    ] {
        let ended = boot(kernel, Format::Vmlinux, "panic").vcpus(vcpus).run();
        assert_eq!(ended.code, 65, "{}\n{}", ended.stderr, ended.text());
        assert!(
            ended
                .one_line()
                .starts_with("tandem-vmm: the guest's kernel panicked"),
            "{}",
            ended.stderr
        );
    }
}

/// Without an init there is nothing else that a kernel can do.
#[test]
fn a_panic_before_init_is_65() {
    for kernel in [Kernel::CLOUD_6_12, Kernel::CLOUD_6_1] {
        let args = "console=ttyS0 panic=-1 quiet rdinit=/nowhere root=/dev/nothing";
        let ended = boot(kernel, Format::Vmlinux, "none")
            .boot("boot_args", args)
            .run();
        assert_eq!(ended.code, 65, "{}\n{}", ended.stderr, ended.text());
    }
}

#[test]
fn console_input_is_echoed() {
    let mut vm = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "echo").start();
    vm.wait_for("TANDEM-READY echo");
    for line in [
        "hello",
        "a line with spaces",
        "0123456789abcdefghijklmnopqrstuvwxyz 0123456789abcdefghijklmnopqrstuvwxyz",
    ] {
        vm.send(format!("{line}\n").as_bytes());
        vm.wait_for(&format!("GOT:{line}\r\n"));
    }
    // Far more than the serial port's FIFO holds.
    let many: String = (0..100)
        .map(|number| format!("line number {number}\n"))
        .collect();
    vm.send(many.as_bytes());
    for number in 0..100 {
        vm.wait_for(&format!("GOT:line number {number}\r\n"));
    }
    vm.send(b"quit\n");
    let ended = vm.wait();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn a_shell_takes_commands_and_ctrl_c() {
    let mut vm = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "shell").start();
    vm.wait_for("TANDEM-READY shell");
    vm.wait_for("# ");
    // Not what is echoed, but what comes of it.
    vm.send(b"echo $((6*7))=six-times-seven\n");
    vm.wait_for("42=six-times-seven");
    vm.send(b"sleep 1000\n");
    vm.wait_for("sleep 1000\r\n");
    // The shell must have started it; a Ctrl-C before that would only clear the line.
    std::thread::sleep(std::time::Duration::from_secs(2));
    vm.send(b"\x03");
    vm.send(b"echo back-$((1+1))\n");
    vm.wait_for("back-2");
    vm.send(b"exit\n");
    let ended = vm.wait();
    assert_eq!(ended.code, 0, "{}\n{}", ended.stderr, ended.text());
}

#[test]
fn sigterm_presses_the_power_button() {
    for (kernel, early) in [(Kernel::CLOUD_6_12, false), (Kernel::CLOUD_6_1, true)] {
        let vm = boot(kernel, Format::Vmlinux, "powerbutton")
            .option("--stop-timeout", "120")
            .start();
        // Early, no driver is there yet: the button is pressed until one feels it.
        vm.wait_for(if early {
            "["
        } else {
            "TANDEM-READY powerbutton"
        });
        vm.signal(libc::SIGTERM);
        let ended = vm.wait();
        assert_eq!(ended.code, 0, "{}\n{}", ended.stderr, ended.text());
        assert!(ended.text().contains("POWERBUTTON"), "{}", ended.text());
    }
}

#[test]
fn much_output_arrives_whole() {
    let args = "console=ttyS0 panic=-1 quiet tandem.test=poweroff tandem.emit=256";
    let ended = boot(Kernel::CLOUD_6_12, Format::Vmlinux, "poweroff")
        .boot("boot_args", args)
        .run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let text = ended.text();
    let lines = text
        .lines()
        .filter(|line| line.contains(" tandem 0123456789"));
    let expected =
        |number| format!("{number:08} tandem 0123456789abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ");
    let mut count = 0;
    for (number, line) in lines.enumerate() {
        assert_eq!(line, expected(number));
        count += 1;
    }
    assert_eq!(count, 256 * 16);
}
