//! System calls that wait for signals, or wait with another mask. Each blocks everything in
//! the host first, so that nothing can slip in between the look at `pending` and the wait;
//! the kernel's own atomic exchange of the mask does the rest.

use super::deliver::is_recorded;
use super::host::{self, HostHandlers};
use super::info::SIGINFO_BYTES;
use super::set::{SYNCHRONOUS, SigSet, UNBLOCKABLE};
use super::thread::Suspended;
use super::{Outcome, Signals};
use crate::guest::{GuestMemory, HostCall};

/// Missing from libc for this target.
pub(super) const SYS_IO_PGETEVENTS: i64 = 333;

const EINTR: i64 = -(libc::EINTR as i64);
const EFAULT: i64 = -(libc::EFAULT as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);

/// Where a call has its signal mask.
#[derive(Clone, Copy)]
enum MaskArgument {
    /// Pointer and size are arguments, from this index on.
    Direct(usize),
    /// This argument points to a pointer and a size.
    Packed(usize),
}

/// A wait that the kernel carries out: what it reads and writes on Temper's side, and what
/// is to be done after it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wait {
    /// The host's mask during the call, and the pointer and size of it for pselect6.
    mask: SigSet,
    pack: [u64; 2],
    info: Info,
    then: Then,
}

#[derive(Clone, Copy, Debug)]
struct Info([u8; SIGINFO_BYTES]);

impl Default for Info {
    fn default() -> Self {
        Info([0; SIGINFO_BYTES])
    }
}

#[derive(Clone, Copy, Default, Debug)]
enum Then {
    #[default]
    Nothing,
    /// The guest's mask before the call comes back.
    Masked {
        nr: i64,
        before: SigSet,
        restarts: bool,
    },
    /// The siginfo goes to the guest.
    Timed { info_at: u64 },
}

impl<M: GuestMemory, H: HostHandlers> Signals<'_, M, H> {
    pub(super) fn rt_sigsuspend(&mut self, args: [u64; 6]) -> Outcome {
        let [at, size, ..] = args;
        if size != 8 {
            return Outcome::Return(EINVAL);
        }
        let Ok(mask) = self.read_set(at) else {
            return Outcome::Return(EFAULT);
        };
        let nr = libc::SYS_rt_sigsuspend;
        self.wait_masked(nr, nr, args, MaskArgument::Direct(0), mask, true)
    }

    /// The same wait with the mask as it is.
    pub(super) fn pause(&mut self) -> Outcome {
        let mask = self.thread.mask;
        let args = [0, 8, 0, 0, 0, 0];
        let call = libc::SYS_rt_sigsuspend;
        self.wait_masked(
            libc::SYS_pause,
            call,
            args,
            MaskArgument::Direct(0),
            mask,
            true,
        )
    }

    /// ppoll and its relatives. Without a mask, or with one that can't be read, they pass
    /// through (the kernel then finds the error in its own order).
    pub(super) fn masked_wait(&mut self, nr: i64, args: [u64; 6]) -> Option<Outcome> {
        let argument = match nr {
            libc::SYS_ppoll => MaskArgument::Direct(3),
            libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => MaskArgument::Direct(4),
            _ => MaskArgument::Packed(5),
        };
        let (at, size) = match argument {
            MaskArgument::Direct(index) => (args[index], args.get(index + 1).copied()?),
            MaskArgument::Packed(index) if args[index] == 0 => return None,
            MaskArgument::Packed(index) => {
                let pack = self.read::<16>(args[index]).ok()?;
                let word =
                    |i: usize| u64::from_le_bytes(pack[i * 8..][..8].try_into().expect("8 bytes"));
                (word(0), word(1))
            }
        };
        if at == 0 || size != 8 {
            return None;
        }
        let mask = self.read_set(at).ok()?;
        // epoll_wait returns EINTR where the others start again.
        let restarts = !matches!(nr, libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2);
        Some(self.wait_masked(nr, nr, args, argument, mask, restarts))
    }

    /// The guest's call `nr` waits by `call`, with `mask` in place of its mask argument.
    fn wait_masked(
        &mut self,
        nr: i64,
        call: i64,
        mut args: [u64; 6],
        argument: MaskArgument,
        mask: SigSet,
        restarts: bool,
    ) -> Outcome {
        let mask = mask.minus(UNBLOCKABLE);
        host::block(SigSet::all_asynchronous());
        if is_recorded(self.ctx) {
            // It came before the call: its handler runs before it, too.
            return Outcome::Again;
        }
        let before = std::mem::replace(&mut self.thread.mask, mask);
        if !mask.covers(self.thread.held()) {
            return self.masked_wait_returned(nr, before, restarts, EINTR);
        }
        let wait = &mut self.thread.wait;
        wait.then = Then::Masked {
            nr,
            before,
            restarts,
        };
        wait.mask = mask.minus(SYNCHRONOUS);
        let set = &raw const wait.mask as u64;
        wait.pack = [set, 8];
        match argument {
            MaskArgument::Direct(index) => args[index] = set,
            MaskArgument::Packed(index) => args[index] = &raw const wait.pack as u64,
        }
        Outcome::Call(HostCall {
            number: call as u64,
            args,
        })
    }

    fn masked_wait_returned(
        &mut self,
        nr: i64,
        before: SigSet,
        restarts: bool,
        result: i64,
    ) -> Outcome {
        let held = !self.thread.mask.covers(self.thread.held());
        if result == EINTR && (held || is_recorded(self.ctx)) {
            // The frame saves the mask from before; delivery goes on from the new one.
            self.thread.suspended = Some(Suspended {
                mask: before,
                restart: restarts.then_some(nr),
            });
            self.ctx.set_signal_pending(true);
        } else {
            self.thread.mask = before;
            self.update_host_mask();
        }
        Outcome::Return(result)
    }

    /// rt_sigtimedwait(2). The kernel takes the signal without any handler.
    pub(super) fn rt_sigtimedwait(&mut self, args: [u64; 6]) -> Outcome {
        let [set, info_at, timeout, size, ..] = args;
        if size == 8
            && let Ok(wanted) = self.read_set(set)
            && let Some(info) = self.thread.take_held(wanted)
        {
            let written = info_at == 0 || self.write(info_at, &info.to_bytes()).is_ok();
            let result = if written {
                i64::from(info.signo())
            } else {
                EFAULT
            };
            return Outcome::Return(result);
        }
        let wait = &mut self.thread.wait;
        wait.then = Then::Timed { info_at };
        let buffer = &raw mut wait.info as u64;
        Outcome::Call(HostCall {
            number: libc::SYS_rt_sigtimedwait as u64,
            args: [set, buffer, timeout, size, 0, 0],
        })
    }

    /// The call of [`Outcome::Call`] returned; `None`: it was not made, because something
    /// is pending.
    pub fn call_returned(&mut self, result: Option<i64>) -> Outcome {
        match std::mem::take(&mut self.thread.wait.then) {
            Then::Masked {
                nr,
                before,
                restarts,
            } => match result {
                Some(result) => self.masked_wait_returned(nr, before, restarts, result),
                None => {
                    self.thread.mask = before;
                    self.update_host_mask();
                    Outcome::Again
                }
            },
            Then::Timed { info_at } => match result {
                Some(result) if result > 0 && info_at != 0 => {
                    let info = self.thread.wait.info.0;
                    match self.write(info_at, &info) {
                        Ok(()) => Outcome::Return(result),
                        Err(_) => Outcome::Return(EFAULT),
                    }
                }
                Some(result) => Outcome::Return(result),
                None => Outcome::Again,
            },
            Then::Nothing => unreachable!("no wait is under way"),
        }
    }
}
