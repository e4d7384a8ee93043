//! A vCPU that is lost. The software KVM of some hosts reads ones where memory has gone; a complete one says so.

use std::fs::OpenOptions;

use tests::elf::Elf;
use tests::vm::VmBuilder;

use crate::guest::guest;

// Waits for a byte, then reads far into the second segment.
guest!(
    read_late,
    r#"
    say "ready\n"
    receive
    mov eax, [0x280000]
    say "read it\n"
    power_off
    "#
);

#[test]
fn a_kernel_file_that_is_cut_short_under_a_guest_is_68() {
    let elf = Elf::new(read_late()).segment(0x20_0000, &[7; 0x10_0000], 0x10_0000);
    let mut vm = VmBuilder::with_elf(&elf).start();
    vm.wait_for("ready\n");
    // What is left is the page of the code.
    let file = OpenOptions::new()
        .write(true)
        .open(vm.path("vmlinux"))
        .unwrap();
    file.set_len(0x2000).unwrap();
    vm.send(b"x");
    let ended = vm.wait();
    ended.expect(68, "ready\n");
    let line = ended.one_line();
    assert!(line.starts_with("tandem-vmm: vCPU 0 was lost: "), "{line}");
    assert!(line.contains("cut short"), "{line}");
}
