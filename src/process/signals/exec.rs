//! What becomes of signals when a thread ends, and what execve(2) keeps of the signal state:
//! ignored signals, the mask, what is pending. Handlers go, which the kernel sees to; the
//! alternate stack goes with the old image.

use super::action::SIG_IGN;
use super::deliver::is_recorded;
use super::host::{self, HostHandlers};
use super::set::{MAX_SIGNAL, SYNCHRONOUS, SigSet};
use super::{Outcome, Signals};
use crate::guest::GuestMemory;

impl<M: GuestMemory, H: HostHandlers> Signals<'_, M, H> {
    /// From now on no signal reaches this thread. False: one came before, which may be
    /// another thread's to handle were it not taken already; its handler runs first.
    pub fn before_thread_exit(&mut self) -> bool {
        host::block(SigSet::all_asynchronous());
        !is_recorded(self.ctx)
    }

    /// Makes the host's state fit for executing the next Temper: everything blocked, so that
    /// no signal is recorded here and lost. The next Temper gives itself the mask returned
    /// once it can record signals ([`super::Inherited`] doesn't know it).
    ///
    /// # Errors
    /// [`Outcome::Again`].
    pub fn before_exec(&mut self) -> Result<SigSet, Outcome> {
        host::block(SigSet::all_asynchronous());
        if is_recorded(self.ctx) {
            return Err(Outcome::Again);
        }
        host::block(SYNCHRONOUS);
        self.hold_sent();
        let held = self.thread.held();
        for signo in 1..=MAX_SIGNAL {
            if held.contains(signo) {
                host::raise(signo);
            }
            if SYNCHRONOUS.contains(signo) && self.dispositions.get(signo).handler == SIG_IGN {
                host::give_to_kernel(signo, true);
            }
        }
        Ok(self.thread.mask)
    }

    /// Undoes [`Signals::before_exec`] where execve failed after all. Signals that it raised
    /// come back through the handler, where the held one of the same kind absorbs them.
    pub fn after_failed_exec(&mut self) {
        for signo in 1..=MAX_SIGNAL {
            if SYNCHRONOUS.contains(signo) {
                self.install_in_host(signo, &self.dispositions.get(signo));
            }
        }
        self.update_host_mask();
    }
}
