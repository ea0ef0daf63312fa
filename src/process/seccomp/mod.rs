//! The guest's seccomp filters: Temper checks them as the kernel does, evaluates them on the
//! guest's system calls and never installs them, because they would hit Temper's own calls
//! too. Upstream: the system calls, which ask for a [`Verdict`] before each. Filters belong
//! to a thread, are shared with its children, and only ever become more.
//!
//! Not here: user notification (a listener's answers come from the kernel's own filter), and
//! strict mode's ban on RDTSC, which Temper uses itself.

mod check;
mod data;
mod evaluate;
mod program;
mod restore;
mod threads;

use std::sync::Arc;

pub use check::{Invalid, MAX_INSTRUCTIONS};
pub use data::{ARCH, CallData};
pub use program::{INSTRUCTION_BYTES, Program, RawInstruction};
pub use restore::Carried;
pub use threads::{Filters, ThreadSeccomp};

use data::word_of_number;

/// What a filter returns: an action in the upper half, its data in the lower
/// (linux/seccomp.h). As signed numbers, the less an action permits the smaller it is.
pub mod action {
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0x0000_0000;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const USER_NOTIFICATION: u32 = 0x7fc0_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;

    /// The action's part of a result.
    pub const FULL: u32 = 0xffff_0000;
}

/// The largest error number (MAX_ERRNO).
const MAX_ERRNO: u16 = 4095;

/// The kernel's bound on the filters of a thread (MAX_INSNS_PER_PATH), in instructions of its
/// own form, with a penalty for each filter but the newest.
const MAX_TOTAL_LENGTH: u32 = 1 << 15;
const FILTER_PENALTY: u32 = 4;

/// Numbers below this have a bit in a mask of calls.
const MASK_BITS: usize = 512;

/// The calls that strict mode lets through, and that exist on x86-64.
const STRICT_CALLS: [i64; 4] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_exit,
    libc::SYS_rt_sigreturn,
];

/// What becomes of a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Allow,
    /// Allowed; the kernel would write it to its log.
    Log,
    /// It fails with this number; with 0 it "succeeds".
    Fail(u16),
    /// SIGSYS with the filter's data.
    Trap(u16),
    /// The thread dies by this signal; the process too if it is the last one.
    KillThread(i32),
    /// The process dies by SIGSYS.
    KillProcess,
}

/// What one thread may call.
#[derive(Clone, Default, Debug)]
pub enum Seccomp {
    #[default]
    Off,
    Strict,
    /// The filters, oldest first; never empty.
    Filtered(Vec<Arc<Filter>>),
}

/// A filter that is in force.
#[derive(Debug)]
pub struct Filter {
    program: Program,
    /// The calls that it allows whatever their arguments: a bit each.
    allows: [u64; MASK_BITS / 64],
}

/// Why a filter or mode wasn't taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The other mode is in force (EINVAL).
    OtherMode,
    /// All filters together are too long (ENOMEM).
    TooLong,
}

impl Seccomp {
    /// As PR_GET_SECCOMP and /proc tell it.
    pub fn mode(&self) -> u32 {
        match self {
            Seccomp::Off => libc::SECCOMP_MODE_DISABLED,
            Seccomp::Strict => libc::SECCOMP_MODE_STRICT,
            Seccomp::Filtered(_) => libc::SECCOMP_MODE_FILTER,
        }
    }

    /// How many filters there are.
    pub fn filters(&self) -> usize {
        match self {
            Seccomp::Off | Seccomp::Strict => 0,
            Seccomp::Filtered(filters) => filters.len(),
        }
    }

    /// Enters strict mode.
    ///
    /// # Errors
    /// There are filters.
    pub fn set_strict(&mut self) -> Result<(), Refusal> {
        match self {
            Seccomp::Off | Seccomp::Strict => {
                *self = Seccomp::Strict;
                Ok(())
            }
            Seccomp::Filtered(_) => Err(Refusal::OtherMode),
        }
    }

    /// Adds a filter.
    ///
    /// # Errors
    /// Strict mode is on, or there are too many.
    pub fn attach(&mut self, program: Program) -> Result<(), Refusal> {
        let older = match self {
            Seccomp::Off => &[][..],
            Seccomp::Strict => return Err(Refusal::OtherMode),
            Seccomp::Filtered(filters) => filters,
        };
        let older_length: u32 = older
            .iter()
            .map(|filter| filter.program.kernel_length + FILTER_PENALTY)
            .sum();
        if program.kernel_length + older_length > MAX_TOTAL_LENGTH {
            return Err(Refusal::TooLong);
        }
        let filter = Arc::new(Filter::new(program));
        match self {
            Seccomp::Filtered(filters) => filters.push(filter),
            Seccomp::Off | Seccomp::Strict => *self = Seccomp::Filtered(vec![filter]),
        }
        Ok(())
    }

    /// Whether `other` is this with more filters, or the same: then a thread in this state can
    /// be brought into that one.
    pub fn is_ancestor_of(&self, other: &Seccomp) -> bool {
        match (self, other) {
            (Seccomp::Off, _) => true,
            (Seccomp::Filtered(older), Seccomp::Filtered(newer)) => {
                let pairs = older.iter().zip(newer);
                older.len() <= newer.len()
                    && pairs.fold(true, |same, (a, b)| same && Arc::ptr_eq(a, b))
            }
            (Seccomp::Strict | Seccomp::Filtered(_), _) => false,
        }
    }

    /// The verdict on one call (seccomp_run_filters and __seccomp_filter of the kernel).
    pub fn judge(&self, call: &CallData) -> Verdict {
        let filters = match self {
            Seccomp::Off => return Verdict::Allow,
            Seccomp::Strict if STRICT_CALLS.contains(&i64::from(call.number)) => {
                return Verdict::Allow;
            }
            Seccomp::Strict => return Verdict::KillThread(libc::SIGKILL),
            Seccomp::Filtered(filters) => filters,
        };
        let result = filters
            .iter()
            .rev()
            // All words are known, so there is a result.
            .map(|filter| {
                let result = filter.program.run(|offset| Some(call.word(offset)));
                result.unwrap_or(action::KILL_PROCESS)
            })
            // Of equal actions the first one's, which is the newest filter's, counts.
            .min_by_key(|result| (result & action::FULL) as i32)
            .unwrap_or(action::ALLOW);
        let data = result as u16;
        match result & action::FULL {
            action::ALLOW => Verdict::Allow,
            action::LOG => Verdict::Log,
            action::ERRNO => Verdict::Fail(data.min(MAX_ERRNO)),
            // No tracer and no listener: as a call that doesn't exist.
            action::TRACE | action::USER_NOTIFICATION => Verdict::Fail(libc::ENOSYS as u16),
            action::TRAP => Verdict::Trap(data),
            action::KILL_THREAD => Verdict::KillThread(libc::SIGSYS),
            _ => Verdict::KillProcess,
        }
    }

    /// The calls that are allowed whatever their arguments: a bit each, numbers 0 to 511.
    pub fn allows(&self) -> [u64; MASK_BITS / 64] {
        match self {
            Seccomp::Off => [u64::MAX; MASK_BITS / 64],
            Seccomp::Strict => mask_of(|number| STRICT_CALLS.contains(&i64::from(number))),
            Seccomp::Filtered(filters) => filters
                .iter()
                .fold([u64::MAX; MASK_BITS / 64], |all, filter| {
                    std::array::from_fn(|at| all[at] & filter.allows[at])
                }),
        }
    }
}

impl Filter {
    fn new(program: Program) -> Filter {
        let allows = mask_of(|number| {
            let result = program.run(|offset| word_of_number(number, offset));
            result.is_some_and(|result| result & action::FULL == action::ALLOW)
        });
        Filter { program, allows }
    }
}

fn mask_of(has: impl Fn(u32) -> bool) -> [u64; MASK_BITS / 64] {
    let mut mask = [0; MASK_BITS / 64];
    for number in 0..MASK_BITS {
        if has(number as u32) {
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    mask
}

#[cfg(test)]
mod tests;
