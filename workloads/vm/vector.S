# 300 rounds of vector and other instructions in ring 0 that a KVM without hardware help
# can't emulate; prints their sum. Linked with long.S.
    .text
    .code64
    .globl main
main:
    push %rbx
    mov $300, %ebx
    xor %esi, %esi
    pxor %xmm1, %xmm1
    mov $1, %eax
    movd %eax, %xmm2
1:  paddd %xmm2, %xmm1
    mov $0xf0f0, %edx
    popcnt %edx, %edx
    # 8 a round.
    add %edx, %esi
    dec %ebx
    jnz 1b
    # The count of rounds must have come through the vector register.
    movd %xmm1, %eax
    sub $300, %eax
    add %eax, %esi
    mov $prefix, %edi
    call put_text
    mov %esi, %ebx
    mov $28, %ecx
    # Leading zeros are left out.
2:  mov %ebx, %eax
    shr %cl, %eax
    jnz 3f
    sub $4, %ecx
    jnz 2b
3:  mov %ebx, %eax
    shr %cl, %eax
    and $15, %eax
    mov digits(%rax), %al
    call put_char
    sub $4, %ecx
    jns 3b
    mov $10, %al
    call put_char
    mov $0x604, %dx
    mov $0x2000, %ax
    out %ax, %dx
    hlt

put_char:
    mov $0x3f8, %dx
    out %al, %dx
    ret

put_text:
    mov (%rdi), %al
    test %al, %al
    jz 4f
    call put_char
    inc %rdi
    jmp put_text
4:  ret

    .section .rodata
prefix: .asciz "sum 0x"
digits: .ascii "0123456789abcdef"
