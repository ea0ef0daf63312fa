//! Signal numbers and sets of them, as the kernel's 64-bit `sigset_t` has them.

/// A set of signals; bit n-1 stands for signal n.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct SigSet(pub u64);

/// Signals are numbered from 1 to this.
pub const MAX_SIGNAL: i32 = 64;

/// Signals that faulting instructions raise. Temper keeps them unblocked in the host and
/// its handler installed for them, whatever the guest says.
pub const SYNCHRONOUS: SigSet = SigSet::of(&crate::guest::SYNCHRONOUS);

/// Signals that can be neither caught nor blocked.
pub const UNBLOCKABLE: SigSet = SigSet::of(&[libc::SIGKILL, libc::SIGSTOP]);

impl SigSet {
    pub const EMPTY: SigSet = SigSet(0);

    /// The set of the signals listed.
    pub const fn of(signals: &[i32]) -> SigSet {
        let mut bits = 0;
        let mut i = 0;
        while i < signals.len() {
            bits |= 1 << (signals[i] - 1);
            i += 1;
        }
        SigSet(bits)
    }

    /// Everything that can be blocked in the host while Temper has a signal in hand.
    pub const fn all_asynchronous() -> SigSet {
        SigSet(!SYNCHRONOUS.0)
    }

    pub const fn contains(self, signo: i32) -> bool {
        self.0 & (1 << (signo - 1)) != 0
    }

    pub const fn with(self, signo: i32) -> SigSet {
        SigSet(self.0 | 1 << (signo - 1))
    }

    pub const fn without(self, signo: i32) -> SigSet {
        SigSet(self.0 & !(1 << (signo - 1)))
    }

    pub const fn union(self, other: SigSet) -> SigSet {
        SigSet(self.0 | other.0)
    }

    pub const fn minus(self, other: SigSet) -> SigSet {
        SigSet(self.0 & !other.0)
    }

    /// Whether every signal of `other` is here too.
    pub const fn covers(self, other: SigSet) -> bool {
        other.0 & !self.0 == 0
    }
}
