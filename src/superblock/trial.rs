//! Which of two ways to run a piece of code is faster: both take turns in slices of the live
//! program, and the sign test says when that is more than chance.

/// TSC cycles that a slice should take: some 100 us at 3 GHz.
const SLICE_CYCLES: f64 = 300_000.0;
/// Passes of the first slice, when nothing is known.
const FIRST_PASSES: u32 = 1000;
const MIN_PASSES: u32 = 16;
const MAX_PASSES: u32 = 1 << 20;
/// After so many pairs a verdict is due.
const MAX_PAIRS: usize = 40;
/// A gain below this isn't worth the code.
const MIN_GAIN: f64 = 0.01;
/// TSC cycles after which a trial must have come to an end: half a second.
const MAX_CYCLES: u64 = 1_500_000_000;
/// The ratio of a trial that has come to none.
const UNKNOWN: f64 = 0.999;
/// Slices in a row that may be lost to context switches.
const MAX_LOST: u32 = 200;

/// What is to be measured next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// The superblock, or what it would replace.
    pub upper: bool,
    pub passes: u32,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Verdict {
    /// Goes on with this slice.
    Undecided(Slice),
    /// The superblock takes this part of the time that the code takes without it.
    Faster(f64),
    /// It doesn't pay. Below 1 it isn't known to be slower.
    Slower(f64),
}

/// A trial under way.
#[derive(Clone, Debug)]
pub struct Trial {
    slice: Slice,
    /// Cycles a pass: of the lower tier, and of the superblock.
    pairs: Vec<(f64, f64)>,
    lower: Option<f64>,
    /// The first slice of each side warms caches up and says how long passes take.
    warm: u32,
    lost: u32,
    spent: u64,
}

impl Default for Trial {
    fn default() -> Trial {
        Trial {
            slice: Slice {
                upper: false,
                passes: FIRST_PASSES,
            },
            pairs: Vec::new(),
            lower: None,
            warm: 2,
            lost: 0,
            spent: 0,
        }
    }
}

impl Trial {
    pub fn slice(&self) -> Slice {
        self.slice
    }

    pub fn pairs(&self) -> &[(f64, f64)] {
        &self.pairs
    }

    /// A slice took so many cycles; `disturbed` if something else ran meanwhile.
    pub fn slice_ended(&mut self, cycles: u64, disturbed: bool) -> Verdict {
        let each = cycles as f64 / f64::from(self.slice.passes);
        self.spent += cycles;
        if self.spent > MAX_CYCLES {
            return Verdict::Slower(self.ratio().min(UNKNOWN));
        }
        if self.warm > 0 {
            self.warm -= 1;
            let passes =
                (SLICE_CYCLES / each.max(0.1)).clamp(f64::from(MIN_PASSES), f64::from(MAX_PASSES));
            self.slice = Slice {
                upper: !self.slice.upper,
                passes: if self.warm == 0 {
                    passes as u32
                } else {
                    self.slice.passes
                },
            };
            return Verdict::Undecided(self.slice);
        }
        if disturbed {
            // The pair starts over.
            self.lost += 1;
            self.lower = None;
            self.slice.upper = false;
            // The longer a slice, the sooner something disturbs it.
            self.fit(cycles as f64);
            if self.lost > MAX_LOST {
                return Verdict::Slower(UNKNOWN);
            }
            return Verdict::Undecided(self.slice);
        }
        match self.lower.take() {
            None => self.lower = Some(each),
            Some(lower) => {
                self.pairs.push((lower, each));
                self.fit(lower.max(each) * f64::from(self.slice.passes));
            }
        }
        self.slice.upper = self.lower.is_some();
        if self.lower.is_some() {
            return Verdict::Undecided(self.slice);
        }
        let pairs = self.pairs.len();
        let wins = self.pairs.iter().filter(|(lower, upper)| upper < lower);
        let wins = wins.count();
        let ratio = self.ratio();
        if pairs >= 8 && is_beyond_chance(wins, pairs) && ratio < 1.0 - MIN_GAIN {
            Verdict::Faster(ratio)
        } else if pairs >= 8 && is_beyond_chance(pairs - wins, pairs) || pairs >= MAX_PAIRS {
            Verdict::Slower(ratio)
        } else {
            Verdict::Undecided(self.slice)
        }
    }

    /// Passes may take longer than the first ones did, as those of a recursion's head do, or
    /// those of a loop that is left for long: then the next pair takes fewer of them, so that
    /// a trial doesn't hold up the others.
    fn fit(&mut self, cycles: f64) {
        let passes = self.slice.passes;
        if cycles > 4.0 * SLICE_CYCLES {
            self.slice.passes = (passes / 4).max(MIN_PASSES);
        } else if cycles < SLICE_CYCLES / 2.0 {
            self.slice.passes = (passes * 2).min(MAX_PASSES);
        }
    }

    /// The median of the pairs' ratios.
    fn ratio(&self) -> f64 {
        let mut ratios: Vec<f64> = self
            .pairs
            .iter()
            .map(|(lower, upper)| upper / lower)
            .collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(1.0)
    }
}

/// Whether `wins` of so many fair coins come up with a probability below 1%: it is asked
/// after every pair, so once in a trial below some 5%.
fn is_beyond_chance(wins: usize, pairs: usize) -> bool {
    let mut at_least = 0.0;
    let mut ways = 1.0;
    for k in (0..=pairs).rev() {
        if k < wins {
            break;
        }
        at_least += ways;
        ways = ways * k as f64 / (pairs - k + 1) as f64;
    }
    at_least / 2f64.powi(pairs as i32) < 0.01
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lower: u64, upper: u64, noise: impl Fn(usize) -> u64) -> Verdict {
        let mut trial = Trial::default();
        for turn in 0.. {
            let slice = trial.slice();
            let each = if slice.upper { upper } else { lower };
            let cycles = u64::from(slice.passes) * each + noise(turn);
            match trial.slice_ended(cycles, false) {
                Verdict::Undecided(_) => {}
                verdict => return verdict,
            }
        }
        unreachable!("a trial ends")
    }

    #[test]
    fn the_faster_one_wins() {
        assert!(matches!(run(100, 80, |_| 0), Verdict::Faster(ratio) if ratio < 0.81));
        assert!(matches!(run(80, 100, |_| 0), Verdict::Slower(_)));
    }

    #[test]
    fn what_is_the_same_is_left_alone() {
        let noise = |turn: usize| (turn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        assert!(matches!(run(100, 100, noise), Verdict::Slower(_)));
    }

    #[test]
    fn chance_is_that_of_coins() {
        assert!(is_beyond_chance(8, 8), "1 in 256");
        assert!(!is_beyond_chance(7, 8), "9 in 256");
        assert!(is_beyond_chance(13, 15));
        assert!(!is_beyond_chance(11, 15));
    }

    #[test]
    fn slices_that_get_too_long_are_shortened() {
        let mut trial = Trial::default();
        // Each pass of the first slices is short.
        while trial.warm > 0 {
            trial.slice_ended(u64::from(trial.slice().passes) * 10, false);
        }
        let passes = trial.slice().passes;
        for _ in 0..2 {
            trial.slice_ended(u64::from(passes) * 1000, false);
        }
        assert_eq!(trial.pairs(), [(1000.0, 1000.0)], "cycles a pass");
        assert!(trial.slice().passes < passes);
    }

    #[test]
    fn a_trial_of_long_slices_ends_soon() {
        let mut trial = Trial::default();
        let second = 3_000_000_000;
        assert!(matches!(
            trial.slice_ended(second, false),
            Verdict::Slower(ratio) if ratio < 1.0
        ));
    }

    #[test]
    fn disturbed_slices_dont_count() {
        let mut trial = Trial::default();
        for _ in 0..3 {
            trial.slice_ended(100_000, false);
        }
        assert!(trial.slice().upper);
        trial.slice_ended(9_000_000, true);
        assert!(!trial.slice().upper, "the pair starts over");
        assert!(trial.pairs().is_empty());
    }
}
