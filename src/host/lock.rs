//! A futex mutex for what processes of one memory share: the world, the heap. It can be handed
//! over, a forked child can take it for its own, and it names its owner, so that a holder's
//! death shows. It keeps nothing outside itself (no queue of threads).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use syscalls::Sysno;

use super::syscall::raw;

const FREE: u32 = 0;
/// Beside the owner: somebody may sleep for it.
const WAITERS: u32 = 1 << 31;

/// Looks at the lock before a thread sleeps for it: about what being woken costs.
const SPINS: u32 = 200;
/// The longest that a thread which handed over waits for another to take its turn.
const TURN_NANOSECONDS: u64 = 1_000_000;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Lock {
    /// The owner's mark, or [`FREE`].
    state: AtomicU32,
    /// Counts acquisitions by threads that had to wait.
    turns: AtomicU32,
    /// A thread that handed over may sleep until the next turn.
    yielding: AtomicBool,
}

/// Names the calling thread: the page of its thread-locals, which no two threads have in
/// common. A child that shares memory has its parent's, which waits meanwhile.
fn own_mark() -> u32 {
    thread_local!(static PLACE: u8 = const { 0 });
    let page = PLACE.with(|place| std::ptr::from_ref(place).addr() >> 12);
    (page as u32 & !WAITERS) | 1 << 30
}

impl Lock {
    pub const fn new() -> Lock {
        Lock {
            state: AtomicU32::new(FREE),
            turns: AtomicU32::new(0),
            yielding: AtomicBool::new(false),
        }
    }

    #[inline]
    pub fn acquire(&self) {
        let own = own_mark();
        if self
            .state
            .compare_exchange(FREE, own, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            self.acquire_slowly(own);
        }
    }

    /// `taken` is what it will be.
    #[cold]
    fn acquire_slowly(&self, mut taken: u32) {
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state == FREE {
                let free =
                    self.state
                        .compare_exchange(FREE, taken, Ordering::Acquire, Ordering::Relaxed);
                if free.is_ok() {
                    break;
                }
            } else if state & WAITERS == 0 && spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                let marked = state | WAITERS;
                let changed = self.state.compare_exchange(
                    state,
                    marked,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                if changed.is_ok() {
                    wait(&self.state, marked, None);
                    // Whoever wakes here can't know whether others sleep: it says so.
                    taken |= WAITERS;
                }
            }
        }
        self.turns.fetch_add(1, Ordering::SeqCst);
        if self.yielding.swap(false, Ordering::SeqCst) {
            wake(&self.turns, i32::MAX);
        }
    }

    /// Takes it once a child that had this thread's memory and thread-locals has gone,
    /// perhaps killed at any moment: holding the lock, which is this thread's then, or woken
    /// to take it, so that others may sleep unbeknown. True: it held the lock.
    pub fn acquire_after_child(&self) -> bool {
        let held = self.is_own();
        if held {
            self.state.fetch_or(WAITERS, Ordering::Acquire);
        } else {
            self.acquire_slowly(own_mark() | WAITERS);
        }
        held
    }

    /// Whether the calling thread holds it, or a child that had this thread's memory and
    /// thread-locals and died with it.
    pub fn is_own(&self) -> bool {
        self.state.load(Ordering::Relaxed) & !WAITERS == own_mark()
    }

    /// The caller, which holds the lock, is the only thread of a forked child.
    pub fn be_alone(&self) {
        self.state.store(own_mark(), Ordering::Relaxed);
        self.yielding.store(false, Ordering::Relaxed);
    }

    #[inline]
    pub fn release(&self) {
        if self.state.swap(FREE, Ordering::Release) & WAITERS != 0 {
            wake(&self.state, 1);
        }
    }

    /// Lets a thread that waits have its turn; the caller holds the lock, before and after.
    /// False: nobody waits.
    #[inline]
    pub fn hand_over(&self) -> bool {
        self.state.load(Ordering::Relaxed) & WAITERS != 0 && self.hand_over_slowly()
    }

    #[cold]
    fn hand_over_slowly(&self) -> bool {
        let turn = self.turns.load(Ordering::Relaxed);
        self.state.store(FREE, Ordering::Release);
        let woken = wake(&self.state, 1);
        if woken {
            let mut spins = 0;
            while self.turns.load(Ordering::Relaxed) == turn && spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            }
            if spins == SPINS {
                // The other one has to get a CPU first.
                self.yielding.store(true, Ordering::SeqCst);
                wait(&self.turns, turn, Some(TURN_NANOSECONDS));
            }
        }
        self.acquire();
        woken
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

/// Wakes so many threads that sleep on `word`; whether there was one.
fn wake(word: &AtomicU32, most: i32) -> bool {
    let op = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
    let args = [word.as_ptr() as u64, op, most as u64, 0, 0, 0];
    // SAFETY: the kernel looks at the address alone.
    unsafe { raw(Sysno::futex.id() as u64, args) > 0 }
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

    #[test]
    fn it_names_its_owner() {
        let lock = Lock::new();
        assert!(!lock.is_own());
        lock.acquire();
        assert!(lock.is_own());
        let elsewhere = std::thread::scope(|scope| {
            let other = scope.spawn(|| lock.is_own());
            other.join().expect("no panic")
        });
        assert!(!elsewhere);
        lock.release();
        assert!(!lock.is_own());
    }
}
