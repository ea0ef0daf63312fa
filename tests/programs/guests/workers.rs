//! Threads by Rust's standard library: scoped and detached ones, channels, locks, condition
//! variables, barriers, parking, thread-locals with destructors, atomics, a panic in a
//! thread. All that it prints is the same in every run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Barrier, Condvar, Mutex, Once, OnceLock, RwLock};
use std::thread;
use std::time::Duration;

static DESTROYED: AtomicUsize = AtomicUsize::new(0);

struct Noted(u64);

impl Drop for Noted {
    fn drop(&mut self) {
        DESTROYED.fetch_add(1, Ordering::SeqCst);
    }
}

thread_local! {
    static OWN: RefCell<Vec<Noted>> = const { RefCell::new(Vec::new()) };
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Words counted in pieces by many threads.
fn count(threads: usize) -> usize {
    let text: Vec<String> = (0..40_000).map(|i| format!("w{}", mix(i) % 997)).collect();
    let shared = Mutex::new(BTreeMap::<&str, usize>::new());
    thread::scope(|scope| {
        for piece in text.chunks(text.len() / threads) {
            let shared = &shared;
            scope.spawn(move || {
                for word in piece {
                    *shared.lock().unwrap().entry(word).or_default() += 1;
                }
            });
        }
    });
    let counts = shared.into_inner().unwrap();
    assert_eq!(counts.values().sum::<usize>(), text.len());
    counts.len()
}

/// Stages of a pipeline, the last one in order again.
fn pipeline() -> u64 {
    let (first, numbers) = sync_channel::<u64>(4);
    let (second, mixed) = channel::<(u64, u64)>();
    let numbers = Arc::new(Mutex::new(numbers));
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let (numbers, second) = (Arc::clone(&numbers), second.clone());
            thread::spawn(move || {
                loop {
                    let number = match numbers.lock().unwrap().recv() {
                        Ok(number) => number,
                        Err(_) => break,
                    };
                    second.send((number, mix(number))).unwrap();
                }
            })
        })
        .collect();
    drop(second);
    let feeder = thread::spawn(move || (0..3000).for_each(|i| first.send(i).unwrap()));
    let mut all: Vec<(u64, u64)> = mixed.iter().collect();
    all.sort();
    feeder.join().unwrap();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    all.iter().fold(0, |sum, (_, mixed)| mix(sum ^ mixed))
}

/// A turn goes round among threads.
fn turns(threads: usize, rounds: usize) -> usize {
    let turn = (Mutex::new(0usize), Condvar::new());
    thread::scope(|scope| {
        for own in 0..threads {
            let turn = &turn;
            scope.spawn(move || {
                for _ in 0..rounds {
                    let mut now = turn.0.lock().unwrap();
                    while *now % threads != own {
                        now = turn.1.wait(now).unwrap();
                    }
                    *now += 1;
                    turn.1.notify_all();
                }
            });
        }
    });
    turn.0.into_inner().unwrap()
}

/// Two threads that hand a token to each other through parking.
fn ping_pong(rounds: u64) -> u64 {
    let token = AtomicU64::new(0);
    let main = thread::current();
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            for round in 0..rounds {
                while token.load(Ordering::Acquire) != 2 * round + 1 {
                    thread::park();
                }
                token.store(2 * round + 2, Ordering::Release);
                main.unpark();
            }
        });
        for round in 0..rounds {
            token.store(2 * round + 1, Ordering::Release);
            other.thread().unpark();
            while token.load(Ordering::Acquire) != 2 * round + 2 {
                thread::park();
            }
        }
    });
    token.into_inner()
}

/// Each phase sees all of the phase before.
fn phases(threads: usize) -> u64 {
    let barrier = Barrier::new(threads);
    let cells: Vec<AtomicU64> = (0..threads).map(|i| AtomicU64::new(i as u64)).collect();
    let leaders = AtomicUsize::new(0);
    thread::scope(|scope| {
        for own in 0..threads {
            let (barrier, cells, leaders) = (&barrier, &cells, &leaders);
            scope.spawn(move || {
                for _ in 0..200 {
                    let sum: u64 = cells.iter().map(|c| c.load(Ordering::Relaxed)).fold(0, |a, b| mix(a ^ b));
                    if barrier.wait().is_leader() {
                        leaders.fetch_add(1, Ordering::Relaxed);
                    }
                    cells[own].store(mix(sum ^ own as u64), Ordering::Relaxed);
                    barrier.wait();
                }
            });
        }
    });
    assert_eq!(leaders.into_inner(), 200);
    cells.into_iter().fold(0, |sum, cell| sum ^ cell.into_inner())
}

/// Store buffering with fences between: both can't miss each other's store.
fn fences() -> u64 {
    let (x, y, both) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let barrier = Barrier::new(2);
    let side = |own: &AtomicU64, other: &AtomicU64| {
        for round in 1..=3000 {
            barrier.wait();
            own.store(round, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if other.load(Ordering::Relaxed) < round {
                both.fetch_add(1, Ordering::Relaxed);
            }
            barrier.wait();
            assert!(both.load(Ordering::Relaxed) < 2);
            barrier.wait();
            both.store(0, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| side(&x, &y));
        side(&y, &x);
    });
    x.into_inner() + y.into_inner()
}

fn main() {
    println!("counted {} words", count(8));
    println!("pipeline {:016x}", pipeline());
    println!("turns {}", turns(5, 300));
    println!("parked {}", ping_pong(2000));
    println!("phases {:016x}", phases(4));
    println!("fences {}", fences());

    let list = RwLock::new(Vec::new());
    thread::scope(|scope| {
        for own in 0..6u64 {
            let list = &list;
            scope.spawn(move || {
                for i in 0..500 {
                    if i % 10 == 0 {
                        list.write().unwrap().push(own);
                    } else {
                        assert!(list.read().unwrap().len() <= 300);
                    }
                }
            });
        }
    });
    println!("written {}", list.into_inner().unwrap().len());

    for wave in 0..50u64 {
        let threads: Vec<_> = (0..10)
            .map(|i| {
                thread::Builder::new()
                    .stack_size(64 << 10)
                    .spawn(move || {
                        OWN.with_borrow_mut(|own| own.extend((0..3).map(|_| Noted(wave + i))));
                        OWN.with_borrow(|own| own.iter().map(|noted| noted.0).sum::<u64>())
                    })
                    .unwrap()
            })
            .collect();
        let sum: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(sum, 3 * (10 * wave + 45));
    }
    println!("destroyed {}", DESTROYED.load(Ordering::SeqCst));

    static ONCE: Once = Once::new();
    static CELL: OnceLock<u64> = OnceLock::new();
    let calls = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                ONCE.call_once(|| {
                    thread::sleep(Duration::from_millis(5));
                    calls.fetch_add(1, Ordering::SeqCst);
                });
                assert_eq!(*CELL.get_or_init(|| 42), 42);
            });
        }
    });
    println!("once {}", calls.into_inner());

    // The usual message has the thread's number in it.
    std::panic::set_hook(Box::new(|info| println!("panic: {:?}", info.payload_as_str())));
    let poisoned = Arc::new(Mutex::new(1));
    let taken = Arc::clone(&poisoned);
    let panicked = thread::Builder::new()
        .name("unlucky".into())
        .spawn(move || {
            let _guard = taken.lock().unwrap();
            panic!("as told");
        })
        .unwrap()
        .join();
    println!("panicked {}, poisoned {}", panicked.is_err(), poisoned.is_poisoned());

    // Still running when main returns.
    let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    for _ in 0..3 {
        thread::spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
    }
    println!("done");
}
