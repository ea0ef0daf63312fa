//! What signal emulation needs of the engine's host handlers and of the address space.

use std::ops::Range;

use super::address_space::AddressSpace;
use super::signals::{HostDisposition, HostFlags, HostHandlers};
use crate::addr::GuestAddr;
use crate::engine::host_signals;
use crate::guest::CodeControl;

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

    fn will_write(&mut self, range: Range<GuestAddr>) {
        self.space.prepare_write(range, self.code);
    }
}
