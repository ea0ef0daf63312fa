# flags: -no-pie
# Control transfers of every form: jump tables, call through memory and registers, ret imm16,
# push/ret, loop, loope, loopne, jrcxz, jecxz, unbalanced returns, enter/leave, far distances.
        .globl main
        .text
main:   push %rbx
        push %rbp
        push %r12
        xor %r12d, %r12d                # the sum of all that was reached
        mov $20000, %ebx
again:
        # a jump table by memory operand
        mov %ebx, %eax
        and $3, %eax
        jmp *table(,%rax,8)
case0:  add $1, %r12
        jmp cased
case1:  add $2, %r12
        jmp cased
case2:  add $4, %r12
        jmp cased
case3:  add $8, %r12
cased:
        # call through memory, rip-relative and by register
        call *pointer(%rip)
        lea pointer(%rip), %rcx
        call *(%rcx)
        lea add16(%rip), %rdx
        call *%rdx
        # arguments popped by the callee
        push $5
        push $6
        call pops
        # push and ret as a jump
        lea 1f(%rip), %rax
        push %rax
        ret
        ud2
1:      # a callee that returns elsewhere than it was called from
        call skips
        ud2
        add $32, %r12
        # a callee that drops its own frame and returns for its caller
        call outer
        # the loop family
        mov $5, %ecx
2:      inc %r12
        loop 2b
        mov $9, %ecx
        xor %eax, %eax
3:      inc %eax
        cmp $4, %eax
        loopne 3b
        add %rcx, %r12                  # 9-4 = 5 left
        mov $9, %ecx
        xor %eax, %eax
4:      inc %eax
        cmp $100, %eax
        loope 4b
        add %rcx, %r12                  # 8 left
        xor %ecx, %ecx
        jrcxz 5f
        ud2
5:      mov $1, %rcx
        shl $32, %rcx
        jrcxz bad
        jecxz 6f
bad:    ud2
6:      # loop with a 32-bit counter leaves the upper half cleared
        mov $-1, %rcx
        mov $3, %ecx
7:      addr32 loop 7b
        add %rcx, %r12
        # enter and leave, with a nesting level
        enter $32, $0
        movq $7, -8(%rbp)
        add -8(%rbp), %r12
        leave
        mov %rsp, %rbp
        enter $16, $1
        leave
        # flags through a call and a return
        stc
        call nothing
        adc $0, %r12
        # a branch with a prefix, and one over 127 bytes
        .byte 0x3e
        jnz 8f
        ud2
8:      jmp 9f
        .fill 4000, 1, 0xcc
9:      dec %ebx
        jnz again
        lea format(%rip), %rdi
        mov %r12, %rsi
        xor %eax, %eax
        call printf
        mov $40, %edi
        call deep
        pop %r12
        pop %rbp
        pop %rbx
        ret
add16:  add $16, %r12
        ret
pops:   mov 8(%rsp), %rax
        add 16(%rsp), %rax
        add %rax, %r12
        ret $16
skips:  addq $2, (%rsp)                 # over the ud2
        ret
outer:  call inner
        ud2
inner:  add $8, %rsp
        add $64, %r12
        ret
nothing: ret
        # recursion; returns 3 as the exit status from the bottom up
deep:   dec %edi
        jz bottom
        call deep
        ret
bottom: mov $3, %eax
        ret
        .section .rodata
        .balign 8
table:  .quad case0, case1, case2, case3
format: .asciz "sum %ld\n"
        .data
        .balign 8
pointer: .quad add16
        .section .note.GNU-stack,"",@progbits
