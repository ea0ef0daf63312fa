//! The counters of a run. Every block that is decoded gets a small dense number; counting
//! is then an index into a vector, without hashing, because the interpreter does it for
//! every block that it runs.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use profile_db::{Bias, Counts, Error, ModuleProfile, Store, Tier, Trials, content_hash};

use super::identity::Identity;
use super::index::BlockIndex;
use super::known::{KnownBlocks, KnownHot};
use super::live::{BlockId, EndKind, LiveBlock, LiveBlocks, NO_SITE};
use super::modules::{ModuleIndex, ModuleMap};
use super::nesting::{Calls, Loops};
use super::paths::{PathKey, PathRecorder};
use super::save::Saved;
use super::site::Site;
use super::timed::TimedSaves;
use super::values::{Watched, Watching};
use crate::addr::GuestAddr;
use crate::decode::Block;

/// Executions in the interpreter from which on it is worth watching a block's values.
const WATCHED_AFTER: u16 = 16;

/// Which way a conditional branch went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Taken,
    Next,
}

/// The counts of one live block, as it goes into the database.
pub(super) struct BlockCounts<'a> {
    pub block: &'a LiveBlock,
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
    /// What superblocks came to.
    pub trials: Trials,
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
    /// By module: all that earlier runs knew, once it is asked for.
    pub(super) past: Vec<Option<Box<ModuleProfile>>>,
    pub(super) retired: Vec<Retired>,
    /// By module: what saves of this run did.
    pub(super) saved: Vec<Saved>,
    /// By module: offsets of blocks that run as code of earlier runs. May repeat.
    pub(super) uncounted: Vec<Vec<u64>>,
    pub(super) timed: Option<TimedSaves>,
    pub(super) stats: ProfileStats,
    pub(super) paths: PathRecorder,
    pub(super) calls: Calls,
    pub(super) loops: Loops,
    pub(super) watched: Watched,
    /// The last transfer went backward.
    came_back: bool,
    /// Numbers the times, from 1, during which control stayed in counted blocks.
    stretch: u32,
    pub(super) index: BlockIndex,
    pub(super) blocks: LiveBlocks,
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
            past: Vec::new(),
            retired: Vec::new(),
            saved: Vec::new(),
            uncounted: Vec::new(),
            timed: None,
            stats: ProfileStats::default(),
            paths: PathRecorder::new(),
            calls: Calls::new(),
            loops: Loops::new(),
            watched: Watched::default(),
            came_back: false,
            stretch: 1,
            index: BlockIndex::new(),
            blocks: LiveBlocks::default(),
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
    pub fn warn(&mut self, errors: Vec<Error>) {
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
        self.past.resize_with(modules, || None);
        self.retired.resize_with(modules, Retired::default);
        self.saved.resize(modules, Saved::Nothing);
        self.uncounted.resize_with(modules, Vec::new);
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

    /// Where profiles are kept.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Blocks at these offsets run from now on without being counted, as what earlier runs
    /// knew of them: ageing is to spare their records.
    pub fn runs_uncounted(&mut self, module: ModuleIndex, offsets: impl Iterator<Item = u64>) {
        self.uncounted[module.index()].extend(offsets);
    }

    /// Blocks of modules that were interpreted and could have been translated, by address.
    pub fn interpreted(&self) -> impl Iterator<Item = (ModuleIndex, GuestAddr)> + '_ {
        self.live_counts()
            .filter(|(_, block)| {
                block.visits > 0 && block.tier == Tier::Interpreted && !block.is_untranslatable()
            })
            .map(|(module, block)| (module, block.start))
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
                    // Every other file would meet the same; one warning is enough.
                    if matches!(error, Error::Io { .. }) {
                        self.store = None;
                    }
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
        let mut live = LiveBlock::new(block, content_hash(&block.bytes));
        if let Some(id) = self.index.find(block.start) {
            if self.blocks[id].is_like(&live) {
                return id;
            }
            self.retire(id);
        }
        if self.store.is_some()
            && let Some((module, offset)) = self.modules.locate(block.start)
            && let Some(known) = self.known(module).get(offset, || live.hash)
        {
            live.mark_known(true);
            live.mark_head(known.head);
            live.bias = known.bias;
        }
        self.longest = self.longest.max(block.len);
        let id = match self.free.pop() {
            Some(id) => {
                self.blocks[id] = live;
                id
            }
            None => self.blocks.push(live),
        };
        self.index.insert(block.start, id);
        id
    }

    /// A block is executed.
    #[inline]
    pub fn enter(&mut self, id: BlockId) {
        let block = &mut self.blocks[id];
        block.entered = block.entered.saturating_add(1);
        block.visits = block.visits.saturating_add(1);
        let becomes_head = self
            .paths
            .enter(block.start, block.is_head(), block.path_step());
        block.mark_head(becomes_head);
        let came_back = std::mem::take(&mut self.came_back);
        block.mark_loop(came_back);
        if block.is_loop() {
            self.loops.arrive(block.start, came_back, self.stretch);
        }
        if matches!(block.end, EndKind::Call | EndKind::IndirectCall) {
            self.calls.call(block.start, block.after());
        } else if block.end == EndKind::Jump {
            self.came_back = block.is_backward();
        }
    }

    /// Whether [`Profile::choose_watched`] is worth a call: the block is hot, and it wasn't
    /// decided yet what to watch in it.
    #[inline]
    pub fn wants_watching(&self, id: BlockId) -> bool {
        let block = &self.blocks[id];
        !block.is_chosen() && block.visits >= WATCHED_AFTER
    }

    /// Decides which of a block's instructions to watch: divisions and memory accesses.
    pub fn choose_watched(&mut self, id: BlockId, block: &Block) {
        let watched = self.watched.choose(id, block);
        self.blocks[id].mark_chosen(watched);
    }

    /// The instructions to watch in a block that is about to run, if there are any.
    #[inline]
    pub fn watch(&mut self, id: BlockId) -> Option<Watching<'_>> {
        if !self.blocks[id].is_watched() {
            return None;
        }
        self.watched.watch(id, self.stretch)
    }

    /// How often a block was executed in the interpreter; saturates.
    #[inline]
    pub fn visits(&self, id: BlockId) -> u16 {
        self.blocks[id].visits
    }

    /// Counts a block that earlier runs knew as if it had been executed so often.
    pub fn assume_visits(&mut self, id: BlockId, visits: u16) {
        let block = &mut self.blocks[id];
        block.visits = block.visits.max(visits);
    }

    /// Whether a block is for the interpreter alone.
    #[inline]
    pub fn is_untranslatable(&self, id: BlockId) -> bool {
        self.blocks[id].is_untranslatable()
    }

    /// A block is for the interpreter alone, until it is invalidated.
    pub fn mark_untranslatable(&mut self, id: BlockId) {
        self.blocks[id].mark_untranslatable();
    }

    /// The conditional branch that ends a block was executed. Other blocks' edges follow
    /// from their executions, so for them this is neither needed nor counted.
    #[inline]
    pub fn edge(&mut self, id: BlockId, outcome: Outcome) {
        let block = &mut self.blocks[id];
        if block.end != EndKind::Branch {
            return;
        }
        match outcome {
            Outcome::Taken => block.count_taken(),
            Outcome::Next => block.next = block.next.saturating_add(1),
        }
        let backward = block.is_backward();
        let taken = outcome == Outcome::Taken;
        self.came_back = taken && backward;
        self.paths.outcome(taken, backward);
    }

    /// The indirect jump, indirect call or return that ends a block went to `target`.
    #[inline]
    pub fn indirect(&mut self, id: BlockId, target: GuestAddr) {
        let block = &mut self.blocks[id];
        if !block.is_indirect() {
            return;
        }
        let mut site = block.site();
        if site == NO_SITE {
            site = match self.free_sites.pop() {
                Some(site) => site,
                None => {
                    self.sites.push(Site::default());
                    (self.sites.len() - 1) as u32
                }
            };
            block.set_site(site);
        }
        self.sites[site as usize].count(target);
        if block.end == EndKind::Return {
            self.calls.returned(block.start, target);
        }
    }

    /// Control leaves the counted blocks (into translated code, by a signal, by a fault):
    /// the path in progress is dropped, with the loops and calls that were under way.
    #[inline]
    pub fn interrupt_path(&mut self) {
        self.paths.interrupt();
        self.calls.interrupt();
        self.came_back = false;
        self.stretch = self.stretch.wrapping_add(1).max(1);
    }

    /// A block has reached a tier: the next run may start there.
    pub fn set_tier(&mut self, id: BlockId, tier: Tier) {
        let live = &mut self.blocks[id];
        live.tier = live.tier.max(tier);
    }

    /// The highest tier that a block has reached.
    pub fn tier(&self, id: BlockId) -> Tier {
        self.blocks[id].tier
    }

    /// How often a block was entered since the last save.
    #[inline]
    pub fn entered(&self, id: BlockId) -> u32 {
        self.blocks[id].entered
    }

    /// How often the branch that ends a block was taken, and was not.
    pub fn outcomes(&self, id: BlockId) -> (u32, u32) {
        let block = &self.blocks[id];
        (block.taken(), block.next)
    }

    /// Whether the branch that ends a block is taken more often than not: in this run, or
    /// in earlier ones while it hasn't run.
    pub fn usually_taken(&self, id: BlockId) -> bool {
        match self.outcomes(id) {
            (0, 0) => self.blocks[id].bias == Bias::Taken,
            (taken, next) => taken > next,
        }
    }

    /// The number of the block at `start`, if it has one.
    #[inline]
    pub fn find(&self, start: GuestAddr) -> Option<BlockId> {
        self.index.find(start)
    }

    /// True when the block is the target of a backward branch or of a call, in this run or
    /// in earlier ones.
    pub fn is_path_head(&self, id: BlockId) -> bool {
        self.blocks[id].is_head()
    }

    /// Where the indirect branch that ends a block went, in no order, and how often it went
    /// elsewhere.
    pub fn targets(&self, id: BlockId) -> (&[(GuestAddr, u32)], u32) {
        let site = self.blocks[id].site() as usize;
        self.sites
            .get(site)
            .map_or((&[], 0), |site| (&site.values, site.overflow))
    }

    /// All paths with their counts, in no order.
    pub fn paths(&mut self) -> impl Iterator<Item = (PathKey, u32)> + '_ {
        self.paths.iter()
    }

    /// Forgets the live blocks that `range` touches, and says which. What they counted is
    /// kept where they belong to a module.
    pub fn invalidate(&mut self, range: Range<GuestAddr>) -> Vec<BlockId> {
        let from = GuestAddr(range.start.0.saturating_sub(u64::from(self.longest)));
        if from >= range.end {
            return Vec::new();
        }
        let mut touched = Vec::new();
        for (start, id) in self.index.starting_in(from..range.end) {
            if start.offset(i64::from(self.blocks[id].len.max(1))) > range.start {
                self.retire(id);
                touched.push(id);
            }
        }
        touched
    }

    fn retire(&mut self, id: BlockId) {
        if self.blocks[id].is_watched() {
            let seen = self.watched.forget(id);
            self.retire_values(seen);
        }
        self.index.remove(self.blocks[id].start);
        let place = self.modules.locate(self.blocks[id].start);
        self.drain(id, place);
        let site = self.blocks[id].site();
        if site != NO_SITE {
            self.sites[site as usize] = Site::default();
            self.free_sites.push(site);
        }
        self.free.push(id);
    }

    /// Moves what a block counted into the records of its module, if it has one.
    fn drain(&mut self, id: BlockId, place: Option<(ModuleIndex, u64)>) {
        let block = &mut self.blocks[id];
        let (entered, taken, next) = block.take_counts();
        let counts = BlockCounts {
            block,
            entered,
            taken,
            next,
            site: self
                .sites
                .get_mut(block.site() as usize)
                .map(std::mem::take),
        };
        if let Some((module, offset)) = place {
            let retired = &mut self.retired[module.index()];
            retired.add_block(&self.modules, module, offset, counts);
        }
    }

    /// Moves what the live blocks of the modules that `choose` says counted into their
    /// records, in the order of addresses.
    pub(super) fn drain_modules(&mut self, choose: impl Fn(ModuleIndex) -> bool) {
        // A page is of one module: they are mapped by pages.
        let mut places = Vec::new();
        let mut counts = vec![0; self.retired.len()];
        for page in self.index.pages() {
            if let Some((module, offset)) = self.modules.locate(page).filter(|at| choose(at.0)) {
                places.push((page, module, offset));
                counts[module.index()] += self.index.of_page(page).count();
            }
        }
        for (retired, blocks) in self.retired.iter_mut().zip(counts) {
            retired.fresh.blocks.reserve(blocks);
            retired.fresh.edges.reserve(blocks + blocks / 2);
        }
        let mut blocks = Vec::new();
        for (page, module, offset) in places {
            blocks.extend(self.index.of_page(page));
            for (start, id) in blocks.drain(..) {
                self.drain(id, Some((module, offset + (start.0 - page.0))));
            }
        }
    }

    /// The live blocks that were entered, with their modules.
    pub(super) fn live_counts(&self) -> impl Iterator<Item = (ModuleIndex, &LiveBlock)> {
        let pages = self.index.pages().into_iter();
        pages
            .filter_map(|page| Some((page, self.modules.locate(page)?.0)))
            .flat_map(move |(page, module)| {
                self.index
                    .of_page(page)
                    .map(move |(_, id)| (module, &self.blocks[id]))
            })
            .filter(|(_, block)| block.entered > 0)
    }

    /// Before modules at `range` vanish: settles the counts elsewhere that name addresses in
    /// it, while those can still be told as module and offset.
    fn retire_references(&mut self, range: &Range<GuestAddr>) {
        let everywhere = GuestAddr(0)..GuestAddr(u64::MAX);
        for (start, id) in self.index.starting_in(everywhere) {
            let block = &self.blocks[id];
            let Some(site) = self.sites.get_mut(block.site() as usize) else {
                continue;
            };
            let gone: Vec<_> = site
                .values
                .extract_if(.., |(target, _)| range.contains(target))
                .collect();
            if gone.is_empty() {
                continue;
            }
            if let Some((module, offset)) = self.modules.locate(start) {
                let counts = BlockCounts {
                    block,
                    entered: 0,
                    taken: 0,
                    next: 0,
                    site: Some(Site {
                        values: gone,
                        overflow: 0,
                    }),
                };
                self.retired[module.index()].add_block(&self.modules, module, offset, counts);
            }
        }
        self.retire_places(|_, place| range.contains(&place));
    }

    /// Forgets all that was counted, as the child of a fork does: the parent saves it.
    pub fn forget_counts(&mut self) {
        for block in self.blocks.iter_mut() {
            block.take_counts();
        }
        self.sites.fill_with(Site::default);
        self.paths.clear();
        self.calls.pairs.clear();
        self.loops.take(|_| true);
        self.watched.take(|_| true);
        self.retired.fill_with(Retired::default);
        self.saved.fill(Saved::Nothing);
        self.restart_timed_saves();
    }
}

#[cfg(test)]
pub(super) mod tests;
