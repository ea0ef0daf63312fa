//! What earlier runs decided about one module's blocks. Loaded when the first question
//! about the module is asked; each answer is checked against the block's bytes, so that a
//! profile of other code is harmless.

use profile_db::{Decision, Known, Tier, content_hash};

/// A module's decisions.
#[derive(Default)]
pub(super) struct KnownBlocks {
    /// Sorted by offset. Searched as it is: most runs ask about a small part of it, so
    /// building a table costs more than it saves.
    decisions: Vec<Decision>,
    /// Which of them were asked about and matched in this run.
    used: Vec<bool>,
    /// True when the database holds a profile of this module, even one without decisions.
    pub recorded: bool,
}

impl KnownBlocks {
    pub fn new(known: Known) -> KnownBlocks {
        KnownBlocks {
            used: vec![false; known.decisions.len()],
            decisions: known.decisions,
            recorded: true,
        }
    }

    pub fn len(&self) -> usize {
        self.decisions.len()
    }

    fn find(&self, offset: u64, hash: impl FnOnce() -> u64) -> Option<usize> {
        let first = self.decisions.partition_point(|d| d.offset < offset);
        let rest = &self.decisions[first..];
        // Few blocks are known, so most are never hashed here.
        rest.first().filter(|d| d.offset == offset)?;
        let hash = hash();
        rest.iter()
            .take_while(|d| d.offset == offset)
            .position(|d| d.hash == hash)
            .map(|place| first + place)
    }

    /// Whether any decision is about a block at `offset`.
    pub fn mentions(&self, offset: u64) -> bool {
        self.decisions
            .binary_search_by_key(&offset, |d| d.offset)
            .is_ok()
    }

    /// The tier that the block of these bytes reached in earlier runs. Remembers that the
    /// block was met.
    pub fn meet(&mut self, offset: u64, bytes: &[u8]) -> Option<Tier> {
        let found = self.find(offset, || content_hash(bytes))?;
        self.used[found] = true;
        Some(self.decisions[found].tier)
    }

    pub fn contains(&self, offset: u64, hash: u64) -> bool {
        self.find(offset, || hash).is_some()
    }

    /// The sorted offsets of blocks that were met.
    pub fn met(&self) -> Vec<u64> {
        let mut met: Vec<u64> = self
            .decisions
            .iter()
            .zip(&self.used)
            .filter(|(_, used)| **used)
            .map(|(decision, _)| decision.offset)
            .collect();
        met.dedup();
        met
    }
}
