//! The host's signal handlers. All of the process's handlers are Temper's; what the guest
//! asked for is kept and delivered by the guest's surroundings.
//!
//! The handler may run with the guest's fs base: it must not touch thread-locals, allocate
//! or lock. It decides by the interrupted RIP alone: in the code cache the guest was
//! running, so generated code is left with the guest's registers intact; in the accessor or
//! a stub a fix-up resumes; in one of the entry routines' windows the routine is redirected;
//! anywhere else an asynchronous signal is only recorded.
//!
//! After an asynchronous signal all others stay blocked until the surroundings have
//! delivered it (they set the mask then), so one record a thread is enough.

use std::io;
use std::sync::atomic::Ordering;

use syscalls::Sysno;

use super::entry;
use crate::addr::HostAddr;
use crate::codecache::{ARENA_BASE, ARENA_LIMIT};
use crate::guest::{ExitKind, FaultRecord, SYNCHRONOUS, ThreadContext, offsets, pending};
use crate::host::dispositions::{self, KernelAction, SA_RESTORER};
use crate::host::syscall::{self, Errno};
use crate::native;

/// The page fault's trap number, and its error code's bit for instruction fetches (Intel SDM
/// volume 3, section 4.7).
const PAGE_FAULT: u64 = 14;
const FETCH: u64 = 1 << 4;

/// Installs the handlers of the synchronous signals.
///
/// # Errors
/// The kernel's.
pub fn install_synchronous() -> io::Result<()> {
    for signo in SYNCHRONOUS {
        install(signo, 0)?;
    }
    Ok(())
}

/// The kernel's flags that a handler's or a plain disposition has from the guest.
const CHILD_FLAGS: i32 = libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT;

/// Installs Temper's handler for `signo`. `flags` are the guest's SA_RESTART, SA_NOCLDSTOP
/// and SA_NOCLDWAIT, which the kernel must know.
///
/// # Errors
/// The kernel's.
pub fn install(signo: i32, flags: i32) -> io::Result<()> {
    let flags = libc::SA_SIGINFO | libc::SA_ONSTACK | flags & (libc::SA_RESTART | CHILD_FLAGS);
    let action = KernelAction {
        handler: on_signal as *const () as u64,
        flags: flags as u64 | SA_RESTORER,
        restorer: dispositions::restorer(),
        mask: ASYNCHRONOUS,
    };
    // SAFETY: the handler keeps to what this module's documentation says.
    unsafe { dispositions::set_action(signo, action) }.map(drop)
}

/// Sets the host's disposition of `signo` to SIG_DFL or SIG_IGN.
///
/// # Errors
/// The kernel's.
pub fn set_plain(signo: i32, handler: libc::sighandler_t, flags: i32) -> io::Result<()> {
    let action = KernelAction {
        handler: handler as u64,
        flags: (flags & CHILD_FLAGS) as u64,
        ..KernelAction::default()
    };
    // SAFETY: not a handler.
    unsafe { dispositions::set_action(signo, action) }.map(drop)
}

/// Every signal that can be blocked in the host, as the kernel's set.
const ASYNCHRONOUS: u64 = {
    let mut set = u64::MAX;
    let mut i = 0;
    while i < SYNCHRONOUS.len() {
        set &= !(1 << (SYNCHRONOUS[i] - 1));
        i += 1;
    }
    set
};

/// A thread's alternate stack for the host's signals. Belongs to the thread that made it,
/// which drops it at its end.
#[derive(Debug)]
pub struct SignalStack {
    base: *mut libc::c_void,
    bytes: usize,
}

impl SignalStack {
    /// Maps one. Pages exist once they are touched.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<SignalStack, Errno> {
        let bytes = signal_stack_bytes();
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno(libc::ENOMEM));
        }
        Ok(SignalStack { base, bytes })
    }

    /// Makes it the calling thread's.
    pub fn make_current(self) -> SignalStack {
        assert!(
            self.set(0),
            "sigaltstack refuses a stack of {} bytes",
            self.bytes
        );
        self
    }

    fn set(&self, flags: i32) -> bool {
        // SAFETY: the mapping of this value.
        unsafe { set_alternate_stack(self.base, self.bytes, flags) }
    }
}

/// Bytes of a thread's alternate stack.
pub(super) fn signal_stack_bytes() -> usize {
    // SAFETY: getauxval has no preconditions.
    let minimum = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    (minimum.max(4096) + (64 << 10)).next_multiple_of(4096)
}

/// Makes the memory at `base` the calling thread's alternate stack.
///
/// # Safety
/// It is that thread's alone as long as it takes signals.
pub(super) unsafe fn set_alternate_stack(
    base: *mut libc::c_void,
    bytes: usize,
    flags: i32,
) -> bool {
    let alternate = libc::stack_t {
        ss_sp: base,
        ss_flags: flags,
        ss_size: bytes,
    };
    // SAFETY: the caller's obligation.
    unsafe { libc::sigaltstack(&alternate, std::ptr::null_mut()) == 0 }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // Dropped in the thread that it was made for, or never current.
        if self.set(libc::SS_DISABLE) {
            // SAFETY: our own mapping, no longer used.
            unsafe { libc::munmap(self.base, self.bytes) };
        }
    }
}

fn in_arena(pc: u64) -> bool {
    (ARENA_BASE.0..ARENA_LIMIT.0).contains(&pc)
}

fn between(pc: u64, start: HostAddr, end: HostAddr) -> bool {
    (start.0..end.0).contains(&pc)
}

unsafe extern "C" fn on_signal(
    signo: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // The kernel leaves the guest's RFLAGS.AC set for the handler; with it, Rust code faults.
    // SAFETY: changes that flag alone.
    unsafe {
        std::arch::asm!("pushfq", "and dword ptr [rsp], {}", "popfq", const !0x40000_i32);
    }
    // SAFETY: the kernel passes a valid ucontext and siginfo, ours for the handler's time.
    let (context, info) = unsafe { (&mut *context.cast::<libc::ucontext_t>(), &*info) };
    let pc = context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
    // A process may send itself a fault's siginfo; it arrives on the way out of that call,
    // where nothing faults.
    let from_cpu = SYNCHRONOUS.contains(&signo) && info.si_code > 0 && !returns_from_call(pc);
    if from_cpu {
        // SAFETY: the kernel's own arguments.
        if unsafe { native::resume_at_fix_up(signo, info, context) } {
            return;
        }
        let registers = &mut context.uc_mcontext.gregs;
        let trap_number = registers[libc::REG_TRAPNO as usize] as u64;
        let error_code = registers[libc::REG_ERR as usize] as u64;
        // SAFETY: si_addr is valid for these signals.
        let addr = unsafe { info.si_addr() } as u64;
        if pc == 0 {
            // An indirect branch through a page of the map that was never filled.
            registers[libc::REG_RIP as usize] = entry::indirect_miss().0 as i64;
            return;
        }
        if in_arena(pc) {
            // SAFETY: generated code runs only on threads with a context.
            let ctx = unsafe { &mut *this_context() };
            ctx.fault = FaultRecord {
                host_pc: pc,
                addr,
                signal: signo as u64,
                si_code: i64::from(info.si_code) as u64,
                trap_number,
                error_code,
            };
            // Nothing but the stop of the world makes generated code unfit to be fetched.
            let stopped = trap_number == PAGE_FAULT && error_code & FETCH != 0 && in_arena(addr);
            ctx.exit_kind = if stopped {
                ExitKind::Interrupted
            } else {
                ExitKind::Fault
            } as u64;
            registers[libc::REG_RIP as usize] = entry::leave().0 as i64;
            // A single-step trap must not follow into Rust.
            registers[libc::REG_EFL as usize] &= !0x100;
            return;
        }
        crash(signo, pc, addr);
        return;
    }

    // SAFETY: Temper's threads other than guest threads block every signal; what gs names
    // otherwise has a null pointer there.
    let Some(ctx) = (unsafe { this_context().as_mut() }) else {
        put_off(info, context);
        return;
    };
    let record = match SYNCHRONOUS.iter().position(|&own| own == signo) {
        None => &mut ctx.signal_info,
        Some(slot) => &mut ctx.sent_synchronous[slot],
    };
    // Standard signals don't queue: one of a kind that awaits delivery absorbs the next.
    if record[0] == 0 {
        // SAFETY: siginfo_t is 128 bytes of plain data.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(info).cast::<u64>(),
                record.as_mut_ptr(),
                record.len(),
            );
        }
    }
    ctx.pending.fetch_or(pending::SIGNAL, Ordering::Relaxed);
    // A sent synchronous signal blocks nothing: the record of the others is still free.
    if !SYNCHRONOUS.contains(&signo) {
        // SAFETY: the kernel's sigset is 8 bytes, and uc_sigmask holds at least that.
        unsafe {
            (&raw mut context.uc_sigmask)
                .cast::<u64>()
                .write(ASYNCHRONOUS);
        }
    }
    let registers = &mut context.uc_mcontext.gregs;
    if in_arena(pc) {
        ctx.fault.host_pc = pc;
        ctx.exit_kind = ExitKind::Interrupted as u64;
        registers[libc::REG_RIP as usize] = entry::leave().0 as i64;
    } else if pc == 0 {
        registers[libc::REG_RIP as usize] = entry::indirect_miss().0 as i64;
    } else {
        redirect(ctx, registers, pc);
    }
}

/// Leads a thread that is between a look at `pending` and what follows away from there.
fn redirect(ctx: &mut ThreadContext, registers: &mut [i64; 23], pc: u64) {
    let calls = syscall::interruptible_window();
    let rip = if between(pc, entry::enter_window(), entry::enter_end()) {
        ctx.entry = entry::not_entered().0;
        return;
    } else if between(pc, entry::exact_commit(), entry::exact_end()) {
        entry::exact_miss()
    } else if between(pc, entry::syscall_commit(), entry::syscall_done()) {
        // The kernel makes a call start again by going back to the instruction; RCX then
        // still holds what SYSCALL put there, the address behind it.
        if registers[libc::REG_RCX as usize] as u64 == entry::syscall_done().0 {
            entry::syscall_again()
        } else {
            entry::syscall_leave()
        }
    } else if between(pc, entry::syscall_done(), entry::syscall_end()) {
        entry::syscall_done()
    } else if between(pc, calls.start, calls.end) {
        syscall::interruptible_abort()
    } else {
        return;
    };
    registers[libc::REG_RIP as usize] = rip.0 as i64;
}

/// Whether a thread at `pc` has just made a system call for the guest.
fn returns_from_call(pc: u64) -> bool {
    between(pc, entry::syscall_commit(), entry::syscall_end())
        || (syscall::interruptible_window().start.0..=syscall::interruptible_window().end.0)
            .contains(&pc)
}

/// What the gs base names in a host thread that isn't a guest's yet, or no longer: nothing
/// but a null pointer in the place of a context's own address.
static NOBODY: [u64; offsets::SELF_PTR / 8 + 1] = [0; offsets::SELF_PTR / 8 + 1];

/// From now on the calling thread has no context: signals that reach it wait.
pub fn leave_context() {
    // SAFETY: FSGSBASE was checked at start-up; what gs names now lives for ever.
    unsafe { std::arch::asm!("wrgsbase {}", in(reg) NOBODY.as_ptr(), options(nostack)) };
}

/// Runs `operation`, which starts a thread: that inherits the gs base, and is to find no
/// context until it has its own.
pub fn without_context<R>(operation: impl FnOnce() -> R) -> R {
    let own: u64;
    // SAFETY: reads the gs base.
    unsafe { std::arch::asm!("rdgsbase {}", out(reg) own, options(nostack, nomem)) };
    leave_context();
    let result = operation();
    // SAFETY: as it was.
    unsafe { std::arch::asm!("wrgsbase {}", in(reg) own, options(nostack)) };
    result
}

/// A signal for a thread without a context: it blocks all of them and gets this one again
/// once it opens its mask. One for the process is any thread's.
fn put_off(info: &libc::siginfo_t, context: &mut libc::ucontext_t) {
    // SAFETY: the kernel's sigset is 8 bytes, and uc_sigmask holds at least that.
    unsafe { (&raw mut context.uc_sigmask).cast::<u64>().write(u64::MAX) };
    let signo = info.si_signo as u64;
    let number = |call: Sysno| call.id() as u64;
    // SAFETY: neither call touches memory but `info`, which the kernel reads.
    unsafe {
        let process = syscall::raw(number(Sysno::getpid), [0; 6]) as u64;
        let at = std::ptr::from_ref(info) as u64;
        if SYNCHRONOUS.contains(&info.si_signo) && info.si_code != libc::SI_TKILL {
            let args = [process, signo, at, 0, 0, 0];
            syscall::raw(number(Sysno::rt_sigqueueinfo), args);
        } else {
            let thread = syscall::raw(number(Sysno::gettid), [0; 6]) as u64;
            let args = [process, thread, signo, at, 0, 0];
            syscall::raw(number(Sysno::rt_tgsigqueueinfo), args);
        }
    }
}

fn this_context() -> *mut ThreadContext {
    let ctx: *mut ThreadContext;
    // SAFETY: guest threads keep their context's address in the gs base; only a load.
    unsafe {
        std::arch::asm!(
            "mov {}, gs:[{}]",
            out(reg) ctx,
            const offsets::SELF_PTR,
            options(nostack, readonly, preserves_flags)
        );
    }
    ctx
}

/// A fault in Temper itself: says so and lets the default action follow.
fn crash(signo: i32, pc: u64, addr: u64) {
    let mut line = Line::default();
    line.text("temper: internal error: signal ");
    line.number(signo as u64, 10);
    line.text(" at host address 0x");
    line.number(pc, 16);
    line.text(", data address 0x");
    line.number(addr, 16);
    line.text("; --max-tier interpreter may avoid it\n");
    // SAFETY: async-signal-safe calls; the default action ends the process when the
    // faulting instruction runs again.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::signal(signo, libc::SIG_DFL);
    }
}

/// A line of text without allocation.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Line {
            bytes: [0; 256],
            len: 0,
        }
    }
}

impl Line {
    fn text(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            if self.len < self.bytes.len() {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, mut value: u64, radix: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(value % radix) as usize];
            value /= radix;
            if value == 0 || at == 0 {
                break;
            }
        }
        if let Ok(text) = std::str::from_utf8(&digits[at..]) {
            self.text(text);
        }
    }
}
