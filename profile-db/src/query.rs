//! Questions about one place of a module. The lists are sorted, so an answer takes a binary
//! search.

use std::cmp::Reverse;

use crate::record::{
    BlockRecord, Counts, EdgeKind, EdgeRecord, PairRecord, PathRecord, Target, ValueKind,
    ValueRecord,
};
use crate::trial::{Machine, TrialRecord, Trials};

/// The records of a sorted list whose key is `wanted`.
fn equal<T, K: Ord>(records: &[T], wanted: K, key: impl Fn(&T) -> K) -> &[T] {
    let rest = &records[records.partition_point(|record| key(record) < wanted)..];
    &rest[..rest.partition_point(|record| key(record) == wanted)]
}

impl Counts {
    /// The block at `offset` with this content.
    pub fn block(&self, offset: u64, hash: u64) -> Option<&BlockRecord> {
        equal(&self.blocks, (offset, hash), |b| (b.offset, b.hash)).first()
    }

    /// All edges that leave the block at `offset`.
    pub fn edges_from(&self, offset: u64) -> &[EdgeRecord] {
        equal(&self.edges, offset, |edge| edge.from)
    }

    /// How often the conditional branch that ends the block at `offset` was taken, and was
    /// not.
    pub fn outcomes(&self, offset: u64) -> (u64, u64) {
        let count = |kind| {
            let edges = self.edges_from(offset).iter();
            edges
                .filter(|edge| edge.kind == kind)
                .fold(0u64, |sum, edge| sum.saturating_add(edge.count))
        };
        (count(EdgeKind::Taken), count(EdgeKind::Next))
    }

    /// Where the indirect branch that ends the block at `offset` went, the most usual target
    /// first.
    pub fn indirect_targets(&self, offset: u64) -> Vec<(Target, u64)> {
        let edges = self.edges_from(offset).iter();
        let mut targets: Vec<_> = edges
            .filter(|edge| edge.kind.is_indirect())
            .map(|edge| (edge.to, edge.count))
            .collect();
        targets.sort_by_key(|&(_, count)| Reverse(count));
        targets
    }

    /// The paths that start at `head`.
    pub fn paths_from(&self, head: u64) -> &[PathRecord] {
        equal(&self.paths, head, |path| path.head)
    }

    /// Which returns came back to the call that ends the block at `call`.
    pub fn returns_to(&self, call: u64) -> &[PairRecord] {
        equal(&self.pairs, call, |pair| pair.call)
    }

    /// The values that were seen at `at`.
    pub fn values_at(&self, at: u64, kind: ValueKind) -> &[ValueRecord] {
        equal(&self.values, (at, kind), |value| (value.at, value.kind))
    }
}

impl Trials {
    /// The trials of superblocks that are entered at `head`, on `machine`.
    pub fn at(&self, machine: &Machine, head: u64) -> &[TrialRecord] {
        let Ok(machine) = self.machines.binary_search(machine) else {
            return &[];
        };
        equal(&self.trials, (machine as u32, head), |trial| {
            (trial.machine, trial.head)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Rng, profile};

    #[test]
    fn every_record_is_found_by_its_place_and_nothing_else() {
        for seed in 0..20 {
            let profile = profile(&mut Rng(seed), 40);
            let counts = &profile.counts;
            for block in &counts.blocks {
                assert_eq!(counts.block(block.offset, block.hash), Some(block));
                assert_eq!(counts.block(block.offset, !block.hash), None);
                let (taken, next) = counts.outcomes(block.offset);
                let mut sum = taken.saturating_add(next);
                for (_, count) in counts.indirect_targets(block.offset) {
                    sum = sum.saturating_add(count);
                }
                let edges = counts.edges.iter().filter(|e| e.from == block.offset);
                let jumps = [EdgeKind::Jump, EdgeKind::Call];
                let all = edges.filter(|e| !jumps.contains(&e.kind));
                assert_eq!(sum, all.fold(0, |sum, e| e.count.saturating_add(sum)));
            }
            for edge in &counts.edges {
                assert!(counts.edges_from(edge.from).contains(edge));
            }
            for path in &counts.paths {
                assert!(counts.paths_from(path.head).contains(path));
            }
            for pair in &counts.pairs {
                let found = counts.returns_to(pair.call);
                assert!(found.contains(pair) && found.iter().all(|p| p.call == pair.call));
            }
            for value in &counts.values {
                assert!(counts.values_at(value.at, value.kind).contains(value));
            }
            for trial in &profile.trials.trials {
                let machine = &profile.trials.machines[trial.machine as usize];
                assert!(profile.trials.at(machine, trial.head).contains(trial));
                let other = Machine::this("another");
                assert!(profile.trials.at(&other, trial.head).is_empty());
            }
        }
    }

    #[test]
    fn the_most_usual_target_comes_first() {
        let edge = |to, count| EdgeRecord {
            from: 8,
            kind: EdgeKind::IndirectCall,
            to,
            count,
        };
        let mut counts = Counts {
            edges: vec![
                edge(Target::Here(1), 5),
                edge(Target::Here(2), 50),
                edge(Target::Elsewhere, 7),
            ],
            ..Counts::default()
        };
        counts.normalize();
        assert_eq!(
            counts.indirect_targets(8),
            [
                (Target::Here(2), 50),
                (Target::Elsewhere, 7),
                (Target::Here(1), 5)
            ]
        );
    }
}
