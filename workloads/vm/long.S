# The entry of 64-bit images: PVH in 32-bit protected mode, then long mode with the low GiB
# mapped to itself.
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long _start

    .text
    .code32
    .globl _start
_start:
    mov %ebx, %edi
    mov $boot_pml4, %eax
    mov $boot_pdpt + 3, %ecx
    mov %ecx, (%eax)
    mov $boot_pdpt, %eax
    mov $boot_pd + 3, %ecx
    mov %ecx, (%eax)
    # Device memory from 3 GiB to 4 GiB, uncached.
    mov $boot_device_pd + 3, %ecx
    mov %ecx, 24(%eax)
    mov $boot_pd, %eax
    mov $0x83, %ecx
1:  mov %ecx, (%eax)
    add $8, %eax
    add $0x200000, %ecx
    cmp $0x40000083, %ecx
    jne 1b
    mov $boot_device_pd, %eax
    mov $0xc000009b, %ecx
2:  mov %ecx, (%eax)
    add $8, %eax
    add $0x200000, %ecx
    cmp $0x0000009b, %ecx
    jne 2b
    # PAE, and FXSAVE and SSE for those who use them.
    mov $0x620, %eax
    mov %eax, %cr4
    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    # Long mode, SYSCALL, NX.
    or $0x901, %eax
    wrmsr
    # Paging, write protection, numeric errors, MP; protection is on.
    mov $0x80010033, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $3f
    .code64
3:  mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $stack_top, %esp
    mov %edi, %edi
    xor %ebp, %ebp
    call main
    cli
4:  hlt
    jmp 4b

    .section .data
    .balign 8
    .globl gdt, gdt_pointer
# Null, kernel code, kernel data, user data, user code, room for a TSS and one more.
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
    .quad 0x00cff3000000ffff, 0x00affb000000ffff
    .quad 0, 0, 0
gdt_pointer:
    .word . - gdt - 1
    .quad gdt

    .bss
    .balign 4096
    .globl boot_pml4, boot_pdpt, stack_top
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4096
boot_device_pd: .skip 4096
    .skip 32768
stack_top:
