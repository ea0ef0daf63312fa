//! What belongs to one guest thread beyond its registers.

use super::exec::Executing;
use super::record::RecordId;
use super::seccomp::ThreadSeccomp;
use super::signals::ThreadSignals;
use super::syscalls::{After, CloneRequest};
use crate::addr::GuestAddr;

/// See the module documentation.
#[derive(Debug)]
pub struct ThreadState {
    /// The process that it belongs to.
    pub(super) record: RecordId,
    pub(super) signals: ThreadSignals,
    /// set_tid_address(2): cleared and woken when the thread ends.
    pub(super) clear_child_tid: GuestAddr,
    /// set_robust_list(2).
    pub(super) robust_list: GuestAddr,
    pub(super) seccomp: ThreadSeccomp,
    /// What the call under way is for.
    pub(super) after: After,
    /// RCX and R11 before it, which SYSCALL overwrites.
    pub(super) before_call: [u64; 2],
    /// What the kernel reads while it executes a program or makes a child for this thread.
    pub(super) executing: Option<Box<Executing>>,
    pub(super) cloning: Option<Box<CloneRequest>>,
}

impl ThreadState {
    /// Ends this process by the signal that this thread died of.
    pub fn die_by(&self, signo: i32) -> ! {
        self.signals.die_by(signo)
    }

    /// The first thread of the process `record`.
    pub(super) fn new(record: RecordId, signals: ThreadSignals) -> ThreadState {
        ThreadState {
            record,
            signals,
            clear_child_tid: GuestAddr(0),
            robust_list: GuestAddr(0),
            seccomp: ThreadSeccomp::default(),
            after: After::Return,
            before_call: [0; 2],
            executing: None,
            cloning: None,
        }
    }

    /// Another thread of the same process, made by this one.
    pub(super) fn for_thread(&self) -> ThreadState {
        ThreadState {
            seccomp: self.seccomp.inherited(),
            ..ThreadState::new(self.record, self.signals.for_child(true))
        }
    }
}
