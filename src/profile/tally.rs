//! Counts by key, bounded: hot keys stay, and a phase that ended fades.

use std::hash::Hash;

use hashbrown::HashMap;

/// See the module documentation.
pub(super) struct Tally<K> {
    counts: HashMap<K, u32>,
    limit: usize,
}

impl<K: Eq + Hash + Copy> Tally<K> {
    /// Tells at most `limit` keys apart. When there are more, all counts are halved and what
    /// falls to zero goes.
    pub fn new(limit: usize) -> Tally<K> {
        Tally {
            counts: HashMap::new(),
            limit,
        }
    }

    pub fn add(&mut self, key: K, times: u32) {
        let count = self.counts.entry(key).or_insert(0);
        *count = count.saturating_add(times);
        while self.counts.len() > self.limit {
            self.counts.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, u32)> + '_ {
        self.counts.iter().map(|(&key, &count)| (key, count))
    }

    /// Takes out the keys that `choose` says.
    pub fn take(&mut self, choose: impl Fn(&K) -> bool) -> Vec<(K, u32)> {
        self.counts.extract_if(|key, _| choose(key)).collect()
    }

    pub fn clear(&mut self) {
        self.counts.clear();
    }
}
