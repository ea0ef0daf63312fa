# A boot sector: says so on the serial line, in real mode, and turns the machine off.
    .code16
    .globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $message, %si
1:  lodsb
    test %al, %al
    jz 3f
    mov %al, %bl
    mov $0x3fd, %dx
2:  in %dx, %al
    test $0x20, %al
    jz 2b
    mov $0x3f8, %dx
    mov %bl, %al
    out %al, %dx
    jmp 1b
3:  # ACPI: sleep type 0, sleep.
    mov $0x604, %dx
    mov $0x2000, %ax
    out %ax, %dx
    hlt
message:
    .asciz "hello from real mode\n"
    .org 510
    .word 0xaa55
