//! What encloses what: calls and the returns that came back to them, and how often a loop's
//! head was reached from one entry of the loop. Seen in the interpreter alone, so a call or
//! loop that control leaves for translated code counts as never seen.

use hashbrown::HashMap;

use super::site::Usual;
use super::tally::Tally;
use crate::addr::GuestAddr;

/// Calls that are remembered; the oldest are forgotten.
const MAX_DEPTH: usize = 32;
/// Frames that a return may skip, as after a longjmp.
const MAX_SKIPPED: usize = 8;
/// Pairs that are told apart.
const MAX_PAIRS: usize = 1 << 13;

/// Loops that are under way at once. Must be a power of two.
const UNDER_WAY: usize = 64;
/// Loops whose trip counts are kept.
const MAX_LOOPS: usize = 1 << 12;

/// The start of a block that calls, and of one that returned to behind it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Pair {
    pub call: GuestAddr,
    pub from: GuestAddr,
}

/// The calls under way.
pub(super) struct Calls {
    /// The block that calls and where its callee returns to, innermost last.
    stack: [(GuestAddr, GuestAddr); MAX_DEPTH],
    /// How many have been pushed and not popped; its place in `stack` wraps.
    top: usize,
    /// How many of them are still there.
    depth: usize,
    pub pairs: Tally<Pair>,
}

impl Calls {
    pub fn new() -> Calls {
        Calls {
            stack: [(GuestAddr(0), GuestAddr(0)); MAX_DEPTH],
            top: 0,
            depth: 0,
            pairs: Tally::new(MAX_PAIRS),
        }
    }

    #[inline]
    pub fn call(&mut self, call: GuestAddr, return_to: GuestAddr) {
        self.stack[self.top % MAX_DEPTH] = (call, return_to);
        self.top = self.top.wrapping_add(1);
        self.depth = (self.depth + 1).min(MAX_DEPTH);
    }

    /// The return that ends the block `from` went to `to`.
    #[inline]
    pub fn returned(&mut self, from: GuestAddr, to: GuestAddr) {
        for skipped in 0..self.depth.min(MAX_SKIPPED) {
            let top = self.top.wrapping_sub(skipped + 1);
            let (call, return_to) = self.stack[top % MAX_DEPTH];
            if return_to == to {
                self.top = top;
                self.depth -= skipped + 1;
                self.pairs.add(Pair { call, from }, 1);
                return;
            }
        }
    }

    /// Calls and returns happen unseen from here on.
    #[inline]
    pub fn interrupt(&mut self) {
        self.depth = 0;
    }
}

/// Trip counts of one loop.
pub(super) type Trips = Usual<u32, 4>;

/// The loops under way and how often others went round.
pub(super) struct Loops {
    /// By a hash of the head.
    under_way: [UnderWay; UNDER_WAY],
    trips: HashMap<GuestAddr, Trips>,
}

#[derive(Clone, Copy)]
struct UnderWay {
    head: GuestAddr,
    /// The stretch of interpretation in which it was entered.
    stretch: u32,
    /// How often the head was reached since; 0 when that isn't known.
    times: u32,
}

impl Loops {
    pub fn new() -> Loops {
        Loops {
            under_way: [UnderWay {
                head: GuestAddr(0),
                stretch: 0,
                times: 0,
            }; UNDER_WAY],
            trips: HashMap::new(),
        }
    }

    /// A loop's head is reached in this stretch of interpretation: from within, or from
    /// outside.
    #[inline]
    pub fn arrive(&mut self, head: GuestAddr, from_within: bool, stretch: u32) {
        // Fibonacci hashing (Knuth, volume 3, section 6.4).
        let place = (head.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % UNDER_WAY;
        let entry = &mut self.under_way[place];
        if (entry.head, entry.stretch) != (head, stretch) {
            // What was there before is forgotten; one that is met inside isn't counted.
            *entry = UnderWay {
                head,
                stretch,
                times: u32::from(!from_within),
            };
        } else if !from_within {
            let times = std::mem::replace(&mut entry.times, 1);
            if times > 0 {
                self.count(head, times);
            }
        } else if entry.times > 0 {
            entry.times = entry.times.saturating_add(1);
        }
    }

    fn count(&mut self, head: GuestAddr, times: u32) {
        if let Some(trips) = self.trips.get_mut(&head) {
            trips.count(times);
        } else if self.trips.len() < MAX_LOOPS {
            self.trips.entry(head).or_default().count(times);
        }
    }

    /// Takes out the loops whose heads `choose` says.
    pub fn take(&mut self, choose: impl Fn(GuestAddr) -> bool) -> Vec<(GuestAddr, Trips)> {
        self.trips.extract_if(|&head, _| choose(head)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(place: u64) -> GuestAddr {
        GuestAddr(place)
    }

    #[test]
    fn a_return_finds_its_call_and_skips_frames_that_were_left() {
        let mut calls = Calls::new();
        calls.call(at(0x10), at(0x15));
        calls.call(at(0x20), at(0x25));
        calls.call(at(0x30), at(0x35));
        // From the third straight to the first.
        calls.returned(at(0x100), at(0x15));
        calls.returned(at(0x100), at(0x25));
        assert_eq!(
            calls.pairs.take(|_| true),
            [(
                Pair {
                    call: at(0x10),
                    from: at(0x100)
                },
                1
            )]
        );
        calls.call(at(0x10), at(0x15));
        calls.interrupt();
        calls.returned(at(0x100), at(0x15));
        assert!(calls.pairs.take(|_| true).is_empty());
    }

    #[test]
    fn deep_recursion_keeps_the_innermost_calls() {
        let mut calls = Calls::new();
        for depth in 0..1000 {
            calls.call(at(depth), at(depth + 5000));
        }
        for depth in (0..1000).rev() {
            calls.returned(at(9000), at(depth + 5000));
        }
        let pairs = calls.pairs.take(|_| true);
        assert_eq!(pairs.len(), MAX_DEPTH);
        assert!(pairs.iter().all(|(pair, _)| pair.call.0 >= 1000 - 32));
    }

    #[test]
    fn a_loop_is_counted_from_one_entry_to_the_next() {
        let mut loops = Loops::new();
        for trips in [3, 3, 7, 3, 1] {
            loops.arrive(at(0x10), false, 1);
            for _ in 1..trips {
                loops.arrive(at(0x10), true, 1);
            }
        }
        loops.arrive(at(0x10), false, 1);
        // It may have gone round elsewhere before this stretch.
        loops.arrive(at(0x10), true, 2);
        loops.arrive(at(0x10), false, 2);
        let mut trips = loops.take(|_| true);
        trips[0].1.values.sort_unstable();
        assert_eq!(trips[0].1.values, [(1, 1), (3, 3), (7, 1)]);
    }
}
