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

/// Bytes of a module whose decisions are searched together: about ten.
const STRETCH: u64 = 1024;

/// A module's decisions.
#[derive(Default)]
pub(super) struct KnownBlocks {
    /// Sorted by offset.
    decisions: Vec<Decision>,
    /// For each [`STRETCH`] of offsets, from the first decision's on, where its decisions
    /// start; one more at the end. A hash table would take longer to build than most runs
    /// spend on searching.
    stretches: Vec<u32>,
    /// Which of them were asked about and matched in this run.
    used: Vec<bool>,
    /// True when the database holds a profile of this module, even one without decisions.
    pub recorded: bool,
}

impl KnownBlocks {
    pub fn new(known: Known) -> KnownBlocks {
        let decisions = known.decisions;
        let mut stretches = Vec::new();
        if let (Some(first), Some(last)) = (decisions.first(), decisions.last()) {
            let count = (last.offset / STRETCH - first.offset / STRETCH + 1) as usize;
            // A file may claim offsets far apart; then one stretch has to do.
            if count <= 64 * decisions.len() + 1024 {
                stretches.resize(count + 1, decisions.len() as u32);
                for (at, decision) in decisions.iter().enumerate().rev() {
                    let stretch = decision.offset / STRETCH - first.offset / STRETCH;
                    stretches[stretch as usize] = at as u32;
                }
                // A stretch without decisions starts where the next one does.
                for at in (0..count).rev() {
                    stretches[at] = stretches[at].min(stretches[at + 1]);
                }
            }
        }
        KnownBlocks {
            used: vec![false; decisions.len()],
            decisions,
            stretches,
            recorded: true,
        }
    }

    /// The first decision about `offset`, if there is one.
    #[inline]
    fn first_at(&self, offset: u64) -> Option<usize> {
        let first = self.decisions.first()?.offset;
        let range = match offset.checked_sub(first / STRETCH * STRETCH) {
            None => return None,
            Some(_) if self.stretches.is_empty() => 0..self.decisions.len(),
            Some(distance) => {
                let stretch = (distance / STRETCH) as usize;
                let end = *self.stretches.get(stretch + 1)?;
                self.stretches[stretch] as usize..end as usize
            }
        };
        let start = range.start;
        let within = &self.decisions[range];
        let at = within.partition_point(|decision| decision.offset < offset);
        (within.get(at)?.offset == offset).then_some(start + at)
    }

    pub fn len(&self) -> usize {
        self.decisions.len()
    }

    fn find(&self, offset: u64, hash: impl FnOnce() -> u64) -> Option<usize> {
        let first = self.first_at(offset)?;
        let rest = &self.decisions[first..];
        let hash = hash();
        rest.iter()
            .take_while(|d| d.offset == offset)
            .position(|d| d.hash == hash)
            .map(|place| first + place)
    }

    /// Whether any decision is about a block at `offset`.
    pub fn mentions(&self, offset: u64) -> bool {
        self.first_at(offset).is_some()
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

    /// Remembers that whatever block is known at an offset was met.
    pub fn meet_all(&mut self, offset: u64) {
        if let Some(first) = self.first_at(offset) {
            let same = self.decisions[first..]
                .iter()
                .take_while(|d| d.offset == offset);
            let count = same.count();
            self.used[first..first + count].fill(true);
        }
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

#[cfg(test)]
mod tests {
    use profile_db::{ModuleId, ModuleRecord};

    use super::*;

    fn known(offsets: &[u64]) -> KnownBlocks {
        let decisions = offsets.iter().enumerate().map(|(at, &offset)| Decision {
            offset,
            hash: at as u64,
            len: 1,
            tier: Tier::Block,
            head: false,
            bias: Bias::Unknown,
        });
        KnownBlocks::new(Known {
            module: ModuleRecord {
                id: ModuleId::Content([0; 16]),
                path: Vec::new(),
                size: 0,
                first_seen: 0,
                last_seen: 0,
                runs: 1,
                ancestor: None,
            },
            totals: profile_db::Totals::default(),
            decisions: decisions.collect(),
            trials: profile_db::Trials::default(),
        })
    }

    #[test]
    fn decisions_are_found_wherever_they_lie() {
        for offsets in [
            &[][..],
            &[5],
            &[1023, 1024, 1024, 2047, 9000],
            &[0x1000, 0x1001, 0x4_0000],
            &[7, 1 << 40, u64::MAX],
        ] {
            let known = known(offsets);
            let around = offsets
                .iter()
                .flat_map(|&offset| [offset.saturating_sub(1), offset, offset.saturating_add(1)]);
            for offset in around.chain([0, 1 << 20, u64::MAX]) {
                assert_eq!(
                    known.mentions(offset),
                    offsets.contains(&offset),
                    "{offset}"
                );
                let last = offsets.iter().rposition(|&known| known == offset);
                let found = last.and_then(|last| known.get(offset, || last as u64));
                assert_eq!(found.is_some(), last.is_some(), "{offset}");
            }
        }
    }
}
