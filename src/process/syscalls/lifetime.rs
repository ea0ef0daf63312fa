//! The end of the guest, and what the kernel does for a thread at its end.

use ::syscalls::Sysno;

use super::{Call, Ending};
use crate::addr::GuestAddr;
use crate::guest::EnvAction;
use crate::process::Process;
use crate::process::thread::ThreadState;

impl Process {
    pub(super) fn lifetime_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &mut ThreadState,
    ) -> Ending {
        match sysno {
            // The only thread's exit is the process's.
            Sysno::exit | Sysno::exit_group => {
                Ending::Action(EnvAction::Exit((call.args[0] & 0xff) as i32))
            }
            // Passed on as well: the kernel acts on them when the host thread ends.
            Sysno::set_tid_address => {
                thread.clear_child_tid = GuestAddr(call.args[0]);
                call.pass(call.args).into()
            }
            _ => {
                let result = call.pass(call.args);
                if result.is_ok() {
                    thread.robust_list = GuestAddr(call.args[0]);
                }
                result.into()
            }
        }
    }
}
