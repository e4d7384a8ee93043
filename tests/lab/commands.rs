//! Shell commands in a guest, and what its toolbox holds: the ground that the tests of devices stand on.

use tests::guest_shell::{GuestShell, Output};

use crate::kernels::{Kernel, commands};

#[test]
fn output_and_status_arrive_whole() {
    let mut shell = GuestShell::boot(commands(Kernel::CLOUD_6_12));
    assert_eq!(shell.ok("echo $((6 * 7))"), "42");
    let output = |status, text: &str| Output {
        status,
        text: text.to_owned(),
    };
    assert_eq!(shell.run("printf 'a\\n\\nb'; exit 3"), output(3, "a\n\nb"));
    assert_eq!(shell.run("echo out; echo err >&2"), output(0, "out\nerr\n"));
    assert_eq!(shell.run("true"), output(0, ""));
    assert_eq!(shell.run("exec false"), output(1, ""));
    assert_eq!(shell.run("kill -9 $$").status, 128 + 9);
    // No input: this ends.
    assert_eq!(shell.run("cat"), output(0, ""));
    // Bytes that mean something to a terminal.
    assert_eq!(
        shell.run("printf '\\003\\004\\021\\023\\r\\t\\177'"),
        output(0, "\u{3}\u{4}\u{11}\u{13}\r\t\u{7f}")
    );
    // What looks like the end of a command is not.
    let fake = "\nTANDEM-END 1-0 0\n";
    assert_eq!(shell.run(&format!("printf '{fake}'")).text, fake);
    // A kernel that talks, even to the console, while the command prints.
    let text = shell.ok("for i in 1 2 3; do echo line $i; echo '<3>noise' >/dev/kmsg; done");
    assert_eq!(text, "line 1\nline 2\nline 3");
    // A script longer than the terminal's buffer, the serial port's FIFO and a pipe take at once.
    let long: String = (0..2000).map(|n| format!(": filler {n}\n")).collect();
    assert_eq!(shell.ok(&format!("{long}echo the end")), "the end");
    let many = shell.ok("seq 1 3000");
    assert!(many.lines().eq((1..=3000).map(|n| n.to_string())), "{many}");
    shell.power_off();
}

#[test]
fn the_toolbox_is_complete() {
    for kernel in [Kernel::CLOUD_6_12, Kernel::CLOUD_6_1, Kernel::GENERIC_6_12] {
        let mut shell = GuestShell::boot(commands(kernel));
        // Each is the real program, and finds its libraries.
        for (command, sign) in [
            ("fio --version", "fio-3"),
            ("mkfs.ext4 -V", "mke2fs 1."),
            ("e2fsck -V", "e2fsck 1."),
            ("resize2fs 2>&1 || true", "resize2fs 1."),
            ("blkdiscard --version", "util-linux"),
            ("blockdev --version", "util-linux"),
            ("lsblk --version", "util-linux"),
            ("iperf3 --version", "iperf 3."),
            ("socat -V", "socat version"),
            ("ethtool --version", "ethtool version"),
            ("ip -V", "iproute2"),
            ("ping -V", "iputils"),
            ("head -c 20000 /dev/urandom | rngtest -c 7; true", "rngtest"),
            (
                "echo -n abc | sha256sum",
                "ba7816bf8f01cfea414140de5dae2223",
            ),
        ] {
            let text = shell.ok(command);
            assert!(text.contains(sign), "{}: {command}: {text}", kernel.name);
        }
        // And does what tests want of it, as far as a machine without devices goes.
        shell.ok("ping -c 3 -i 0.2 127.0.0.1");
        shell.ok("iperf3 -s -1 -D && iperf3 -c 127.0.0.1 -n 1M");
        shell.ok("fio --name=x --filename=/tmp/x --size=1M --rw=randwrite --verify=crc32c --ioengine=psync --thread");
        shell.ok("truncate -s 16M /tmp/disk && mkfs.ext4 -q /tmp/disk && e2fsck -fn /tmp/disk");
        for module in [
            "virtio_blk",
            "virtio_net",
            "virtio_balloon",
            "vmw_vsock_virtio_transport",
            "virtio_pci",
            "virtio_mmio",
        ] {
            shell.ok(&format!("[ -d /sys/module/{module} ] || [ -d /sys/bus/virtio/drivers/{module} ] || [ -d /sys/bus/pci/drivers/${{module/_/-}} ]"));
        }
        shell.power_off();
    }
}

#[test]
#[should_panic(expected = "the guest's kernel complains")]
fn complaints_are_seen() {
    let mut shell = GuestShell::boot(commands(Kernel::CLOUD_6_12));
    shell.ok("echo on >/proc/sys/kernel/printk_devkmsg; echo '<3>BUG: not really' >/dev/kmsg");
    shell.allow("something else");
    shell.power_off();
}

#[test]
fn allowed_complaints_do_no_harm() {
    let mut shell = GuestShell::boot(commands(Kernel::CLOUD_6_12));
    shell.ok("echo on >/proc/sys/kernel/printk_devkmsg; echo '<3>BUG: not really' >/dev/kmsg");
    assert_eq!(shell.complaints().len(), 1);
    shell.allow("not really");
    shell.power_off();
}

#[test]
#[should_panic(expected = "status 5 of: exit 5")]
fn a_failing_command_fails_the_test() {
    GuestShell::boot(commands(Kernel::CLOUD_6_12)).ok("exit 5");
}
