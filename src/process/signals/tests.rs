//! Frames compared with frames that the kernel builds for the same state, and the calls
//! compared with what the kernel answers.

mod live;
mod native;

use native::{Capture, capture};

use super::frame;
use super::*;
use crate::addr::GuestAddr;
use crate::guest::{Access, Gpr, GuestMemory, GuestTrap, MemoryFault, Width, flags};
use crate::host::XsaveLayout;
use crate::host::syscall::interruptible;
use std::ops::Range;

/// One mapped range of guest memory.
struct OneRange {
    base: u64,
    bytes: Vec<u8>,
}

impl OneRange {
    fn new(range: Range<u64>) -> OneRange {
        OneRange {
            base: range.start,
            bytes: vec![0xaa; (range.end - range.start) as usize],
        }
    }

    fn at(&mut self, addr: GuestAddr, len: usize) -> Result<&mut [u8], GuestTrap> {
        let start = addr.0.wrapping_sub(self.base) as usize;
        let end = start.wrapping_add(len);
        self.bytes
            .get_mut(start..end)
            .ok_or(GuestTrap::Memory(MemoryFault {
                addr,
                error_code: 6,
                trap_number: 14,
                signal: libc::SIGSEGV as u8,
                si_code: 1,
            }))
    }
}

impl GuestMemory for OneRange {
    fn load(&mut self, _: GuestAddr, _: Width) -> Result<u64, GuestTrap> {
        unreachable!("signals copy bytes")
    }
    fn store(&mut self, _: GuestAddr, _: Width, _: u64) -> Result<(), GuestTrap> {
        unreachable!("signals copy bytes")
    }
    fn compare_exchange(
        &mut self,
        _: GuestAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, GuestTrap> {
        unreachable!("signals copy bytes")
    }
    fn compare_exchange_16(&mut self, _: GuestAddr, _: u128, _: u128) -> Result<u128, GuestTrap> {
        unreachable!("signals copy bytes")
    }
    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        buffer.copy_from_slice(self.at(addr, buffer.len())?);
        Ok(())
    }
    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        self.at(addr, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }
    fn fetch(&mut self, _: GuestAddr, _: &mut [u8]) -> Result<usize, GuestTrap> {
        unreachable!("signals copy bytes")
    }
    fn direct(&mut self, _: GuestAddr, _: usize, _: Access) -> Option<*mut u8> {
        None
    }
}

/// Remembers what it was asked.
#[derive(Default)]
struct Recorder {
    set: Vec<(i32, HostDisposition, HostFlags)>,
    written: Vec<Range<GuestAddr>>,
}

impl HostHandlers for Recorder {
    fn set(&mut self, signo: i32, disposition: HostDisposition, flags: HostFlags) {
        self.set.push((signo, disposition, flags));
    }
    fn will_write(&mut self, range: Range<GuestAddr>) {
        self.written.push(range);
    }
}

/// A whole guest thread, so that tests are short.
struct Thread {
    dispositions: Dispositions,
    signals: ThreadSignals,
    ctx: Box<ThreadContext>,
    memory: OneRange,
    host: Recorder,
}

impl Thread {
    fn new(memory: Range<u64>) -> Thread {
        Thread {
            dispositions: Dispositions::default(),
            signals: ThreadSignals::new(host::mask()),
            ctx: Box::default(),
            memory: OneRange::new(memory),
            host: Recorder::default(),
        }
    }

    fn signals(&mut self) -> Signals<'_, OneRange, Recorder> {
        Signals {
            dispositions: &self.dispositions,
            thread: &mut self.signals,
            ctx: &mut self.ctx,
            memory: &mut self.memory,
            host: &mut self.host,
        }
    }

    /// As the host's handler does.
    fn record(&mut self, info: SigInfo) {
        if SYNCHRONOUS.contains(info.signo()) {
            self.ctx.sent_synchronous[0] = info.0;
        } else {
            self.ctx.signal_info = info.0;
        }
        self.ctx.set_signal_pending(true);
    }

    fn call(&mut self, nr: i64, args: [u64; 6]) -> i64 {
        let mut outcome = self.signals().syscall(nr, args);
        if let Some(Outcome::Call(call)) = outcome {
            let pending = self.ctx.pending.as_ptr();
            // SAFETY: the tests' calls touch the tests' memory.
            let result = unsafe { interruptible(pending, call.number, call.args) };
            outcome = Some(self.signals().call_returned(result));
        }
        match outcome {
            Some(Outcome::Return(value)) => value,
            other => panic!("system call {nr}: {other:?}"),
        }
    }

    fn word(&mut self, addr: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory
            .read_bytes(GuestAddr(addr), &mut bytes)
            .expect("mapped");
        u64::from_le_bytes(bytes)
    }

    fn put(&mut self, addr: u64, bytes: &[u8]) {
        self.memory
            .write_bytes(GuestAddr(addr), bytes)
            .expect("mapped");
    }
}

const BASE: u64 = 0x5000_0000;
const TOP: u64 = BASE + 0x1_0000;

fn handler(flags: u64) -> Action {
    Action {
        handler: 0x40_1000,
        flags: flags | sa::RESTORER,
        restorer: 0x40_2000,
        mask: SigSet::EMPTY,
    }
}

fn guest() -> Thread {
    let mut thread = Thread::new(BASE..TOP);
    thread.ctx.cpu.set(Gpr::Rsp, TOP - 0x100);
    thread.ctx.cpu.rip = 0x40_0000;
    thread
}

/// A guest thread in the state that the kernel built `native` for, about to get the same signal.
fn same_state(native: &Capture, on_stack: bool) -> Thread {
    let native_sp = native.register(libc::REG_RSP);
    let mut thread = Thread::new(native_sp - native.copied as u64..native_sp);
    if on_stack {
        let stack = native.alt_stack;
        thread.memory = OneRange::new(stack.base..stack.base + stack.size);
    }
    let registers = [
        (Gpr::Rax, libc::REG_RAX),
        (Gpr::Rcx, libc::REG_RCX),
        (Gpr::Rdx, libc::REG_RDX),
        (Gpr::Rbx, libc::REG_RBX),
        (Gpr::Rsp, libc::REG_RSP),
        (Gpr::Rbp, libc::REG_RBP),
        (Gpr::Rsi, libc::REG_RSI),
        (Gpr::Rdi, libc::REG_RDI),
        (Gpr::R8, libc::REG_R8),
        (Gpr::R9, libc::REG_R9),
        (Gpr::R10, libc::REG_R10),
        (Gpr::R11, libc::REG_R11),
        (Gpr::R12, libc::REG_R12),
        (Gpr::R13, libc::REG_R13),
        (Gpr::R14, libc::REG_R14),
        (Gpr::R15, libc::REG_R15),
    ];
    for (gpr, index) in registers {
        thread.ctx.cpu.set(gpr, native.register(index));
    }
    thread.ctx.cpu.rip = native.register(libc::REG_RIP);
    thread.ctx.cpu.rflags = native.register(libc::REG_EFL);
    for (index, value) in native::vector_patterns().iter().enumerate() {
        thread.ctx.vector.set_register(index, value);
    }
    for index in 0..8 {
        thread
            .ctx
            .vector
            .set_mask(index, native::mask_pattern(index));
    }
    thread.ctx.vector.set_mxcsr(native::MXCSR);
    thread.signals.fault = FaultCodes {
        trap_number: native.register(libc::REG_TRAPNO),
        error_code: native.register(libc::REG_ERR),
        cr2: native.register(libc::REG_CR2),
    };
    thread.signals.alt_stack = native.alt_stack;
    let flags = sa::SIGINFO | if on_stack { sa::ONSTACK } else { 0 };
    thread.dispositions.set(
        libc::SIGUSR2,
        Action {
            handler: native.handler,
            flags: flags | sa::RESTORER,
            restorer: native.restorer,
            mask: SigSet::of(&[libc::SIGHUP]),
        },
    );
    thread
}

fn compare_with_the_kernel(on_stack: bool) {
    let native = capture(on_stack);
    let mut thread = same_state(&native, on_stack);
    let before = thread.ctx.cpu.clone();
    let vector_before = thread.ctx.vector.clone();
    let mask_before = thread.signals.mask;
    thread.record(native.info());
    native::load_x87();
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);

    // What the handler starts with.
    let entry = &native.entry;
    for (gpr, expected) in [
        (Gpr::Rdi, entry.rdi),
        (Gpr::Rsi, entry.rsi),
        (Gpr::Rdx, entry.rdx),
        (Gpr::Rax, entry.rax),
        (Gpr::Rsp, entry.rsp),
    ] {
        assert_eq!(thread.ctx.cpu.get(gpr), expected, "{gpr:?}");
    }
    assert_eq!(thread.ctx.cpu.rip, native.handler);
    let visible = flags::USER;
    assert_eq!(
        thread.ctx.cpu.rflags & visible,
        entry.rflags & visible,
        "flags at entry"
    );
    assert_eq!(thread.ctx.vector.mxcsr(), entry.mxcsr as u32);
    assert_eq!(thread.ctx.vector.register(5), [0; 64]);
    assert_eq!(
        u64::from(fpstate::x87_control_and_status().0),
        entry.x87_control
    );
    assert_eq!(thread.signals.mask, native.mask_in_handler);

    // The frame, byte for byte where the kernel writes.
    let start = entry.rsp;
    let fp = native.word(frame::MC + 23 * 8) - start;
    let mut ours = vec![0; native.bytes.len()];
    thread
        .memory
        .read_bytes(GuestAddr(start), &mut ours)
        .expect("the frame is in the thread's memory");
    let mut parts = vec![
        ("restorer, ucontext", 0..frame::MC + 24 * 8),
        ("sigmask, siginfo", frame::UC_SIGMASK..frame::FRAME_BYTES),
        ("x87", fp as usize..fp as usize + 160),
        ("xmm", fp as usize + 160..fp as usize + 416),
        ("software bytes", fp as usize + 464..fp as usize + 512),
        ("header", fp as usize + 512..fp as usize + 576),
    ];
    for component in &XsaveLayout::get().components {
        let at = fp as usize + component.offset;
        parts.push(("component", at..at + component.bytes));
    }
    let end = fp as usize + fpstate::FrameLayout::get().area_bytes;
    parts.push(("second mark", end..end + 4));
    for (name, range) in parts {
        assert_eq!(
            native.bytes[range.clone()],
            ours[range.clone()],
            "{name} at {range:?}"
        );
    }

    // And back.
    let sp = thread.ctx.cpu.get(Gpr::Rsp);
    thread.ctx.cpu.set(Gpr::Rsp, sp + 8);
    assert_eq!(
        thread.signals().syscall(libc::SYS_rt_sigreturn, [0; 6]),
        Some(Outcome::Action(EnvAction::Continue))
    );
    assert_eq!(thread.ctx.cpu, before);
    assert_eq!(thread.signals.mask, mask_before);
    for index in 0..32 {
        assert_eq!(
            thread.ctx.vector.register(index),
            vector_before.register(index)
        );
    }
    assert_eq!(thread.ctx.vector.mask(3), vector_before.mask(3));
    assert_eq!(thread.ctx.vector.mxcsr(), native::MXCSR);
    assert_eq!(native::take_x87(), (std::f64::consts::PI, 1.0));
}

#[test]
fn a_frame_is_the_one_that_the_kernel_builds() {
    compare_with_the_kernel(false);
}

#[test]
fn a_frame_on_the_alternate_stack_is_the_one_that_the_kernel_builds() {
    compare_with_the_kernel(true);
}

#[test]
fn a_fault_shows_its_codes_and_the_resume_flag() {
    let mut thread = guest();
    thread.dispositions.set(libc::SIGSEGV, handler(sa::SIGINFO));
    let trap = GuestTrap::Memory(MemoryFault {
        addr: GuestAddr(0x1234),
        error_code: 6,
        trap_number: 14,
        signal: libc::SIGSEGV as u8,
        si_code: 1,
    });
    let signal = signal_for(&trap, &mut thread.ctx, &mut thread.memory).expect("a signal");
    assert_eq!(thread.signals().force(&signal), EnvAction::Continue);
    let at = thread.ctx.cpu.get(Gpr::Rsp);
    let mc = at + frame::MC as u64;
    assert_eq!(thread.word(mc + 19 * 8), 6);
    assert_eq!(thread.word(mc + 20 * 8), 14);
    assert_eq!(thread.word(mc + 22 * 8), 0x1234);
    assert_ne!(thread.word(mc + 17 * 8) & frame::RESUME_FLAG, 0);
    assert_eq!(thread.word(at + frame::INFO as u64 + 16), 0x1234);
    assert!(thread.signals.mask.contains(libc::SIGSEGV));
    // The handler faults itself: the signal is blocked, so that kills.
    assert_eq!(
        thread.signals().force(&signal),
        EnvAction::Kill(libc::SIGSEGV)
    );
}

#[test]
fn a_fault_without_room_for_its_frame_kills() {
    let mut thread = guest();
    thread.ctx.cpu.set(Gpr::Rsp, BASE + 0x400);
    thread.dispositions.set(libc::SIGUSR1, handler(0));
    thread.record(SigInfo::fault(libc::SIGUSR1, 0, 0));
    assert_eq!(
        thread.signals().deliver_pending(),
        EnvAction::Kill(libc::SIGSEGV)
    );
}

#[test]
fn overflow_of_the_stack_is_caught_on_the_alternate_stack() {
    let mut thread = guest();
    thread.ctx.cpu.set(Gpr::Rsp, 0x1000);
    thread.signals.alt_stack = AltStack {
        base: BASE,
        size: 0x4000,
        flags: 0,
    };
    thread.dispositions.set(libc::SIGUSR1, handler(0));
    thread.dispositions.set(
        libc::SIGSEGV,
        Action {
            handler: 0x40_3000,
            ..handler(sa::ONSTACK | sa::SIGINFO)
        },
    );
    thread.record(SigInfo::fault(libc::SIGUSR1, 0, 0));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(thread.ctx.cpu.rip, 0x40_3000);
    let info = thread.ctx.cpu.get(Gpr::Rsi);
    assert_eq!(thread.word(info), libc::SIGSEGV as u64);
    assert_eq!(thread.word(info + 8), 0x80);
    let written = thread.host.written.last().expect("announced");
    assert!(written.start.0 >= BASE && written.end.0 <= BASE + 0x4000);
}

#[test]
fn a_blocked_synchronous_signal_that_was_sent_waits_in_temper() {
    let mut thread = guest();
    thread.dispositions.set(libc::SIGFPE, handler(0));
    let set = TOP - 16;
    thread.put(set, &SigSet::of(&[libc::SIGFPE]).0.to_le_bytes());
    let block = [libc::SIG_BLOCK as u64, set, 0, 8, 0, 0];
    assert_eq!(thread.call(libc::SYS_rt_sigprocmask, block), 0);
    thread.record(SigInfo::fault(libc::SIGFPE, libc::SI_USER, 0));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(thread.ctx.cpu.rip, 0x40_0000);

    assert_eq!(
        thread.call(libc::SYS_rt_sigpending, [TOP - 8, 8, 0, 0, 0, 0]),
        0
    );
    let pending = SigSet(thread.word(TOP - 8));
    assert!(pending.contains(libc::SIGFPE));

    let unblock = [libc::SIG_UNBLOCK as u64, set, 0, 8, 0, 0];
    assert_eq!(thread.call(libc::SYS_rt_sigprocmask, unblock), 0);
    assert!(thread.ctx.is_signal_pending());
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(thread.ctx.cpu.rip, 0x40_1000);
}

#[test]
fn the_hosts_mask_follows_the_guests_without_synchronous_signals() {
    let mut thread = guest();
    let before = host::mask();
    let set = TOP - 16;
    let wanted = SigSet::of(&[libc::SIGSEGV, libc::SIGUSR1, libc::SIGKILL]);
    thread.put(set, &wanted.0.to_le_bytes());
    let args = [libc::SIG_SETMASK as u64, set, TOP - 8, 8, 0, 0];
    assert_eq!(thread.call(libc::SYS_rt_sigprocmask, args), 0);
    assert_eq!(host::mask(), SigSet::of(&[libc::SIGUSR1]));
    assert_eq!(SigSet(thread.word(TOP - 8)), before);
    assert_eq!(
        thread.signals.mask,
        SigSet::of(&[libc::SIGSEGV, libc::SIGUSR1])
    );

    // A signal that came before is delivered under the mask of that time.
    host::block(SigSet::all_asynchronous());
    thread.record(SigInfo::fault(libc::SIGUSR2, 0, 0));
    thread.put(set, &SigSet::of(&[libc::SIGUSR2]).0.to_le_bytes());
    let outcome = thread.signals().syscall(libc::SYS_rt_sigprocmask, args);
    assert_eq!(outcome, Some(Outcome::Again));
    assert!(host::mask().contains(libc::SIGHUP));
    assert_eq!(
        thread.signals.mask,
        SigSet::of(&[libc::SIGSEGV, libc::SIGUSR1])
    );
    thread.dispositions.set(libc::SIGUSR2, handler(0));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(host::mask(), SigSet::of(&[libc::SIGUSR1, libc::SIGUSR2]));
    host::set_mask(before);
}

#[test]
fn a_suspended_wait_saves_the_mask_from_before() {
    let mut thread = guest();
    let before = host::mask();
    let (old, waiting) = (
        SigSet::of(&[libc::SIGUSR1, libc::SIGHUP]),
        SigSet::of(&[libc::SIGTERM]),
    );
    thread.signals.mask = waiting;
    thread.signals.suspended = Some(Suspended {
        mask: old,
        restart: Some(libc::SYS_rt_sigsuspend),
    });
    thread.dispositions.set(libc::SIGUSR1, handler(0));
    thread.record(SigInfo::fault(libc::SIGUSR1, 0, 0));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    let at = thread.ctx.cpu.get(Gpr::Rsp);
    assert_eq!(thread.word(at + frame::UC_SIGMASK as u64), old.0);
    assert_eq!(thread.signals.mask, waiting.with(libc::SIGUSR1));
    host::set_mask(before);
}

#[test]
fn a_wait_that_no_handler_ended_starts_again() {
    let mut thread = guest();
    let before = host::mask();
    let old = SigSet::of(&[libc::SIGUSR1]);
    thread.signals.suspended = Some(Suspended {
        mask: old,
        restart: Some(libc::SYS_rt_sigsuspend),
    });
    thread.record(SigInfo::fault(libc::SIGCHLD, 0, 0));
    let rip = thread.ctx.cpu.rip;
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert_eq!(thread.ctx.cpu.rip, rip - 2);
    assert_eq!(thread.ctx.cpu.get(Gpr::Rax), libc::SYS_rt_sigsuspend as u64);
    assert_eq!(thread.signals.mask, old);
    host::set_mask(before);
}

#[test]
fn actions_are_reported_as_the_kernel_reports_them() {
    let mut thread = guest();
    let at = BASE + 0x100;
    let action = Action {
        handler: 0x1234,
        flags: 0xffff_ffff,
        restorer: 0x5678,
        mask: SigSet(!0),
    };
    thread.put(at, &action.to_bytes());
    let call = |thread: &mut Thread, signo: i32, new: u64, old: u64, size: u64| {
        thread.call(libc::SYS_rt_sigaction, [signo as u64, new, old, size, 0, 0])
    };
    assert_eq!(call(&mut thread, libc::SIGUSR1, at, 0, 8), 0);
    assert_eq!(call(&mut thread, libc::SIGUSR1, 0, at + 64, 8), 0);
    // What the kernel itself makes of the same action, for a signal that nobody sends.
    let kernel = native::kernel_echo(action);
    let mut ours = [0; 32];
    thread
        .memory
        .read_bytes(GuestAddr(at + 64), &mut ours)
        .expect("mapped");
    assert_eq!(Action::from_bytes(&ours), kernel);

    let (einval, efault) = (-i64::from(libc::EINVAL), -i64::from(libc::EFAULT));
    assert_eq!(call(&mut thread, libc::SIGKILL, at, 0, 8), einval);
    assert_eq!(call(&mut thread, libc::SIGKILL, 0, at, 8), 0);
    assert_eq!(call(&mut thread, 0, 0, at, 8), einval);
    assert_eq!(call(&mut thread, 65, 0, at, 8), einval);
    assert_eq!(call(&mut thread, libc::SIGUSR1, at, 0, 16), einval);
    assert_eq!(call(&mut thread, libc::SIGUSR1, 8, 0, 8), efault);
}

#[test]
fn dispositions_reach_the_host_and_synchronous_ones_stay_temper_s() {
    let mut thread = guest();
    let at = BASE + 0x100;
    let mut set = |signo: i32, action: Action| {
        thread.put(at, &action.to_bytes());
        let args = [signo as u64, at, 0, 8, 0, 0];
        assert_eq!(thread.call(libc::SYS_rt_sigaction, args), 0);
        thread.host.set.pop()
    };
    let ignore = Action {
        handler: 1,
        ..Action::default()
    };
    let ignored = set(libc::SIGPIPE, ignore).expect("told");
    assert_eq!(ignored.1, HostDisposition::Ignore);
    let handled = set(libc::SIGPIPE, handler(sa::RESTART)).expect("told");
    assert_eq!(handled.1, HostDisposition::Temper);
    assert!(handled.2.restart);
    assert_eq!(set(libc::SIGPIPE, handler(sa::RESTART)), None);
    let fault = set(libc::SIGSEGV, ignore).expect("told");
    assert_eq!(fault.1, HostDisposition::Temper);
    let children = set(
        libc::SIGCHLD,
        Action {
            flags: sa::NOCLDWAIT,
            ..Action::default()
        },
    )
    .expect("told");
    assert!(children.1 == HostDisposition::Default && children.2.no_child_wait);
}

#[test]
fn a_frame_that_makes_no_sense_is_a_segmentation_fault() {
    let mut thread = guest();
    thread.dispositions.set(
        libc::SIGSEGV,
        Action {
            handler: 0x40_3000,
            ..handler(sa::SIGINFO)
        },
    );
    thread.dispositions.set(libc::SIGUSR1, handler(sa::SIGINFO));
    thread.record(SigInfo::fault(libc::SIGUSR1, 0, 0));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    let at = thread.ctx.cpu.get(Gpr::Rsp);
    thread.ctx.cpu.set(Gpr::Rsp, at + 8);
    // MXCSR with a reserved bit.
    let fp = thread.word(at + frame::MC as u64 + 23 * 8);
    thread.put(fp + 24, &0xffff_0000u32.to_le_bytes());
    assert_eq!(
        thread.signals().syscall(libc::SYS_rt_sigreturn, [0; 6]),
        Some(Outcome::Action(EnvAction::Continue))
    );
    assert_eq!(thread.ctx.cpu.rip, 0x40_3000);
    // The registers are already the frame's.
    let at = thread.ctx.cpu.get(Gpr::Rsp);
    assert_eq!(thread.word(at + frame::MC as u64 + 16 * 8), 0x40_0000);
}

#[test]
fn a_frame_without_extended_state_restores_the_legacy_part() {
    let mut thread = guest();
    thread.ctx.vector.set_register(2, &[7; 64]);
    thread.dispositions.set(libc::SIGUSR1, handler(0));
    thread.record(SigInfo::fault(libc::SIGUSR1, 0, 0));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    let at = thread.ctx.cpu.get(Gpr::Rsp);
    let fp = thread.word(at + frame::MC as u64 + 23 * 8);
    thread.put(fp + 464, &[0; 4]);
    thread.ctx.cpu.set(Gpr::Rsp, at + 8);
    thread.signals().syscall(libc::SYS_rt_sigreturn, [0; 6]);
    let value = thread.ctx.vector.register(2);
    assert_eq!(value[..16], [7; 16]);
    assert_eq!(value[16..], [0; 48]);

    // And none at all: everything initial.
    thread.record(SigInfo::fault(libc::SIGUSR1, 0, 0));
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    let at = thread.ctx.cpu.get(Gpr::Rsp);
    thread.put(at + frame::MC as u64 + 23 * 8, &[0; 8]);
    thread.ctx.cpu.set(Gpr::Rsp, at + 8);
    thread.signals().syscall(libc::SYS_rt_sigreturn, [0; 6]);
    assert_eq!(thread.ctx.vector.register(2), [0; 64]);
}

#[test]
fn a_signal_that_a_trap_handler_blocks_waits_in_the_kernel() {
    let mut thread = guest();
    let before = host::mask();
    thread.dispositions.set(
        libc::SIGTRAP,
        Action {
            mask: SigSet::of(&[libc::SIGUSR1]),
            ..handler(0)
        },
    );
    host::block(SigSet::all_asynchronous());
    let mut info = SigInfo::fault(libc::SIGUSR1, libc::SI_QUEUE, 0);
    info.0[3] = 4711;
    thread.record(info);
    let trap = TrapSignal {
        info: SigInfo::forced(libc::SIGTRAP),
        trap_number: 3,
        error_code: 0,
        cr2: None,
        resume_flag: false,
    };
    assert_eq!(thread.signals().force(&trap), EnvAction::Continue);
    assert_eq!(thread.signals().deliver_pending(), EnvAction::Continue);
    assert!(host::pending().contains(libc::SIGUSR1));
    let set = TOP - 16;
    thread.put(set, &SigSet::of(&[libc::SIGUSR1]).0.to_le_bytes());
    let info_at = TOP - 256;
    // The set is the kernel's to read: give it the host's address.
    let set = thread.memory.bytes.as_ptr() as u64 + (set - thread.memory.base);
    let args = [set, info_at, 0, 8, 0, 0];
    let got = thread.call(libc::SYS_rt_sigtimedwait, args);
    assert_eq!(got, i64::from(libc::SIGUSR1));
    assert_eq!(thread.word(info_at + 24), 4711);
    host::set_mask(before);
}
