//! The process as the engine sees it.

use std::ops::Range;

use super::host_signals::Host;
use super::memory::{FAULT_FETCH, FAULT_WRITE, ProcessMemory, SEGV_ACCERR, SEGV_MAPERR};
use super::notice::Notice;
use super::share::end_sharing_child;
use super::signals::{Signals, signal_for};
use super::syscalls::may_write;
use super::thread::ThreadState;
use super::{Process, vdso};
use crate::addr::{GuestAddr, HostAddr};
use crate::guest::{
    CallsInFlight, CodeControl, EnvAction, GuestEnv, GuestMemory, GuestTrap, HostCall, MemoryFault,
    ThreadContext, Watched, Width,
};
use crate::native::IdentityMemory;

/// The page-fault trap number.
const PAGE_FAULT: u8 = 14;

impl GuestEnv for Process {
    type Memory = ProcessMemory;
    type Thread = ThreadState;

    fn memory(&mut self) -> &mut ProcessMemory {
        &mut self.memory
    }

    fn syscall(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        self.system_call(thread, ctx, code)
    }

    fn call_returned(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        result: Option<i64>,
    ) -> EnvAction {
        self.complete_call(thread, ctx, code, result)
    }

    fn trap(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        trap: GuestTrap,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        let mut trap = trap;
        if let GuestTrap::Memory(fault) = &mut trap
            && fault.trap_number == PAGE_FAULT
        {
            let write = fault.error_code & FAULT_WRITE != 0;
            if write && self.memory.space.on_write_fault(fault.addr, code) {
                self.counts.protection_faults += 1;
                return EnvAction::Continue;
            }
            if fault.error_code & FAULT_FETCH != 0
                && vdso::emulate_vsyscall(ctx, self.memory.parts().0)
            {
                return EnvAction::Continue;
            }
            if self.records.many_threads() && self.is_over(fault) {
                return EnvAction::Continue;
            }
            self.as_the_guest_sees_it(fault);
        }
        match trap {
            GuestTrap::SoftwareInterrupt(0x80) => {
                let notices = &mut self.records.of_mut(thread).notices;
                notices.give(Notice::Interrupt80 { at: ctx.cpu.rip });
            }
            GuestTrap::Unsupported => {
                let notices = &mut self.records.of_mut(thread).notices;
                notices.give(Notice::Instruction { at: ctx.cpu.rip });
                return EnvAction::Abort;
            }
            _ => {}
        }
        match signal_for(&trap, ctx, &mut self.memory) {
            // An asynchronous signal came before the instruction: its handler, too. The
            // instruction runs again.
            Some(signal) if signal.resume_flag && ctx.is_signal_pending() => EnvAction::Continue,
            Some(signal) => {
                self.counts.faults += 1;
                self.with_signals(thread, ctx, code, |signals| signals.force(&signal))
            }
            // A spurious exception: the kernel lets the instruction run again.
            None => EnvAction::Continue,
        }
    }

    fn deliver_pending(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        self.with_signals(thread, ctx, code, |signals| signals.deliver_pending())
    }

    fn forked(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        result: i64,
    ) -> EnvAction {
        self.after_fork(thread, ctx, code, result)
    }

    fn begin_child(
        &mut self,
        thread: &mut ThreadState,
        stack: Range<HostAddr>,
    ) -> (ThreadState, HostCall) {
        self.make_sharing_child(thread, stack)
    }

    fn child_began(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) {
        self.sharing_child_began(thread, ctx, code);
    }

    fn end_child(end: EnvAction) -> ! {
        end_sharing_child(end)
    }

    fn child_left(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        child: &ThreadState,
        result: i64,
    ) -> EnvAction {
        self.sharing_child_left(thread, ctx, code, child, result)
    }

    fn watch_code(&mut self, range: Range<GuestAddr>, calls: &dyn CallsInFlight) -> Watched {
        let (memory, space) = self.memory.parts();
        space.watch_code(range, &mut |page| {
            let calls = calls.calls();
            calls.iter().any(|call| may_write(call, page, memory))
        })
    }
}

impl Process {
    /// Whether the access would go through now: another thread mapped the page, or ended
    /// Temper's own protection of it, before this one could report its fault. The kernel
    /// lets such an instruction run again, too.
    fn is_over(&mut self, fault: &MemoryFault) -> bool {
        if i32::from(fault.signal) != libc::SIGSEGV
            || !matches!(fault.si_code, SEGV_MAPERR | SEGV_ACCERR)
            || fault.error_code & FAULT_FETCH != 0
        {
            return false;
        }
        match self.memory.load(fault.addr, Width::B1) {
            // Storing the same byte in one atomic step changes nothing.
            Ok(byte) if fault.error_code & FAULT_WRITE != 0 => {
                let stored = self
                    .memory
                    .compare_exchange(fault.addr, Width::B1, byte, byte);
                stored.is_ok()
            }
            Ok(_) => true,
            Err(_) => false,
        }
    }

    /// Whether an address is mapped is the guest's view: Temper's own memory isn't there.
    fn as_the_guest_sees_it(&self, fault: &mut MemoryFault) {
        if i32::from(fault.signal) == libc::SIGSEGV
            && matches!(fault.si_code, SEGV_MAPERR | SEGV_ACCERR)
        {
            let mapped = self.memory.space.map().peek(fault.addr).is_some();
            fault.si_code = if mapped { SEGV_ACCERR } else { SEGV_MAPERR };
        }
    }

    /// Runs a signal operation with all that it touches.
    pub(super) fn with_signals<R>(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        operation: impl FnOnce(&mut Signals<'_, IdentityMemory, Host<'_>>) -> R,
    ) -> R {
        let dispositions = &self.records.of(thread).dispositions;
        let (memory, space) = self.memory.parts();
        operation(&mut Signals {
            dispositions,
            thread: &mut thread.signals,
            ctx,
            memory,
            host: &mut Host { space, code },
        })
    }
}
