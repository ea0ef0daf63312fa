//! Superblocks of the running program: which heads get one, trying it against the fragments
//! that it would replace, keeping it or not, and remembering that.
//!
//! [`build`] makes them, [`recover`] finds the state of a guest that is interrupted in one.

mod build;
mod recover;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use profile_db::{Machine, TrialRecord, Variant, Verdict as Remembered};

use super::code::Code;
use super::dispatch::Engine;
use super::stats::SuperblockStats;
use super::world::GuestThread;
use crate::addr::GuestAddr;
use crate::codecache::FragmentId;
use crate::guest::{Gpr, GuestEnv, GuestMemory, ThreadContext};
use crate::host::cpu_name;
use crate::host::probe::context_switches;
use crate::profile::Tier;
use crate::superblock::{OptimizedCode, Steps, Trial, Verdict};

pub(super) use recover::recover;

/// How superblocks are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblocks {
    /// Keep each one without a trial, and take in heads as soon as they are met.
    pub forced: bool,
    /// Make no more after so many.
    pub stop_after: u64,
    /// Make those after so many without any rewriting step.
    pub rewrite: u64,
    pub steps: Steps,
}

impl Default for Superblocks {
    fn default() -> Self {
        Superblocks {
            forced: false,
            stop_after: u64::MAX,
            rewrite: u64::MAX,
            steps: Steps::ALL,
        }
    }
}

/// What a head is to become next, with the guest's stack as it was there.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    head: GuestAddr,
    frame_delta: i64,
    stack: u64,
    /// An earlier run found that it pays.
    proven: bool,
    asked: u64,
}

impl Wanted {
    fn new(ctx: &ThreadContext, head: GuestAddr, proven: bool) -> Wanted {
        let stack = ctx.cpu.get(Gpr::Rsp);
        let frame = ctx.cpu.get(Gpr::Rbp);
        Wanted {
            head,
            frame_delta: frame.wrapping_sub(stack) as i64,
            stack,
            proven,
            asked: cycles(),
        }
    }
}

/// What is known of a head.
enum Head {
    /// It can't be rebuilt, or not with a gain.
    Refused,
    Trying(Box<Trying>),
    Kept,
    Rejected,
}

struct Trying {
    trial: Trial,
    /// Of the superblock's code.
    region: u64,
    started: u64,
    switches: u64,
}

/// Superblocks, and heads that had their chance.
pub(super) struct SuperblockTable {
    codes: HashMap<FragmentId, Rc<OptimizedCode>>,
    heads: HashMap<GuestAddr, Head>,
    wanted: Option<Wanted>,
    /// The head whose trial is under way: one at a time, because what one changes would be in
    /// the other's measure.
    trying: Option<GuestAddr>,
    /// Heads that wait for their turn.
    waiting: VecDeque<GuestAddr>,
    /// No head is looked at before this time.
    next_look: u64,
    machine: Option<Machine>,
    pub outcomes: SuperblockStats,
}

/// Blocks that are interpreted before a region is formed, for fresh counts.
const LOOK_BLOCKS: u32 = 2000;
/// The same where everything is hot at once.
const FORCED_LOOK_BLOCKS: u32 = 100;
/// TSC cycles before the first head is looked at: a program that ends after a tenth of a
/// second gains nothing.
const FIRST_LOOK: u64 = 300_000_000;
/// After a look, so many times its own duration pass before the next.
const LOOK_SHARE: u64 = 50;
/// The longest time to pass, in TSC cycles.
const MAX_PAUSE: u64 = 60_000_000;
/// A hot head that has to wait asks again after so many TSC cycles.
const ASK_AGAIN: f32 = 30_000_000.0;
/// Most heads that wait.
const MAX_WAITING: usize = 256;
/// A trial that gets nowhere for so many TSC cycles is given up: its code doesn't run any
/// more.
const PATIENCE: u64 = 150_000_000;

/// Whether a head gets its chance.
enum Chance {
    Now,
    /// It is to ask again.
    Later,
    Never,
}

impl SuperblockTable {
    pub fn new(forced: bool) -> SuperblockTable {
        SuperblockTable {
            codes: HashMap::new(),
            heads: HashMap::new(),
            wanted: None,
            trying: None,
            waiting: VecDeque::new(),
            next_look: if forced { 0 } else { cycles() + FIRST_LOOK },
            machine: None,
            outcomes: SuperblockStats::default(),
        }
    }

    pub fn code(&self, id: FragmentId) -> Option<Rc<OptimizedCode>> {
        self.codes.get(&id).map(Rc::clone)
    }

    /// `is_known`: earlier runs had a superblock there, so it needn't be looked at.
    fn chance(&mut self, head: GuestAddr, hot: bool, is_known: bool) -> Chance {
        let is_first = self.waiting.front() == Some(&head);
        if self.heads.contains_key(&head) || !(hot || is_first) {
            return Chance::Never;
        }
        let is_time = is_known || cycles() >= self.next_look;
        if self.wanted.is_none() && self.trying.is_none() && is_time {
            self.waiting.retain(|&waiting| waiting != head);
            return Chance::Now;
        }
        if is_first {
            return Chance::Later;
        }
        let is_listed = self.waiting.contains(&head);
        if !is_listed && self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(head);
        }
        // The first in line keeps the line moving.
        if self.waiting.front() == Some(&head) {
            Chance::Later
        } else {
            Chance::Never
        }
    }

    fn machine(&mut self) -> Machine {
        let machine = self
            .machine
            .get_or_insert_with(|| Machine::this(&cpu_name()));
        machine.clone()
    }
}

impl<E: GuestEnv> Engine<E> {
    /// A counter at `head` ran out: it is hot, or has its turn. True if its counter is to
    /// stay on.
    pub(super) fn consider_superblock(
        &mut self,
        thread: &mut GuestThread<E>,
        env: &mut E,
        head: GuestAddr,
        hot: bool,
        rate: f32,
    ) -> bool {
        self.lose_patience();
        let is_known = hot && self.was_superblock(env, head);
        match self.code.superblocks.chance(head, hot, is_known) {
            Chance::Never => false,
            Chance::Later => {
                if let Some(counters) = &mut self.code.counters {
                    let passes = (rate * ASK_AGAIN).clamp(100.0, 1e8);
                    counters.set_passes(head, passes as u32);
                }
                true
            }
            Chance::Now => {
                let past = if self.settings.superblocks.forced {
                    None
                } else {
                    self.remembered(env, head)
                };
                match past {
                    Some(Remembered::Kept) => {
                        self.code.superblocks.wanted = Some(Wanted::new(&thread.ctx, head, true));
                        self.form_superblock(env);
                    }
                    Some(Remembered::Rejected) => {
                        self.code.superblocks.heads.insert(head, Head::Rejected);
                        self.next_turn();
                    }
                    Some(Remembered::Undecided) | None => {
                        self.code.superblocks.wanted = Some(Wanted::new(&thread.ctx, head, false));
                        thread.burst += self.look_blocks();
                    }
                }
                false
            }
        }
    }

    /// Whether the head's block became one in an earlier run.
    fn was_superblock(&mut self, env: &mut E, head: GuestAddr) -> bool {
        if self.code.superblocks.heads.contains_key(&head) {
            return false;
        }
        let bytes = self.bytes_at(env, head);
        let known = bytes.and_then(|bytes| self.code.profile.known_hot(head, &bytes));
        known.is_some_and(|known| known.tier == Tier::Superblock)
    }

    /// What an earlier run found out about a superblock at `head` on this machine.
    fn remembered(&mut self, env: &mut E, head: GuestAddr) -> Option<Remembered> {
        let bytes = self.bytes_at(env, head)?;
        let machine = self.code.superblocks.machine();
        let past = self.code.profile.past(head, &bytes)?;
        let trials = past.trials(&machine).iter();
        let latest = trials
            .filter(|trial| trial.variant == Variant::Relaid)
            .max_by_key(|trial| trial.seen)?;
        Some(latest.verdict)
    }

    /// Gives the next head its chance: at its next pass.
    fn next_turn(&mut self) {
        let table = &mut self.code.superblocks;
        table.trying = None;
        while let Some(&head) = table.waiting.front() {
            if !table.heads.contains_key(&head)
                && self.code.cache.has_counter(head)
                && let Some(counters) = &mut self.code.counters
            {
                counters.set_passes(head, 1);
                self.code.cache.set_counter(head, false, true);
                return;
            }
            table.waiting.pop_front();
        }
    }

    /// Gives up a trial that gets nowhere.
    fn lose_patience(&mut self) {
        let table = &mut self.code.superblocks;
        let Some(head) = table.trying else { return };
        let lost = match table.heads.get(&head) {
            Some(Head::Trying(trying)) => cycles().saturating_sub(trying.started) > PATIENCE,
            _ => true,
        };
        if lost {
            tracing::debug!(target: "temper::superblock", %head, "not run any more");
            table.heads.remove(&head);
            self.code.cache.drop_superblock(head);
            self.code.cache.set_counter(head, false, false);
            self.next_turn();
        }
    }

    /// A counter at `head` ran out, and it belongs to a trial: true if that has been dealt
    /// with.
    pub(super) fn slice_over(&mut self, head: GuestAddr) -> bool {
        let table = &mut self.code.superblocks;
        let Some(Head::Trying(trying)) = table.heads.get_mut(&head) else {
            return false;
        };
        if self.code.cache.superblock_at(head).is_none() {
            // It went with its code; the head may try again.
            table.heads.remove(&head);
            self.next_turn();
            return false;
        }
        let now = cycles();
        let disturbed = context_switches() != trying.switches;
        let elapsed = now.saturating_sub(trying.started);
        let cache = &mut self.code.cache;
        let verdict = trying.trial.slice_ended(elapsed, disturbed);
        let slices = 2 * trying.trial.pairs().len() as u32;
        let region = trying.region;
        match verdict {
            Verdict::Undecided(slice) => {
                if let Some(counters) = &mut self.code.counters {
                    counters.set_passes(head, slice.passes);
                }
                cache.select_superblock(head, slice.upper);
                cache.set_counter(head, slice.upper, true);
                trying.switches = context_switches();
                trying.started = cycles();
            }
            Verdict::Faster(ratio) => {
                tracing::debug!(target: "temper::superblock", %head, ratio, "kept");
                cache.select_superblock(head, true);
                cache.set_counter(head, true, false);
                table.heads.insert(head, Head::Kept);
                table.outcomes.kept += 1;
                if let Some(id) = self.code.profile.find(head) {
                    self.code.profile.set_tier(id, Tier::Superblock);
                }
                self.remember(head, region, Remembered::Kept, ratio, slices);
                self.next_turn();
            }
            Verdict::Slower(ratio) => {
                tracing::debug!(target: "temper::superblock", %head, ratio, "rejected");
                cache.drop_superblock(head);
                cache.set_counter(head, false, false);
                table.heads.insert(head, Head::Rejected);
                table.outcomes.rejected += 1;
                let verdict = if ratio < 1.0 {
                    Remembered::Undecided
                } else {
                    Remembered::Rejected
                };
                self.remember(head, region, verdict, ratio, slices);
                self.next_turn();
            }
        }
        true
    }

    /// Keeps a verdict for later runs.
    fn remember(
        &mut self,
        head: GuestAddr,
        region: u64,
        verdict: Remembered,
        ratio: f64,
        slices: u32,
    ) {
        let machine = self.code.superblocks.machine();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let trial = TrialRecord {
            machine: 0,
            head: 0,
            region,
            variant: Variant::Relaid,
            verdict,
            gain: ((1.0 - ratio) * 1000.0) as i32,
            slices,
            seen: now.map_or(0, |now| now.as_secs()),
        };
        // Code of no module is forgotten.
        self.code.profile.record_trial(&machine, head, trial);
    }

    /// Blocks to interpret before [`Engine::form_superblock`].
    fn look_blocks(&self) -> u32 {
        if self.settings.superblocks.forced {
            FORCED_LOOK_BLOCKS
        } else {
            LOOK_BLOCKS
        }
    }

    /// Forms the superblock that is wanted, if any, and starts its trial.
    pub(super) fn form_superblock(&mut self, env: &mut E) {
        let Some(wanted) = self.code.superblocks.wanted.take() else {
            return;
        };
        let head = wanted.head;
        let settings = self.settings.superblocks;
        let possible = self.code.threads.alone()
            && self.code.cache.contains(head)
            && self.code.superblocks.outcomes.formed < settings.stop_after
            && (settings.forced || self.code.cache.has_counter(head));
        if possible {
            match self.build(env, wanted) {
                Ok(Some(_)) if settings.forced || wanted.proven => self.keep(head),
                Ok(Some(region)) => self.try_out(head, region),
                Ok(None) => {}
                Err(why) => {
                    tracing::debug!(target: "temper::superblock", %head, why, "not rebuilt");
                    self.code.cache.set_counter(head, false, false);
                    let table = &mut self.code.superblocks;
                    table.heads.insert(head, Head::Refused);
                    table.outcomes.refused += 1;
                }
            }
        }
        let table = &mut self.code.superblocks;
        if !settings.forced {
            let now = cycles();
            // A look may have been long because other programs ran meanwhile.
            let pause = LOOK_SHARE * now.saturating_sub(wanted.asked);
            table.next_look = now + pause.min(MAX_PAUSE);
        }
        if table.trying.is_none() {
            self.next_turn();
        }
    }

    /// Uses a superblock without a trial.
    fn keep(&mut self, head: GuestAddr) {
        self.code.cache.select_superblock(head, true);
        self.code.cache.set_counter(head, false, false);
        if let Some(id) = self.code.profile.find(head) {
            self.code.profile.set_tier(id, Tier::Superblock);
        }
        let table = &mut self.code.superblocks;
        table.heads.insert(head, Head::Kept);
        table.outcomes.kept += 1;
    }

    fn try_out(&mut self, head: GuestAddr, region: u64) {
        let trial = Trial::default();
        let slice = trial.slice();
        if let Some(counters) = &mut self.code.counters {
            counters.set_passes(head, slice.passes);
        }
        self.code.cache.set_counter(head, slice.upper, true);
        let trying = Trying {
            trial,
            region,
            switches: context_switches(),
            started: cycles(),
        };
        let table = &mut self.code.superblocks;
        table.heads.insert(head, Head::Trying(Box::new(trying)));
        table.trying = Some(head);
    }
}

impl<M: GuestMemory> Code<M> {
    /// A second thread is there: what assumed that there is one isn't used any more.
    pub(super) fn retire_superblocks(&mut self) {
        self.cache.deselect_superblocks();
        self.superblocks.wanted = None;
        self.superblocks.trying = None;
        self.superblocks.waiting.clear();
        for (&head, state) in &mut self.superblocks.heads {
            if let Head::Trying(_) = state {
                self.cache.set_counter(head, false, false);
            }
            *state = Head::Refused;
        }
    }
}

fn cycles() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it enabled.
    unsafe { std::arch::x86_64::_rdtsc() }
}
