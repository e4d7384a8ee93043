# What micro-guests are written with. Assembled in front of each of them; the macros count once.
# Intel syntax; general registers only, so that a KVM which emulates every instruction runs them too.

.ifndef TANDEM_PRELUDE
.set TANDEM_PRELUDE, 1

# Prints al.
.macro emit
    mov edx, 0x3f8
    out dx, al
.endm

# Asserts DTR, RTS and OUT2: without RTS nobody sends anything.
.macro ready_to_receive
    outb 0x3fc, 0x0b
.endm

# Waits for a byte of serial input: al.
.macro receive
    ready_to_receive
7720:
    mov edx, 0x3fd
    in al, dx
    test al, 1
    jz 7720b
    mov edx, 0x3f8
    in al, dx
.endm

.macro say_by register, text:vararg
    call 7701f
    .ascii \text
    .byte 0
7701:
    pop \register
7702:
    lodsb
    test al, al
    jz 7703f
    emit
    jmp 7702b
7703:
.endm

# Prints a string, in 64-bit code. Changes rax, rdx, rsi.
.macro say text:vararg
    say_by rsi, \text
.endm

# Prints a string, in 32-bit code.
.macro say32 text:vararg
    say_by esi, \text
.endm

.macro show_by register, digits
    mov ecx, \digits
7710:
    rol \register, 4
    mov al, bl
    and al, 15
    add al, 48
    cmp al, 57
    jbe 7711f
    add al, 39
7711:
    emit
    dec ecx
    jnz 7710b
    mov al, 10
    emit
.endm

# Prints rax as 16 hexadecimal digits and a line feed. Changes rax, rbx, rcx, rdx.
.macro show
    mov rbx, rax
    show_by rbx, 16
.endm

# Prints eax as 8 hexadecimal digits and a line feed. Works in 32-bit code.
.macro show32
    mov ebx, eax
    show_by ebx, 8
.endm

.macro hang
7740:
    jmp 7740b
.endm

.macro power_off
    mov edx, 0x600
    mov al, 0x34
    out dx, al
    hang
.endm

# Writes \value to the port.
.macro outb port, value
    mov edx, \port
    mov al, \value
    out dx, al
.endm

# One descriptor and one available entry of a virtqueue in 24 bytes, all of them hostile; behind them an end of zeroes.
# Descriptor 0: address, length, flags, next; available index; head; a letter to print, first of four. The queue has 8
# entries at 0x300000, and the device's registers are at \registers.
.macro hostile_shape address, length, flags, next, available, head, name:vararg
    .quad \address
    .long \length
    .short \flags, \next, \available, \head
    .ascii \name
.endm
.macro hostile_shapes registers
    hostile_shape 0x303000, 16, 3, 0, 1, 0, "loop"
    hostile_shape 0x303000, 16, 3, 8, 1, 0, "next"
    hostile_shape 0x303000, 16, 2, 0, 1, 8, "head"
    hostile_shape 0x303000, 16, 2, 0, 9, 0, "avai"
    hostile_shape 0xc0000000, 16, 2, 0, 1, 0, "Hole"
    hostile_shape \registers, 16, 2, 0, 1, 0, "mmio"
    hostile_shape 0xfffffffffffffff8, 16, 2, 0, 1, 0, "over"
    hostile_shape 0x303000, 0xffffffff, 2, 0, 1, 0, "4GiB"
    hostile_shape 0x303000, 16, 0, 0, 1, 0, "read"
    hostile_shape 0x300000, 16, 4, 0, 1, 0, "indi"
    hostile_shape 0xc0000000, 16, 4, 0, 1, 0, "tabl"
    .fill 24, 1, 0
.endm

# Maps the first 8 GiB one to one in pages of 2 MiB, by page directories from 0x10000 on.
.macro map_8_gib
    mov edi, 0x10000
    mov eax, 0x83
    mov ecx, 4096
7730:
    mov [rdi], rax
    add rdi, 8
    add rax, 0x200000
    dec ecx
    jnz 7730b
    mov edi, 0xa000
    mov eax, 0x10003
    mov ecx, 8
7731:
    mov [rdi], rax
    add rdi, 8
    add rax, 0x1000
    dec ecx
    jnz 7731b
    mov rax, cr3
    mov cr3, rax
.endm
.endif
