# The probe guest: one small program per check, for 64-bit long mode at CPL 0.
#
# Position-independent, never executed on the host: the section is read-only data. The host side
# (guest.rs) copies everything between the two symbols into guest memory and enters at an offset
# from the table below, whose order is that of `Program` in guest.rs.
#
# At entry: rdi = 8 KiB of zeroed, page-aligned scratch; rsi = an address no page table maps;
# r15 = the only vector the program may receive (or one that does not exist); r14 = 0; a stack.
# Exit: one byte written to PORT_VERDICT, or the unexpected vector's number to PORT_VECTOR.

    .pushsection .rodata.tandem_probe_guest, "a", @progbits
    .balign 64
    .globl tandem_probe_guest_start
    .hidden tandem_probe_guest_start
    .globl tandem_probe_guest_end
    .hidden tandem_probe_guest_end

    .set PORT_VERDICT, 0x500
    .set PORT_VECTOR, 0x501
    .set VERDICT_PASS, 0xa5
    .set VERDICT_WRONG, 0x5a
    .set DELIVERED, 0x80            # offset in scratch: how often the expected vector came

tandem_probe_guest_start:
    .long .Lprobe_stubs - tandem_probe_guest_start
    .long .Lprobe_plain - tandem_probe_guest_start
    .long .Lprobe_interrupt - tandem_probe_guest_start
    .long .Lprobe_int3 - tandem_probe_guest_start
    .long .Lprobe_ud - tandem_probe_guest_start
    .long .Lprobe_pf - tandem_probe_guest_start
    .long .Lprobe_syscall - tandem_probe_guest_start
    .long .Lprobe_sse - tandem_probe_guest_start
    .long .Lprobe_cx16 - tandem_probe_guest_start
    .long .Lprobe_xsave - tandem_probe_guest_start
    .long .Lprobe_spin - tandem_probe_guest_start

# General registers, memory, call and return.
.Lprobe_plain:
    mov ecx, 100
    xor eax, eax
.Lprobe_sum:
    add eax, ecx
    dec ecx
    jnz .Lprobe_sum
    cmp eax, 5050
    jne .Lprobe_wrong
    mov [rdi], rax
    call .Lprobe_double
    cmp qword ptr [rdi], 10100
    jne .Lprobe_wrong
    jmp .Lprobe_pass
.Lprobe_double:
    push rax
    mov rax, [rdi]
    add rax, rax
    mov [rdi], rax
    pop rax
    ret

# The host injected an interrupt: it comes before the first instruction here.
.Lprobe_interrupt:
    nop
    jmp .Lprobe_delivered

# Static keys, ftrace and kprobes patch a running kernel through int3.
.Lprobe_int3:
    int3
    jmp .Lprobe_delivered

# WARN and BUG are ud2; the handler continues at r14.
.Lprobe_ud:
    lea r14, [rip + .Lprobe_delivered]
    ud2
    jmp .Lprobe_wrong

# User memory is paged in by #PF: vector, error code and CR2 must all arrive.
.Lprobe_pf:
    lea r14, [rip + .Lprobe_pf_back]
    mov rax, [rsi]
    jmp .Lprobe_wrong
.Lprobe_pf_back:
    mov rax, cr2
    cmp rax, rsi
    jne .Lprobe_wrong
    jmp .Lprobe_delivered

# To CPL 3 by sysret and back by syscall. GDT: 08 code, 10 data, 18 user data, 20 user code.
.Lprobe_syscall:
    lea rax, [rip + .Lprobe_syscall_back]
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0xc0000082             # LSTAR
    wrmsr
    xor eax, eax
    mov edx, 0x00100008             # sysret base 10, syscall base 08
    mov ecx, 0xc0000081             # STAR
    wrmsr
    xor edx, edx
    mov ecx, 0xc0000084             # FMASK
    wrmsr
    lea rcx, [rip + .Lprobe_user]
    mov r11d, 2
    sysretq
.Lprobe_user:
    mov ax, cs
    mov [rdi], rax
    syscall
    jmp .Lprobe_wrong
.Lprobe_syscall_back:
    mov rax, [rdi]
    and eax, 0xffff
    cmp eax, 0x23
    jne .Lprobe_wrong
    mov ax, cs
    cmp ax, 8
    jne .Lprobe_wrong
    jmp .Lprobe_pass

# Integer, packed and scalar floating point: 64-bit user programs use SSE2 from their first line.
.Lprobe_sse:
    movdqu xmm0, [rip + .Lprobe_pattern]
    paddd xmm0, xmm0
    movdqu [rdi], xmm0
    mov rax, [rip + .Lprobe_doubled]
    cmp [rdi], rax
    jne .Lprobe_wrong
    mov rax, [rip + .Lprobe_doubled + 8]
    cmp [rdi + 8], rax
    jne .Lprobe_wrong
    xorps xmm1, xmm1
    mov eax, 3
    cvtsi2sd xmm1, eax
    mulsd xmm1, xmm1
    cvttsd2si eax, xmm1
    cmp eax, 9
    jne .Lprobe_wrong
    jmp .Lprobe_pass

# The slab allocator's fast path, with and without a match.
.Lprobe_cx16:
    mov qword ptr [rdi], 1
    mov qword ptr [rdi + 8], 2
    mov eax, 1
    mov edx, 2
    mov ebx, 3
    mov ecx, 4
    lock cmpxchg16b [rdi]
    jne .Lprobe_wrong
    cmp qword ptr [rdi], 3
    jne .Lprobe_wrong
    cmp qword ptr [rdi + 8], 4
    jne .Lprobe_wrong
    mov eax, 1
    lock cmpxchg16b [rdi]
    je .Lprobe_wrong
    cmp rax, 3
    jne .Lprobe_wrong
    cmp rdx, 4
    jne .Lprobe_wrong
    jmp .Lprobe_pass

# Every context switch. Only moves touch xmm0, so that a missing SSE unit is not blamed on xsave.
.Lprobe_xsave:
    xor ecx, ecx
    xor edx, edx
    mov eax, 3                      # XCR0: x87 and SSE
    xsetbv
    movdqu xmm0, [rip + .Lprobe_pattern]
    xsave [rdi + 0x400]
    movdqu xmm0, [rdi + 0x200]
    xrstor [rdi + 0x400]
    movdqu [rdi], xmm0
    mov rax, [rip + .Lprobe_pattern]
    cmp [rdi], rax
    jne .Lprobe_wrong
    mov rax, [rip + .Lprobe_pattern + 8]
    cmp [rdi + 8], rax
    jne .Lprobe_wrong
    jmp .Lprobe_pass

# Never ends: proves the time limit.
.Lprobe_spin:
    jmp .Lprobe_spin

.Lprobe_delivered:
    cmp qword ptr [rdi + DELIVERED], 1
    jne .Lprobe_wrong
.Lprobe_pass:
    mov edx, PORT_VERDICT
    mov eax, VERDICT_PASS
    out dx, al
.Lprobe_wrong:
    mov edx, PORT_VERDICT
    mov eax, VERDICT_WRONG
    out dx, al
.Lprobe_stop:
    hlt
    jmp .Lprobe_stop

# All vectors end here: [rsp] = vector, then the CPU's frame (with an error code for some).
.Lprobe_vector:
    push rax
    mov rax, [rsp + 8]
    cmp rax, r15
    jne .Lprobe_unexpected
    cmp eax, 14                     # the only expected vector with an error code
    pop rax
    lea rsp, [rsp + 8]
    jne .Lprobe_no_code
    lea rsp, [rsp + 8]
.Lprobe_no_code:
    inc qword ptr [rdi + DELIVERED]
    test r14, r14
    jz .Lprobe_return
    mov [rsp], r14
.Lprobe_return:
    iretq
.Lprobe_unexpected:
    mov edx, PORT_VECTOR
    out dx, al
    jmp .Lprobe_stop

# One 16-byte entry for each of the vectors 0 to 32.
    .balign 16
.Lprobe_stubs:
    .set .Lprobe_index, 0
    .rept 33
    .balign 16
    .byte 0x6a, .Lprobe_index       # push imm8
    jmp .Lprobe_vector
    .set .Lprobe_index, .Lprobe_index + 1
    .endr

    .balign 16
.Lprobe_pattern:
    .long 0x11111111, 0x22222222, 0x33333333, 0x44444444
.Lprobe_doubled:
    .long 0x22222222, 0x44444444, 0x66666666, 0x88888888
tandem_probe_guest_end:

    .popsection
