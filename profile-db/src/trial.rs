//! Superblocks that were on trial, and what came of it. A verdict holds for one CPU model
//! and one version of Temper, so that no later run there repeats a loss and every later
//! run starts with the wins.

use serde::{Deserialize, Serialize};

/// The longest name of a CPU model, in bytes.
const MAX_CPU_NAME: usize = 64;

/// What a verdict holds for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The CPU's vendor, family, model and stepping, in printable ASCII.
    pub cpu: String,
    /// The version of Temper: major, minor, patch.
    pub temper: [u16; 3],
}

impl Machine {
    /// A machine with this CPU and the version of Temper that this is. What doesn't belong
    /// into the name of a CPU is left out of it.
    pub fn this(cpu: &str) -> Machine {
        let mut cpu: String = cpu.chars().filter(|c| matches!(c, ' '..='~')).collect();
        cpu.truncate(MAX_CPU_NAME);
        Machine {
            cpu,
            temper: crate::format::writer_version(),
        }
    }

    fn is_valid(&self) -> bool {
        self.cpu.len() <= MAX_CPU_NAME && self.cpu.bytes().all(|b| (b' '..=b'~').contains(&b))
    }
}

/// How a superblock was built.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Variant {
    /// The original instructions, in the order of the hot path.
    Relaid,
    /// Compiled anew from an intermediate representation.
    Lifted,
}

/// What a trial came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// Not faster beyond chance, so translation blocks were kept.
    Undecided,
    /// Slower.
    Rejected,
    /// Faster.
    Kept,
}

/// A superblock's trial, keyed by `(machine, head, region, variant)`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TrialRecord {
    /// The place in [`Trials::machines`] of what the verdict holds for.
    pub machine: u32,
    /// Where the superblock is entered: an offset in the module's file.
    pub head: u64,
    /// A hash of the content of the superblock's blocks, in their order.
    pub region: u64,
    pub variant: Variant,
    pub verdict: Verdict,
    /// By how many thousandths the variant was faster than translation blocks; negative
    /// when it was slower.
    pub gain: i32,
    /// How many slices of time were compared.
    pub slices: u32,
    /// When: seconds since 1970, UTC.
    pub seen: u64,
}

impl TrialRecord {
    fn key(&self) -> (u32, u64, u64, Variant) {
        (self.machine, self.head, self.region, self.variant)
    }

    /// Of two trials of one superblock the later one counts, then the longer one; the
    /// rest breaks ties, so that the order of merging doesn't matter.
    fn weight(&self) -> (u64, u32, Verdict, i32) {
        (self.seen, self.slices, self.verdict, self.gain)
    }
}

/// All trials in a module; both lists are sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Trials {
    #[serde(deserialize_with = "crate::codec::list")]
    pub machines: Vec<Machine>,
    #[serde(deserialize_with = "crate::codec::list")]
    pub trials: Vec<TrialRecord>,
}

impl Trials {
    pub fn is_empty(&self) -> bool {
        self.trials.is_empty()
    }

    /// The trials whose verdicts hold for `machine`, by head.
    pub fn of<'t>(&'t self, machine: &Machine) -> impl Iterator<Item = &'t TrialRecord> {
        let place = self.machines.binary_search(machine);
        self.trials
            .iter()
            .filter(move |trial| place == Ok(trial.machine as usize))
    }

    /// Adds the trials of `other`; the later of two of one superblock counts. Any lists
    /// will do; the result is canonical.
    pub fn merge(&mut self, other: Trials) {
        let mut machines = [&self.machines[..], &other.machines[..]].concat();
        machines.sort();
        machines.dedup();
        let mut all = Vec::with_capacity(self.trials.len() + other.trials.len());
        for old in [std::mem::take(self), other] {
            all.extend(old.trials.into_iter().filter_map(|mut trial| {
                let machine = old.machines.get(trial.machine as usize)?;
                trial.machine = machines.binary_search(machine).ok()? as u32;
                Some(trial)
            }));
        }
        // The one that counts comes first among equal keys.
        all.sort_by(|a, b| (a.key(), b.weight()).cmp(&(b.key(), a.weight())));
        all.dedup_by_key(|trial| trial.key());
        self.machines = machines;
        self.trials = all;
        self.drop_unused_machines();
    }

    fn drop_unused_machines(&mut self) {
        let mut used = vec![false; self.machines.len()];
        for trial in &self.trials {
            used[trial.machine as usize] = true;
        }
        let mut places = Vec::with_capacity(used.len());
        let mut next = 0;
        for &used in &used {
            places.push(next);
            next += u32::from(used);
        }
        for trial in &mut self.trials {
            trial.machine = places[trial.machine as usize];
        }
        let mut used = used.into_iter();
        self.machines.retain(|_| used.next() == Some(true));
    }

    /// Keeps the `limit` trials that were seen last.
    pub(crate) fn bound(&mut self, limit: usize) {
        crate::merge::keep_most(&mut self.trials, limit, |trial| trial.seen);
        self.drop_unused_machines();
    }

    pub(crate) fn is_canonical(&self) -> bool {
        let machines = self.machines.len();
        self.machines.is_sorted_by(|a, b| a < b)
            && self.machines.iter().all(Machine::is_valid)
            && self.trials.is_sorted_by(|a, b| a.key() < b.key())
            && self
                .trials
                .iter()
                .all(|trial| (trial.machine as usize) < machines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(machine: u32, seen: u64, verdict: Verdict) -> TrialRecord {
        TrialRecord {
            machine,
            head: 0x10,
            region: 7,
            variant: Variant::Relaid,
            verdict,
            gain: 50,
            slices: 20,
            seen,
        }
    }

    fn machine(cpu: &str, patch: u16) -> Machine {
        Machine {
            cpu: cpu.into(),
            temper: [1, 0, patch],
        }
    }

    #[test]
    fn the_later_verdict_counts_on_its_own_machine_alone() {
        let old = Trials {
            machines: vec![machine("a", 1), machine("b", 1)],
            trials: vec![trial(0, 5, Verdict::Kept), trial(1, 5, Verdict::Rejected)],
        };
        let new = Trials {
            machines: vec![machine("a", 0), machine("a", 1)],
            trials: vec![trial(1, 6, Verdict::Rejected)],
        };
        let mut one = old.clone();
        one.merge(new.clone());
        let mut other = new;
        other.merge(old);
        assert_eq!(one, other);
        assert!(one.is_canonical());
        assert_eq!(one.machines, [machine("a", 1), machine("b", 1)]);
        let of = |cpu: &str, patch| {
            let machine = machine(cpu, patch);
            let found: Vec<_> = one.of(&machine).map(|t| (t.seen, t.verdict)).collect();
            found
        };
        assert_eq!(of("a", 1), [(6, Verdict::Rejected)]);
        assert_eq!(of("b", 1), [(5, Verdict::Rejected)]);
        assert_eq!(of("a", 0), []);
    }

    #[test]
    fn the_trials_seen_last_are_kept() {
        let mut trials = Trials {
            machines: vec![machine("a", 0), machine("b", 0)],
            trials: vec![trial(0, 5, Verdict::Kept), trial(1, 9, Verdict::Kept)],
        };
        trials.bound(1);
        assert_eq!(trials.machines, [machine("b", 0)]);
        assert_eq!(trials.trials, [trial(0, 9, Verdict::Kept)]);
    }

    #[test]
    fn a_cpus_name_is_short_and_printable() {
        let machine = Machine::this(&format!("x\n\x1b{}é", "y".repeat(100)));
        assert!(machine.is_valid() && machine.cpu.starts_with("xy"));
    }
}
