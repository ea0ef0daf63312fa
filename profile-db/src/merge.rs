//! Merging, ageing and bounding. Merging is commutative and associative; what isn't
//! (ageing, bounds) is a step of its own. It happens when a program exits, so it goes
//! through the sorted lists once.

use std::cmp::Reverse;

use crate::record::{
    BlockRecord, Counts, EdgeRecord, MAX_PATH_OUTCOMES, ModuleId, ModuleProfile, ModuleRecord,
    Observed, PairRecord, PathRecord, Target, ValueKind, ValueRecord,
};

/// Bounds on one module's records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub blocks: usize,
    pub edges: usize,
    pub paths: usize,
    pub pairs: usize,
    pub values: usize,
    pub trials: usize,
    /// Targets kept of one indirect branch, and returns of one call.
    pub targets: usize,
    /// Values of one kind kept of one instruction.
    pub values_each: usize,
    /// Decisions written for the start of a run.
    pub decisions: usize,
    /// Executions from which a block counts as hot.
    pub hot_count: u64,
    /// Bytes of one module's file: when it would be longer, records are dropped.
    pub file_bytes: usize,
    /// Bytes of all files of the directory: when there are more, the modules that haven't
    /// been seen for longest are dropped.
    pub directory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            blocks: 1 << 18,
            edges: 1 << 19,
            paths: 1 << 17,
            pairs: 1 << 17,
            values: 1 << 16,
            trials: 1 << 12,
            targets: 64,
            values_each: 8,
            decisions: 1 << 17,
            hot_count: 32,
            file_bytes: 16 << 20,
            directory_bytes: 512 << 20,
        }
    }
}

impl BlockRecord {
    fn key(&self) -> (u64, u64) {
        (self.offset, self.hash)
    }

    fn add(&mut self, other: &BlockRecord) {
        self.count = self.count.saturating_add(other.count);
        self.len = self.len.max(other.len);
        self.tier = self.tier.max(other.tier);
        self.likeness = self.likeness.max(other.likeness);
        self.head |= other.head;
    }
}

impl EdgeRecord {
    fn key(&self) -> (u64, crate::EdgeKind, Target) {
        (self.from, self.kind, self.to)
    }

    fn add(&mut self, other: &EdgeRecord) {
        self.count = self.count.saturating_add(other.count);
    }
}

impl PathRecord {
    fn key(&self) -> (u64, u8, u32) {
        (self.head, self.len, self.outcomes)
    }

    fn add(&mut self, other: &PathRecord) {
        self.count = self.count.saturating_add(other.count);
    }
}

impl PairRecord {
    fn key(&self) -> (u64, Target) {
        (self.call, self.from)
    }

    fn add(&mut self, other: &PairRecord) {
        self.count = self.count.saturating_add(other.count);
    }
}

impl ValueRecord {
    fn key(&self) -> (u64, ValueKind, Observed) {
        (self.at, self.kind, self.value)
    }

    fn add(&mut self, other: &ValueRecord) {
        self.count = self.count.saturating_add(other.count);
    }
}

/// Sorts `records` and folds those with equal keys into the first of them.
fn fold<T, K: Ord>(records: &mut Vec<T>, key: impl Fn(&T) -> K, add: impl Fn(&mut T, &T)) {
    records.sort_by_key(&key);
    records.dedup_by(|later, first| {
        let same = key(later) == key(first);
        if same {
            add(first, later);
        }
        same
    });
}

/// Merges two lists that are sorted and hold each key once.
fn merge_lists<T, K: Ord>(
    into: &mut Vec<T>,
    from: Vec<T>,
    key: impl Fn(&T) -> K,
    add: impl Fn(&mut T, &T),
) {
    if into.is_empty() {
        *into = from;
        return;
    }
    let mut merged = Vec::with_capacity(into.len() + from.len());
    let mut from = from.into_iter().peekable();
    for mut record in into.drain(..) {
        let at = key(&record);
        while let Some(earlier) = from.next_if(|other| key(other) < at) {
            merged.push(earlier);
        }
        if let Some(same) = from.next_if(|other| key(other) == at) {
            add(&mut record, &same);
        }
        merged.push(record);
    }
    merged.extend(from);
    *into = merged;
}

impl Counts {
    /// Brings the lists into their canonical form: sorted, each key once, no count of 0,
    /// `others` sorted and all of it used.
    pub fn normalize(&mut self) {
        self.drop_zeros();
        self.normalize_others();
        fold(&mut self.blocks, BlockRecord::key, BlockRecord::add);
        fold(&mut self.edges, EdgeRecord::key, EdgeRecord::add);
        fold(&mut self.paths, PathRecord::key, PathRecord::add);
        fold(&mut self.pairs, PairRecord::key, PairRecord::add);
        fold(&mut self.values, ValueRecord::key, ValueRecord::add);
    }

    /// All targets, which may name other modules.
    fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        let pairs = self.pairs.iter().map(|pair| pair.from);
        self.edges.iter().map(|edge| edge.to).chain(pairs)
    }

    /// Sorts `others` and drops what no edge names.
    fn normalize_others(&mut self) {
        let mut used = vec![false; self.others.len()];
        for target in self.targets() {
            if let Target::There { module, .. } = target {
                used[module as usize] = true;
            }
        }
        let mut others: Vec<_> = self
            .others
            .iter()
            .zip(used)
            .filter(|(_, used)| *used)
            .map(|(id, _)| id.clone())
            .collect();
        others.sort();
        others.dedup();
        self.renumber(&others);
        self.others = others;
    }

    /// Makes edges name modules by their places in `others` (sorted).
    fn renumber(&mut self, others: &[ModuleId]) {
        if self.others == others {
            return;
        }
        // What isn't there isn't named by an edge either.
        let places: Vec<u32> = self
            .others
            .iter()
            .map(|id| {
                others
                    .binary_search(id)
                    .map_or(u32::MAX, |place| place as u32)
            })
            .collect();
        let pairs = self.pairs.iter_mut().map(|pair| &mut pair.from);
        for target in self.edges.iter_mut().map(|edge| &mut edge.to).chain(pairs) {
            if let Target::There { module, .. } = target {
                *module = places[*module as usize];
            }
        }
    }

    /// True when the lists are as [`normalize`](Counts::normalize) leaves them and all
    /// values are in range.
    pub(crate) fn is_canonical(&self) -> bool {
        let others = self.others.len() as u64;
        self.others.is_sorted_by(|a, b| a < b)
            && self.others.iter().all(ModuleId::is_valid)
            && self.blocks.is_sorted_by(|a, b| a.key() < b.key())
            && self.edges.is_sorted_by(|a, b| a.key() < b.key())
            && self.paths.is_sorted_by(|a, b| a.key() < b.key())
            && self.pairs.is_sorted_by(|a, b| a.key() < b.key())
            && self.values.is_sorted_by(|a, b| a.key() < b.key())
            && self.blocks.iter().all(|block| block.count > 0)
            && self.edges.iter().all(|edge| edge.count > 0)
            && self.pairs.iter().all(|pair| pair.count > 0)
            && self.values.iter().all(|value| value.count > 0)
            && self.targets().all(|target| match target {
                Target::There { module, .. } => u64::from(module) < others,
                Target::Here(_) | Target::Elsewhere => true,
            })
            && self.paths.iter().all(|path| {
                path.count > 0
                    && (1..=MAX_PATH_OUTCOMES).contains(&path.len)
                    && u64::from(path.outcomes) >> path.len == 0
            })
    }

    /// Adds the counts of `other`, saturating. Both are canonical.
    pub fn merge(&mut self, mut other: Counts) {
        if self.is_empty() && self.others.is_empty() {
            *self = other;
            return;
        }
        let mut others = [&self.others[..], &other.others[..]].concat();
        others.sort();
        others.dedup();
        // Sorted before and after, so renumbering leaves the edges in order.
        self.renumber(&others);
        other.renumber(&others);
        self.others = others;
        merge_lists(
            &mut self.blocks,
            other.blocks,
            BlockRecord::key,
            BlockRecord::add,
        );
        merge_lists(
            &mut self.edges,
            other.edges,
            EdgeRecord::key,
            EdgeRecord::add,
        );
        merge_lists(
            &mut self.paths,
            other.paths,
            PathRecord::key,
            PathRecord::add,
        );
        merge_lists(
            &mut self.pairs,
            other.pairs,
            PairRecord::key,
            PairRecord::add,
        );
        merge_lists(
            &mut self.values,
            other.values,
            ValueRecord::key,
            ValueRecord::add,
        );
    }

    /// Takes an eighth from each count, so that what isn't seen again halves in five runs.
    /// Records that start at an offset in `spared` (sorted) keep their counts.
    ///
    /// Most counts are small, so rounding decides their fate: it goes up or down by a
    /// pseudo-random choice that depends on the place and on `round` (the number of runs so
    /// far), hence 1 lasts for eight runs on average, and a block ages with its edges.
    pub fn age(&mut self, spared: &[u64], round: u32) {
        age_list(&mut self.blocks, spared, round, |block| {
            (block.offset, &mut block.count)
        });
        age_list(&mut self.edges, spared, round, |edge| {
            (edge.from, &mut edge.count)
        });
        age_list(&mut self.paths, spared, round, |path| {
            (path.head, &mut path.count)
        });
        age_list(&mut self.pairs, spared, round, |pair| {
            (pair.call, &mut pair.count)
        });
        age_list(&mut self.values, spared, round, |value| {
            (value.at, &mut value.count)
        });
        self.drop_zeros();
        self.normalize_others();
    }

    fn drop_zeros(&mut self) {
        self.blocks.retain(|block| block.count > 0);
        self.edges.retain(|edge| edge.count > 0);
        self.paths.retain(|path| path.count > 0);
        self.pairs.retain(|pair| pair.count > 0);
        self.values.retain(|value| value.count > 0);
    }

    /// Drops what exceeds `limits`, least executed first. What an indirect branch or a call
    /// has beyond its bound goes to [`Target::Elsewhere`], what an instruction has to
    /// [`Observed::Other`].
    pub fn bound(&mut self, limits: &Limits) {
        let targets = limits.targets.max(1);
        let mut folded = false;
        for site in self
            .edges
            .chunk_by_mut(|a, b| (a.from, a.kind) == (b.from, b.kind))
        {
            if site[0].kind.is_indirect() {
                let (key, rest) = (|e: &EdgeRecord| e.to, Target::Elsewhere);
                folded |= fold_coldest(site, targets, |e| e.count, key, rest, |e| &mut e.to);
            }
        }
        for call in self.pairs.chunk_by_mut(|a, b| a.call == b.call) {
            let (key, rest) = (|p: &PairRecord| p.from, Target::Elsewhere);
            folded |= fold_coldest(call, targets, |p| p.count, key, rest, |p| &mut p.from);
        }
        for site in self
            .values
            .chunk_by_mut(|a, b| (a.at, a.kind) == (b.at, b.kind))
        {
            let (each, key) = (limits.values_each.max(1), |v: &ValueRecord| v.value);
            let rest = Observed::Other;
            folded |= fold_coldest(site, each, |v| v.count, key, rest, |v| &mut v.value);
        }
        if folded {
            self.normalize();
        }
        let before = self.edges.len() + self.pairs.len();
        keep_most(&mut self.blocks, limits.blocks, |block| block.count);
        keep_most(&mut self.edges, limits.edges, |edge| edge.count);
        keep_most(&mut self.paths, limits.paths, |path| path.count);
        keep_most(&mut self.pairs, limits.pairs, |pair| pair.count);
        keep_most(&mut self.values, limits.values, |value| value.count);
        if self.edges.len() + self.pairs.len() < before {
            self.normalize_others();
        }
    }
}

/// Renames all but the `limit` hottest of a site's records to `rest`, for a later fold.
/// True when there were so many.
fn fold_coldest<T, K: PartialEq + Copy>(
    site: &mut [T],
    limit: usize,
    count: impl Fn(&T) -> u64,
    key: impl Fn(&T) -> K,
    rest: K,
    name: impl Fn(&mut T) -> &mut K,
) -> bool {
    if site.len() <= limit {
        return false;
    }
    // `rest` takes what is folded, so it doesn't compete for a place.
    site.sort_by_key(|record| (key(record) == rest, Reverse(count(record))));
    for record in &mut site[limit..] {
        *name(record) = rest;
    }
    true
}

/// Ages a list that is sorted by the place that `split` takes from a record.
fn age_list<T>(
    records: &mut [T],
    spared: &[u64],
    round: u32,
    split: impl Fn(&mut T) -> (u64, &mut u64),
) {
    let mut spared = spared.iter().peekable();
    for record in records {
        let (at, count) = split(record);
        while spared.next_if(|&&place| place < at).is_some() {}
        if spared.peek() != Some(&&at) {
            *count -= count.saturating_add(rounding(at, round)) / 8;
        }
    }
}

/// 0 to 7, evenly spread over places and rounds.
fn rounding(at: u64, round: u32) -> u64 {
    // Fibonacci hashing (Knuth, volume 3, section 6.4).
    let mixed = (at ^ u64::from(round).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61
}

/// Keeps the `limit` records with the highest counts, in their order.
pub(crate) fn keep_most<T>(records: &mut Vec<T>, limit: usize, count: impl Fn(&T) -> u64) {
    if records.len() <= limit {
        return;
    }
    if limit == 0 {
        records.clear();
        return;
    }
    let mut counts: Vec<u64> = records.iter().map(&count).collect();
    let (_, &mut least, more) = {
        let place = counts.len() - limit;
        counts.select_nth_unstable(place)
    };
    // Of those that have exactly the least count kept, only as many as there is room for.
    let above = more.iter().filter(|&&c| c > least).count();
    let mut room = limit - above;
    records.retain(|record| {
        let count = count(record);
        if count == least && room > 0 {
            room -= 1;
            return true;
        }
        count > least
    });
}

impl ModuleRecord {
    /// Merges what another record says of the same module.
    pub(crate) fn merge(&mut self, other: ModuleRecord) {
        // The later sighting says where the file is; the path breaks ties, so that order
        // doesn't matter.
        if (other.last_seen, &other.path, other.size) > (self.last_seen, &self.path, self.size) {
            self.path = other.path;
            self.size = other.size;
        }
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.runs = self.runs.saturating_add(other.runs);
        if other.ancestor > self.ancestor {
            self.ancestor = other.ancestor;
        }
    }
}

impl ModuleProfile {
    /// Merges another profile of the same module.
    pub fn merge(&mut self, other: ModuleProfile) {
        self.module.merge(other.module);
        self.counts.merge(other.counts);
        self.trials.merge(other.trials);
    }
}

#[cfg(test)]
mod tests;
