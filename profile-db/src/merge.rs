//! Merging, ageing and bounding. `merge` concatenates and normalizes, so it is commutative
//! and associative; what isn't (ageing, bounds) is a step of its own.

use std::cmp::Reverse;

use crate::record::{
    BlockRecord, Counts, EdgeRecord, MAX_PATH_OUTCOMES, ModuleProfile, ModuleRecord, PathRecord,
    Target,
};

/// Bounds on one module's records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    pub blocks: usize,
    pub edges: usize,
    pub paths: usize,
    /// Targets kept of one indirect branch.
    pub targets: usize,
    /// Decisions written for the start of a run.
    pub decisions: usize,
    /// Executions from which a block counts as hot.
    pub hot_count: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            blocks: 1 << 18,
            edges: 1 << 19,
            paths: 1 << 17,
            targets: 64,
            decisions: 1 << 17,
            hot_count: 32,
        }
    }
}

impl BlockRecord {
    fn key(&self) -> (u64, u64) {
        (self.offset, self.hash)
    }
}

impl EdgeRecord {
    fn key(&self) -> (u64, crate::EdgeKind, Target) {
        (self.from, self.kind, self.to)
    }
}

impl PathRecord {
    fn key(&self) -> (u64, u8, u32) {
        (self.head, self.len, self.outcomes)
    }
}

/// Sorts `records` and folds those with equal keys into the first of them.
fn fold<T, K: Ord>(records: &mut Vec<T>, key: impl Fn(&T) -> K, add: impl Fn(&mut T, &T)) {
    // A stable sort: two sorted runs one after the other, the usual case, merge in one pass.
    records.sort_by_key(&key);
    records.dedup_by(|later, first| {
        let same = key(later) == key(first);
        if same {
            add(first, later);
        }
        same
    });
}

impl Counts {
    /// Brings the lists into their canonical form: sorted, each key once, no count of 0,
    /// `others` sorted and all of it used.
    pub fn normalize(&mut self) {
        self.drop_zeros();
        self.normalize_others();
        fold(&mut self.blocks, BlockRecord::key, |into, from| {
            into.count = into.count.saturating_add(from.count);
            into.len = into.len.max(from.len);
            into.tier = into.tier.max(from.tier);
            into.head |= from.head;
        });
        fold(&mut self.edges, EdgeRecord::key, |into, from| {
            into.count = into.count.saturating_add(from.count);
        });
        fold(&mut self.paths, PathRecord::key, |into, from| {
            into.count = into.count.saturating_add(from.count);
        });
    }

    fn normalize_others(&mut self) {
        let mut used = vec![false; self.others.len()];
        for edge in &self.edges {
            if let Target::There { module, .. } = edge.to {
                used[module as usize] = true;
            }
        }
        let mut order: Vec<usize> = (0..used.len()).filter(|&i| used[i]).collect();
        order.sort_by(|&a, &b| self.others[a].cmp(&self.others[b]));
        let mut sorted: Vec<crate::ModuleId> = Vec::with_capacity(order.len());
        let mut renumbered = vec![0u32; used.len()];
        for old in order {
            if sorted.last() != Some(&self.others[old]) {
                sorted.push(self.others[old].clone());
            }
            renumbered[old] = (sorted.len() - 1) as u32;
        }
        for edge in &mut self.edges {
            if let Target::There { module, .. } = &mut edge.to {
                *module = renumbered[*module as usize];
            }
        }
        self.others = sorted;
    }

    /// True when the lists are as [`normalize`](Counts::normalize) leaves them and all
    /// values are in range.
    pub(crate) fn is_canonical(&self) -> bool {
        let others = self.others.len() as u64;
        self.others.is_sorted_by(|a, b| a < b)
            && self.others.iter().all(crate::ModuleId::is_valid)
            && self.blocks.is_sorted_by(|a, b| a.key() < b.key())
            && self.edges.is_sorted_by(|a, b| a.key() < b.key())
            && self.paths.is_sorted_by(|a, b| a.key() < b.key())
            && self.blocks.iter().all(|block| block.count > 0)
            && self.edges.iter().all(|edge| {
                edge.count > 0
                    && match edge.to {
                        Target::There { module, .. } => u64::from(module) < others,
                        Target::Here(_) | Target::Elsewhere => true,
                    }
            })
            && self.paths.iter().all(|path| {
                path.count > 0
                    && (1..=MAX_PATH_OUTCOMES).contains(&path.len)
                    && u64::from(path.outcomes) >> path.len == 0
            })
    }

    /// Adds the counts of `other`, saturating.
    pub fn merge(&mut self, other: Counts) {
        let shift = self.others.len() as u32;
        self.others.extend(other.others);
        self.blocks.extend(other.blocks);
        self.edges.extend(other.edges.into_iter().map(|mut edge| {
            if let Target::There { module, .. } = &mut edge.to {
                *module += shift;
            }
            edge
        }));
        self.paths.extend(other.paths);
        self.normalize();
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
        self.drop_zeros();
        self.normalize_others();
    }

    fn drop_zeros(&mut self) {
        self.blocks.retain(|block| block.count > 0);
        self.edges.retain(|edge| edge.count > 0);
        self.paths.retain(|path| path.count > 0);
    }

    /// Drops what exceeds `limits`, least executed first. What an indirect branch has
    /// beyond its bound goes to [`Target::Elsewhere`].
    pub fn bound(&mut self, limits: &Limits) {
        if self.bound_targets(limits.targets) {
            self.normalize();
        }
        let before = self.edges.len();
        keep_most(&mut self.blocks, limits.blocks, |block| block.count);
        keep_most(&mut self.edges, limits.edges, |edge| edge.count);
        keep_most(&mut self.paths, limits.paths, |path| path.count);
        if self.edges.len() < before {
            self.normalize_others();
        }
    }

    fn bound_targets(&mut self, limit: usize) -> bool {
        let mut changed = false;
        for site in self
            .edges
            .chunk_by_mut(|a, b| (a.from, a.kind) == (b.from, b.kind))
        {
            if site.len() > limit.max(1) && site[0].kind.is_indirect() {
                // `Elsewhere` takes what is folded, so it doesn't compete for a place.
                site.sort_by_key(|edge| (edge.to == Target::Elsewhere, Reverse(edge.count)));
                for edge in &mut site[limit.max(1)..] {
                    edge.to = Target::Elsewhere;
                }
                changed = true;
            }
        }
        changed
    }
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
    }
}

impl ModuleProfile {
    /// Merges another profile of the same module.
    pub fn merge(&mut self, other: ModuleProfile) {
        self.module.merge(other.module);
        self.counts.merge(other.counts);
    }
}

#[cfg(test)]
mod tests;
