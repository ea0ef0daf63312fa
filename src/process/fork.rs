//! Children with memory of their own: fork, and clone without CLONE_VM. The kernel makes
//! them of Temper and the guest together; what is each process's own is set right here.
//! Children share nothing with their parent but what the guest shares, run under Temper, and
//! save their own profile.

use super::Process;
use super::syscalls::{CLEAR_SIGHAND, CloneRequest};
use super::thread::ThreadState;
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, EnvAction, Gpr, ThreadContext};
use crate::host::syscall::{decode, encode};

impl Process {
    /// Continues after the call, in the parent or in the child.
    pub(super) fn after_fork(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        result: i64,
    ) -> EnvAction {
        let request = thread.cloning.take().expect("a fork was asked for");
        if result == 0 {
            thread.signals = thread.signals.for_child(false);
            ctx.sent_synchronous = Default::default();
            self.records.keep_only(thread);
            self.filters.keep_only(&thread.seccomp);
            let record = self.records.of_mut(thread);
            // A copy of standard error that stays open would keep a reader waiting for a daemon.
            record
                .own_descriptor
                .give_up(request.has(libc::CLONE_FILES));
            record.relaunch.options = record.relaunch.options_of_children.clone();
            record.is_child = true;
            record.shares_memory = false;
            record.threads = 1;

            self.start_child(&request, thread, ctx, code);
        }
        self.with_signals(thread, ctx, code, |signals| signals.update_host_mask());
        ctx.cpu.set(Gpr::Rax, encode(decode(result)));
        EnvAction::Continue
    }

    /// What a child's first thread begins with, whatever it shares.
    pub(super) fn start_child(
        &mut self,
        request: &CloneRequest,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) {
        ctx.cpu.set(Gpr::Rax, 0);
        if request.stack != 0 {
            ctx.cpu.set(Gpr::Rsp, request.stack);
        }
        if request.has(libc::CLONE_SETTLS) {
            ctx.cpu.fs_base = request.tls;
        }
        thread.robust_list = GuestAddr(0);
        thread.clear_child_tid = GuestAddr(if request.has(libc::CLONE_CHILD_CLEARTID) {
            request.child_tid
        } else {
            0
        });
        if request.flags & CLEAR_SIGHAND != 0 {
            self.with_signals(thread, ctx, code, |signals| signals.reset_handlers());
        }
        ctx.set_pass_through(self.pass_through_mask());
    }
}
