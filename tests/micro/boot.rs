//! Both boot protocols, how a kernel gets into memory, and the memory layout.

use std::fs;

use tests::elf::{CODE, Elf};
use tests::vm::VmBuilder;

use crate::guest::guest;

guest!(
    zero_page,
    r#"
    mov r12, rsi
    say "boot_flag "
    movzx eax, word ptr [r12 + 0x1fe]
    show32
    say "header "
    mov eax, [r12 + 0x202]
    show32
    say "rsdp "
    mov rax, [r12 + 0x70]
    show
    say "signature "
    mov rax, [r12 + 0x70]
    mov rax, [rax]
    show
    say "initrd "
    mov eax, [r12 + 0x218]
    mov eax, [rax]
    show32
    say "size "
    mov eax, [r12 + 0x21c]
    show32
    movzx r13d, byte ptr [r12 + 0x1e8]
    lea r14, [r12 + 0x2d0]
2:
    mov rax, [r14]
    show
    mov rax, [r14 + 8]
    show
    mov eax, [r14 + 16]
    show32
    add r14, 20
    dec r13d
    jnz 2b
    say "line "
    mov esi, [r12 + 0x228]
3:
    lodsb
    test al, al
    jz 4f
    emit
    jmp 3b
4:
    power_off
    "#
);

#[test]
fn linux64_entry() {
    let builder = VmBuilder::with_code(zero_page()).boot("boot_args", "some words=1");
    let initrd = builder.path("initrd");
    fs::write(&initrd, b"abcdefg").unwrap();
    builder.initrd(&initrd).run().expect(
        0,
        "boot_flag 0000aa55\n\
         header 53726448\n\
         rsdp 00000000000e0000\n\
         signature 2052545020445352\n\
         initrd 64636261\n\
         size 00000007\n\
         0000000000000000\n000000000009fc00\n00000001\n\
         000000000009fc00\n0000000000060400\n00000002\n\
         0000000000100000\n0000000000f00000\n00000001\n\
         line some words=1",
    );
}

guest!(
    start_info,
    r#"
    .code32
    mov esp, 0x8ff0
    mov ebp, ebx
    say32 "magic "
    mov eax, [ebp]
    show32
    say32 "version "
    mov eax, [ebp + 4]
    show32
    say32 "modules "
    mov eax, [ebp + 12]
    show32
    say32 "initrd "
    mov eax, [ebp + 16]
    mov eax, [eax]
    mov eax, [eax]
    show32
    say32 "rsdp "
    mov eax, [ebp + 32]
    show32
    mov edi, [ebp + 40]
    say32 "entries "
    mov eax, [ebp + 48]
    show32
    mov ebp, [ebp + 48]
2:
    mov eax, [edi]
    show32
    mov eax, [edi + 8]
    show32
    mov eax, [edi + 16]
    show32
    add edi, 24
    dec ebp
    jnz 2b
    mov eax, cr0
    and eax, 0x80000001
    show32
    power_off
    "#
);

#[test]
fn pvh_entry() {
    let builder = VmBuilder::with_elf(&Elf::new(start_info()).pvh());
    let initrd = builder.path("initrd");
    fs::write(&initrd, b"abcdefg").unwrap();
    builder.initrd(&initrd).run().expect(
        0,
        "magic 336ec578\n\
         version 00000001\n\
         modules 00000001\n\
         initrd 64636261\n\
         rsdp 000e0000\n\
         entries 00000003\n\
         00000000\n0009fc00\n00000001\n\
         0009fc00\n00060400\n00000002\n\
         00100000\n00f00000\n00000001\n\
         00000001\n",
    );
}

// A segment at 2 MiB: 5000 bytes of 0x5a in the file, zeroes up to 20000.
guest!(
    check_data,
    r#"
    mov esi, 0x200000
    mov ecx, 5000
2:
    lodsb
    cmp al, 0x5a
    jne 5f
    dec ecx
    jnz 2b
    mov ecx, 15000
3:
    lodsb
    test al, al
    jnz 6f
    dec ecx
    jnz 3b
    say "data and bss as they should be\n"
    power_off
5:
    say "data\n"
    jmp 7f
6:
    say "bss\n"
7:
    mov rax, rsi
    show
    power_off
    "#
);

#[test]
fn data_is_there_and_bss_is_zero_whether_mapped_or_copied() {
    let elf = Elf::new(check_data()).segment(0x20_0000, &[0x5a; 5000], 20_000);
    for elf in [elf.clone(), elf.unaligned()] {
        let aligned = elf.aligned;
        let ended = VmBuilder::with_elf(&elf).option("--level", "Debug").run();
        assert_eq!(
            ended.text(),
            "data and bss as they should be\n",
            "aligned: {aligned}"
        );
        let mapped_nothing = ended.stderr.contains("vmlinux: 0 of");
        assert_eq!(mapped_nothing, !aligned, "{}", ended.stderr);
    }
}

guest!(
    rewrite_own_text,
    r#"
    mov byte ptr [rip + 2f], 67
    mov byte ptr [rip + 3f], 68
    lea rsi, [rip + 2f]
4:
    lodsb
    test al, al
    jz 5f
    emit
    jmp 4b
5:
    power_off
2:
    .ascii "A"
3:
    .ascii "B\n"
    .byte 0
    .fill 4096, 1, 0x90
    "#
);

#[test]
fn a_kernel_file_stays_as_it_was_when_the_guest_writes_to_its_text() {
    for elf in [
        Elf::new(rewrite_own_text()),
        Elf::new(rewrite_own_text()).unaligned(),
    ] {
        let ended = VmBuilder::with_elf(&elf).run();
        ended.expect(0, "CD\n");
        assert_eq!(fs::read(ended.path("vmlinux")).unwrap(), elf.to_bytes());
    }
}

#[test]
fn a_kernel_may_be_spread_over_memory() {
    // The last page of 16 MiB, and one right behind the code.
    let elf = Elf::new(check_data())
        .segment(0x20_0000, &[0x5a; 5000], 20_000)
        .segment(CODE + 0x1000, &[1; 10], 10)
        .segment((16 << 20) - 0x1000, &[2; 0x1000], 0x1000);
    VmBuilder::with_elf(&elf)
        .run()
        .expect(0, "data and bss as they should be\n");
}

// Writes and reads back at the ends of memory, and reads where nothing is. Memory: 4096 MiB.
guest!(
    ends_of_memory,
    r#"
    map_8_gib
    mov r12, 0x1122334455667788
    mov r8d, 0xbffffff8
    mov r9, 0x100000000
    mov r10, 0x13ffffff8
    mov [r8], r12
    inc r12
    mov [r9], r12
    inc r12
    mov [r10], r12
    mov rax, [r8]
    show
    mov rax, [r9]
    show
    mov rax, [r10]
    show
    mov eax, 0xd0001000
    mov rax, [rax]
    show
    mov rax, 0x140000000
    mov rax, [rax]
    show
    # Writes to nowhere do nothing.
    mov eax, 0xd0001000
    mov [rax], r12
    mov rax, [rax]
    show
    power_off
    "#
);

#[test]
fn memory_goes_around_the_hole() {
    VmBuilder::with_code(ends_of_memory())
        .memory(4096)
        .run()
        .expect(
            0,
            "1122334455667788\n1122334455667789\n112233445566778a\n\
         ffffffffffffffff\nffffffffffffffff\nffffffffffffffff\n",
        );
}
