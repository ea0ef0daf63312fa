//! What a process does on each signal: the guest's table of actions, as rt_sigaction(2)
//! shows it. Shared by all threads of a guest process, so it locks itself; no lock is held
//! while a system call blocks. Does not talk to the host: see [`super::host`].

use parking_lot::Mutex;

use super::set::{MAX_SIGNAL, SigSet, UNBLOCKABLE};

/// `SIG_DFL` and `SIG_IGN` as handler addresses.
pub const SIG_DFL: u64 = 0;
pub const SIG_IGN: u64 = 1;

/// Bits of `sa_flags` (linux/include/uapi/asm-generic/signal-defs.h; x86 adds the restorer).
pub mod sa {
    pub const NOCLDSTOP: u64 = 1;
    pub const NOCLDWAIT: u64 = 2;
    pub const SIGINFO: u64 = 4;
    pub const EXPOSE_TAGBITS: u64 = 0x800;
    pub const RESTORER: u64 = 0x0400_0000;
    pub const ONSTACK: u64 = 0x0800_0000;
    pub const RESTART: u64 = 0x1000_0000;
    pub const NODEFER: u64 = 0x4000_0000;
    pub const RESETHAND: u64 = 0x8000_0000;
    /// What the kernel keeps; it drops all else, so that programs can probe for flags.
    pub const KNOWN: u64 = NOCLDSTOP
        | NOCLDWAIT
        | SIGINFO
        | EXPOSE_TAGBITS
        | RESTORER
        | ONSTACK
        | RESTART
        | NODEFER
        | RESETHAND;
}

/// The kernel's `struct sigaction` for x86-64.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: SigSet,
}

/// Bytes of [`Action`] in guest memory.
pub const ACTION_BYTES: usize = 32;

/// What becomes of a signal whose action is `SIG_DFL` (signal(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultAction {
    Terminate,
    Core,
    Stop,
    Continue,
    Ignore,
}

impl Action {
    /// From its bytes in guest memory.
    pub fn from_bytes(bytes: &[u8; ACTION_BYTES]) -> Action {
        let word = |i: usize| u64::from_le_bytes(bytes[i * 8..][..8].try_into().expect("8 bytes"));
        Action {
            handler: word(0),
            flags: word(1),
            restorer: word(2),
            mask: SigSet(word(3)),
        }
    }

    /// As the kernel writes it.
    pub fn to_bytes(self) -> [u8; ACTION_BYTES] {
        let mut bytes = [0; ACTION_BYTES];
        for (i, word) in [self.handler, self.flags, self.restorer, self.mask.0]
            .into_iter()
            .enumerate()
        {
            bytes[i * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Whether a function of the guest's is to be called.
    pub fn is_handler(&self) -> bool {
        self.handler != SIG_DFL && self.handler != SIG_IGN
    }
}

/// The default action of a signal, 1 to 64.
pub fn default_action(signo: i32) -> DefaultAction {
    match signo {
        libc::SIGCONT => DefaultAction::Continue,
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH => DefaultAction::Ignore,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => DefaultAction::Stop,
        libc::SIGQUIT
        | libc::SIGILL
        | libc::SIGABRT
        | libc::SIGFPE
        | libc::SIGSEGV
        | libc::SIGBUS
        | libc::SIGTRAP
        | libc::SIGSYS
        | libc::SIGXCPU
        | libc::SIGXFSZ => DefaultAction::Core,
        _ => DefaultAction::Terminate,
    }
}

/// The table of a guest process. CLONE_SIGHAND shares it (an `Arc`); fork copies it.
#[derive(Debug)]
pub struct Dispositions {
    actions: Mutex<Table>,
}

type Table = [Action; MAX_SIGNAL as usize];

impl Default for Dispositions {
    fn default() -> Self {
        Dispositions {
            actions: Mutex::new([Action::default(); MAX_SIGNAL as usize]),
        }
    }
}

impl Clone for Dispositions {
    fn clone(&self) -> Self {
        Dispositions {
            actions: Mutex::new(*self.actions.lock()),
        }
    }
}

impl Dispositions {
    /// The table of a process just executed: everything default, `ignored` ignored
    /// (ignoring is what execve(2) keeps).
    pub fn inherited(ignored: SigSet) -> Dispositions {
        let dispositions = Dispositions::default();
        for signo in 1..=MAX_SIGNAL {
            if ignored.contains(signo) && !UNBLOCKABLE.contains(signo) {
                dispositions.set(
                    signo,
                    Action {
                        handler: SIG_IGN,
                        ..Action::default()
                    },
                );
            }
        }
        dispositions
    }

    /// The action for `signo`, 1 to 64.
    pub fn get(&self, signo: i32) -> Action {
        self.actions.lock()[signo as usize - 1]
    }

    /// Replaces the action for `signo` and returns the one before.
    pub fn set(&self, signo: i32, action: Action) -> Action {
        std::mem::replace(&mut self.actions.lock()[signo as usize - 1], action)
    }

    /// The action to carry out for a signal that is being delivered; with SA_RESETHAND the
    /// handler is taken out of the table in the same step (flags and mask stay).
    pub fn take_for_delivery(&self, signo: i32) -> Action {
        let mut actions = self.actions.lock();
        let action = actions[signo as usize - 1];
        if action.is_handler() && action.flags & sa::RESETHAND != 0 {
            actions[signo as usize - 1].handler = SIG_DFL;
        }
        action
    }

    /// Signals that are ignored by the guest's choice.
    pub fn ignored(&self) -> SigSet {
        let actions = self.actions.lock();
        (1..=MAX_SIGNAL)
            .filter(|signo| actions[*signo as usize - 1].handler == SIG_IGN)
            .fold(SigSet::EMPTY, SigSet::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_one_shot_handler_is_taken_once() {
        let table = Dispositions::default();
        let action = Action {
            handler: 0x1000,
            flags: sa::RESETHAND | sa::SIGINFO,
            restorer: 0,
            mask: SigSet::of(&[libc::SIGHUP]),
        };
        table.set(libc::SIGUSR1, action);
        assert_eq!(table.take_for_delivery(libc::SIGUSR1), action);
        let after = table.get(libc::SIGUSR1);
        assert_eq!((after.handler, after.flags), (SIG_DFL, action.flags));
    }

    #[test]
    fn an_action_survives_its_bytes() {
        let action = Action {
            handler: 1,
            flags: 2,
            restorer: 3,
            mask: SigSet(4),
        };
        assert_eq!(Action::from_bytes(&action.to_bytes()), action);
    }

    #[test]
    fn ignored_signals_are_inherited() {
        let set = SigSet::of(&[libc::SIGPIPE, libc::SIGSEGV]);
        assert_eq!(Dispositions::inherited(set).ignored(), set);
    }
}
