//! The filters of a guest's threads: each has its own, and one may bring the others of its
//! process up to its own (SECCOMP_FILTER_FLAG_TSYNC).

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{MASK_BITS, Seccomp};
use crate::process::record::RecordId;

/// One thread's state, reached by that thread, and by others that synchronize.
#[derive(Clone, Default, Debug)]
pub struct ThreadSeccomp(Arc<Mutex<State>>);

#[derive(Default, Debug)]
struct State {
    seccomp: Seccomp,
    /// Another thread that can't gain privileges has given this one its filters: the host's
    /// thread has still to be told so.
    renounces_privileges: bool,
}

impl ThreadSeccomp {
    pub fn new(seccomp: Seccomp) -> ThreadSeccomp {
        ThreadSeccomp(Arc::new(Mutex::new(State {
            seccomp,
            renounces_privileges: false,
        })))
    }

    /// A copy for a new thread or process, which then goes its own way.
    pub fn inherited(&self) -> ThreadSeccomp {
        ThreadSeccomp::new(self.get())
    }

    pub fn get(&self) -> Seccomp {
        self.0.lock().seccomp.clone()
    }

    /// Looks at the state.
    pub fn with<R>(&self, look: impl FnOnce(&Seccomp) -> R) -> R {
        look(&self.0.lock().seccomp)
    }

    pub fn set(&self, seccomp: Seccomp) {
        self.0.lock().seccomp = seccomp;
    }

    /// True once after another thread made this one renounce privileges.
    pub fn take_renunciation(&self) -> bool {
        std::mem::take(&mut self.0.lock().renounces_privileges)
    }
}

#[derive(Debug)]
struct Entry {
    record: RecordId,
    tid: i32,
    state: Weak<Mutex<State>>,
}

/// What filters mean for all threads.
#[derive(Debug)]
pub struct Filters {
    /// All threads once there was a second one, and some that have ended.
    threads: Vec<Entry>,
    allowed: [u64; MASK_BITS / 64],
    any: bool,
}

impl Default for Filters {
    fn default() -> Filters {
        Filters {
            threads: Vec::new(),
            allowed: [u64::MAX; MASK_BITS / 64],
            any: false,
        }
    }
}

impl Filters {
    /// False as long as no thread was ever restricted.
    pub fn any(&self) -> bool {
        self.any
    }

    /// The calls that every thread may make whatever their arguments: a bit each.
    pub fn allowed_to_all(&self) -> [u64; MASK_BITS / 64] {
        self.allowed
    }

    /// A thread has this state now.
    pub fn restrict(&mut self, seccomp: &Seccomp) {
        self.any |= !matches!(seccomp, Seccomp::Off);
        let allows = seccomp.allows();
        self.allowed = std::array::from_fn(|at| self.allowed[at] & allows[at]);
    }

    /// There is a thread, which may be entered already. One that is alone need not be.
    pub fn enter(&mut self, record: RecordId, tid: i32, state: &ThreadSeccomp) {
        let state = Arc::downgrade(&state.0);
        self.threads
            .retain(|entry| entry.state.strong_count() > 0 && !entry.state.ptr_eq(&state));
        self.threads.push(Entry { record, tid, state });
    }

    /// Only this thread is left, as in the child of a fork.
    pub fn keep_only(&mut self, state: &ThreadSeccomp) {
        let own = Arc::downgrade(&state.0);
        self.threads.retain(|entry| entry.state.ptr_eq(&own));
    }

    /// Brings the other threads of the process `record` to `new`, into which `own` is about
    /// to go.
    ///
    /// # Errors
    /// The id of a thread whose filters aren't among the old ones of `own`; nothing is
    /// changed then.
    pub fn synchronize(
        &mut self,
        record: RecordId,
        own: &ThreadSeccomp,
        new: &Seccomp,
        renounces_privileges: bool,
    ) -> Result<(), i32> {
        let old = own.get();
        let others: Vec<_> = self
            .threads
            .iter()
            .filter(|entry| entry.record == record)
            .filter_map(|entry| Some((entry.tid, entry.state.upgrade()?)))
            .filter(|(_, state)| !Arc::ptr_eq(state, &own.0))
            .collect();
        if let Some((tid, _)) = others
            .iter()
            .find(|(_, state)| !state.lock().seccomp.is_ancestor_of(&old))
        {
            return Err(*tid);
        }
        for (_, state) in others {
            let mut state = state.lock();
            state.seccomp = new.clone();
            state.renounces_privileges |= renounces_privileges;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Program, RawInstruction, action};
    use super::*;

    fn filtered(mut seccomp: Seccomp) -> Seccomp {
        let program = Program::new(vec![RawInstruction {
            code: 6,
            jt: 0,
            jf: 0,
            k: action::ALLOW,
        }]);
        seccomp.attach(program.expect("valid")).expect("room");
        seccomp
    }

    #[test]
    fn threads_follow_where_they_are_behind_only() {
        let mut filters = Filters::default();
        let (first, second) = (ThreadSeccomp::default(), ThreadSeccomp::default());
        filters.enter(RecordId::FIRST, 1, &first);
        filters.enter(RecordId::FIRST, 2, &second);
        let new = filtered(Seccomp::Off);
        assert_eq!(
            filters.synchronize(RecordId::FIRST, &first, &new, true),
            Ok(())
        );
        first.set(new);
        assert_eq!(second.get().filters(), 1);
        assert!(second.take_renunciation() && !second.take_renunciation());
        assert!(!first.take_renunciation());

        // The second has one of its own now: the first can't pass it by.
        second.set(filtered(second.get()));
        let new = filtered(first.get());
        let refused = filters.synchronize(RecordId::FIRST, &first, &new, true);
        assert_eq!(refused, Err(2));
        assert_eq!(second.get().filters(), 2);
        drop(second);
        assert_eq!(
            filters.synchronize(RecordId::FIRST, &first, &new, true),
            Ok(())
        );
    }

    #[test]
    fn what_is_allowed_to_all_only_shrinks() {
        let mut filters = Filters::default();
        assert!(!filters.any());
        filters.restrict(&Seccomp::Strict);
        filters.restrict(&Seccomp::Off);
        assert!(filters.any());
        assert_eq!(filters.allowed_to_all(), Seccomp::Strict.allows());
    }
}
