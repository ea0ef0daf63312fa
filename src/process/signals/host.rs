//! The host's half of signals as this module needs it: the thread's real signal mask, the
//! process's real dispositions (through a trait, since the handler is the engine's). Uses
//! the kernel directly: libc's wrappers hide the two signals that it keeps for itself, which
//! belong to the guest here.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use syscalls::{Sysno, syscall};

use super::action::{SIG_DFL, SIG_IGN, sa};
use super::info::SigInfo;
use super::set::{MAX_SIGNAL, SigSet};
use crate::addr::GuestAddr;
use crate::engine::host_signals;
use crate::host::dispositions::{self, KernelAction};

/// Who takes a signal in the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostDisposition {
    /// Temper's handler, which records the signal for [`super::Signals::deliver_pending`].
    Temper,
    /// The kernel does what it does by default.
    Default,
    /// The kernel discards it.
    Ignore,
}

/// The flags of a guest's action that only the kernel can act on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HostFlags {
    /// SA_RESTART: an interrupted system call starts again.
    pub restart: bool,
    /// SA_NOCLDSTOP: no SIGCHLD when children stop.
    pub no_child_stop: bool,
    /// SA_NOCLDWAIT: children leave no zombies.
    pub no_child_wait: bool,
}

impl HostFlags {
    pub fn from_action_flags(flags: u64) -> HostFlags {
        HostFlags {
            restart: flags & sa::RESTART != 0,
            no_child_stop: flags & sa::NOCLDSTOP != 0,
            no_child_wait: flags & sa::NOCLDWAIT != 0,
        }
    }
}

/// What signals need of the engine and of the address space.
pub trait HostHandlers {
    /// Makes the host's disposition for `signo` so. For synchronous signals this is always
    /// [`HostDisposition::Temper`].
    fn set(&mut self, signo: i32, disposition: HostDisposition, flags: HostFlags);

    /// Guest memory in `range` is about to be written as the kernel writes it: undo any
    /// write protection of Temper's own there (translated code on the guest's stack).
    fn will_write(&mut self, range: Range<GuestAddr>);
}

const SIGSET_BYTES: usize = 8;

/// rt_sigprocmask(2) on this thread; `how` is SIG_BLOCK or SIG_SETMASK. Returns the mask before.
fn change_mask(how: i32, set: SigSet) -> SigSet {
    let mut old = SigSet::EMPTY;
    // SAFETY: both sets live on this stack; the kernel reads and writes 8 bytes each.
    let result = unsafe {
        syscall!(
            Sysno::rt_sigprocmask,
            how,
            &raw const set,
            &raw mut old,
            SIGSET_BYTES
        )
    };
    assert!(result.is_ok(), "rt_sigprocmask({how}): {result:?}");
    old
}

/// Adds `set` to what this thread blocks.
pub fn block(set: SigSet) -> SigSet {
    change_mask(libc::SIG_BLOCK, set)
}

/// Makes this thread block exactly `set`.
pub fn set_mask(set: SigSet) -> SigSet {
    change_mask(libc::SIG_SETMASK, set)
}

/// What this thread blocks.
pub fn mask() -> SigSet {
    block(SigSet::EMPTY)
}

/// Blocked signals that wait in the kernel for this thread or its process.
pub fn pending() -> SigSet {
    let mut set = SigSet::EMPTY;
    // SAFETY: the set lives on this stack; the kernel writes 8 bytes.
    let result = unsafe { syscall!(Sysno::rt_sigpending, &raw mut set, SIGSET_BYTES) };
    assert!(result.is_ok(), "rt_sigpending: {result:?}");
    set
}

/// Gives a signal to the kernel to ignore or to treat by default, past any handler.
pub fn give_to_kernel(signo: i32, ignore: bool) {
    let action = KernelAction {
        handler: if ignore { SIG_IGN } else { SIG_DFL },
        ..KernelAction::default()
    };
    // SAFETY: not a handler. The kernel refuses SIGKILL and SIGSTOP, which nobody changes.
    let _ = unsafe { dispositions::set_action(signo, action) };
}

/// The C library unblocks this signal (its SIGCANCEL) in each thread that it starts, before
/// anything of ours runs there: Temper's handler takes it always.
pub const OPEN_IN_NEW_THREADS: i32 = 32;

/// To be called before a thread is started.
pub fn catch_what_the_c_library_opens() {
    let signo = OPEN_IN_NEW_THREADS;
    let default = dispositions::action(signo).is_ok_and(|action| action.handler == SIG_DFL);
    if default {
        let installed = host_signals::install(signo, 0);
        debug_assert!(installed.is_ok(), "{installed:?}");
    }
}

fn is_ignored(signo: i32) -> bool {
    dispositions::action(signo).is_ok_and(|action| action.handler == SIG_IGN)
}

/// What this process got from whoever executed it. Ask before any handler is installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inherited {
    pub ignored: SigSet,
    pub mask: SigSet,
}

/// Whether SIGPIPE was ignored at execve. Rust's start-up code ignores it before `main`,
/// so it is read before that.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn read_sigpipe() {
        SIGPIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    }
    read_sigpipe
};

impl Inherited {
    pub fn read() -> Inherited {
        let ignored = (1..=MAX_SIGNAL)
            .filter(|&signo| match signo {
                libc::SIGPIPE => SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed),
                _ => is_ignored(signo),
            })
            .fold(SigSet::EMPTY, SigSet::with);
        Inherited {
            ignored,
            mask: mask(),
        }
    }
}

/// Sends `signo` to the calling thread.
pub fn raise(signo: i32) {
    // SAFETY: these calls touch no memory.
    unsafe {
        let _ = syscall!(
            Sysno::tgkill,
            std::process::id(),
            libc::syscall(libc::SYS_gettid),
            signo
        );
    }
}

/// Gives a signal that this thread took too early back to the kernel, where it waits for
/// this thread until it may come. The thread blocks it.
pub fn give_back(info: &SigInfo) {
    // SAFETY: the kernel reads the 128 bytes of `info`. To itself a process may send any.
    let result = unsafe {
        syscall!(
            Sysno::rt_tgsigqueueinfo,
            std::process::id(),
            libc::syscall(libc::SYS_gettid),
            info.signo(),
            &raw const *info
        )
    };
    // The queue is full: as when it is sent.
    tracing::debug!(target: "temper::process", signo = info.signo(), ?result, "given back");
}
