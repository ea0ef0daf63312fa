        .text
        .globl  first
        .type   first, @function
first:  push    %rbp
        mov     %rsp, %rbp
        vpaddd  %zmm1, %zmm2, %zmm3{%k1}{z}
        lea     table(%rip), %rax
        .rept   100
        add     $1, %rcx
        .endr
        jmp     *(%rax,%rdi,8)
.Lend:  leave
        ret
        .size   first, . - first
        .section .rodata
        .align  8
table:  .quad   .Lend, first, .Lend - first
        .asciz  "text"
