//! Calls that manage descriptors, as if Temper's own weren't there.

use ::syscalls::Sysno;

use super::{Call, Ending};
use crate::host::syscall::{Errno, SyscallResult, call as host_call};
use crate::process::Process;
use crate::process::descriptors::OwnDescriptor;
use crate::process::thread::ThreadState;

const BAD_DESCRIPTOR: SyscallResult = Err(Errno(libc::EBADF));

impl Process {
    pub(super) fn descriptor_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &ThreadState,
    ) -> Ending {
        let [first, second, third, ..] = call.args;
        let descriptor = &mut self.records.of_mut(thread).own_descriptor;
        let Some(own) = descriptor.number() else {
            return call.pass_blocking(call.args);
        };
        match sysno {
            Sysno::close_range if (first as u32..=second as u32).contains(&own) => {
                close_around(call, own).into()
            }
            Sysno::close_range => call.pass(call.args).into(),
            // close, dup, dup2, dup3, fcntl.
            _ if descriptor.is(first) => BAD_DESCRIPTOR.into(),
            Sysno::dup2 | Sysno::dup3 if descriptor.is(second) => {
                descriptor.make_way();
                call.pass_blocking(call.args)
            }
            Sysno::fcntl if matches!(second as i32, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => {
                duplicate_from(call, descriptor, own, third as u32).into()
            }
            _ => call.pass_blocking(call.args),
        }
    }
}

/// The lowest free number from `lowest` on; Temper's counts as free.
fn duplicate_from(
    call: Call,
    descriptor: &mut OwnDescriptor,
    own: u32,
    lowest: u32,
) -> SyscallResult {
    let result = call.pass(call.args);
    let passed_over = match result {
        Ok(number) => number > u64::from(own),
        Err(errno) => errno == Errno(libc::EMFILE),
    };
    if lowest > own || !passed_over {
        return result;
    }
    if let Ok(number) = result {
        let args = [number, 0, 0, 0, 0, 0];
        // SAFETY: made by the call above, and the guest doesn't know of it.
        unsafe { host_call(Sysno::close, args) }?;
    }
    descriptor.make_way();
    call.pass(call.args)
}

/// close_range(2) below and above `own`, which lies in the range.
fn close_around(call: Call, own: u32) -> SyscallResult {
    let [first, last, flags, ..] = call.args.map(|arg| u64::from(arg as u32));
    let own = u64::from(own);
    let mut done = Ok(0);
    if first < own {
        done = call.pass([first, own - 1, flags, 0, 0, 0]);
    }
    if own < last && done.is_ok() {
        done = call.pass([own + 1, last, flags, 0, 0, 0]);
    }
    done
}
