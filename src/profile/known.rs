//! What earlier runs decided about one module's blocks. Loaded when the first question
//! about the module is asked; each answer is checked against the block's bytes, so that a
//! profile of other code is harmless.

use profile_db::{Bias, Decision, Known, Tier};

/// What earlier runs say of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownHot {
    /// The highest tier it reached.
    pub tier: Tier,
    /// Backward branches or calls lead to it.
    pub head: bool,
    /// Which way its conditional branch usually went.
    pub bias: Bias,
}

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

    /// What is known of a block, by its content.
    pub fn get(&self, offset: u64, hash: impl FnOnce() -> u64) -> Option<KnownHot> {
        let Decision {
            tier, head, bias, ..
        } = self.decisions[self.find(offset, hash)?];
        Some(KnownHot { tier, head, bias })
    }

    /// Remembers that a block was met; true the first time.
    pub fn meet(&mut self, offset: u64, hash: u64) -> bool {
        self.find(offset, || hash)
            .is_some_and(|found| !std::mem::replace(&mut self.used[found], true))
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
