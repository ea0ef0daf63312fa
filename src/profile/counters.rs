//! The counters of a run. Every block that is decoded gets a small dense number; counting
//! is then an index into a vector, without hashing, because the interpreter does it for
//! every block that it runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use profile_db::{Bias, Counts, Error, Store, Tier, content_hash};

use super::identity::Identity;
use super::known::{KnownBlocks, KnownHot};
use super::modules::{ModuleIndex, ModuleMap};
use super::paths::{PathKey, PathRecorder, PathStep};
use super::save::Saved;
use super::site::Site;
use super::timed::TimedSaves;
use crate::addr::GuestAddr;
use crate::decode::{Block, BlockEnd};

const NO_SITE: u32 = u32::MAX;

/// A live block of this run. Valid until [`Profile::invalidate`] covers the block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockId(pub u32);

impl BlockId {
    #[inline]
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which way a conditional branch went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Taken,
    Next,
}

/// What counting touches: half a cache line a block.
#[derive(Clone, Debug)]
struct Counters {
    start: GuestAddr,
    entered: u32,
    taken: u32,
    next: u32,
    site: u32,
    step: PathStep,
    head: bool,
}

/// What else is known of a live block.
#[derive(Debug)]
pub(super) struct LiveBlock {
    pub hash: u64,
    pub len: u32,
    pub tier: Tier,
    /// Earlier runs knew it as hot.
    pub known: bool,
    /// What they say of its branch.
    bias: Bias,
    pub end: BlockEnd,
    /// Module and file offset; `None` for code of no module.
    pub place: Option<(ModuleIndex, u64)>,
}

/// The counts of one live block, as it goes into the database.
pub(super) struct BlockCounts<'a> {
    pub block: &'a LiveBlock,
    pub head: bool,
    pub entered: u32,
    pub taken: u32,
    pub next: u32,
    pub site: Option<Site>,
}

/// What a module's blocks counted before they were invalidated.
#[derive(Default)]
pub(super) struct Retired {
    pub fresh: Counts,
    /// Folded, so that code which is invalidated again and again doesn't pile up.
    pub settled: Counts,
}

/// What the profile did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProfileStats {
    /// Modules for which the database had a profile, and their decisions.
    pub modules_loaded: u64,
    pub records_loaded: u64,
    pub load_time: Duration,
    /// Blocks that were known to be hot when they were first met.
    pub known_hot: u64,
    pub modules_saved: u64,
    pub records_saved: u64,
    pub bytes_saved: u64,
}

/// The profile of a run.
pub struct Profile {
    pub(super) modules: ModuleMap,
    pub(super) store: Option<Store>,
    /// By module; `None` until the module is asked about.
    pub(super) known: Vec<Option<KnownBlocks>>,
    pub(super) retired: Vec<Retired>,
    /// By module: what saves of this run did.
    pub(super) saved: Vec<Saved>,
    pub(super) timed: Option<TimedSaves>,
    pub(super) stats: ProfileStats,
    pub(super) paths: PathRecorder,
    index: BTreeMap<GuestAddr, BlockId>,
    counters: Vec<Counters>,
    blocks: Vec<LiveBlock>,
    free: Vec<BlockId>,
    sites: Vec<Site>,
    free_sites: Vec<u32>,
    /// The length of the longest block so far: how far before a range a block that reaches
    /// into it may start.
    longest: u32,
    warnings: Vec<Error>,
}

impl Profile {
    /// An empty profile. Without a store nothing is known and nothing is saved.
    pub fn new(store: Option<Store>) -> Profile {
        Profile {
            modules: ModuleMap::new(),
            store,
            known: Vec::new(),
            retired: Vec::new(),
            saved: Vec::new(),
            timed: None,
            stats: ProfileStats::default(),
            paths: PathRecorder::new(),
            index: BTreeMap::new(),
            counters: Vec::new(),
            blocks: Vec::new(),
            free: Vec::new(),
            sites: Vec::new(),
            free_sites: Vec::new(),
            longest: 0,
            warnings: Vec::new(),
        }
    }

    pub fn modules(&self) -> &ModuleMap {
        &self.modules
    }

    pub fn stats(&self) -> ProfileStats {
        self.stats
    }

    /// Adds to the time that loading took, as for [identifying](super::Identities) a file.
    pub fn spent_loading(&mut self, time: Duration) {
        self.stats.load_time += time;
    }

    /// What went wrong with the profile directory since the last call; the run goes on.
    pub(super) fn warn(&mut self, errors: Vec<Error>) {
        self.warnings.extend(errors);
    }

    pub fn take_warnings(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.warnings)
    }

    /// Executable guest memory now maps a file. Forgets what was at `range` before.
    pub fn map_module(
        &mut self,
        range: Range<GuestAddr>,
        path: &Path,
        file_offset: u64,
        identity: Identity,
    ) -> ModuleIndex {
        self.unmap(range.clone());
        let module = self.modules.add_mapping(range, path, file_offset, identity);
        let modules = self.modules.modules().len();
        self.known.resize_with(modules, || None);
        self.retired.resize_with(modules, Retired::default);
        self.saved.resize(modules, Saved::Nothing);
        module
    }

    /// Guest memory at `range` is no more, or is something else now.
    pub fn unmap(&mut self, range: Range<GuestAddr>) {
        if self.modules.overlaps(&range) {
            self.retire_references(&range);
        }
        self.invalidate(range.clone());
        self.modules.remove(range);
    }

    /// What earlier runs say of the block of these bytes; `None` when it wasn't hot. `bytes`
    /// are [`Block::bytes`].
    pub fn known_hot(&mut self, start: GuestAddr, bytes: &[u8]) -> Option<KnownHot> {
        self.store.as_ref()?;
        let (module, offset) = self.modules.locate(start)?;
        let known = self.known(module);
        if !known.mentions(offset) {
            return None;
        }
        let hash = content_hash(bytes);
        let hot = known.get(offset, || hash)?;
        if known.meet(offset, hash) {
            self.stats.known_hot += 1;
        }
        Some(hot)
    }

    /// Whether earlier runs may have known a block at `start`: cheap, and worth a
    /// [`Profile::known_hot`] when true.
    pub fn may_be_known(&mut self, start: GuestAddr) -> bool {
        if self.store.is_none() {
            return false;
        }
        let Some((module, offset)) = self.modules.locate(start) else {
            return false;
        };
        self.known(module).mentions(offset)
    }

    /// What the database knows of a module, loaded at the first call.
    pub(super) fn known(&mut self, module: ModuleIndex) -> &mut KnownBlocks {
        let index = module.index();
        if self.known[index].is_none() {
            let started = Instant::now();
            let found = match &self.store {
                Some(store) => store.known(self.modules.id(module)),
                None => Ok(None),
            };
            let known = match found {
                Ok(Some(known)) => {
                    self.stats.modules_loaded += 1;
                    self.stats.records_loaded += known.decisions.len() as u64;
                    KnownBlocks::new(known)
                }
                Ok(None) => KnownBlocks::default(),
                Err(error) => {
                    self.warnings.push(error);
                    KnownBlocks::default()
                }
            };
            self.known[index] = Some(known);
            self.stats.load_time += started.elapsed();
        }
        self.known[index].get_or_insert_default()
    }

    /// The number of a decoded block: the same one each time until the block is
    /// invalidated or decodes differently.
    pub fn block_id(&mut self, block: &Block) -> BlockId {
        let hash = content_hash(&block.bytes);
        if let Some(&id) = self.index.get(&block.start) {
            let live = &self.blocks[id.index()];
            if live.hash == hash && live.end == block.end {
                return id;
            }
            self.retire(id);
        }
        let place = self.modules.locate(block.start);
        let known = match place {
            Some((module, offset)) if self.store.is_some() => {
                self.known(module).get(offset, || hash)
            }
            Some(_) | None => None,
        };
        let site = match block.end {
            BlockEnd::IndirectJump | BlockEnd::IndirectCall { .. } | BlockEnd::Return { .. } => {
                self.new_site()
            }
            BlockEnd::Jump { .. }
            | BlockEnd::Branch { .. }
            | BlockEnd::Call { .. }
            | BlockEnd::Syscall { .. }
            | BlockEnd::InterpretOne { .. }
            | BlockEnd::Next { .. } => NO_SITE,
        };
        let counters = Counters {
            start: block.start,
            entered: 0,
            taken: 0,
            next: 0,
            site,
            step: path_step(block),
            head: known.is_some_and(|known| known.head),
        };
        let live = LiveBlock {
            hash,
            len: block.len,
            tier: Tier::Interpreted,
            known: known.is_some(),
            bias: known.map_or(Bias::Unknown, |known| known.bias),
            end: block.end,
            place,
        };
        self.longest = self.longest.max(block.len);
        let id = match self.free.pop() {
            Some(id) => {
                self.counters[id.index()] = counters;
                self.blocks[id.index()] = live;
                id
            }
            None => {
                let id = BlockId(self.blocks.len() as u32);
                self.counters.push(counters);
                self.blocks.push(live);
                id
            }
        };
        self.index.insert(block.start, id);
        id
    }

    fn new_site(&mut self) -> u32 {
        match self.free_sites.pop() {
            Some(site) => site,
            None => {
                self.sites.push(Site::default());
                (self.sites.len() - 1) as u32
            }
        }
    }

    /// A block is executed.
    #[inline]
    pub fn enter(&mut self, id: BlockId) {
        let counters = &mut self.counters[id.index()];
        counters.entered = counters.entered.saturating_add(1);
        counters.head |= self
            .paths
            .enter(counters.start, counters.head, counters.step);
    }

    /// A block was executed `times` times outside the interpreter, where a counter of
    /// generated code says so. Says nothing of paths.
    pub fn add_executions(&mut self, id: BlockId, times: u32) {
        let counters = &mut self.counters[id.index()];
        counters.entered = counters.entered.saturating_add(times);
    }

    /// The conditional branch that ends a block was executed. Other blocks' edges follow
    /// from their executions, so for them this is neither needed nor counted.
    #[inline]
    pub fn edge(&mut self, id: BlockId, outcome: Outcome) {
        let counters = &mut self.counters[id.index()];
        let PathStep::Branch { backward } = counters.step else {
            return;
        };
        match outcome {
            Outcome::Taken => counters.taken = counters.taken.saturating_add(1),
            Outcome::Next => counters.next = counters.next.saturating_add(1),
        }
        self.paths.outcome(outcome == Outcome::Taken, backward);
    }

    /// The indirect jump, indirect call or return that ends a block went to `target`.
    #[inline]
    pub fn indirect(&mut self, id: BlockId, target: GuestAddr) {
        let site = self.counters[id.index()].site as usize;
        if let Some(site) = self.sites.get_mut(site) {
            site.count(target);
        }
    }

    /// Control leaves the counted blocks (into translated code, by a signal, by a fault):
    /// the path in progress is dropped.
    #[inline]
    pub fn interrupt_path(&mut self) {
        self.paths.interrupt();
    }

    /// A block has reached a tier: the next run may start there.
    pub fn set_tier(&mut self, id: BlockId, tier: Tier) {
        let live = &mut self.blocks[id.index()];
        live.tier = live.tier.max(tier);
    }

    /// How often a block was entered since the last save.
    #[inline]
    pub fn entered(&self, id: BlockId) -> u32 {
        self.counters[id.index()].entered
    }

    /// How often the branch that ends a block was taken, and was not.
    pub fn outcomes(&self, id: BlockId) -> (u32, u32) {
        let counters = &self.counters[id.index()];
        (counters.taken, counters.next)
    }

    /// Whether the branch that ends a block is taken more often than not: in this run, or
    /// in earlier ones while it hasn't run.
    pub fn usually_taken(&self, id: BlockId) -> bool {
        match self.outcomes(id) {
            (0, 0) => self.blocks[id.index()].bias == Bias::Taken,
            (taken, next) => taken > next,
        }
    }

    /// The number of the block at `start`, if it has one.
    pub fn find(&self, start: GuestAddr) -> Option<BlockId> {
        self.index.get(&start).copied()
    }

    /// True when the block is the target of a backward branch or of a call, in this run or
    /// in earlier ones.
    pub fn is_path_head(&self, id: BlockId) -> bool {
        self.counters[id.index()].head
    }

    /// Where the indirect branch that ends a block went, in no order, and how often it went
    /// elsewhere.
    pub fn targets(&self, id: BlockId) -> (&[(GuestAddr, u32)], u32) {
        let site = self.counters[id.index()].site as usize;
        self.sites
            .get(site)
            .map_or((&[], 0), |site| (&site.targets, site.overflow))
    }

    /// All paths with their counts, in no order.
    pub fn paths(&mut self) -> impl Iterator<Item = (PathKey, u32)> + '_ {
        self.paths.iter()
    }

    /// Forgets the live blocks that `range` touches. What they counted is kept where they
    /// belong to a module.
    pub fn invalidate(&mut self, range: Range<GuestAddr>) {
        let from = GuestAddr(range.start.0.saturating_sub(u64::from(self.longest)));
        if from >= range.end {
            return;
        }
        let touched: Vec<BlockId> = self
            .index
            .range(from..range.end)
            .filter(|(start, id)| {
                let len = self.blocks[id.index()].len.max(1);
                start.0.saturating_add(u64::from(len)) > range.start.0
            })
            .map(|(_, &id)| id)
            .collect();
        for id in touched {
            self.retire(id);
        }
    }

    fn retire(&mut self, id: BlockId) {
        self.index.remove(&self.counters[id.index()].start);
        self.drain(id);
        let site = std::mem::replace(&mut self.counters[id.index()].site, NO_SITE);
        if site != NO_SITE {
            self.sites[site as usize] = Site::default();
            self.free_sites.push(site);
        }
        self.free.push(id);
    }

    /// Moves what a block counted into its module's records.
    fn drain(&mut self, id: BlockId) {
        let counters = &mut self.counters[id.index()];
        let counts = BlockCounts {
            block: &self.blocks[id.index()],
            head: counters.head,
            entered: std::mem::take(&mut counters.entered),
            taken: std::mem::take(&mut counters.taken),
            next: std::mem::take(&mut counters.next),
            site: self
                .sites
                .get_mut(counters.site as usize)
                .map(std::mem::take),
        };
        if let Some((module, offset)) = counts.block.place {
            let retired = &mut self.retired[module.index()];
            retired.add_block(&self.modules, module, offset, counts);
        }
    }

    /// Moves what the live blocks of the modules that `choose` says counted into their
    /// records, in the order of addresses.
    pub(super) fn drain_modules(&mut self, choose: impl Fn(ModuleIndex) -> bool) {
        let ids: Vec<BlockId> = self
            .index
            .values()
            .filter(|id| {
                let place = self.blocks[id.index()].place;
                place.is_some_and(|(module, _)| choose(module))
            })
            .copied()
            .collect();
        let mut blocks = vec![0; self.retired.len()];
        for id in &ids {
            if let Some((module, _)) = self.blocks[id.index()].place {
                blocks[module.index()] += 1;
            }
        }
        for (retired, blocks) in self.retired.iter_mut().zip(blocks) {
            retired.fresh.blocks.reserve(blocks);
            retired.fresh.edges.reserve(2 * blocks);
        }
        for id in ids {
            self.drain(id);
        }
    }

    /// The live blocks that were entered, and how often.
    pub(super) fn live_counts(&self) -> impl Iterator<Item = (&LiveBlock, u32)> {
        let counters = self.index.values().map(|id| id.index());
        counters
            .map(|index| (&self.blocks[index], self.counters[index].entered))
            .filter(|(_, entered)| *entered > 0)
    }

    /// Before modules at `range` vanish: settles the counts elsewhere that name addresses in
    /// it, while those can still be told as module and offset.
    fn retire_references(&mut self, range: &Range<GuestAddr>) {
        let ids: Vec<BlockId> = self.index.values().copied().collect();
        for id in ids {
            let site = self.counters[id.index()].site as usize;
            let Some(site) = self.sites.get_mut(site) else {
                continue;
            };
            let gone: Vec<_> = site
                .targets
                .extract_if(.., |(target, _)| range.contains(target))
                .collect();
            if gone.is_empty() {
                continue;
            }
            let block = &self.blocks[id.index()];
            if let Some((module, offset)) = block.place {
                let counts = BlockCounts {
                    block,
                    head: false,
                    entered: 0,
                    taken: 0,
                    next: 0,
                    site: Some(Site {
                        targets: gone,
                        overflow: 0,
                    }),
                };
                self.retired[module.index()].add_block(&self.modules, module, offset, counts);
            }
        }
        let paths = self.paths.take(|head| range.contains(&head));
        self.retire_paths(paths);
    }

    /// Forgets all that was counted, as the child of a fork does: the parent saves it.
    pub fn forget_counts(&mut self) {
        for counters in &mut self.counters {
            counters.entered = 0;
            counters.taken = 0;
            counters.next = 0;
        }
        self.sites.fill_with(Site::default);
        self.paths.clear();
        self.retired.fill_with(Retired::default);
        self.saved.fill(Saved::Nothing);
        self.restart_timed_saves();
    }
}

fn path_step(block: &Block) -> PathStep {
    match block.end {
        BlockEnd::Branch { taken, .. } => PathStep::Branch {
            backward: taken <= block.start,
        },
        BlockEnd::Jump { target } if target <= block.start => PathStep::EndsBeforeHead,
        BlockEnd::Call { .. } | BlockEnd::IndirectCall { .. } => PathStep::EndsBeforeHead,
        BlockEnd::IndirectJump | BlockEnd::Return { .. } | BlockEnd::InterpretOne { .. } => {
            PathStep::Ends
        }
        BlockEnd::Jump { .. } | BlockEnd::Syscall { .. } | BlockEnd::Next { .. } => {
            PathStep::Through
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
