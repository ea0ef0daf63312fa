//! The system calls about signals that don't wait: actions, masks, alternate stacks. Those
//! that only send (kill, tgkill, rt_sigqueueinfo) and signalfd pass through to the kernel,
//! whose books about asynchronous signals are the guest's.

use super::action::{ACTION_BYTES, Action, DefaultAction, SIG_DFL, SIG_IGN, default_action, sa};
use super::host::{self, HostHandlers};
use super::set::{MAX_SIGNAL, SYNCHRONOUS, SigSet, UNBLOCKABLE};
use super::thread::{AltStack, AltStackError, STACK_T_BYTES};
use super::{Outcome, Signals};
use crate::addr::GuestAddr;
use crate::guest::{Gpr, GuestMemory};

/// A guest pointer that can't be read or written.
pub(super) struct Fault;

const SIGSET_BYTES: u64 = 8;
const EFAULT: i64 = -(libc::EFAULT as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);

impl<M: GuestMemory, H: HostHandlers> Signals<'_, M, H> {
    /// Carries out a system call of this family; `ctx.cpu.rip` is after the SYSCALL.
    /// `None`: not ours, or it passes through to the kernel as it is.
    pub fn syscall(&mut self, nr: i64, args: [u64; 6]) -> Option<Outcome> {
        let result = match nr {
            libc::SYS_rt_sigaction => self.rt_sigaction(args),
            libc::SYS_rt_sigprocmask => return Some(self.rt_sigprocmask(args)),
            libc::SYS_rt_sigpending => self.rt_sigpending(args),
            libc::SYS_sigaltstack => self.sigaltstack(args),
            libc::SYS_rt_sigreturn => return Some(self.sigreturn()),
            libc::SYS_rt_sigsuspend => return Some(self.rt_sigsuspend(args)),
            libc::SYS_pause => return Some(self.pause()),
            libc::SYS_rt_sigtimedwait => return Some(self.rt_sigtimedwait(args)),
            libc::SYS_ppoll
            | libc::SYS_pselect6
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | super::wait::SYS_IO_PGETEVENTS => return self.masked_wait(nr, args),
            _ => return None,
        };
        Some(Outcome::Return(result.unwrap_or(EFAULT)))
    }

    fn rt_sigaction(&mut self, args: [u64; 6]) -> Result<i64, Fault> {
        let [signo, new, old, size, ..] = args;
        if size != SIGSET_BYTES {
            return Ok(EINVAL);
        }
        let new = match new {
            0 => None,
            at => Some(Action::from_bytes(&self.read::<ACTION_BYTES>(at)?)),
        };
        let signo = signo as i32;
        if !(1..=MAX_SIGNAL).contains(&signo) || new.is_some() && UNBLOCKABLE.contains(signo) {
            return Ok(EINVAL);
        }
        let before = match new {
            None => self.dispositions.get(signo),
            Some(new) => self.change_action(signo, new),
        };
        if old != 0 {
            self.write(old, &before.to_bytes())?;
        }
        Ok(0)
    }

    fn change_action(&mut self, signo: i32, new: Action) -> Action {
        let new = Action {
            flags: new.flags & sa::KNOWN,
            mask: new.mask.minus(UNBLOCKABLE),
            ..new
        };
        let before = self.dispositions.set(signo, new);
        let ignores = match new.handler {
            SIG_IGN => true,
            SIG_DFL => default_action(signo) == DefaultAction::Ignore,
            _ => false,
        };
        // POSIX: what is pending is discarded then. The kernel does so for its own.
        if ignores && SYNCHRONOUS.contains(signo) {
            self.thread.drop_held(signo);
        }
        let host_flags = |action: &Action| host::HostFlags::from_action_flags(action.flags);
        // A handler exchanged for another is no news to the host.
        let same =
            before.is_handler() && new.is_handler() && host_flags(&before) == host_flags(&new);
        if !same {
            self.install_in_host(signo, &new);
        }
        before
    }

    fn rt_sigprocmask(&mut self, args: [u64; 6]) -> Outcome {
        let [how, new, old, size, ..] = args;
        if size != SIGSET_BYTES {
            return Outcome::Return(EINVAL);
        }
        let before = self.thread.mask;
        if new != 0 {
            let Ok(set) = self.read_set(new) else {
                return Outcome::Return(EFAULT);
            };
            let mask = match how as i32 {
                libc::SIG_BLOCK => before.union(set),
                libc::SIG_UNBLOCK => before.minus(set),
                libc::SIG_SETMASK => set,
                _ => return Outcome::Return(EINVAL),
            };
            if !self.set_mask(mask) {
                return Outcome::Again;
            }
        }
        if old != 0 && self.write(old, &before.0.to_le_bytes()).is_err() {
            return Outcome::Return(EFAULT);
        }
        Outcome::Return(0)
    }

    fn rt_sigpending(&mut self, args: [u64; 6]) -> Result<i64, Fault> {
        let [at, size, ..] = args;
        if size > SIGSET_BYTES {
            return Ok(EINVAL);
        }
        let pending = host::pending().union(self.thread.held()).0 & self.thread.mask.0;
        self.write(at, &pending.to_le_bytes()[..size as usize])?;
        Ok(0)
    }

    fn sigaltstack(&mut self, args: [u64; 6]) -> Result<i64, Fault> {
        let [new, old, ..] = args;
        let sp = self.ctx.cpu.get(Gpr::Rsp);
        let reported = self.thread.alt_stack.reported(sp);
        if new != 0 {
            let stack = AltStack::from_bytes(&self.read::<STACK_T_BYTES>(new)?);
            match self.thread.alt_stack.change(stack, sp) {
                Ok(()) => {}
                Err(AltStackError::InUse) => return Ok(-i64::from(libc::EPERM)),
                Err(AltStackError::Flags) => return Ok(EINVAL),
                Err(AltStackError::Size) => return Ok(-i64::from(libc::ENOMEM)),
            }
        }
        if old != 0 {
            self.write(old, &reported.to_bytes())?;
        }
        Ok(0)
    }

    pub(super) fn read_set(&mut self, at: u64) -> Result<SigSet, Fault> {
        Ok(SigSet(u64::from_le_bytes(self.read::<8>(at)?)))
    }

    pub(super) fn read<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.memory
            .read_bytes(GuestAddr(at), &mut bytes)
            .map_err(|_| Fault)?;
        Ok(bytes)
    }

    /// Writes as the kernel does: through Temper's own protection of code pages.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        let start = GuestAddr(at);
        self.host
            .will_write(start..start.offset(bytes.len() as i64));
        self.memory.write_bytes(start, bytes).map_err(|_| Fault)
    }
}
