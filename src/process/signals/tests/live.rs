//! The protocol with a real handler that records as the engine's does, and real signals.

use std::cell::Cell;
use std::ptr;

use super::*;

const SIGNAL: i32 = 40;
const OTHER: i32 = 41;

thread_local! {
    static CONTEXT: Cell<*mut ThreadContext> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn record(_: i32, info: *mut libc::siginfo_t, uc: *mut libc::c_void) {
    let ctx = CONTEXT.get();
    assert!(!ctx.is_null());
    // SAFETY: the context outlives the test, which runs on this very thread; the kernel's
    // siginfo has 128 bytes and its ucontext ends in a 64-bit mask.
    unsafe {
        assert_eq!(
            (*ctx).signal_info[0] as i32,
            0,
            "a second signal was recorded"
        );
        ptr::write_volatile(&raw mut (*ctx).signal_info, *info.cast());
        (*ctx).set_signal_pending(true);
        let mask = uc.byte_add(frame::UC_SIGMASK - frame::UC).cast::<u64>();
        *mask = SigSet::all_asynchronous().0;
    }
}

/// A guest whose signals 40 and 41 are handled by the guest and recorded by the host.
fn recording_guest() -> Thread {
    let mut thread = guest();
    CONTEXT.set(&raw mut *thread.ctx);
    for signo in [SIGNAL, OTHER] {
        // SAFETY: `record` keeps to what handlers may do.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = record as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigfillset(&mut action.sa_mask);
            assert_eq!(libc::sigaction(signo, &action, ptr::null_mut()), 0);
        }
        thread.dispositions.set(signo, handler(sa::SIGINFO));
    }
    thread.signals.mask = SigSet::of(&[SIGNAL, OTHER]);
    host::set_mask(thread.signals.mask);
    thread
}

fn queue(signo: i32, value: u64) {
    let mut info = SigInfo::fault(signo, libc::SI_QUEUE, 0);
    info.0[3] = value;
    let bytes = info.to_bytes();
    // SAFETY: the kernel reads 128 bytes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            std::process::id(),
            libc::syscall(libc::SYS_gettid),
            signo,
            bytes.as_ptr(),
        )
    };
    assert_eq!(result, 0);
}

fn frame_at_top(thread: &mut Thread) -> (u64, u64, SigSet) {
    let at = thread.ctx.cpu.get(Gpr::Rsp);
    (
        thread.word(at + frame::INFO as u64) & 0xffff_ffff,
        thread.word(at + frame::INFO as u64 + 24),
        SigSet(thread.word(at + frame::UC_SIGMASK as u64)),
    )
}

#[test]
fn queued_signals_come_in_order_with_their_values() {
    let mut thread = recording_guest();
    let blocked = thread.signals.mask;
    for (signo, value) in [(SIGNAL, 1), (SIGNAL, 2), (OTHER, 3)] {
        queue(signo, value);
    }
    thread.put(TOP - 16, &0u64.to_le_bytes());
    let args = [libc::SIG_SETMASK as u64, TOP - 16, 0, 8, 0, 0];
    assert_eq!(thread.call(libc::SYS_rt_sigprocmask, args), 0);
    assert!(thread.ctx.is_signal_pending());
    assert!(host::mask().covers(SigSet::all_asynchronous().minus(UNBLOCKABLE)));

    // The first handler is entered with 40 blocked; 41 isn't and comes on top of it.
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(frame_at_top(&mut thread), (40, 1, SigSet::EMPTY));
    assert!(thread.ctx.is_signal_pending());
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(frame_at_top(&mut thread), (41, 3, SigSet::of(&[SIGNAL])));
    assert!(!thread.ctx.is_signal_pending());
    assert_eq!(thread.signals.mask, blocked);

    // Returning from both lets the second 40 in.
    for expected in [false, true] {
        let sp = thread.ctx.cpu.get(Gpr::Rsp);
        thread.ctx.cpu.set(Gpr::Rsp, sp + 8);
        thread.signals().syscall(libc::SYS_rt_sigreturn, [0; 6]);
        assert_eq!(thread.ctx.is_signal_pending(), expected);
    }
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(frame_at_top(&mut thread), (40, 2, SigSet::EMPTY));
}

#[test]
fn sigsuspend_ends_with_the_signal_and_the_old_mask_in_its_frame() {
    let mut thread = recording_guest();
    let blocked = thread.signals.mask;
    queue(SIGNAL, 7);
    let waiting = SigSet::of(&[OTHER, libc::SIGSEGV]);
    thread.put(TOP - 16, &waiting.0.to_le_bytes());
    let result = thread.call(libc::SYS_rt_sigsuspend, [TOP - 16, 8, 0, 0, 0, 0]);
    assert_eq!(result, -i64::from(libc::EINTR));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(frame_at_top(&mut thread), (40, 7, blocked));
    assert_eq!(thread.signals.mask, waiting.with(SIGNAL));
    assert_eq!(host::mask(), blocked);
}

#[test]
fn ppoll_and_pselect_wait_with_their_own_mask() {
    let mut thread = recording_guest();
    let blocked = thread.signals.mask;
    // No descriptors, no timeout: only a signal ends it. The pointers are real ones here.
    let none = SigSet::EMPTY;
    thread.put(TOP - 16, &none.0.to_le_bytes());
    let base = thread.memory.bytes.as_ptr() as u64;
    let size = thread.memory.bytes.len() as u64;
    let pack_at = TOP - 64;
    thread.put(pack_at, &(TOP - 16).to_le_bytes());
    thread.put(pack_at + 8, &8u64.to_le_bytes());
    for (nr, args) in [
        (libc::SYS_ppoll, [0, 0, 0, TOP - 16, 8, 0]),
        (libc::SYS_pselect6, [0, 0, 0, 0, 0, pack_at]),
    ] {
        queue(SIGNAL, 1);
        assert_eq!(thread.call(nr, args), -i64::from(libc::EINTR), "{nr}");
        assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
        assert_eq!(frame_at_top(&mut thread), (40, 1, blocked));
        let sp = thread.ctx.cpu.get(Gpr::Rsp);
        thread.ctx.cpu.set(Gpr::Rsp, sp + 8);
        thread.signals().syscall(libc::SYS_rt_sigreturn, [0; 6]);
        assert_eq!(thread.signals.mask, blocked);
    }
    // With a timeout of zero nothing is delivered and the mask is as before.
    let timeout = base + size - 128;
    thread.put(TOP - 128, &[0; 16]);
    let args = [0, 0, timeout, TOP - 16, 8, 0];
    assert_eq!(thread.call(libc::SYS_ppoll, args), 0);
    assert_eq!(host::mask(), blocked);
    // Without a mask they pass through.
    let plain = [0, 0, 0, 0, 0, 0];
    assert_eq!(thread.signals().syscall(libc::SYS_ppoll, plain), None);
}

#[test]
fn sigtimedwait_takes_a_blocked_signal() {
    let mut thread = recording_guest();
    queue(OTHER, 5);
    let base = thread.memory.bytes.as_ptr() as u64;
    let end = base + thread.memory.bytes.len() as u64;
    thread.put(TOP - 16, &SigSet::of(&[OTHER]).0.to_le_bytes());
    let info_at = TOP - 256;
    let args = [end - 16, info_at, 0, 8, 0, 0];
    assert_eq!(
        thread.call(libc::SYS_rt_sigtimedwait, args),
        i64::from(OTHER)
    );
    assert_eq!(thread.word(info_at + 24), 5);
    assert!(!thread.ctx.is_signal_pending());

    // A synchronous one that was sent while blocked waits in Temper.
    thread
        .signals
        .hold(SigInfo::fault(libc::SIGTRAP, libc::SI_USER, 9));
    thread.put(TOP - 16, &SigSet::of(&[libc::SIGTRAP]).0.to_le_bytes());
    let args = [TOP - 16, 0, 0, 8, 0, 0];
    assert_eq!(thread.call(libc::SYS_rt_sigtimedwait, args), 5);
}

#[test]
fn a_signal_that_came_before_a_wait_is_handled_before_it() {
    let mut thread = recording_guest();
    thread.record(SigInfo::fault(SIGNAL, 0, 0));
    thread.put(TOP - 16, &0u64.to_le_bytes());
    let mask = thread.signals.mask;
    let outcome = thread
        .signals()
        .syscall(libc::SYS_rt_sigsuspend, [TOP - 16, 8, 0, 0, 0, 0]);
    assert_eq!(outcome, Some(Outcome::Again));
    assert_eq!(thread.signals.mask, mask);
}

#[test]
fn exec_blocks_everything_and_hands_the_mask_over() {
    let mut thread = recording_guest();
    let blocked = thread.signals.mask;
    assert_eq!(thread.signals().before_exec(), Ok(blocked));
    assert!(host::mask().covers(SYNCHRONOUS));
    thread.signals().after_failed_exec();
    assert_eq!(host::mask(), blocked);
    assert_eq!(thread.host.set.len(), 5);
}

#[test]
fn dying_by_a_signal_shows_it_to_the_parent() {
    for signo in [libc::SIGSEGV, libc::SIGTERM, libc::SIGKILL, 40] {
        // SAFETY: the child calls only async-signal-safe functions before it ends.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                host::block(SigSet(!0));
                let none = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                ThreadSignals::default().die_by(signo);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status
        };
        assert!(libc::WIFSIGNALED(status));
        assert_eq!(libc::WTERMSIG(status), signo);
        assert!(!libc::WCOREDUMP(status));
    }
}
