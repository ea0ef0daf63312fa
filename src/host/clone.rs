//! Child processes and threads that begin on a stack of their own.

use std::arch::naked_asm;
use std::io;
use std::ops::Range;

use crate::addr::HostAddr;

/// Memory for a stack, with a page below it that can't be touched. Dropping it unmaps it:
/// nobody may run on it any more.
#[derive(Debug)]
pub struct Stack {
    at: *mut libc::c_void,
    bytes: usize,
}

const GUARD: usize = 4096;

impl Stack {
    /// # Errors
    /// The kernel's: no memory.
    pub fn new(bytes: usize) -> io::Result<Stack> {
        let bytes = bytes.next_multiple_of(4096) + GUARD;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: fresh anonymous memory; its first page is made the guard.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0);
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let stack = Stack { at, bytes };
            if libc::mprotect(at, GUARD, libc::PROT_NONE) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(stack)
        }
    }

    /// What can be used.
    pub fn range(&self) -> Range<HostAddr> {
        let start = HostAddr(self.at as u64);
        start.offset(GUARD as i64)..start.offset(self.bytes as i64)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, out of use (the owner's obligation).
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

/// Makes a clone or clone3 whose child has another stack, on which it calls `entry` with
/// `argument`. Returns the call's result, in the parent alone.
///
/// # Safety
/// The call's arguments name a stack that nobody uses, aligned to 16 bytes at its top. What
/// the child shares with this thread (memory, thread-locals) must bear two users as long as
/// both run.
pub unsafe fn clone_onto(
    number: u64,
    args: [u64; 6],
    entry: unsafe extern "C" fn(*mut u8) -> !,
    argument: *mut u8,
) -> i64 {
    // SAFETY: the caller's obligation; the stub reads six words.
    unsafe { temper_clone_onto(number, args.as_ptr(), entry, argument) }
}

#[unsafe(naked)]
unsafe extern "C" fn temper_clone_onto(
    number: u64,
    args: *const u64,
    entry: unsafe extern "C" fn(*mut u8) -> !,
    argument: *mut u8,
) -> i64 {
    naked_asm!(
        "push r12",
        "push r13",
        "mov rax, rdi",
        "mov r12, rdx",
        "mov r13, rcx",
        "mov r11, rsi",
        "mov rdi, [r11]",
        "mov rsi, [r11 + 8]",
        "mov rdx, [r11 + 16]",
        "mov r10, [r11 + 24]",
        "mov r8, [r11 + 32]",
        "mov r9, [r11 + 40]",
        "syscall",
        "test rax, rax",
        "jz 2f",
        "pop r13",
        "pop r12",
        "ret",
        // The child: its frames end here.
        "2:",
        "xor ebp, ebp",
        "mov rdi, r13",
        "call r12",
        "ud2",
    )
}
