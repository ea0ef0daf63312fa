//! The lock of the world: a futex mutex that can be handed over and that a forked child can
//! take for its own. It keeps nothing outside itself (no queue of threads, no thread-locals),
//! so a child in which the other threads are gone finds it whole.

use std::sync::atomic::{AtomicU32, Ordering};

use syscalls::Sysno;

use crate::host::syscall::raw;

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody may sleep for it.
const CONTENDED: u32 = 2;

/// Looks at the lock before a thread sleeps for it: about what being woken costs.
const SPINS: u32 = 200;
/// The longest that a thread which handed over waits for another to take its turn.
const TURN_NANOSECONDS: u64 = 1_000_000;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Lock {
    state: AtomicU32,
    /// Threads that want it and haven't got it.
    waiting: AtomicU32,
    /// Counts acquisitions by threads that had to wait.
    turns: AtomicU32,
    /// Threads that handed over and sleep until the next turn.
    yielding: AtomicU32,
}

impl Lock {
    #[inline]
    pub(super) fn acquire(&self) {
        if self
            .state
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            self.acquire_slowly();
        }
    }

    #[cold]
    fn acquire_slowly(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state == FREE {
                let free =
                    self.state
                        .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
                if free.is_ok() {
                    break;
                }
            } else if state == CONTENDED || spins == SPINS {
                // Whoever wakes here can't know whether others sleep: it says so.
                while self.state.swap(CONTENDED, Ordering::Acquire) != FREE {
                    wait(&self.state, CONTENDED, None);
                }
                break;
            }
            spins += 1;
            std::hint::spin_loop();
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::SeqCst);
        if self.yielding.load(Ordering::SeqCst) != 0 {
            wake(&self.turns);
        }
    }

    /// The caller, which holds the lock, is the only thread of a forked child.
    pub(super) fn be_alone(&self) {
        self.state.store(HELD, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Relaxed);
        self.yielding.store(0, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn release(&self) {
        if self.state.swap(FREE, Ordering::Release) == CONTENDED {
            wake(&self.state);
        }
    }

    /// Lets a thread that waits have its turn; the caller holds the lock, before and after.
    /// False: nobody waits.
    #[inline]
    pub(super) fn hand_over(&self) -> bool {
        let wanted = self.waiting.load(Ordering::Relaxed) != 0;
        if wanted {
            self.hand_over_slowly();
        }
        wanted
    }

    #[cold]
    fn hand_over_slowly(&self) {
        let turn = self.turns.load(Ordering::Relaxed);
        self.release();
        let mut spins = 0;
        while self.turns.load(Ordering::Relaxed) == turn && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        if spins == SPINS {
            // The other one has to be woken first.
            self.yielding.fetch_add(1, Ordering::SeqCst);
            wait(&self.turns, turn, Some(TURN_NANOSECONDS));
            self.yielding.fetch_sub(1, Ordering::Relaxed);
        }
        self.acquire();
    }
}

/// Sleeps while `word` is `value`, at most so many nanoseconds; may return early.
fn wait(word: &AtomicU32, value: u32, limit: Option<u64>) {
    let timeout = limit.map(|nanoseconds| [0, nanoseconds]);
    let at = timeout
        .as_ref()
        .map_or(0, |timeout| timeout.as_ptr() as u64);
    let op = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
    let args = [word.as_ptr() as u64, op, u64::from(value), at, 0, 0];
    // SAFETY: the kernel reads the word and the timeout, both alive.
    unsafe { raw(Sysno::futex.id() as u64, args) };
}

/// Wakes one thread that sleeps on `word`.
fn wake(word: &AtomicU32) {
    let op = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
    // SAFETY: the kernel looks at the address alone.
    unsafe {
        raw(
            Sysno::futex.id() as u64,
            [word.as_ptr() as u64, op, 1, 0, 0, 0],
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::UnsafeCell;

    struct Counted {
        lock: Lock,
        count: UnsafeCell<u64>,
    }

    // SAFETY: the count is touched under the lock alone.
    unsafe impl Sync for Counted {}

    fn add(counted: &Counted) -> u64 {
        // SAFETY: under the lock, by the caller.
        unsafe {
            *counted.count.get() += 1;
            *counted.count.get()
        }
    }

    #[test]
    fn one_thread_at_a_time_gets_in() {
        let counted = Counted {
            lock: Lock::default(),
            count: UnsafeCell::new(0),
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000 {
                        counted.lock.acquire();
                        add(&counted);
                        if round % 64 == 0 {
                            counted.lock.hand_over();
                        }
                        counted.lock.release();
                    }
                });
            }
        });
        counted.lock.acquire();
        assert_eq!(add(&counted), 4 * 20_000 + 1);
    }

    #[test]
    fn handing_over_gives_a_waiting_thread_its_turn() {
        let counted = Counted {
            lock: Lock::default(),
            count: UnsafeCell::new(0),
        };
        counted.lock.acquire();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                counted.lock.acquire();
                add(&counted);
                counted.lock.release();
            });
            // Never released for long: only handing over can let the other one in.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            loop {
                counted.lock.hand_over();
                // SAFETY: under the lock.
                if unsafe { *counted.count.get() } == 1 {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "never had its turn");
            }
            counted.lock.release();
        });
    }
}
