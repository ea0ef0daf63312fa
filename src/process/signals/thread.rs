//! The part of signal state that each thread has for itself: what it blocks, where its
//! alternate stack lies, and which signals wait in Temper instead of in the kernel.

use super::death::Death;
use super::info::{FaultCodes, SigInfo};
use super::set::SigSet;
use super::wait::Wait;

/// Bits of `ss_flags`.
pub const SS_ONSTACK: u32 = 1;
pub const SS_DISABLE: u32 = 2;
pub const SS_AUTODISARM: u32 = 1 << 31;

/// The smallest alternate stack that x86 kernels accept (MINSIGSTKSZ; larger frames than
/// that fail at delivery, which is why AT_MINSIGSTKSZ exists).
pub const MIN_ALT_STACK: u64 = 2048;

/// Bytes of a `stack_t`.
pub const STACK_T_BYTES: usize = 24;

/// A thread's alternate signal stack, as sigaltstack(2) last set it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AltStack {
    pub base: u64,
    pub size: u64,
    pub flags: u32,
}

/// Why sigaltstack refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AltStackError {
    /// The thread runs on it (EPERM).
    InUse,
    /// Unknown flags (EINVAL).
    Flags,
    /// Too small (ENOMEM).
    Size,
}

impl AltStack {
    pub fn from_bytes(bytes: &[u8; STACK_T_BYTES]) -> AltStack {
        AltStack {
            base: u64::from_le_bytes(bytes[0..8].try_into().expect("8 bytes")),
            flags: u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes")),
            size: u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes")),
        }
    }

    pub fn to_bytes(self) -> [u8; STACK_T_BYTES] {
        let mut bytes = [0; STACK_T_BYTES];
        bytes[0..8].copy_from_slice(&self.base.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// Whether `sp` lies on the stack, AUTODISARM or not. An empty stack grows down from its
    /// end, so the end counts and the base doesn't.
    pub fn holds(&self, sp: u64) -> bool {
        sp > self.base && sp - self.base <= self.size
    }

    /// Whether a thread with this `sp` counts as running on it.
    pub fn in_use(&self, sp: u64) -> bool {
        self.flags & SS_AUTODISARM == 0 && self.holds(sp)
    }

    /// What sigaltstack(2) reports for a thread with this `sp`.
    pub fn reported(&self, sp: u64) -> AltStack {
        let state = if self.size == 0 {
            SS_DISABLE
        } else if self.in_use(sp) {
            SS_ONSTACK
        } else {
            0
        };
        AltStack {
            flags: state | self.flags & SS_AUTODISARM,
            ..*self
        }
    }

    /// sigaltstack(2)'s change to `new`.
    ///
    /// # Errors
    /// The kernel's, in its order.
    pub fn change(&mut self, new: AltStack, sp: u64) -> Result<(), AltStackError> {
        if self.in_use(sp) {
            return Err(AltStackError::InUse);
        }
        match new.flags & !SS_AUTODISARM {
            SS_DISABLE => {
                *self = AltStack {
                    base: 0,
                    size: 0,
                    flags: new.flags,
                }
            }
            0 | SS_ONSTACK if new == *self => {}
            0 | SS_ONSTACK if new.size < MIN_ALT_STACK => return Err(AltStackError::Size),
            0 | SS_ONSTACK => *self = new,
            _ => return Err(AltStackError::Flags),
        }
        Ok(())
    }

    /// What delivery does to an AUTODISARM stack, and clone(2) to a new thread's.
    pub fn reset(&mut self) {
        *self = AltStack {
            base: 0,
            size: 0,
            flags: SS_DISABLE,
        };
    }
}

/// A wait with a temporary mask (sigsuspend, ppoll and the like) that a signal ended: its
/// frame saves the mask from before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suspended {
    pub mask: SigSet,
    /// The call's number, where the kernel restarts it if no handler runs after all.
    pub restart: Option<i64>,
}

/// One guest thread's signal state.
#[derive(Clone, Default, Debug)]
pub struct ThreadSignals {
    /// What the guest blocks, synchronous signals included. The host's mask is this without
    /// the synchronous ones, or everything while a signal awaits delivery.
    pub mask: SigSet,
    pub alt_stack: AltStack,
    pub suspended: Option<Suspended>,
    pub fault: FaultCodes,
    /// What the thread died of, when it did.
    pub(super) death: Option<Box<Death>>,
    /// The wait under way. Its buffers are the kernel's during the call, so the state must
    /// not move then.
    pub wait: Wait,
    /// Synchronous signals that somebody sent while the guest blocked them: the host has
    /// them unblocked, so they wait here. One of each, as standard signals don't queue.
    held: [Option<SigInfo>; 5],
}

impl ThreadSignals {
    /// The state of a process's first thread, with the mask it was executed with.
    pub fn new(mask: SigSet) -> ThreadSignals {
        ThreadSignals {
            mask,
            ..ThreadSignals::default()
        }
    }

    /// The state of a thread or child that this thread creates. `shares_memory` is CLONE_VM
    /// without CLONE_VFORK, where two stacks can't be one.
    pub fn for_child(&self, shares_memory: bool) -> ThreadSignals {
        let mut child = ThreadSignals {
            held: [None; 5],
            suspended: None,
            wait: Wait::default(),
            ..self.clone()
        };
        if shares_memory {
            child.alt_stack.reset();
        }
        child
    }

    /// Keeps a blocked synchronous signal for later; a second one of a kind is dropped.
    pub fn hold(&mut self, info: SigInfo) {
        let waiting = |slot: &Option<SigInfo>| slot.is_some_and(|i| i.signo() == info.signo());
        if !self.held.iter().any(waiting)
            && let Some(slot) = self.held.iter_mut().find(|slot| slot.is_none())
        {
            *slot = Some(info);
        }
    }

    /// The signals held.
    pub fn held(&self) -> SigSet {
        self.held
            .iter()
            .flatten()
            .fold(SigSet::EMPTY, |set, info| set.with(info.signo()))
    }

    /// Takes the lowest held signal that is in `wanted`.
    pub fn take_held(&mut self, wanted: SigSet) -> Option<SigInfo> {
        self.held
            .iter_mut()
            .filter(|slot| slot.is_some_and(|info| wanted.contains(info.signo())))
            .min_by_key(|slot| slot.map(|info| info.signo()))
            .and_then(Option::take)
    }

    /// Drops a held signal, as changing its action to "ignore" does.
    pub fn drop_held(&mut self, signo: i32) {
        self.take_held(SigSet::of(&[signo]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: AltStack = AltStack {
        base: 0x1_0000,
        size: 0x1000,
        flags: 0,
    };

    #[test]
    fn the_end_of_a_stack_is_on_it_and_its_base_is_not() {
        assert!(STACK.in_use(0x1_1000) && STACK.in_use(0x1_0001));
        assert!(!STACK.in_use(0x1_0000) && !STACK.in_use(0x1_1001));
    }

    #[test]
    fn a_stack_in_use_cannot_be_changed_unless_it_disarms_itself() {
        let mut stack = STACK;
        assert_eq!(
            stack.change(AltStack::default(), 0x1_0800),
            Err(AltStackError::InUse)
        );
        stack.flags = SS_AUTODISARM;
        assert_eq!(
            stack.change(
                AltStack {
                    flags: SS_DISABLE,
                    ..STACK
                },
                0x1_0800
            ),
            Ok(())
        );
        assert_eq!(stack.reported(0).flags, SS_DISABLE);
    }

    #[test]
    fn a_held_signal_is_kept_once_and_taken_by_number() {
        let mut thread = ThreadSignals::default();
        for signo in [libc::SIGSEGV, libc::SIGTRAP, libc::SIGSEGV] {
            thread.hold(SigInfo::fault(signo, 0, 0));
        }
        assert_eq!(thread.held(), SigSet::of(&[libc::SIGTRAP, libc::SIGSEGV]));
        let all = SigSet(u64::MAX);
        assert_eq!(
            thread.take_held(all).map(|i| i.signo()),
            Some(libc::SIGTRAP)
        );
        assert_eq!(
            thread.take_held(all).map(|i| i.signo()),
            Some(libc::SIGSEGV)
        );
        assert_eq!(thread.take_held(all), None);
    }
}
