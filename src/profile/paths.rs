//! Bounded paths. A path starts at a path head (the target of a backward branch, or of a
//! call), collects the outcomes of conditional branches, and ends at the next head, at a
//! backward branch, a call, an indirect branch, or when it is full. After an end that is no
//! head (a return, a full path) the next path starts wherever the program goes on, so every
//! branch belongs to one path.

use super::tally::Tally;
use crate::addr::GuestAddr;

/// The most outcomes that a path collects.
pub const MAX_OUTCOMES: u8 = 16;

/// The most paths that are told apart.
const MAX_PATHS: usize = 1 << 14;

/// Must be a power of two.
const RECENT: usize = 256;

/// A path: where it starts and which way its branches went.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PathKey {
    pub head: GuestAddr,
    /// Bit `i` is set when the `i`-th conditional branch was taken.
    pub outcomes: u16,
    /// How many there were, at most [`MAX_OUTCOMES`].
    pub len: u8,
}

impl PathKey {
    #[inline]
    fn place(&self) -> usize {
        let mixed = (self.head.0 ^ u64::from(self.outcomes) << 40 ^ u64::from(self.len) << 56)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 56) as usize % RECENT
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The next block starts a path.
    Between,
    /// The next block starts a path, and is a head from now on.
    BeforeHead,
    Recording,
    /// Recording, and the last block's branch hasn't been heard of.
    AwaitingOutcome,
}

/// How a block's end concerns the path it is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PathStep {
    /// The path goes on.
    Through,
    /// A conditional branch; `backward` if its target lies at or before the block's start.
    Branch { backward: bool },
    /// The path ends, a head follows: a call, a jump backward.
    EndsBeforeHead,
    /// The path ends: a return, an indirect jump.
    Ends,
}

/// Records the path that the program is on, and counts those it has been on.
pub(super) struct PathRecorder {
    state: State,
    current: PathKey,
    /// Recently completed paths and what isn't in `counts` yet of theirs, direct-mapped: hot
    /// loops stay in the nearest cache.
    recent: Box<[(PathKey, u32); RECENT]>,
    counts: Tally<PathKey>,
}

impl PathRecorder {
    pub fn new() -> PathRecorder {
        PathRecorder::bounded(MAX_PATHS)
    }

    fn bounded(limit: usize) -> PathRecorder {
        let none = PathKey {
            head: GuestAddr(0),
            outcomes: 0,
            len: 0,
        };
        PathRecorder {
            state: State::Between,
            current: none,
            recent: Box::new([(none, 0); RECENT]),
            counts: Tally::new(limit),
        }
    }

    /// A block is entered. `head` says whether it is known as a path head. True: it is one
    /// from now on.
    #[inline]
    pub fn enter(&mut self, start: GuestAddr, head: bool, step: PathStep) -> bool {
        let mut becomes_head = false;
        match self.state {
            State::Recording if !head => {}
            State::Recording => {
                self.complete();
                self.begin(start);
            }
            State::BeforeHead => {
                becomes_head = true;
                self.begin(start);
            }
            // A path whose branch wasn't reported was interrupted: it is dropped.
            State::Between | State::AwaitingOutcome => self.begin(start),
        }
        self.state = match step {
            PathStep::Through => State::Recording,
            PathStep::Branch { .. } => State::AwaitingOutcome,
            PathStep::EndsBeforeHead => {
                self.complete();
                State::BeforeHead
            }
            PathStep::Ends => {
                self.complete();
                State::Between
            }
        };
        becomes_head
    }

    /// The block entered last ended in a conditional branch, which went this way.
    #[inline]
    pub fn outcome(&mut self, taken: bool, backward: bool) {
        if self.state != State::AwaitingOutcome {
            return;
        }
        self.current.outcomes |= u16::from(taken) << self.current.len;
        self.current.len += 1;
        self.state = if taken && backward {
            self.complete();
            State::BeforeHead
        } else if self.current.len == MAX_OUTCOMES {
            self.complete();
            State::Between
        } else {
            State::Recording
        };
    }

    /// Forgets the path in progress: control left the blocks that are counted.
    #[inline]
    pub fn interrupt(&mut self) {
        self.state = State::Between;
    }

    #[inline]
    fn begin(&mut self, head: GuestAddr) {
        self.current = PathKey {
            head,
            outcomes: 0,
            len: 0,
        };
    }

    #[inline]
    fn complete(&mut self) {
        if self.current.len == 0 {
            // Without a branch there is nothing that the block counts don't say.
            return;
        }
        let place = self.current.place();
        let (key, count) = &mut self.recent[place];
        if *key == self.current {
            *count = count.saturating_add(1);
        } else {
            let evicted = std::mem::replace(&mut self.recent[place], (self.current, 1));
            self.settle(evicted);
        }
    }

    fn settle(&mut self, (key, fresh): (PathKey, u32)) {
        if fresh > 0 {
            self.counts.add(key, fresh);
        }
    }

    fn settle_all(&mut self) {
        for place in 0..RECENT {
            let key = self.recent[place].0;
            let fresh = std::mem::take(&mut self.recent[place].1);
            self.settle((key, fresh));
        }
    }

    /// All paths and their counts.
    pub fn iter(&mut self) -> impl Iterator<Item = (PathKey, u32)> + '_ {
        self.settle_all();
        self.counts.iter()
    }

    /// Takes out the paths whose heads `choose` says.
    pub fn take(&mut self, choose: impl Fn(GuestAddr) -> bool) -> Vec<(PathKey, u32)> {
        self.settle_all();
        self.counts.take(|key| choose(key.head))
    }

    pub fn clear(&mut self) {
        self.counts.clear();
        for (_, fresh) in self.recent.iter_mut() {
            *fresh = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRANCH: PathStep = PathStep::Branch { backward: false };
    const LOOP: PathStep = PathStep::Branch { backward: true };

    fn counts(recorder: &mut PathRecorder) -> Vec<(u64, u16, u8, u32)> {
        let mut all: Vec<_> = recorder
            .iter()
            .map(|(key, count)| (key.head.0, key.outcomes, key.len, count))
            .collect();
        all.sort();
        all
    }

    fn enter(recorder: &mut PathRecorder, at: u64, head: bool, step: PathStep) -> bool {
        recorder.enter(GuestAddr(at), head, step)
    }

    #[test]
    fn the_two_ways_through_a_loop_are_two_paths() {
        let mut recorder = PathRecorder::new();
        let mut head = false;
        for round in 0..10 {
            head |= enter(&mut recorder, 0x10, head, BRANCH);
            let odd = round % 2 == 1;
            recorder.outcome(odd, false);
            enter(&mut recorder, 0x20, false, PathStep::Through);
            enter(&mut recorder, 0x30, false, LOOP);
            recorder.outcome(round < 9, true);
        }
        assert!(head);
        // The last round falls out of the loop, so its path isn't complete yet.
        assert_eq!(
            counts(&mut recorder),
            [(0x10, 0b10, 2, 5), (0x10, 0b11, 2, 4)]
        );
        enter(&mut recorder, 0x40, false, PathStep::Ends);
        assert_eq!(
            counts(&mut recorder),
            [(0x10, 0b01, 2, 1), (0x10, 0b10, 2, 5), (0x10, 0b11, 2, 4)]
        );
    }

    #[test]
    fn a_call_ends_a_path_and_its_target_is_a_head() {
        let mut recorder = PathRecorder::new();
        enter(&mut recorder, 0x10, false, BRANCH);
        recorder.outcome(true, false);
        enter(&mut recorder, 0x20, false, PathStep::EndsBeforeHead);
        assert!(enter(&mut recorder, 0x100, false, BRANCH));
        recorder.outcome(false, false);
        enter(&mut recorder, 0x110, false, PathStep::Ends);
        assert!(!enter(&mut recorder, 0x25, false, PathStep::Ends));
        assert_eq!(counts(&mut recorder), [(0x10, 1, 1, 1), (0x100, 0, 1, 1)]);
    }

    #[test]
    fn entering_a_head_from_above_ends_the_path_before_it() {
        let mut recorder = PathRecorder::new();
        enter(&mut recorder, 0x10, false, BRANCH);
        recorder.outcome(true, false);
        enter(&mut recorder, 0x50, true, LOOP);
        recorder.outcome(true, true);
        assert_eq!(counts(&mut recorder), [(0x10, 1, 1, 1), (0x50, 1, 1, 1)]);
    }

    #[test]
    fn paths_are_bounded_and_interrupted_ones_dropped() {
        let mut recorder = PathRecorder::new();
        for at in 0..20 {
            enter(&mut recorder, at, false, BRANCH);
            recorder.outcome(true, false);
        }
        recorder.interrupt();
        assert_eq!(counts(&mut recorder), [(0, 0xffff, MAX_OUTCOMES, 1)]);
        // A branch that is never reported.
        enter(&mut recorder, 0x10, false, BRANCH);
        enter(&mut recorder, 0x20, false, PathStep::Ends);
        assert_eq!(counts(&mut recorder).len(), 1);
    }

    #[test]
    fn too_many_paths_fade_and_hot_ones_stay() {
        let mut recorder = PathRecorder::bounded(64);
        for at in 0..10_000u64 {
            for head in [0x1_0000, at] {
                enter(&mut recorder, head, false, BRANCH);
                recorder.outcome(true, false);
                enter(&mut recorder, 0x2_0000, false, PathStep::Ends);
            }
        }
        let all = counts(&mut recorder);
        assert!(all.len() <= 64);
        assert!(all.iter().any(|path| path.0 == 0x1_0000 && path.3 > 32));
    }
}
