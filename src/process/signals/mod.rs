//! The guest's signals: actions, masks, alternate stacks, frames, and the system calls
//! about them.
//!
//! Temper owns every handler in the host. The host's handler (the engine's) stores the
//! `siginfo_t` in `ThreadContext::signal_info`, sets `pending`, and returns with all
//! asynchronous signals blocked, so that at most one is recorded at a time; this module
//! delivers it and then gives the host the guest's mask. Two rules keep that simple:
//!
//! - For asynchronous signals the kernel keeps the books: the host's mask is the guest's,
//!   and a signal that the guest ignores or leaves to its default is so in the host.
//!   Queueing, priorities, coalescing, signalfd and timers are therefore exact.
//! - Synchronous signals (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP) always go to Temper's
//!   handler and are never blocked in the host, because Temper's own code faults too. Their
//!   mask bits and the rare case that somebody sends one with kill(2) are emulated. (One
//!   visible difference: a signalfd doesn't see a blocked synchronous signal.)
//!
//! State is in two parts: [`Dispositions`] is the process's and may be shared by threads,
//! [`ThreadSignals`] is one thread's. [`Signals`] borrows them, with all that an operation
//! touches, for its duration.
//!
//! Does not decide when to deliver: that is the engine's business (`pending` is looked at
//! before guest code is entered).

mod action;
mod calls;
mod child;
mod death;
mod deliver;
mod exec;
mod fpstate;
mod frame;
mod host;
mod info;
mod set;
mod thread;
mod wait;

#[cfg(test)]
mod tests;

pub use action::{Action, DefaultAction, Dispositions, default_action, sa};
pub use death::die_sharing;
pub use host::{HostDisposition, HostFlags, HostHandlers, Inherited};
/// The calling thread's mask in the host.
pub mod host_mask {
    pub use super::host::{block, catch_what_the_c_library_opens, set_mask};
}
pub use info::{FaultCodes, SigInfo, TrapSignal, signal_for};
pub use set::{MAX_SIGNAL, SYNCHRONOUS, SigSet, UNBLOCKABLE};
pub use thread::{AltStack, Suspended, ThreadSignals};
pub use wait::Wait;

use crate::guest::{EnvAction, HostCall, ThreadContext};

/// Everything that a signal operation touches.
pub struct Signals<'a, M, H> {
    pub dispositions: &'a Dispositions,
    pub thread: &'a mut ThreadSignals,
    pub ctx: &'a mut ThreadContext,
    pub memory: &'a mut M,
    pub host: &'a mut H,
}

/// How a system call of this family ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// With this result, an error as its negative number. The caller sets RAX, RCX and R11.
    Return(i64),
    /// The context is as it must be already (rt_sigreturn).
    Action(EnvAction),
    /// Nothing was done: a signal came first. Its handler runs, then the guest makes the
    /// call again.
    Again,
    /// This call is to be made, which may block; [`Signals::call_returned`] goes on.
    Call(HostCall),
}
