//! A child process with a copy of the guest's memory. The views of executable memory are
//! shared mappings, which a child would share: they are copied before it is made, while
//! nobody changes them, and the child maps the copies over its views before it runs anything.

use std::io;

use super::Engine;
use crate::guest::{GuestEnv, HostCall};
use crate::host::DualMapCopy;
use crate::host::syscall::raw;

/// What generated code a child starts with.
struct Copies {
    cache: DualMapCopy,
    stubs: Vec<DualMapCopy>,
}

impl<E: GuestEnv> Engine<E> {
    /// Makes `call`, in which a child begins. Returns as the call does, in both processes.
    pub(super) fn fork(&mut self, call: HostCall) -> i64 {
        let copies = match self.copy_code() {
            Ok(copies) => copies,
            Err(error) => {
                tracing::warn!(target: "temper::engine", %error, "no copy of the code cache");
                return -i64::from(libc::ENOMEM);
            }
        };
        // SAFETY: the surroundings' call, which makes a child on a copy of this stack.
        let result = unsafe { raw(call.number, call.args) };
        if result == 0 {
            self.become_child(copies);
        }
        result
    }

    fn copy_code(&self) -> io::Result<Copies> {
        Ok(Copies {
            cache: self.code.cache.copy()?,
            stubs: self.stubs.copy()?,
        })
    }

    fn become_child(&mut self, copies: Copies) {
        let shown = self.code.cache.show(copies.cache);
        if let Err(error) = shown.and_then(|()| self.stubs.show(copies.stubs)) {
            eprintln!("temper: a forked child can't have executable memory ({error})");
            std::process::abort();
        }
        self.code.profile.interrupt_path();
        // The parent saves what was counted so far.
        self.code.profile.forget_counts();
    }
}
