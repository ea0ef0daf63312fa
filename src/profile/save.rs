//! From live counters to the database: places become module and file offset, and each
//! module from which the run learned enough is merged into its file. Runs at exit, so it is
//! quick, and most runs of a program that is known already save nothing.

use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use profile_db::{
    BlockRecord, Counts, Durability, EdgeKind, EdgeRecord, Error, Likeness, ModuleProfile,
    ModuleRecord, PathRecord, RunProfile, Store, Target, Tier, Trials,
};

use super::code::ModuleCode;
use super::counters::{BlockCounts, Profile, Retired};
use super::live::EndKind;
use super::modules::{ModuleIndex, ModuleMap};
use super::paths::PathKey;
use crate::addr::GuestAddr;

/// A run that counted this many executions in a module is worth saving whatever is known:
/// the save costs a small part of what the run took (translated code counts little).
const LONG_RUN: u64 = 1 << 16;
/// A module that isn't on record yet is worth a file from this many executions on.
const SHORT_RUN: u64 = 1000;
/// Retired records are folded when there are more than this and twice what is left after.
const SETTLE_AT: usize = 1 << 14;

/// What a save did.
#[derive(Debug, Default)]
pub struct SaveReport {
    /// Modules written, and modules left alone because the run learned little of them.
    pub modules: u64,
    pub skipped: u64,
    pub records: u64,
    pub bytes: u64,
    /// What went wrong; the run is unharmed.
    pub errors: Vec<Error>,
}

/// What a run learned of a module.
#[derive(Clone, Copy, Default)]
struct Learned {
    executions: u64,
    /// Hot blocks that earlier runs didn't know.
    news: usize,
}

impl Learned {
    fn add(&mut self, count: u64, news: bool) {
        self.executions = self.executions.saturating_add(count);
        self.news += usize::from(news);
    }
}

impl Retired {
    /// Adds a block's counts; `module` and `offset` say where it is.
    pub(super) fn add_block(
        &mut self,
        map: &ModuleMap,
        module: ModuleIndex,
        offset: u64,
        counts: BlockCounts,
    ) {
        let block = counts.block;
        if counts.entered > 0 {
            self.fresh.blocks.push(BlockRecord {
                offset,
                hash: block.hash,
                len: u32::from(block.len),
                tier: block.tier,
                head: block.is_head(),
                likeness: Likeness::default(),
                count: counts.entered.into(),
            });
        }
        let edges = &mut self.fresh.edges;
        let mut edge = |kind, to: Target, count: u32| {
            if count > 0 {
                edges.push(EdgeRecord {
                    from: offset,
                    kind,
                    to,
                    count: count.into(),
                });
            }
        };
        let to = |addr: GuestAddr| match map.locate(addr) {
            Some((there, offset)) if there == module => Target::Here(offset),
            Some((there, offset)) => Target::There {
                module: there.0,
                offset,
            },
            None => Target::Elsewhere,
        };
        let indirect = match block.end {
            EndKind::Branch => {
                edge(EdgeKind::Taken, to(block.target()), counts.taken);
                edge(EdgeKind::Next, to(block.after()), counts.next);
                return;
            }
            EndKind::Jump => return edge(EdgeKind::Jump, to(block.target()), counts.entered),
            EndKind::Call => return edge(EdgeKind::Call, to(block.target()), counts.entered),
            EndKind::Syscall | EndKind::Next => {
                return edge(EdgeKind::Next, to(block.target()), counts.entered);
            }
            // Where it goes depends on the instruction, or isn't kept.
            EndKind::InterpretOne | EndKind::Far => return,
            EndKind::IndirectJump => EdgeKind::IndirectJump,
            EndKind::IndirectCall => EdgeKind::IndirectCall,
            EndKind::Return => EdgeKind::Return,
        };
        if let Some(site) = counts.site {
            for (target, count) in site.targets {
                edge(indirect, to(target), count);
            }
            edge(indirect, Target::Elsewhere, site.overflow);
        }
        if self.fresh.len() > SETTLE_AT.max(self.settled.len()) {
            self.settle(map);
        }
    }

    fn settle(&mut self, map: &ModuleMap) {
        if self.fresh.is_empty() {
            return;
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        // Targets name modules by their index in this run.
        fresh.others = map
            .modules()
            .iter()
            .map(|module| module.identity.id.clone())
            .collect();
        fresh.normalize();
        self.settled.merge(fresh);
    }

    fn take(&mut self, map: &ModuleMap) -> Counts {
        self.settle(map);
        std::mem::take(&mut self.settled)
    }
}

impl Profile {
    pub(super) fn retire_paths(&mut self, paths: Vec<(PathKey, u32)>) {
        for (key, count) in paths {
            if let Some((module, head)) = self.modules.locate(key.head) {
                self.retired[module.index()].fresh.paths.push(PathRecord {
                    head,
                    outcomes: key.outcomes.into(),
                    len: key.len,
                    count: count.into(),
                });
            }
        }
    }

    /// Merges into the database what was counted since the last save, and starts the
    /// counters anew. Does nothing without a store. Blocks keep their numbers.
    pub fn save(&mut self, durability: Durability) -> SaveReport {
        let mut report = SaveReport::default();
        let Some(store) = self.store.clone() else {
            return report;
        };
        let learned = self.learned(&store);
        let worth: Vec<bool> = (0..learned.len())
            .map(|index| self.is_worth_saving(ModuleIndex(index as u32), learned[index]))
            .collect();
        self.drain_modules(|module| worth[module.index()]);
        let modules = &self.modules;
        let paths = self.paths.take(|head| {
            let place = modules.locate(head);
            place.is_some_and(|(module, _)| worth[module.index()])
        });
        self.retire_paths(paths);
        for (index, worth) in worth.into_iter().enumerate() {
            let module = ModuleIndex(index as u32);
            // What is left alone is kept: with what follows it may be worth a later save.
            if !worth {
                report.skipped += u64::from(learned[index].executions > 0);
                continue;
            }
            let counts = self.retired[index].take(&self.modules);
            let run = self.run_profile(module, counts);
            let mut code = ModuleCode::new(self.modules.path(module), self.modules.id(module));
            match store.merge(run, &mut code, durability) {
                Ok(written) => {
                    self.merged[index] = true;
                    if let Some(ancestor) = &written.ancestor {
                        tracing::debug!(path = ?self.modules.path(module), %ancestor, "took over");
                        // A long run goes on with what the earlier build knew.
                        self.known[index] = None;
                    }
                    report.modules += 1;
                    report.records += written.records as u64;
                    report.bytes += written.bytes as u64;
                    report.errors.extend(written.replaced);
                }
                // The next module's file would meet the same.
                Err(error @ (Error::Io { .. } | Error::Busy { .. })) => {
                    report.errors.push(error);
                    break;
                }
                Err(
                    error @ (Error::Untrusted { .. } | Error::Damaged { .. } | Error::Newer { .. }),
                ) => report.errors.push(error),
            }
        }
        self.stats.modules_saved += report.modules;
        self.stats.records_saved += report.records;
        self.stats.bytes_saved += report.bytes;
        report
    }

    /// What the run learned of each module since the last save. Only looks, because most
    /// runs save nothing.
    fn learned(&mut self, store: &Store) -> Vec<Learned> {
        let hot_count = store.limits().hot_count;
        let is_hot = |count: u64, tier| count >= hot_count || tier > Tier::Interpreted;
        let mut learned = vec![Learned::default(); self.retired.len()];
        for (module, block) in self.live_counts() {
            let count = u64::from(block.entered);
            let news = !block.is_known() && is_hot(count, block.tier);
            learned[module.index()].add(count, news);
        }
        for (index, retired) in self.retired.iter_mut().enumerate() {
            retired.settle(&self.modules);
            let known = &self.known[index];
            for block in &retired.settled.blocks {
                let is_known = known
                    .as_ref()
                    .is_some_and(|known| known.get(block.offset, || block.hash).is_some());
                let news = !is_known && is_hot(block.count, block.tier);
                learned[index].add(block.count, news);
            }
        }
        learned
    }

    fn is_worth_saving(&mut self, module: ModuleIndex, learned: Learned) -> bool {
        if learned.executions == 0 {
            return false;
        }
        let known = self.known(module);
        learned.executions >= LONG_RUN
            || if known.recorded {
                learned.news > known.len() / 32
            } else {
                learned.news > 0 || learned.executions >= SHORT_RUN
            }
    }

    fn run_profile(&mut self, module: ModuleIndex, counts: Counts) -> RunProfile {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let spared = self.known(module).met();
        let about = &self.modules.modules()[module.index()];
        RunProfile {
            profile: ModuleProfile {
                module: ModuleRecord {
                    id: about.identity.id.clone(),
                    path: about.path.as_os_str().as_bytes().to_vec(),
                    size: about.identity.size,
                    first_seen: now,
                    last_seen: now,
                    runs: u32::from(!self.merged[module.index()]),
                    ancestor: None,
                },
                counts,
                trials: Trials::default(),
            },
            spared,
        }
    }
}

#[cfg(test)]
mod tests;
