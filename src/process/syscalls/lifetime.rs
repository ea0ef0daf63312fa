//! The end of the guest, and what the kernel does for a thread at its end.

use ::syscalls::Sysno;

use super::{Call, Ending};
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, EnvAction, ThreadContext};
use crate::host::syscall::Errno;
use crate::process::Process;
use crate::process::signals::{SigSet, host_mask};
use crate::process::thread::ThreadState;
use crate::process::thread_exit::LIST_HEAD_BYTES;

impl Process {
    pub(super) fn lifetime_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        let [first, second, ..] = call.args;
        let status = (first & 0xff) as i32;
        match sysno {
            Sysno::exit => {
                // No signal is recorded from here on; one that is has its handler first.
                host_mask::block(SigSet::all_asynchronous());
                if ctx.is_signal_pending() {
                    call.repeat(ctx)
                } else {
                    Ending::Action(self.thread_exits(thread, status, code))
                }
            }
            Sysno::exit_group => Ending::Action(EnvAction::Exit(status)),
            // Not the kernel's to know: the host thread's own is the C library's.
            Sysno::set_tid_address => {
                thread.clear_child_tid = GuestAddr(first);
                call.own_tid().into()
            }
            // Passed on as well: the kernel follows it when the process dies.
            _ if second == LIST_HEAD_BYTES => {
                thread.robust_list = GuestAddr(first);
                call.pass(call.args).into()
            }
            _ => Ending::Return(Err(Errno(libc::EINVAL))),
        }
    }
}
