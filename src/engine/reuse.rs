//! Translated code of earlier runs, kept beside the profile, so that a run begins with the
//! fragments that the last one ended with.
//!
//! - At its end a run keeps each module's live fragments, grouped by the stretch of the file
//!   where they begin, each group linked within itself and as one piece ([`translate::save`]),
//!   when it made enough that no earlier run had. Pieces of stretches that it didn't come to,
//!   or made nothing new for, stay as they are.
//! - A block that ran once is interpreted, because that costs no more than translating it.
//!   What a second run of a program interprets it translates at its end, so that the third
//!   has that too.
//! - At the first visit to a stretch that isn't translated its piece is read, checked by its
//!   checksum, moved to where module and arena lie now (a pass over a table of fields), and
//!   installed as one fragment: what evicts, unlinks, invalidates or recovers fragments needs
//!   to know nothing of it. It costs two copies and a hash table's entry for each block.
//! - A file counts only for the same module, the same build of Temper (its build-id) and the
//!   same CPU; a piece only if the guest's code in memory hashes as it did when it was
//!   translated, which is looked at after the code is watched for changes. A damaged file is
//!   set aside with a warning.
//! - A module that a run has no piece of is translated as ever.

use std::time::Instant;

use hashbrown::{HashMap, HashSet};
use profile_db::{Error, KeptCode, Maker, NewPiece, content_hash, module_content_hash};

use super::Settings;
use super::code::Code;
use super::dispatch::Engine;
use super::promote::{MAX_FRAGMENT, promote};
use crate::addr::{GuestAddr, pages};
use crate::codecache::Movable;
use crate::guest::{GuestEnv, GuestMemory, Watched};
use crate::host::{Features, build_id};
use crate::profile::{ModuleIndex, Profile};
use crate::translate::{self, Saved};

/// Bytes of a file whose fragments are kept as one piece, as a power of two: small, so that a
/// small program doesn't load all that others use of a library, but a read each.
const STRETCH: u32 = 15;
/// Blocks that no earlier run had, from which on it is worth keeping them, and which part of
/// what is kept already they must be.
const WORTH_KEEPING: usize = 64;
const WORTH_SHARE: usize = 16;

/// Counts for the statistics.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct ReuseCounts {
    pub pieces: u64,
    pub blocks: u64,
    pub bytes: u64,
    pub seconds: f64,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Reuse {
    /// `None`: nothing is reused or kept.
    maker: Option<Maker>,
    modules: Vec<Module>,
    /// Pages of code for which there is nothing more to load.
    tried: HashSet<GuestAddr>,
    pub counts: ReuseCounts,
}

#[derive(Default)]
struct Module {
    asked: bool,
    kept: Option<KeptCode>,
    /// Pieces that were installed, or found to be of no use.
    used: HashMap<u64, Use>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Installed,
    Useless,
}

/// What keeping code came to.
#[derive(Debug, Default)]
pub struct KeptReport {
    pub bytes: u64,
    pub errors: Vec<Error>,
}

impl Reuse {
    pub(super) fn new(settings: &Settings) -> Reuse {
        // These want to see what is made, or to make it otherwise.
        let on = settings.reuse
            && !settings.verify
            && settings.stop_after == u64::MAX
            && settings.dump == super::Dump::default();
        Reuse {
            maker: on.then(maker).flatten(),
            ..Reuse::default()
        }
    }

    /// A module is mapped (again): its pieces may be of use (again).
    pub(super) fn mapped(&mut self, module: ModuleIndex, range: std::ops::Range<GuestAddr>) {
        if let Some(module) = self.modules.get_mut(module.0 as usize) {
            module.used.clear();
        }
        self.tried.retain(|page| !range.contains(page));
    }

    fn module(&mut self, module: ModuleIndex) -> &mut Module {
        let index = module.0 as usize;
        if self.modules.len() <= index {
            self.modules.resize_with(index + 1, Module::default);
        }
        &mut self.modules[index]
    }
}

/// This build of Temper on this CPU; `None` when the build can't be told from others.
fn maker() -> Option<Maker> {
    let cpu: Vec<u8> = Features::get()
        .fingerprint
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    Some(module_content_hash(0, &[build_id()?, &cpu]))
}

impl<M: GuestMemory> Code<M> {
    /// Whether a visit to `addr` may find code of an earlier run: then it isn't to be
    /// translated before.
    pub(super) fn awaits_reuse(&mut self, addr: GuestAddr) -> bool {
        if self.reuse.maker.is_none() || self.reuse.tried.contains(&addr.page()) {
            return false;
        }
        self.piece_at(addr).is_some()
    }

    /// The module at `addr`, its bias, and the key of the piece for that place, if there is
    /// one that wasn't used.
    fn piece_at(&mut self, addr: GuestAddr) -> Option<(ModuleIndex, u64, u64)> {
        let (module, offset) = self.profile.modules().locate(addr)?;
        let bias = addr.0.checked_sub(offset)?;
        if !self.reuse.module(module).asked {
            // While the folder can be read: the program may give up its rights later.
            self.profile.may_be_known(addr);
            self.ask(module);
        }
        let of_module = self.reuse.module(module);
        let key = offset >> STRETCH;
        let unused = !of_module.used.contains_key(&key);
        (unused && of_module.kept.as_ref()?.find(key).is_some()).then_some((module, bias, key))
    }

    fn ask(&mut self, module: ModuleIndex) {
        let (Some(store), Some(maker)) = (self.profile.store().cloned(), self.reuse.maker) else {
            return;
        };
        // A descriptor that a running thread would otherwise get is taken for a moment.
        self.stop();
        let found = store.code(self.profile.modules().id(module), &maker);
        let of_module = self.reuse.module(module);
        of_module.asked = true;
        match found {
            Ok(kept) => of_module.kept = kept,
            Err(error) => say(&mut self.profile, error),
        }
    }

    /// Keeps what this run translated, where it is worth it.
    pub fn keep_code(&mut self) -> KeptReport {
        let mut report = KeptReport::default();
        let (Some(store), Some(maker)) = (self.profile.store().cloned(), self.reuse.maker) else {
            return report;
        };
        let mut fresh: HashMap<ModuleIndex, usize> = HashMap::new();
        for fragment in self.cache.movable().filter(|f| !f.is_restored()) {
            if let Some((module, _)) = self.profile.modules().locate(head(&fragment)) {
                *fresh.entry(module).or_default() += fragment.entries().len();
            }
        }
        let mut worth = Vec::new();
        for (module, fresh) in fresh {
            if !self.reuse.module(module).asked {
                self.ask(module);
            }
            if is_worth_keeping(fresh, self.reuse.module(module).kept.as_ref()) {
                worth.push(module);
            }
        }
        for (module, pieces) in self.pieces(&worth) {
            let id = self.profile.modules().id(module);
            match store.keep_code(id, &maker, pieces) {
                Ok(bytes) => report.bytes += bytes,
                Err(error) => {
                    report.errors.push(error);
                    break;
                }
            }
        }
        report
    }

    /// The pieces of these modules for which this run has something new.
    fn pieces(&self, modules: &[ModuleIndex]) -> HashMap<ModuleIndex, Vec<NewPiece>> {
        let mut pieces: HashMap<ModuleIndex, Vec<NewPiece>> = HashMap::new();
        if modules.is_empty() {
            return pieces;
        }
        let mut stretches: HashMap<(ModuleIndex, u64), (u64, Vec<Movable>)> = HashMap::new();
        for fragment in self.cache.movable() {
            let head = head(&fragment);
            let Some((module, offset)) = self.profile.modules().locate(head) else {
                continue;
            };
            let Some(bias) = head.0.checked_sub(offset) else {
                continue;
            };
            if modules.contains(&module) {
                let stretch = stretches.entry((module, offset >> STRETCH));
                let (of, fragments) = stretch.or_insert((bias, Vec::new()));
                // A file that is mapped twice is kept as it is mapped once.
                if *of == bias {
                    fragments.push(fragment);
                }
            }
        }
        let reached = |addr| self.cache.map.get(addr).is_some();
        for ((module, key), (bias, mut fragments)) in stretches {
            if fragments.iter().all(Movable::is_restored) {
                continue;
            }
            // In the order in which they were made, which is that in which they ran.
            fragments.sort_by_key(Movable::at);
            let Some((bytes, blocks)) = translate::save(&fragments, bias, &reached) else {
                continue;
            };
            // What was evicted from a small cache isn't worth less for that.
            let before = self.reuse.modules.get(module.0 as usize);
            let kept = before.and_then(|module| module.kept.as_ref()?.find(key));
            let useless = before.is_some_and(|m| m.used.get(&key) == Some(&Use::Useless));
            if kept.is_some_and(|old| old.blocks as usize > blocks && !useless) {
                continue;
            }
            pieces.entry(module).or_default().push(NewPiece {
                key,
                blocks: blocks as u32,
                bytes,
            });
        }
        pieces
    }
}

/// What is wrong with the folder is said of profiles.
fn say(profile: &mut Profile, error: Error) {
    if let Error::Damaged { .. } = error {
        profile.warn(vec![error]);
    } else {
        tracing::debug!(target: "temper::profile", %error, "no kept code");
    }
}

/// Whether so many blocks are worth writing a file of `kept` ones anew.
fn is_worth_keeping(fresh: usize, kept: Option<&KeptCode>) -> bool {
    let kept = kept.map_or(0, KeptCode::blocks) as usize;
    fresh >= WORTH_KEEPING && fresh >= kept / WORTH_SHARE
}

fn head(fragment: &Movable) -> GuestAddr {
    fragment.parts()[0].head
}

impl<E: GuestEnv> Engine<E> {
    /// Installs what an earlier run kept of the code at `pc`, which isn't translated; true if
    /// it is now.
    pub(super) fn reuse(&mut self, env: &mut E, pc: GuestAddr) -> bool {
        if self.code.reuse.maker.is_none() || !self.code.reuse.tried.insert(pc.page()) {
            return false;
        }
        let started = Instant::now();
        let Some((module, bias, key)) = self.code.piece_at(pc) else {
            return false;
        };
        let installed = self.install_piece(env, module, bias, key).is_some();
        let used = if installed {
            Use::Installed
        } else {
            Use::Useless
        };
        self.code.reuse.module(module).used.insert(key, used);
        self.code.reuse.counts.seconds += started.elapsed().as_secs_f64();
        installed && self.code.cache.contains(pc)
    }

    /// The program has ended: translates what of kept modules was interpreted, if that is
    /// much. What is interpreted in a program's second run will be in its third.
    pub(super) fn complete(&mut self, env: &mut E) {
        let code = &mut self.code;
        if code.reuse.maker.is_none() || !code.threads.alone() {
            return;
        }
        let mut left: HashMap<ModuleIndex, Vec<GuestAddr>> = HashMap::new();
        for (module, addr) in code.profile.interpreted() {
            let of_module = code.reuse.modules.get(module.0 as usize);
            let is_kept = of_module.is_some_and(|module| module.kept.is_some());
            if is_kept && !code.cache.contains(addr) {
                left.entry(module).or_default().push(addr);
            }
        }
        for (module, blocks) in left {
            let kept = self.code.reuse.module(module).kept.as_ref();
            if !is_worth_keeping(blocks.len(), kept) {
                continue;
            }
            for addr in blocks {
                // A full cache would drop what was kept in it for this.
                if self.code.cache.is_full_for(MAX_FRAGMENT) {
                    return;
                }
                if !self.code.cache.contains(addr) {
                    let code = &mut self.code;
                    // What can't be translated is left out.
                    let _ = promote(code, &mut self.translator, env, &self.settings, addr);
                }
            }
        }
    }

    fn install_piece(
        &mut self,
        env: &mut E,
        module: ModuleIndex,
        bias: u64,
        key: u64,
    ) -> Option<()> {
        let code = &mut self.code;
        code.stop();
        let kept = code.reuse.module(module).kept.as_ref()?;
        let store = code.profile.store()?;
        let id = code.profile.modules().id(module);
        let bytes = match store.code_piece(id, kept, kept.find(key)?) {
            Ok(bytes) => bytes?,
            Err(error) => {
                say(&mut code.profile, error);
                code.reuse.module(module).kept = None;
                return None;
            }
        };
        let saved = Saved::parse(&bytes)?;
        let max_bytes = saved.room();
        if code.exact_indirect || max_bytes > code.cache.max_fragment() {
            return None;
        }
        let mut last = None;
        for range in saved.ranges(bias) {
            for page in pages(range) {
                if last.replace(page) == Some(page) {
                    continue;
                }
                let whole = page..page.offset(1);
                if env.watch_code(whole, &code.threads) == Watched::Refused {
                    return None;
                }
            }
        }
        let memory = env.memory();
        let fetch = |at, into: &mut [u8]| memory.fetch(at, into) == Ok(into.len());
        if !saved.matches(bias, fetch, content_hash) {
            return None;
        }
        code.make_room(max_bytes);
        let space = code.cache.reserve(max_bytes);
        let settings = translate::Settings {
            code_base: code.cache.exec_addr(space.code_at),
            stubs_end: code.cache.exec_addr(space.stubs_end),
            max_bytes,
            max_blocks: usize::MAX,
            exact_indirect: false,
        };
        let counters = &mut code.counters;
        let cell = |head| counters.as_mut()?.cell(head);
        let known = |addr| code.cache.contains(addr);
        let restored = self
            .translator
            .restore(&saved, bias, settings, cell, known)?;
        let fragment = restored.fragment;
        code.cache.install(space, fragment, true);
        code.fragments += 1;
        let offsets = fragment.entries.iter().map(|entry| entry.guest.0 - bias);
        code.profile.runs_uncounted(module, offsets);
        let counts = &mut code.reuse.counts;
        counts.pieces += 1;
        counts.blocks += fragment.entries.len() as u64;
        counts.bytes += (fragment.code.len() + fragment.stubs.len()) as u64;
        Some(())
    }
}
