//! Into generated code and out of it. The routines here run with a mixture of guest and
//! host state: no thread-locals, no allocation, no Rust until `leave` has restored the
//! host's fs base, stack and flags.
//!
//! Windows: the signal handler compares the interrupted RIP with the labels below, so that
//! an asynchronous signal is never lost between a check of `pending` and what follows.

use std::arch::global_asm;

use crate::addr::HostAddr;
use crate::codecache::MAP_DISPLACEMENT;
use crate::guest::{ExitKind, FAR_TARGETS, HostRoutine, ThreadContext, offsets};

// Entering: callee-saved host registers go on the host stack; `pending` is checked within
// the window, in which the handler redirects `entry`.
//
// Leaving: XSAVE with the vector mask only; x87 state stays live. TF and AC must not
// survive into Rust; DF is cleared as the ABI wants. VZEROUPPER avoids the SSE transition
// penalty of dirty upper halves (Intel optimization manual, section 15.3).
global_asm!(
    r#"
    .globl temper_enter
    .hidden temper_enter
    .globl temper_enter_window
    .hidden temper_enter_window
    .globl temper_enter_end
    .hidden temper_enter_end
    .globl temper_not_entered
    .hidden temper_not_entered
    .globl temper_leave_untranslated
    .hidden temper_leave_untranslated
    .globl temper_counter
    .hidden temper_counter
    .globl temper_indirect_miss
    .hidden temper_indirect_miss
    .globl temper_leave
    .hidden temper_leave
    .globl temper_exact_indirect
    .hidden temper_exact_indirect
    .globl temper_exact_commit
    .hidden temper_exact_commit
    .globl temper_exact_miss
    .hidden temper_exact_miss
    .globl temper_exact_end
    .hidden temper_exact_end
    .globl temper_syscall
    .hidden temper_syscall
    .globl temper_syscall_commit
    .hidden temper_syscall_commit
    .globl temper_syscall_done
    .hidden temper_syscall_done
    .globl temper_syscall_end
    .hidden temper_syscall_end
    .globl temper_syscall_leave
    .hidden temper_syscall_leave
    .globl temper_syscall_again
    .hidden temper_syscall_again
    .text
    .balign 16
temper_enter:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi + {HOST_RSP}], rsp
temper_enter_window:
    cmp qword ptr [rdi + {PENDING}], 0
    jne 2f
    mov rax, [rdi + {XSAVE_MASK}]
    xor edx, edx
    xrstor64 [rdi + {VECTOR}]
    mov rax, [rdi + {FS_BASE}]
    wrfsbase rax
    push qword ptr [rdi + {RFLAGS}]
    popfq
    mov rax, [rdi + {GPR} + 0*8]
    mov rcx, [rdi + {GPR} + 1*8]
    mov rdx, [rdi + {GPR} + 2*8]
    mov rbx, [rdi + {GPR} + 3*8]
    mov rsp, [rdi + {GPR} + 4*8]
    mov rbp, [rdi + {GPR} + 5*8]
    mov rsi, [rdi + {GPR} + 6*8]
    mov r8,  [rdi + {GPR} + 8*8]
    mov r9,  [rdi + {GPR} + 9*8]
    mov r10, [rdi + {GPR} + 10*8]
    mov r11, [rdi + {GPR} + 11*8]
    mov r12, [rdi + {GPR} + 12*8]
    mov r13, [rdi + {GPR} + 13*8]
    mov r14, [rdi + {GPR} + 14*8]
    mov r15, [rdi + {GPR} + 15*8]
    mov rdi, [rdi + {GPR} + 7*8]
    jmp qword ptr gs:[{ENTRY}]
temper_enter_end:
2:
    mov qword ptr [rdi + {EXIT_KIND}], {NOT_ENTERED}
    jmp 4f

    .balign 16
temper_not_entered:
    mov qword ptr gs:[{EXIT_KIND}], {NOT_ENTERED}
    jmp temper_leave

    .balign 16
temper_leave_untranslated:
    mov qword ptr gs:[{EXIT_KIND}], {UNTRANSLATED}
    jmp temper_leave

    .balign 16
temper_counter:
    mov rcx, gs:[{SPILL}]
    mov qword ptr gs:[{EXIT_KIND}], {COUNTER}
    jmp temper_leave

    .balign 16
temper_indirect_miss:
    mov gs:[{RIP}], r11
    mov r11, gs:[{R11_SLOT}]
    mov qword ptr gs:[{EXIT_KIND}], {INDIRECT}
    // falls through

temper_leave:
    mov gs:[{GPR} + 0*8], rax
    mov gs:[{GPR} + 1*8], rcx
    mov gs:[{GPR} + 2*8], rdx
    mov gs:[{GPR} + 3*8], rbx
    mov gs:[{GPR} + 4*8], rsp
    mov gs:[{GPR} + 5*8], rbp
    mov gs:[{GPR} + 6*8], rsi
    mov gs:[{GPR} + 7*8], rdi
    mov gs:[{GPR} + 8*8], r8
    mov gs:[{GPR} + 9*8], r9
    mov gs:[{GPR} + 10*8], r10
    mov gs:[{GPR} + 11*8], r11
    mov gs:[{GPR} + 12*8], r12
    mov gs:[{GPR} + 13*8], r13
    mov gs:[{GPR} + 14*8], r14
    mov gs:[{GPR} + 15*8], r15
    mov rdi, gs:[{SELF_PTR}]
    mov rsp, [rdi + {HOST_RSP}]
    pushfq
    pop rax
    mov [rdi + {RFLAGS}], rax
    test eax, 0x40100
    jz 3f
    push 0x202
    popfq
3:
    cld
    rdfsbase rax
    mov [rdi + {FS_BASE}], rax
    mov rax, [rdi + {HOST_FS_BASE}]
    wrfsbase rax
    mov rax, [rdi + {XSAVE_MASK}]
    xor edx, edx
    xsave64 [rdi + {VECTOR}]
    test al, 4
    jz 5f
    vzeroupper
5:
    ldmxcsr [rdi + {HOST_MXCSR}]
4:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

// An indirect branch to anywhere. In: r11 = target, guest r11 in its slot.
    .balign 16
temper_exact_indirect:
    mov gs:[{SPILL} + 8], rax
    mov gs:[{SPILL} + 16], rcx
    lahf
    seto al
    mov gs:[{SPILL} + 32], rax
    mov rcx, r11
    shr rcx, 31
    jnz 1f
    mov rcx, [r11*8 + {MAP}]
    jmp 2f
1:
    mov ecx, r11d
    shl ecx, 2
    and ecx, {FAR_MASK}
    cmp gs:[rcx + {FAR_TARGETS}], r11
    jne 3f
    mov rcx, gs:[rcx + {FAR_TARGETS} + 8]
2:
    mov gs:[{SPILL} + 24], rcx
    mov rax, gs:[{SPILL} + 32]
    add al, 0x7f
    sahf
    mov rax, gs:[{SPILL} + 8]
temper_exact_commit:
    mov rcx, gs:[{PENDING}]
    jrcxz 4f
temper_exact_miss:
    mov rcx, gs:[{SPILL} + 16]
    jmp temper_indirect_miss
4:
    mov rcx, gs:[{SPILL} + 16]
    jmp qword ptr gs:[{SPILL} + 24]
temper_exact_end:
3:
    mov rax, gs:[{SPILL} + 32]
    add al, 0x7f
    sahf
    mov rax, gs:[{SPILL} + 8]
    jmp temper_exact_miss

// A SYSCALL. In: r11 = where generated code goes on, guest r11 in its slot, rip = the
// guest's next address. Flags are kept by lahf/seto (DF is not touched). Until the call is
// made, the way out gives back all registers.
    .balign 16
temper_syscall:
    mov gs:[{SPILL} + 8], r11
    mov gs:[{SPILL} + 16], rcx
    mov gs:[{SPILL} + 24], rax
    mov ecx, eax
    lahf
    seto al
    mov gs:[{SPILL} + 32], rax
    cmp ecx, 511
    ja 3f
    mov r11d, ecx
    shr r11d, 6
    mov r11, gs:[r11*8 + {PASS_THROUGH}]
    bt r11, rcx
    jnc 3f
    dec qword ptr gs:[{SYSCALL_BUDGET}]
    js 3f
    inc qword ptr gs:[{SYSCALLS_PASSED}]
    mov rax, gs:[{SPILL} + 32]
    add al, 0x7f
    sahf
    mov rax, gs:[{SPILL} + 24]
    mov gs:[{CALL_NUMBER}], rax
    mov gs:[{CALL_ARGS}], rdi
    mov gs:[{CALL_ARGS} + 8], rsi
    mov gs:[{CALL_ARGS} + 16], rdx
    mov gs:[{CALL_ARGS} + 24], r10
    mov gs:[{CALL_ARGS} + 32], r8
    mov gs:[{CALL_ARGS} + 40], r9
    // Whoever stops the world sees this word, or this thread sees its bit in `pending`:
    // the other side has a membarrier between its store and its load.
    mov qword ptr gs:[{IN_SYSCALL}], 1
temper_syscall_commit:
    mov rcx, gs:[{PENDING}]
    jrcxz 1f
    jmp temper_syscall_leave
1:
    syscall
temper_syscall_done:
    mov qword ptr gs:[{IN_SYSCALL}], 0
    mov rcx, gs:[{PENDING}]
    jrcxz 2f
    mov rcx, gs:[{RIP}]
    jmp temper_leave_untranslated
2:
    mov rcx, gs:[{RIP}]
    jmp qword ptr gs:[{SPILL} + 8]
temper_syscall_end:
3:
    mov rax, gs:[{SPILL} + 32]
    add al, 0x7f
    sahf
    mov rax, gs:[{SPILL} + 24]
temper_syscall_leave:
    mov qword ptr gs:[{IN_SYSCALL}], 0
    mov rcx, gs:[{SPILL} + 16]
    mov r11, gs:[{R11_SLOT}]
    mov qword ptr gs:[{EXIT_KIND}], {SYSCALL}
    jmp temper_leave

// The kernel wants the call made again, after the handler of the signal that interrupted
// it: at the instruction, with what SYSCALL left in rcx and r11.
temper_syscall_again:
    mov qword ptr gs:[{IN_SYSCALL}], 0
    mov rcx, gs:[{RIP}]
    lea rcx, [rcx - 2]
    mov gs:[{RIP}], rcx
    lea rcx, [rcx + 2]
    jmp temper_leave_untranslated
"#,
    HOST_RSP = const offsets::HOST_RSP,
    PENDING = const offsets::PENDING,
    XSAVE_MASK = const offsets::XSAVE_MASK,
    VECTOR = const offsets::VECTOR,
    RFLAGS = const offsets::RFLAGS,
    FS_BASE = const offsets::FS_BASE,
    GPR = const offsets::GPR,
    ENTRY = const offsets::ENTRY,
    EXIT_KIND = const offsets::EXIT_KIND,
    RIP = const offsets::RIP,
    R11_SLOT = const offsets::R11_SLOT,
    SELF_PTR = const offsets::SELF_PTR,
    HOST_FS_BASE = const offsets::HOST_FS_BASE,
    HOST_MXCSR = const offsets::HOST_MXCSR,
    SPILL = const offsets::SPILL,
    PASS_THROUGH = const offsets::PASS_THROUGH,
    IN_SYSCALL = const offsets::IN_SYSCALL,
    CALL_NUMBER = const offsets::CALL_NUMBER,
    CALL_ARGS = const offsets::CALL_ARGS,
    SYSCALL_BUDGET = const offsets::SYSCALL_BUDGET,
    SYSCALLS_PASSED = const offsets::SYSCALLS_PASSED,
    NOT_ENTERED = const ExitKind::NotEntered as u32,
    UNTRANSLATED = const ExitKind::Untranslated as u32,
    COUNTER = const ExitKind::Counter as u32,
    INDIRECT = const ExitKind::Indirect as u32,
    SYSCALL = const ExitKind::Syscall as u32,
    MAP = const MAP_DISPLACEMENT,
    FAR_TARGETS = const offsets::FAR_TARGETS,
    FAR_MASK = const (FAR_TARGETS - 1) << 4,
);

unsafe extern "C" {
    fn temper_enter(ctx: *mut libc::c_void);
    fn temper_enter_window();
    fn temper_enter_end();
    fn temper_not_entered();
    fn temper_leave_untranslated();
    fn temper_counter();
    fn temper_indirect_miss();
    fn temper_leave();
    fn temper_exact_indirect();
    fn temper_exact_commit();
    fn temper_exact_miss();
    fn temper_exact_end();
    fn temper_syscall();
    fn temper_syscall_commit();
    fn temper_syscall_done();
    fn temper_syscall_end();
    fn temper_syscall_leave();
    fn temper_syscall_again();
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $symbol:ident) => {
        $(#[$doc])*
        pub(super) fn $name() -> HostAddr {
            HostAddr($symbol as *const () as u64)
        }
    };
}

label!(enter_window, temper_enter_window);
label!(enter_end, temper_enter_end);
label!(not_entered, temper_not_entered);
label!(
    /// Where a map entry without a fragment leads: target in r11, guest r11 in its slot.
    indirect_miss,
    temper_indirect_miss
);
label!(
    /// Leaves generated code; the exit kind is stored already, all registers are the guest's.
    leave,
    temper_leave
);
label!(exact_commit, temper_exact_commit);
label!(exact_miss, temper_exact_miss);
label!(exact_end, temper_exact_end);
label!(syscall_commit, temper_syscall_commit);
label!(syscall_done, temper_syscall_done);
label!(syscall_end, temper_syscall_end);
label!(syscall_leave, temper_syscall_leave);
label!(syscall_again, temper_syscall_again);

/// Fills in what generated code reaches through the context.
pub(super) fn prepare(ctx: &mut ThreadContext) {
    ctx.self_ptr = std::ptr::from_mut(ctx) as u64;
    ctx.routines[HostRoutine::Leave as usize] = temper_leave_untranslated as *const () as u64;
    ctx.routines[HostRoutine::Syscall as usize] = temper_syscall as *const () as u64;
    ctx.routines[HostRoutine::ExactIndirect as usize] = temper_exact_indirect as *const () as u64;
    ctx.routines[HostRoutine::Counter as usize] = temper_counter as *const () as u64;
    // SAFETY: FSGSBASE was checked at start-up; the host keeps nothing in gs, and its fs
    // base is only read.
    unsafe {
        std::arch::asm!("rdfsbase {}", out(reg) ctx.host_fs_base, options(nostack, nomem));
        std::arch::asm!("wrgsbase {}", in(reg) ctx.self_ptr, options(nostack));
    }
}

/// Runs generated code at `entry` until it leaves; says why it left.
///
/// # Safety
/// `prepare` was called for this context on this thread, the context hasn't moved since,
/// and `entry` is an entry of a live fragment for `ctx.cpu.rip`.
pub(super) unsafe fn enter(ctx: &mut ThreadContext, entry: HostAddr) -> ExitKind {
    ctx.entry = entry.0;
    // SAFETY: the caller's promise; the routine keeps every callee-saved register.
    unsafe { temper_enter(std::ptr::from_mut(ctx).cast()) };
    exit_of(ctx)
}

/// Why generated code was left the last time.
pub(super) fn exit_of(ctx: &ThreadContext) -> ExitKind {
    match ctx.exit_kind {
        0 => ExitKind::Untranslated,
        1 => ExitKind::Indirect,
        2 => ExitKind::Syscall,
        3 => ExitKind::Fault,
        4 => ExitKind::Interrupted,
        5 => ExitKind::NotEntered,
        6 => ExitKind::Counter,
        other => unreachable!("exit kind {other}"),
    }
}
