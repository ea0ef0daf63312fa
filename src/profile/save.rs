//! From live counters to the database: places become module and file offset, and each
//! module from which the run learned enough is merged into its file. Runs at exit, so it is
//! quick, and most runs of a program that is known already save nothing. Long runs save in
//! between too ([`super::timed`]): what is collected in one step is merged in another, by
//! another thread.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use profile_db::{
    BlockRecord, Durability, EdgeKind, EdgeRecord, Error, Likeness, ModuleId, ModuleProfile,
    ModuleRecord, Observed, PairRecord, PathRecord, RunProfile, Store, Target, Tier, ValueKind,
    ValueRecord,
};

use super::code::ModuleCode;
use super::counters::{BlockCounts, Profile, Retired};
use super::live::EndKind;
use super::modules::{ModuleIndex, ModuleMap};
use super::values::Values;
use crate::addr::GuestAddr;

/// A run that counted this many executions in a module is worth saving whatever is known:
/// the save costs a small part of what the run took (translated code counts little).
const LONG_RUN: u64 = 1 << 16;
/// A module that isn't on record yet is worth a file from this many executions on.
const SHORT_RUN: u64 = 1000;
/// Retired records are folded when there are more than this and twice what is left after.
const SETTLE_AT: usize = 1 << 14;

/// Which save it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Occasion {
    /// The run goes on: it isn't counted as one yet, and nothing ages, because what it hasn't
    /// met it may meet. (At the end what it saved meanwhile ages with the rest.)
    Meanwhile,
    End,
}

/// What saves of this run did about a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Saved {
    #[default]
    Nothing,
    /// Counts, while the run goes on.
    Part,
    /// The run is counted.
    Run,
}

/// What is to be merged into the database: taken out of a profile in a moment, merged
/// whenever there is time.
pub(super) struct SaveBatch {
    store: Store,
    parts: Vec<ModulePart>,
    skipped: u64,
    /// By the index that records name modules by.
    names: Vec<ModuleId>,
}

struct ModulePart {
    index: ModuleIndex,
    module: ModuleRecord,
    spared: Vec<u64>,
    retired: Retired,
}

/// What a save did.
#[derive(Debug, Default)]
pub struct SaveReport {
    /// Modules written, and modules left alone because the run learned little of them.
    pub modules: u64,
    pub skipped: u64,
    pub records: u64,
    pub bytes: u64,
    /// Modules whose profile started with an earlier build's records.
    pub(super) took_over: Vec<ModuleIndex>,
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
        let to = |addr: GuestAddr| target(map, module, addr);
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
            for (target, count) in site.values {
                edge(indirect, to(target), count);
            }
            edge(indirect, Target::Elsewhere, site.overflow);
        }
        if self.fresh.len() > SETTLE_AT.max(self.settled.len()) {
            self.settle(&names(map));
        }
    }

    /// `names` are the modules by their index in this run, as targets name them.
    fn settle(&mut self, names: &[ModuleId]) {
        if self.fresh.is_empty() {
            return;
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.others = names.to_vec();
        fresh.normalize();
        self.settled.merge(fresh);
    }
}

/// How the records of `module` name an address.
fn target(map: &ModuleMap, module: ModuleIndex, addr: GuestAddr) -> Target {
    match map.locate(addr) {
        Some((there, offset)) if there == module => Target::Here(offset),
        Some((there, offset)) => Target::There {
            module: there.0,
            offset,
        },
        None => Target::Elsewhere,
    }
}

fn names(map: &ModuleMap) -> Vec<ModuleId> {
    let modules = map.modules().iter();
    modules.map(|module| module.identity.id.clone()).collect()
}

impl SaveBatch {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Merges it all into the database.
    pub fn merge(self, durability: Durability) -> SaveReport {
        let mut report = SaveReport {
            skipped: self.skipped,
            ..SaveReport::default()
        };
        for mut part in self.parts {
            part.retired.settle(&self.names);
            let path = PathBuf::from(OsString::from_vec(part.module.path.clone()));
            let mut code = ModuleCode::new(&path, &part.module.id);
            let run = RunProfile {
                profile: ModuleProfile {
                    module: part.module,
                    counts: part.retired.settled,
                    trials: part.retired.trials,
                },
                spared: part.spared,
            };
            match self.store.merge(run, &mut code, durability) {
                Ok(written) => {
                    if let Some(ancestor) = &written.ancestor {
                        tracing::debug!(?path, %ancestor, "took over");
                        report.took_over.push(part.index);
                    }
                    report.modules += 1;
                    report.records += written.records as u64;
                    report.bytes += written.bytes as u64;
                    report.errors.extend(written.replaced);
                }
                Err(error) => {
                    // The next module's file would meet the same.
                    let stops = stops_saving(&error);
                    report.errors.push(error);
                    if stops {
                        break;
                    }
                }
            }
        }
        report
    }
}

/// Whether an error concerns the whole directory rather than one file.
fn stops_saving(error: &Error) -> bool {
    match error {
        Error::Io { .. } | Error::Busy { .. } | Error::OutOfReach { .. } => true,
        Error::Untrusted { .. } | Error::Damaged { .. } | Error::Newer { .. } => false,
    }
}

impl Profile {
    /// Moves what is counted by address into the records of modules, where `choose` says so of
    /// an address that is concerned.
    pub(super) fn retire_places(&mut self, choose: impl Fn(&ModuleMap, GuestAddr) -> bool) {
        let choose = |place| choose(&self.modules, place);
        let paths = self.paths.take(choose);
        let pairs = self.calls.pairs.take(|p| choose(p.call) || choose(p.from));
        let loops = self.loops.take(choose);
        let seen = self.watched.take(choose);
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
        for (pair, count) in pairs {
            if let Some((module, call)) = self.modules.locate(pair.call) {
                self.retired[module.index()].fresh.pairs.push(PairRecord {
                    call,
                    from: target(&self.modules, module, pair.from),
                    count: count.into(),
                });
            }
        }
        for (head, trips) in loops {
            let values = trips.values.into_iter();
            let values = Values {
                values: values.map(|(times, count)| (times.into(), count)).collect(),
                overflow: trips.overflow,
            };
            self.retire_values(vec![(head, ValueKind::TripCount, values)]);
        }
        self.retire_values(seen);
    }

    pub(super) fn retire_values(&mut self, seen: Vec<(GuestAddr, ValueKind, Values)>) {
        for (place, kind, values) in seen {
            let Some((module, at)) = self.modules.locate(place) else {
                continue;
            };
            let usual = values.values.into_iter();
            let usual = usual.map(|(value, count)| (Observed::Is(value), count));
            let records = usual
                .chain([(Observed::Other, values.overflow)])
                .filter(|&(_, count)| count > 0)
                .map(|(value, count)| ValueRecord {
                    at,
                    kind,
                    value,
                    count: count.into(),
                });
            self.retired[module.index()].fresh.values.extend(records);
        }
    }

    /// Merges into the database what was counted since the last save, and starts the
    /// counters anew. Does nothing without a store. Blocks keep their numbers.
    pub fn save(&mut self, durability: Durability) -> SaveReport {
        let left_over = self.take_left_over();
        let mut report = SaveReport::default();
        for batch in left_over.into_iter().chain(self.collect(Occasion::End)) {
            let part = batch.merge(durability);
            self.count_saved(&part);
            report.modules += part.modules;
            report.skipped += part.skipped;
            report.records += part.records;
            report.bytes += part.bytes;
            report.errors.extend(part.errors);
        }
        report
    }

    pub(super) fn count_saved(&mut self, report: &SaveReport) {
        self.stats.modules_saved += report.modules;
        self.stats.records_saved += report.records;
        self.stats.bytes_saved += report.bytes;
        for module in &report.took_over {
            // Nothing was on record so far; what is there now knows code that the rest of the
            // run may come to.
            self.known[module.index()] = None;
        }
    }

    /// Takes out what is worth saving; `None` without a store.
    pub(super) fn collect(&mut self, occasion: Occasion) -> Option<SaveBatch> {
        let store = self.store.clone()?;
        let learned = self.learned(&store);
        let worth: Vec<bool> = (0..learned.len())
            .map(|index| {
                let module = ModuleIndex(index as u32);
                occasion == Occasion::End && self.saved[index] == Saved::Part
                    || !self.retired[index].trials.is_empty()
                    || self.is_worth_saving(module, learned[index])
            })
            .collect();
        self.drain_modules(|module| worth[module.index()]);
        self.retire_places(|modules, place| {
            let found = modules.locate(place);
            found.is_some_and(|(module, _)| worth[module.index()])
        });
        let mut batch = SaveBatch {
            store,
            parts: Vec::new(),
            skipped: 0,
            names: names(&self.modules),
        };
        for (index, worth) in worth.into_iter().enumerate() {
            // What is left alone is kept: with what follows it may be worth a later save.
            if worth {
                batch
                    .parts
                    .push(self.take_part(ModuleIndex(index as u32), occasion));
            } else {
                batch.skipped += u64::from(learned[index].executions > 0);
            }
        }
        Some(batch)
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
        let names = names(&self.modules);
        for (index, retired) in self.retired.iter_mut().enumerate() {
            retired.settle(&names);
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

    fn take_part(&mut self, module: ModuleIndex, occasion: Occasion) -> ModulePart {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let uncounted = std::mem::take(&mut self.uncounted[module.index()]);
        let known = self.known(module);
        for offset in uncounted {
            known.meet_all(offset);
        }
        let spared = known.met();
        let saved = &mut self.saved[module.index()];
        let runs = match (occasion, *saved) {
            (Occasion::Meanwhile, Saved::Nothing | Saved::Part) => {
                *saved = Saved::Part;
                0
            }
            (Occasion::End, Saved::Nothing | Saved::Part) => {
                *saved = Saved::Run;
                1
            }
            (Occasion::Meanwhile | Occasion::End, Saved::Run) => 0,
        };
        let about = &self.modules.modules()[module.index()];
        ModulePart {
            index: module,
            module: ModuleRecord {
                id: about.identity.id.clone(),
                path: about.path.as_os_str().as_bytes().to_vec(),
                size: about.identity.size,
                first_seen: now,
                last_seen: now,
                runs,
                ancestor: None,
            },
            spared,
            retired: std::mem::take(&mut self.retired[module.index()]),
        }
    }
}

#[cfg(test)]
mod tests;
