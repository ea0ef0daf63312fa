//! Children with memory of their own: fork, and clone without CLONE_VM. The kernel makes
//! them of Temper and the guest together; what is each process's own is set right here.
//! Children share nothing with their parent but what the guest shares, run under Temper, and
//! save their own profile.

use super::Process;
use super::clone::{CloneRequest, flag};
use super::signals::{ThreadSignals, reset_handlers};
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, EnvAction, Gpr, HostCall, ThreadContext};
use crate::host::syscall::{decode, encode};

impl Process {
    /// The call by which the kernel makes the child; nothing is changed yet.
    pub(super) fn fork_call(&mut self, request: CloneRequest) -> HostCall {
        // Kept until the call was made: the kernel reads it.
        self.forking.insert(Box::new(request)).host_call()
    }

    /// Continues after the call, in the parent or in the child.
    pub(super) fn after_fork(
        &mut self,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        result: i64,
    ) -> EnvAction {
        let request = self.forking.take().expect("a fork was asked for");
        if result == 0 {
            self.become_child(&request, ctx, code);
        }
        self.with_signals(ctx, code, |signals| signals.update_host_mask());
        ctx.cpu.set(Gpr::Rax, encode(decode(result)));
        EnvAction::Continue
    }

    fn become_child(
        &mut self,
        request: &CloneRequest,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) {
        let has = |flag| request.flags & flag != 0;
        if request.stack_top != 0 {
            ctx.cpu.set(Gpr::Rsp, request.stack_top);
        }
        if has(flag::SETTLS) {
            ctx.cpu.fs_base = request.tls;
        }
        self.thread.signals = ThreadSignals::for_child(&self.thread.signals, false);
        self.thread.robust_list = GuestAddr(0);
        self.thread.clear_child_tid = GuestAddr(if has(flag::CHILD_CLEARTID) {
            request.child_tid
        } else {
            0
        });
        if has(flag::CLEAR_SIGHAND) {
            self.with_signals(ctx, code, reset_handlers);
        }
        // A copy of standard error that stays open would keep a reader waiting for a daemon.
        self.own_descriptor.give_up(has(flag::FILES));
        self.relaunch.options = self.relaunch.options_of_children.clone();
        self.is_child = true;
        ctx.pass_through = self.pass_through_mask();
    }
}
