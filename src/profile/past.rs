//! What earlier runs counted at one block, for whoever forms superblocks: executions, both
//! ways of its branch, paths, usual targets and callers, values, and what trials came to. A
//! module's counts are loaded when the first question about it is asked, which takes some
//! milliseconds for a large one; a start doesn't ask, the decisions suffice for it.

use std::time::Instant;

use profile_db::{
    BlockRecord, Machine, ModuleProfile, PathRecord, Target, TrialRecord, Trials, ValueKind,
    ValueRecord, content_hash,
};

use super::counters::Profile;
use super::modules::{ModuleIndex, ModuleMap};
use crate::addr::GuestAddr;

/// See the module documentation.
pub struct Past<'p> {
    modules: &'p ModuleMap,
    module: ModuleIndex,
    profile: &'p ModuleProfile,
    block: &'p BlockRecord,
}

impl Profile {
    /// What earlier runs counted at the block of these bytes; `None` when they didn't run it.
    /// `bytes` are [`Block::bytes`](crate::decode::Block::bytes).
    pub fn past(&mut self, start: GuestAddr, bytes: &[u8]) -> Option<Past<'_>> {
        let (module, offset) = self.modules.locate(start)?;
        if !self.known(module).recorded {
            return None;
        }
        let index = module.index();
        if self.past[index].is_none() {
            let started = Instant::now();
            let found = self.store.as_ref()?.load(self.modules.id(module));
            let found = found.unwrap_or_else(|error| {
                self.warn(vec![error]);
                None
            });
            // Without one, nothing is asked of this module again.
            self.known(module).recorded = found.is_some();
            self.past[index] = found.map(Box::new);
            self.spent_loading(started.elapsed());
        }
        let profile = self.past[index].as_deref()?;
        let block = profile.counts.block(offset, content_hash(bytes))?;
        Some(Past {
            modules: &self.modules,
            module,
            profile,
            block,
        })
    }

    /// Keeps what a superblock's trial came to; the next save writes it. `trial.machine` and
    /// `trial.head` are filled in here; false when `head` is code of no module.
    pub fn record_trial(&mut self, machine: &Machine, head: GuestAddr, trial: TrialRecord) -> bool {
        let Some((module, head)) = self.modules.locate(head) else {
            return false;
        };
        self.retired[module.index()].trials.merge(Trials {
            machines: vec![machine.clone()],
            trials: vec![TrialRecord {
                machine: 0,
                head,
                ..trial
            }],
        });
        true
    }
}

impl Past<'_> {
    /// Executions, the tier that it reached, and whether it is a path head.
    pub fn block(&self) -> &BlockRecord {
        self.block
    }

    /// How often its conditional branch was taken, and was not.
    pub fn outcomes(&self) -> (u64, u64) {
        self.profile.counts.outcomes(self.block.offset)
    }

    /// The paths that start here, in no order.
    pub fn paths(&self) -> &[PathRecord] {
        self.profile.counts.paths_from(self.block.offset)
    }

    /// Where its indirect branch went, the most usual target first; `None` is elsewhere, or in
    /// a module that isn't mapped now.
    pub fn targets(&self) -> Vec<(Option<GuestAddr>, u64)> {
        let targets = self.profile.counts.indirect_targets(self.block.offset);
        let named = targets.into_iter();
        named
            .map(|(target, count)| (self.address(target), count))
            .collect()
    }

    /// The blocks that returned to behind the call that ends this block.
    pub fn returns(&self) -> Vec<(Option<GuestAddr>, u64)> {
        let pairs = self.profile.counts.returns_to(self.block.offset).iter();
        pairs
            .map(|pair| (self.address(pair.from), pair.count))
            .collect()
    }

    /// The values seen at the instruction `at` bytes into the block.
    pub fn values(&self, at: u64, kind: ValueKind) -> &[ValueRecord] {
        let place = self.block.offset.saturating_add(at);
        self.profile.counts.values_at(place, kind)
    }

    /// What trials of superblocks that are entered here came to on `machine`.
    pub fn trials(&self, machine: &Machine) -> &[TrialRecord] {
        self.profile.trials.at(machine, self.block.offset)
    }

    fn address(&self, target: Target) -> Option<GuestAddr> {
        match target {
            Target::Here(offset) => self.modules.address(self.module, offset),
            Target::There { module, offset } => {
                let id = self.profile.counts.others.get(module as usize)?;
                self.modules.address(self.modules.find(id)?, offset)
            }
            Target::Elsewhere => None,
        }
    }
}

#[cfg(test)]
mod tests;
