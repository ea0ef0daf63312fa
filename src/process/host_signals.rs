//! What signal emulation needs of the engine's host handlers and of the address space.

use std::ops::Range;

use super::address_space::AddressSpace;
use super::signals::{HostDisposition, HostFlags, HostHandlers};
use crate::addr::GuestAddr;
use crate::engine::host_signals;
use crate::guest::{CodeControl, ThreadContext};
use crate::host::syscall::interruptible;

/// Lives as long as one signal operation.
pub struct Host<'a> {
    pub space: &'a mut AddressSpace,
    pub code: &'a mut dyn CodeControl,
}

impl HostHandlers for Host<'_> {
    fn set(&mut self, signo: i32, disposition: HostDisposition, flags: HostFlags) {
        let mut bits = 0;
        for (set, bit) in [
            (flags.restart, libc::SA_RESTART),
            (flags.no_child_stop, libc::SA_NOCLDSTOP),
            (flags.no_child_wait, libc::SA_NOCLDWAIT),
        ] {
            if set {
                bits |= bit;
            }
        }
        let result = match disposition {
            HostDisposition::Temper => host_signals::install(signo, bits),
            HostDisposition::Default => host_signals::set_plain(signo, libc::SIG_DFL, bits),
            HostDisposition::Ignore => host_signals::set_plain(signo, libc::SIG_IGN, bits),
        };
        if let Err(error) = result {
            // SIGKILL and SIGSTOP are refused before this; the C library keeps 32 and 33.
            tracing::warn!(target: "temper::process", signo, %error, "no handler in the host");
        }
    }

    fn blocking_call(&mut self, ctx: &mut ThreadContext, nr: i64, args: [u64; 6]) -> Option<i64> {
        // SAFETY: the guest's call on the guest's memory, or on the caller's buffers; the
        // field is written by this thread and its signal handler alone.
        unsafe { interruptible(&raw const ctx.pending, nr as u64, args) }
    }

    fn will_write(&mut self, range: Range<GuestAddr>) {
        self.space.prepare_write(range, self.code);
    }
}
