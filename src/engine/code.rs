//! Everything made from guest code: the interpreter's blocks, the code cache, and which
//! addresses indirect branches reach. Forgets it all when the guest's code changes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use hashbrown::{HashMap, HashSet};
use libc::SIGXFSZ;

use super::Settings;
use super::counters::Counters;
use super::entry;
use super::lockstep::Prepared;
use super::predecoded::Predecoded;
use super::reuse::Reuse;
use super::superblocks::SuperblockTable;
use super::threads::Threads;
use crate::addr::GuestAddr;
use crate::codecache::{CodeCache, MAP_REACH};
use crate::decode::{Block, Decoder};
use crate::guest::{CodeControl, CpuMode, GuestMemory, ThreadContext};
use crate::host::Ignored;
use crate::profile::{Durability, Identities, Profile};

/// See the module documentation.
pub struct Code<M: GuestMemory> {
    pub(super) predecoded: Predecoded<M>,
    pub(super) cache: CodeCache,
    pub(super) decoder: Decoder,
    /// Addresses that indirect branches (returns among them) were seen or are expected to
    /// reach: their fragments get an entry for them.
    pub(super) indirect_targets: HashSet<GuestAddr>,
    pub(super) exact_indirect: bool,
    /// The block decoded last (length 0: none); its memory is used again.
    pub(super) scratch: Block,
    pub profile: Profile,
    identities: Identities,
    /// Blocks as `--verify` runs them.
    pub(super) prepared: HashMap<GuestAddr, Rc<Prepared>>,
    /// Counters in generated code; `None` without profiling.
    pub(super) counters: Option<Counters>,
    pub(super) superblocks: SuperblockTable,
    /// Fragments made so far.
    pub(super) fragments: u64,
    pub(super) threads: Threads,
    pub(super) reuse: Reuse,
}

impl<M: GuestMemory> Code<M> {
    pub(super) fn new(
        settings: &Settings,
        decoder: Decoder,
        profile: Profile,
    ) -> io::Result<Code<M>> {
        Ok(Code {
            predecoded: Predecoded::new(),
            cache: CodeCache::new(settings.cache_bytes, entry::indirect_miss())?,
            decoder,
            indirect_targets: HashSet::new(),
            exact_indirect: false,
            scratch: Block::default(),
            profile,
            identities: Identities::new(),
            prepared: HashMap::new(),
            counters: if settings.profile {
                Some(Counters::new(settings.superblocks.forced)?)
            } else {
                None
            },
            superblocks: SuperblockTable::new(settings.superblocks.forced),
            fragments: 0,
            threads: Threads::default(),
            reuse: Reuse::new(settings),
        })
    }

    /// Room for `bytes` in the cache: if that retires a generation, no thread is in it.
    pub(super) fn make_room(&mut self, bytes: usize) {
        if self.cache.is_full_for(bytes) {
            self.stop();
        }
    }

    /// Empties the cache.
    pub(super) fn flush(&mut self) {
        self.stop();
        self.cache.flush();
    }

    /// A decoder in 64-bit mode without aliases, for surroundings that have none.
    pub fn plain_decoder() -> Decoder {
        Decoder::new(CpuMode::Bits64)
    }
}

impl<M: GuestMemory> CodeControl for Code<M> {
    fn invalidate(&mut self, range: Range<GuestAddr>) {
        self.scratch.len = 0;
        self.prepared.clear();
        if !self.threads.alone() && self.cache.holds_any_of(range.clone()) {
            self.stop();
        }
        self.cache.invalidate(range.clone());
        for id in self.profile.invalidate(range) {
            self.predecoded.forget(id);
        }
    }

    fn require_exact_indirect(&mut self) {
        if !self.exact_indirect {
            self.exact_indirect = true;
            self.flush();
        }
    }

    fn executable_mapped(&mut self, range: Range<GuestAddr>) {
        if range.end > MAP_REACH {
            self.require_exact_indirect();
        }
    }

    fn module_mapped(&mut self, range: Range<GuestAddr>, path: &Path, file_offset: u64) {
        // A file that can't be read any more is profiled in memory only.
        let started = Instant::now();
        // A descriptor that a running thread would otherwise get is taken for a moment.
        self.stop();
        let identity = File::open(path).and_then(|file| self.identities.identify(&file));
        self.profile.spent_loading(started.elapsed());
        match identity {
            Ok(identity) => {
                let mapped = range.clone();
                let module = self.profile.map_module(range, path, file_offset, identity);
                self.reuse.mapped(module, mapped);
            }
            Err(error) => {
                tracing::debug!(target: "temper::profile", ?path, %error, "not identified");
            }
        }
    }

    fn finish_workers(&mut self) {
        self.profile.finish_timed_save();
    }

    fn keep_learned(&mut self) {
        // A limit on the size of files is met by an error, not by a death.
        let limited = Ignored::new(SIGXFSZ);
        let report = self.profile.save(Durability::Routine);
        let kept = self.keep_code();
        drop(limited);
        let warnings = self.profile.take_warnings();
        for error in warnings.iter().chain(&report.errors).chain(&kept.errors) {
            tracing::warn!(target: "temper::profile", %error, "not saved");
        }
    }

    fn stop_world(&mut self) {
        self.stop();
    }

    fn add_thread(&mut self, ctx: &mut ThreadContext) -> bool {
        let added = self.threads.add(ctx);
        if !self.threads.alone() {
            self.retire_superblocks();
        }
        added
    }

    fn forget_thread(&mut self, ctx: *const ThreadContext) {
        self.threads.remove(ctx);
    }

    fn set_pass_through(&mut self, mask: [u64; 8]) {
        if self.threads.set_pass_through(mask) {
            self.stop();
        }
    }
}
