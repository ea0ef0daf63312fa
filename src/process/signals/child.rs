//! What making a child process does to the signal state.

use super::action::{Action, SIG_DFL};
use super::deliver::is_recorded;
use super::host::{self, HostHandlers};
use super::set::{MAX_SIGNAL, SigSet};
use super::{Outcome, Signals};
use crate::guest::GuestMemory;

impl<M: GuestMemory, H: HostHandlers> Signals<'_, M, H> {
    /// Blocks everything in the host, so that no signal is recorded while the child is made:
    /// it would be the child's too. Both processes then give the host the guest's mask.
    ///
    /// # Errors
    /// [`Outcome::Again`].
    pub fn before_child(&mut self) -> Result<(), Outcome> {
        host::block(SigSet::all_asynchronous());
        if is_recorded(self.ctx) {
            return Err(Outcome::Again);
        }
        Ok(())
    }

    /// CLONE_CLEAR_SIGHAND: what is handled gets its default action.
    pub fn reset_handlers(&mut self) {
        for signo in 1..=MAX_SIGNAL {
            if self.dispositions.get(signo).is_handler() {
                let action = Action {
                    handler: SIG_DFL,
                    ..Action::default()
                };
                self.dispositions.set(signo, action);
                self.install_in_host(signo, &action);
            }
        }
    }
}
