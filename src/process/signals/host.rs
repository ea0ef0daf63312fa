//! The host's half of signals as this module needs it: the thread's real signal mask, the
//! process's real dispositions (through a trait, since the handler is the engine's), and
//! dying by a signal. Uses the kernel directly: libc's wrappers hide the two signals that
//! it keeps for itself, which belong to the guest here.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use syscalls::{Sysno, syscall};

use super::action::{SIG_DFL, SIG_IGN, sa};
use super::set::{MAX_SIGNAL, SigSet};
use crate::addr::GuestAddr;

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

/// The kernel's `struct sigaction`.
type KernelAction = [u64; 4];

fn kernel_action(signo: i32, new: Option<&KernelAction>) -> Option<KernelAction> {
    let mut old: KernelAction = [0; 4];
    let new = new.map_or(std::ptr::null(), |action| &raw const *action);
    // SAFETY: both structures are live and 32 bytes, as the kernel expects; callers install
    // only SIG_DFL and SIG_IGN.
    unsafe { syscall!(Sysno::rt_sigaction, signo, new, &raw mut old, SIGSET_BYTES) }
        .ok()
        .map(|_| old)
}

/// Gives a signal to the kernel to ignore or to treat by default, past any handler.
pub fn give_to_kernel(signo: i32, ignore: bool) {
    kernel_action(
        signo,
        Some(&[if ignore { SIG_IGN } else { SIG_DFL }, 0, 0, 0]),
    );
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
        let ignored = kernel_action(libc::SIGPIPE, None).is_some_and(|old| old[0] == SIG_IGN);
        SIGPIPE_WAS_IGNORED.store(ignored, Ordering::Relaxed);
    }
    read_sigpipe
};

impl Inherited {
    pub fn read() -> Inherited {
        let ignored = (1..=MAX_SIGNAL)
            .filter(|&signo| match signo {
                libc::SIGPIPE => SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed),
                _ => kernel_action(signo, None).is_some_and(|old| old[0] == SIG_IGN),
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

/// Ends this process the way the guest died, so that whoever waits sees the same status. A
/// core file would show Temper's state under the guest's name, so none is written.
pub fn die_by(signo: i32) -> ! {
    // SAFETY: affects only this process, which is ending.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    die(signo)
}

/// As [`die_by`], in a process whose memory (and with it what PR_SET_DUMPABLE says) is its
/// parent's too.
pub fn die_sharing(signo: i32) -> ! {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: affects only this process, which is ending.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    die(signo)
}

fn die(signo: i32) -> ! {
    give_to_kernel(signo, false);
    set_mask(SigSet(!0).without(signo));
    raise(signo);
    // Only process 1 of a PID namespace gets here: it ignores what it sends to itself.
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(128 + signo) }
}
