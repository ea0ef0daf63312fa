//! Looking into processes. What runs under Temper has Temper's registers, faults and system
//! calls to the kernel, so a tracer would see, and change, the wrong ones: such a request is
//! refused by name. Other processes are traced as natively.
//!
//! process_vm_readv, process_vm_writev and kcmp pass through: guest addresses and descriptors
//! are the host's. perf_event_open does too, and counts Temper's work as well.

use std::os::unix::fs::MetadataExt;

use ::syscalls::Sysno;

use super::{Call, Ending};
use crate::process::{Process, ThreadState};

impl Process {
    pub(super) fn tracing_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &ThreadState,
    ) -> Ending {
        if sysno == Sysno::userfaultfd {
            // Its faults would stop Temper in the middle of what it does for the guest.
            return self
                .not_supported(sysno.name(), libc::ENOSYS, thread)
                .into();
        }
        let [request, pid, ..] = call.args;
        let traces_guest = match u32::try_from(request) {
            Ok(libc::PTRACE_TRACEME) => true,
            Ok(libc::PTRACE_ATTACH | libc::PTRACE_SEIZE) => runs_under_temper(pid as i32),
            // Only what was attached to can be asked or told anything.
            _ => false,
        };
        if !traces_guest {
            return call.pass_blocking(call.args);
        }
        self.not_supported("ptrace of a program under Temper", libc::EPERM, thread)
            .into()
    }
}

/// Whether a process (or thread) executes this Temper. If that can't be told, the kernel will
/// refuse to trace it too.
fn runs_under_temper(pid: i32) -> bool {
    let executable = |pid: &str| {
        let file = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((file.dev(), file.ino()))
    };
    executable(&pid.to_string()).is_some_and(|file| Some(file) == executable("self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_under_temper_is_told_from_others() {
        assert!(runs_under_temper(std::process::id() as i32));
        // The first process runs something else, or hides what; nothing has this number.
        assert!(!runs_under_temper(1) && !runs_under_temper(i32::MAX));
    }
}
