# The entry of the 32-bit multiboot image, and the stubs of its interrupts.
    .section .header, "a"
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .text
    .code32
    .globl _start
_start:
    mov $stack_top, %esp
    push %ebx
    push %eax
    lgdt gdt_pointer
    ljmp $8, $1f
1:  mov $0x10, %cx
    mov %cx, %ds
    mov %cx, %es
    mov %cx, %ss
    mov %cx, %fs
    mov %cx, %gs
    call main
    cli
2:  hlt
    jmp 2b

    .globl timer_entry, page_fault_entry, call_entry
timer_entry:
    pusha
    cld
    call on_timer
    popa
    iret

page_fault_entry:
    pusha
    cld
    mov %cr2, %eax
    push 32(%esp)
    push %eax
    call on_page_fault
    add $8, %esp
    popa
    add $4, %esp
    iret

call_entry:
    cld
    push %eax
    call on_call
    add $4, %esp
    iret

    .balign 8
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .bss
    .balign 16
    .skip 16384
stack_top:
