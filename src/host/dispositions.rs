//! The host's settings that Temper changes: what a signal does (past the C library, which
//! keeps two real-time signals to itself), and where the C library's heap comes from.

use std::arch::naked_asm;
use std::io;

use super::syscall::{Errno, call};
use syscalls::Sysno;

/// The kernel's `struct sigaction` on x86-64. A handler needs [`SA_RESTORER`] and
/// [`restorer`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct KernelAction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    /// Bit n-1 stands for signal n.
    pub mask: u64,
}

/// `restorer` is set; x86-64 has no other way back from a handler.
pub const SA_RESTORER: u64 = 0x0400_0000;

/// What handlers of [`set_action`] return to.
pub fn restorer() -> u64 {
    return_from_signal as *const () as u64
}

#[unsafe(naked)]
unsafe extern "C" fn return_from_signal() {
    naked_asm!("mov eax, {}", "syscall", const libc::SYS_rt_sigreturn)
}

/// What `signo` does at present.
///
/// # Errors
/// The kernel's.
pub fn action(signo: i32) -> io::Result<KernelAction> {
    let mut now = KernelAction::default();
    // SAFETY: only asks; the kernel fills the 32 bytes of `now`.
    unsafe { rt_sigaction(signo, std::ptr::null(), &raw mut now) }?;
    Ok(now)
}

/// Sets what `signo` does; returns what it did before.
///
/// # Safety
/// A handler must be a function with a signal handler's three parameters that can run at
/// any moment.
///
/// # Errors
/// The kernel's.
pub unsafe fn set_action(signo: i32, new: KernelAction) -> io::Result<KernelAction> {
    let mut before = KernelAction::default();
    // SAFETY: both structures live; the rest is the caller's promise.
    unsafe { rt_sigaction(signo, &raw const new, &raw mut before) }?;
    Ok(before)
}

unsafe fn rt_sigaction(
    signo: i32,
    new: *const KernelAction,
    old: *mut KernelAction,
) -> io::Result<()> {
    let args = [signo as u64, new as u64, old as u64, 8, 0, 0];
    // SAFETY: the callers' pointers are valid or null.
    match unsafe { call(Sysno::rt_sigaction, args) } {
        Ok(_) => Ok(()),
        Err(Errno(number)) => Err(io::Error::from_raw_os_error(number)),
    }
}

/// A signal that the host ignores as long as this lives; then its action is as before.
#[derive(Debug)]
pub struct Ignored {
    signo: i32,
    before: Option<KernelAction>,
}

impl Ignored {
    pub fn new(signo: i32) -> Ignored {
        let ignore = KernelAction {
            handler: libc::SIG_IGN as u64,
            ..KernelAction::default()
        };
        // SAFETY: not a handler.
        let before = unsafe { set_action(signo, ignore) }.ok();
        Ignored { signo, before }
    }
}

impl Drop for Ignored {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: the action that was there before. It can't be refused now.
            let _ = unsafe { set_action(self.signo, before) };
        }
    }
}

/// From now on the C library's allocator maps each piece it needs, so that C code in Temper
/// (zstd) leaves the break alone.
pub fn keep_c_heap_off_the_break() {
    // SAFETY: sets tunables of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 0);
        // An arena for each thread would reserve 64 MiB.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering};

    #[test]
    fn an_ignored_signal_is_harmless_and_then_as_before() {
        let now = || action(libc::SIGXFSZ).expect("a signal").handler;
        let before = now();
        let ignored = Ignored::new(libc::SIGXFSZ);
        // SAFETY: raises a signal that is ignored.
        assert_eq!(unsafe { libc::raise(libc::SIGXFSZ) }, 0);
        assert_eq!(now(), libc::SIG_IGN as u64);
        drop(ignored);
        assert_eq!(now(), before);
    }

    #[test]
    fn the_signals_that_the_c_library_hides_can_be_handled() {
        static SEEN: AtomicI32 = AtomicI32::new(0);
        extern "C" fn on_signal(signo: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
            SEEN.store(signo, Ordering::Relaxed);
        }
        let handle = KernelAction {
            handler: on_signal as *const () as u64,
            flags: libc::SA_SIGINFO as u64 | SA_RESTORER,
            restorer: restorer(),
            mask: 0,
        };
        // Nobody else in this process uses 33 (the C library's for set*id).
        // SAFETY: the handler stores a number.
        let before = unsafe { set_action(33, handle) }.expect("allowed");
        // SAFETY: sends this thread a signal that it handles.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), 33) };
        assert_eq!(SEEN.load(Ordering::Relaxed), 33);
        // SAFETY: as it was.
        unsafe { set_action(33, before) }.expect("allowed");
    }
}
