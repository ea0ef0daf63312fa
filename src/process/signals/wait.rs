//! System calls that wait for signals, or wait with another mask. Each blocks everything in
//! the host first, so that nothing can slip in between the look at `pending` and the wait;
//! the kernel's own atomic exchange of the mask does the rest.

use super::deliver::is_recorded;
use super::host::{self, HostHandlers};
use super::info::SIGINFO_BYTES;
use super::set::{SYNCHRONOUS, SigSet, UNBLOCKABLE};
use super::thread::Suspended;
use super::{Outcome, Signals};
use crate::guest::GuestMemory;

/// Missing from libc for this target.
pub(super) const SYS_IO_PGETEVENTS: i64 = 333;

const EINTR: i64 = -(libc::EINTR as i64);
const EFAULT: i64 = -(libc::EFAULT as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);

/// Where a call has its signal mask.
enum MaskArgument {
    /// Pointer and size are arguments, from this index on.
    Direct(usize),
    /// This argument points to a pointer and a size.
    Packed(usize),
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
        self.wait_masked(libc::SYS_rt_sigsuspend, mask, true, |host_mask| {
            let set = &raw const *host_mask as u64;
            // SAFETY: the set outlives the call, which reads 8 bytes of it.
            unsafe { host::call(libc::SYS_rt_sigsuspend, [set, 8, 0, 0, 0, 0]) }
        })
    }

    /// The same wait with the mask as it is.
    pub(super) fn pause(&mut self) -> Outcome {
        let mask = self.thread.mask;
        self.wait_masked(libc::SYS_pause, mask, true, |host_mask| {
            let set = &raw const *host_mask as u64;
            // SAFETY: as in `rt_sigsuspend`.
            unsafe { host::call(libc::SYS_rt_sigsuspend, [set, 8, 0, 0, 0, 0]) }
        })
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
        Some(self.wait_masked(nr, mask, restarts, |host_mask| {
            let mut args = args;
            let set = &raw const *host_mask as u64;
            let pack = [set, 8];
            match argument {
                MaskArgument::Direct(index) => args[index] = set,
                MaskArgument::Packed(index) => args[index] = pack.as_ptr() as u64,
            }
            // SAFETY: the guest's call on the guest's memory; what was exchanged, the mask,
            // outlives the call.
            unsafe { host::call(nr, args) }
        }))
    }

    /// Waits by `call`, which gets the host's mask to wait with.
    fn wait_masked(
        &mut self,
        nr: i64,
        mask: SigSet,
        restarts: bool,
        call: impl FnOnce(&SigSet) -> i64,
    ) -> Outcome {
        let mask = mask.minus(UNBLOCKABLE);
        host::block(SigSet::all_asynchronous());
        if is_recorded(self.ctx) {
            // It came before the call: its handler runs before it, too.
            return Outcome::Again;
        }
        let before = std::mem::replace(&mut self.thread.mask, mask);
        let held = !mask.covers(self.thread.held());
        let result = if held {
            EINTR
        } else {
            call(&mask.minus(SYNCHRONOUS))
        };
        if result == EINTR && (held || is_recorded(self.ctx)) {
            // The frame saves the mask from before; delivery goes on from the new one.
            self.thread.suspended = Some(Suspended {
                mask: before,
                restart: restarts.then_some(nr),
            });
            self.ctx.pending = 1;
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
        let mut info = [0u8; SIGINFO_BYTES];
        let buffer = &raw mut info as u64;
        let nr = libc::SYS_rt_sigtimedwait;
        let Some(result) =
            self.host
                .blocking_call(self.ctx, nr, [set, buffer, timeout, size, 0, 0])
        else {
            return Outcome::Again;
        };
        if result > 0 && info_at != 0 && self.write(info_at, &info).is_err() {
            return Outcome::Return(EFAULT);
        }
        Outcome::Return(result)
    }
}
