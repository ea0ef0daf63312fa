# Every vector's way into on_trap, the SYSCALL entry, and the way into ring 3.
    .text
    .code64

    .macro save
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    .endm

    .macro restore
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    .endm

    # Exceptions with an error code: 8, 10 to 14, 17, 21.
    .set vector, 0
    .balign 16
first_stub:
    .rept 256
    .balign 16
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21
    push $0
    .endif
    push $vector
    jmp common
    .set vector, vector + 1
    .endr

common:
    save
    cld
    mov %rsp, %rdi
    call on_trap
    .globl leave_trap
leave_trap:
    # A frame that SYSCALL made goes back by SYSRET.
    cmpq $256, 120(%rsp)
    je 1f
    restore
    add $16, %rsp
    iretq
1:  restore
    # Past the vector and the error code: to RCX and R11, and the stack.
    add $16, %rsp
    mov 0(%rsp), %rcx
    mov 16(%rsp), %r11
    mov 24(%rsp), %rsp
    sysretq

    # Interrupts are masked: one stack is enough.
    .globl syscall_entry
syscall_entry:
    mov %rsp, user_rsp(%rip)
    mov $trap_stack, %rsp
    push $0x1b
    push user_rsp(%rip)
    push %r11
    push $0x23
    push %rcx
    push $0
    push $256
    jmp common

    # void enter(struct frame *): goes where the frame says.
    .globl enter
enter:
    mov %rdi, %rsp
    jmp leave_trap

    .section .rodata
    .balign 8
    .globl stubs
stubs:
    .set vector, 0
    .rept 256
    .quad first_stub + 16 * vector
    .set vector, vector + 1
    .endr

    .bss
    .balign 16
user_rsp: .skip 16
    .skip 16384
    .globl trap_stack
trap_stack:
