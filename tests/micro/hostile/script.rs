//! A guest that does what a script says: writes, waits, repeats. What a hostile driver does is written in Rust then, for any
//! device and either transport, and carried out by the same few instructions.
//!
//! A script is a row of entries of 24 bytes at 4 MiB: operation (4 bytes), a number (4), an address (8), a value (8).

use tests::elf::Elf;
use tests::vm::VmBuilder;

use crate::guest::guest;

/// Where the script is.
const SCRIPT: u64 = 0x40_0000;
const ENTRY: usize = 24;

// r14: the next entry, r15: state of the random numbers. An entry in registers: ebp number, r12 address, r13 value.
guest!(
    following_a_script,
    r#"
    map_8_gib
    mov r14d, 0x400000
    mov r15, 88172645463325252
2:
    mov eax, [r14]
    mov ebp, [r14 + 4]
    mov r12, [r14 + 8]
    mov r13, [r14 + 16]
    add r14, 24
    cmp eax, 3
    je 10f
    cmp eax, 2
    je 11f
    cmp eax, 1
    je 12f
    cmp eax, 4
    je 13f
    cmp eax, 5
    je 14f
    cmp eax, 6
    je 20f
    cmp eax, 7
    je 20f
    cmp eax, 8
    je 30f
    cmp eax, 9
    je 15f
    cmp eax, 10
    je 40f
    cmp eax, 11
    je 50f
    cmp eax, 12
    je 16f
    cmp eax, 13
    je 17f
    power_off
10:
    mov [r12], r13d
    jmp 2b
11:
    mov [r12], r13w
    jmp 2b
12:
    mov [r12], r13b
    jmp 2b
13:
    mov [r12], r13
    jmp 2b
    # Prints a character.
14:
    mov eax, r13d
    emit
    jmp 2b
    # Clears bytes.
15:
    mov rdi, r12
    mov rcx, r13
    xor eax, eax
    rep stosb
    jmp 2b
    # Waits for a byte of input.
16:
    receive
    jmp 2b
    # Lets time pass.
17:
    dec ebp
    jnz 17b
    jmp 2b
    # Waits until the bits of the number have the value, in a byte or in four. Says which entry it was if they do not get it.
20:
    mov edi, 20000000
21:
    cmp eax, 7
    je 22f
    movzx ecx, byte ptr [r12]
    jmp 23f
22:
    mov ecx, [r12]
23:
    mov esi, ecx
    and ecx, ebp
    cmp ecx, r13d
    je 2b
    dec edi
    jnz 21b
    mov al, 33
    emit
    mov eax, esi
    show32
    mov rax, r14
    show
    power_off
    # Writes at random, a number of times, of 1, 2, 4 or 8 bytes, behind the address and within the mask.
30:
    call 70f
    mov rbx, r15
    and rbx, r13
    add rbx, r12
    mov rdx, r15
    shr rdx, 20
    mov ecx, edx
    shr ecx, 16
    and ecx, 7
    cmp ecx, 4
    jae 31f
    and rbx, -2
    cmp ecx, 2
    jae 32f
    and rbx, -8
    test ecx, ecx
    jz 33f
    mov [rbx], dl
    jmp 34f
31:
    and rbx, -4
    mov [rbx], edx
    jmp 34f
32:
    mov [rbx], dx
    jmp 34f
33:
    mov [rbx], rdx
34:
    dec ebp
    jnz 30b
    jmp 2b
    # Goes back by as many entries as the value says, as often as the number says; then it is as at first again.
40:
    dec dword ptr [r14 - 20]
    jz 41f
    imul r13, r13, 24
    sub r14, r13
    jmp 2b
41:
    mov [r14 - 20], r12d
    jmp 2b
    # Starts a second vCPU, which spoils the rings from 0x40000 on until the word at 0x4fff0 is not zero.
50:
    lea rsi, [rip + 80f]
    mov edi, 0x18000
    mov ecx, 256
    rep movsb
    mov r8d, 0xfee00000
    mov dword ptr [r8 + 0x300], 0xc4500
    mov ecx, 100000
51:
    dec ecx
    jnz 51b
    mov dword ptr [r8 + 0x300], 0xc4618
    jmp 2b
70:
    mov rax, r15
    shl rax, 13
    xor r15, rax
    mov rax, r15
    shr rax, 7
    xor r15, rax
    mov rax, r15
    shl rax, 17
    xor r15, rax
    ret
80:
    .code16
    mov ax, 0x4000
    mov ds, ax
    mov ebp, 2463534242
    mov word ptr [0xfff8], 1
81:
    cmp word ptr [0xfff0], 0
    jne 84f
    mov eax, ebp
    shl eax, 13
    xor ebp, eax
    mov eax, ebp
    shr eax, 17
    xor ebp, eax
    mov eax, ebp
    shl eax, 5
    xor ebp, eax
    # One of 8 queues, and in it the first 128 bytes of descriptors, available or used ring.
    mov ebx, ebp
    and ebx, 0x767c
    mov eax, ebp
    shr eax, 16
    # Sometimes flags and next; sometimes a word of nonsense, which as an address is not in memory.
    test ebp, 0x8000000
    jz 82f
    and eax, 0x00070007
    jmp 83f
82:
    or eax, 0xc0000000
83:
    mov [bx], eax
    jmp 81b
84:
    mov word ptr [0xfff4], 1
85:
    cli
    hlt
    jmp 85b
    .fill 128, 1, 0xf4
    "#
);

/// A script that is being written.
#[derive(Clone, Debug, Default)]
pub struct Script {
    bytes: Vec<u8>,
}

impl Script {
    fn entry(&mut self, operation: u32, number: u32, address: u64, value: u64) {
        self.bytes.extend(operation.to_le_bytes());
        self.bytes.extend(number.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes.extend(value.to_le_bytes());
    }

    /// Writes a number of 1, 2, 4 or 8 bytes.
    pub fn write(&mut self, width: usize, address: u64, value: u64) {
        let operation = 1 + width.trailing_zeros();
        self.entry(operation, 0, address, value);
    }

    /// Writes bytes.
    pub fn write_bytes(&mut self, address: u64, bytes: &[u8]) {
        for (at, word) in (address..).step_by(8).zip(bytes.chunks(8)) {
            let mut value = [0; 8];
            value[..word.len()].copy_from_slice(word);
            self.write(8, at, u64::from_le_bytes(value));
        }
    }

    /// Prints text.
    pub fn say(&mut self, text: &str) {
        for byte in text.bytes() {
            self.entry(5, 0, 0, byte.into());
        }
    }

    /// Waits until the bits of `mask` have that value, in 1 or 4 bytes; ends the machine, with `!`, if they never do.
    pub fn wait(&mut self, width: usize, address: u64, mask: u32, value: u32) {
        let operation = if width == 1 { 6 } else { 7 };
        self.entry(operation, mask, address, value.into());
    }

    /// Writes at random, as often as `count` says.
    pub fn storm(&mut self, count: u32, address: u64, mask: u64) {
        self.entry(8, count, address, mask);
    }

    /// Clears bytes.
    pub fn clear(&mut self, address: u64, len: u64) {
        self.entry(9, 0, address, len);
    }

    /// Does `what` as often as `count` says. Not in itself.
    pub fn repeat(&mut self, count: u32, what: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        what(self);
        // With the entry itself.
        let back = (self.bytes.len() - start) / ENTRY + 1;
        self.entry(10, count, count.into(), back as u64);
    }

    /// Starts the second vCPU.
    pub fn start_the_second(&mut self) {
        self.entry(11, 0, 0, 0);
    }

    /// Waits for a byte of input.
    pub fn receive(&mut self) {
        self.entry(12, 0, 0, 0);
    }

    /// Lets a little time pass, in loops of the guest's.
    pub fn pass(&mut self, loops: u32) {
        self.entry(13, loops, 0, 0);
    }

    /// A VM whose guest follows the script and switches itself off.
    pub fn vm(mut self) -> VmBuilder {
        self.entry(0, 0, 0, 0);
        let len = self.bytes.len() as u64;
        let elf = Elf::new(following_a_script());
        VmBuilder::with_elf(&elf.segment(SCRIPT, &self.bytes, len))
    }
}
