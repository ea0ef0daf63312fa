//! Raw system calls, past the C library: no errno variable, no cancellation, no wrapper
//! that would change the guest's arguments or results.

use std::arch::{asm, naked_asm};
use std::fmt;

use crate::addr::HostAddr;

/// A Linux error number (positive).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match syscalls::Errno::new(self.0).name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match syscalls::Errno::new(self.0).description() {
            Some(text) => f.write_str(text),
            None => write!(f, "error {}", self.0),
        }
    }
}

/// What a system call gave.
pub type SyscallResult = Result<u64, Errno>;

/// Issues system call `number`; the result is as RAX holds it (-4095 to -1 are errors).
///
/// # Safety
/// The call may change memory, mappings, descriptors and the process itself; it must not
/// break what Rust code relies on.
pub unsafe fn raw(number: u64, args: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel clobbers rax, rcx and r11 only; the rest is the caller's obligation.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as i64 => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// As [`raw`], with the error told apart.
///
/// # Safety
/// As for [`raw`].
pub unsafe fn call(number: syscalls::Sysno, args: [u64; 6]) -> SyscallResult {
    // SAFETY: the caller's obligation.
    decode(unsafe { raw(number.id() as u64, args) })
}

/// As [`raw`], unless `*pending` is nonzero: then `None`, and nothing was called. For calls
/// that may block: between the look at `pending` and the call there is no gap, because the
/// signal handler that sets it redirects a thread inside [`interruptible_window`].
///
/// # Safety
/// As for [`raw`]; `pending` is valid, and only this thread's signal handler writes it.
pub unsafe fn interruptible(pending: *const u64, number: u64, args: [u64; 6]) -> Option<i64> {
    // SAFETY: the caller's obligation; the stub reads six words.
    match unsafe { temper_interruptible(pending, number, args.as_ptr()) } {
        NOT_ISSUED => None,
        result => Some(result),
    }
}

/// No system call returns it.
const NOT_ISSUED: i64 = i64::MIN;

/// The stub for [`interruptible`].
#[unsafe(naked)]
unsafe extern "C" fn temper_interruptible(
    pending: *const u64,
    number: u64,
    args: *const u64,
) -> i64 {
    naked_asm!(
        "mov rax, rsi",
        "mov r11, rdi",
        "mov rcx, rdx",
        "mov rdi, [rcx]",
        "mov rsi, [rcx + 8]",
        "mov rdx, [rcx + 16]",
        "mov r10, [rcx + 24]",
        "mov r8, [rcx + 32]",
        "mov r9, [rcx + 40]",
        ".globl temper_interruptible_check",
        ".hidden temper_interruptible_check",
        "temper_interruptible_check:",
        "cmp qword ptr [r11], 0",
        "jne 2f",
        "syscall",
        ".globl temper_interruptible_done",
        ".hidden temper_interruptible_done",
        "temper_interruptible_done:",
        "ret",
        ".globl temper_interruptible_abort",
        ".hidden temper_interruptible_abort",
        "temper_interruptible_abort:",
        "2:",
        "mov rax, {not_issued}",
        "ret",
        not_issued = const NOT_ISSUED,
    )
}

unsafe extern "C" {
    fn temper_interruptible_check();
    fn temper_interruptible_done();
    fn temper_interruptible_abort();
}

/// A thread interrupted here has not made its call yet, or is about to make it again.
pub fn interruptible_window() -> std::ops::Range<HostAddr> {
    let addr = |label: unsafe extern "C" fn()| HostAddr(label as *const () as u64);
    addr(temper_interruptible_check)..addr(temper_interruptible_done)
}

/// Where the signal handler sends such a thread.
pub fn interruptible_abort() -> HostAddr {
    HostAddr(temper_interruptible_abort as *const () as u64)
}

/// Splits a raw result into value and error.
pub fn decode(result: i64) -> SyscallResult {
    if (-4095..0).contains(&result) {
        Err(Errno(-result as i32))
    } else {
        Ok(result as u64)
    }
}

/// The raw form of a result, as the kernel leaves it in RAX.
pub fn encode(result: SyscallResult) -> u64 {
    match result {
        Ok(value) => value,
        Err(Errno(number)) => (-i64::from(number)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syscalls::Sysno;

    #[test]
    fn a_raw_call_returns_what_the_kernel_does() {
        // SAFETY: getpid changes nothing.
        let pid = unsafe { call(Sysno::getpid, [0; 6]) };
        assert_eq!(pid, Ok(u64::from(std::process::id())));
        // SAFETY: closing a descriptor that can't exist changes nothing.
        let closed = unsafe { call(Sysno::close, [u64::MAX, 0, 0, 0, 0, 0]) };
        assert_eq!(closed, Err(Errno(libc::EBADF)));
        assert_eq!(decode(encode(closed) as i64), closed);
    }

    #[test]
    fn an_interruptible_call_is_not_made_while_something_is_pending() {
        let number = Sysno::getpid.id() as u64;
        let pid = i64::from(std::process::id());
        // SAFETY: getpid changes nothing.
        unsafe {
            assert_eq!(interruptible(&0, number, [0; 6]), Some(pid));
            assert_eq!(interruptible(&1, number, [0; 6]), None);
        }
        assert!(interruptible_window().start < interruptible_window().end);
        assert!(interruptible_abort() > interruptible_window().end);
    }
}
