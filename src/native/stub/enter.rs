//! The way into a stub and out of it. Every stub runs in the same frame, so that one landing
//! can leave from a fault anywhere in any stub.

use std::arch::naked_asm;

use crate::guest::{CpuState, VectorState};

/// MXCSR as Rust code expects it: all exceptions masked, round to nearest.
static HOST_MXCSR: u32 = 0x1f80;

/// How a stub ended: zero, or a packed fault and its address.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Landed {
    pub fault: u64,
    pub addr: u64,
}

/// Calls the stub at `code`, which gets `cpu`, `vector` and `memory` in RDI, RSI and RDX, may
/// change every register but RSP, and must not push while its instruction runs. After a
/// fault, `mxcsr` holds MXCSR as the fault left it.
///
/// # Safety
/// `code` is a stub; the pointers are valid as it needs them.
#[unsafe(naked)]
pub unsafe extern "C" fn enter(
    cpu: *mut CpuState,
    vector: *mut VectorState,
    memory: *mut u8,
    code: u64,
    mxcsr: *mut u32,
) -> Landed {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push r8",
        "call rcx",
        "xor eax, eax",
        "pop rcx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Where a fault in a stub resumes, with [`Landed`] in its registers already. Never called.
#[unsafe(naked)]
unsafe extern "C" fn landing() {
    naked_asm!(
        "add rsp, 8", // the stub's return address
        "pop rcx",
        "stmxcsr dword ptr [rcx]",
        "ldmxcsr dword ptr [rip + {host_mxcsr}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_mxcsr = sym HOST_MXCSR,
    )
}

/// See [`crate::native::fix_up`].
pub fn landing_address() -> u64 {
    landing as *const () as u64
}
