//! The dispatcher: looks at where the guest is and decides what runs it next.

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::code::Code;
use super::counters::Counters;
use super::lockstep::Prepared;
use super::promote::{decode_watched, describe, promote};
use super::stats::Stats;
use super::world::GuestThread;
use super::{Settings, Tier, entry, host_signals, lockstep};
use crate::addr::{GuestAddr, HostAddr};
use crate::codecache::{LATE_ENTRY_BYTES, MAP_REACH};
use crate::decode::{Block, BlockEnd, Decoder, MAX_BLOCK_INSTRUCTIONS};
use crate::guest::{
    EnvAction, ExitKind, FarTarget, GuestEnv, GuestTrap, ThreadContext, far_index, flags,
};
use crate::interp::{Machine, PredecodedBlock, step_one};
use crate::native::{StubCache, trap_from_signal};
use crate::profile::{BlockId, Outcome as Way, Profile};
use crate::translate::recovery::Place;
use crate::translate::{Translator, late_indirect_entry};

/// Runs guest threads, one at a time; see [`super::world`].
pub struct Engine<E: GuestEnv> {
    pub code: Code<E::Memory>,
    pub stats: Stats,
    pub(super) settings: Settings,
    pub(super) stubs: StubCache,
    pub(super) translator: Translator,
    /// The block interpreted last, if it isn't kept; its memory is used again.
    scratch_ops: PredecodedBlock<E::Memory>,
    entries: u64,
}

/// What the dispatcher decided.
pub(super) enum Next {
    Act(EnvAction),
    /// Generated code for where the guest is.
    Enter(HostAddr),
}

impl From<EnvAction> for Next {
    fn from(action: EnvAction) -> Next {
        Next::Act(action)
    }
}

impl<E: GuestEnv> Engine<E> {
    /// Sets up the cache, the stubs and the host's signal handlers.
    ///
    /// # Errors
    /// The kernel's: executable memory or the fixed address ranges can't be had.
    pub fn new(settings: Settings, decoder: Decoder, profile: Profile) -> io::Result<Engine<E>> {
        host_signals::install_synchronous()?;
        Ok(Engine {
            code: Code::new(&settings, decoder, profile)?,
            stats: Stats::default(),
            settings,
            stubs: StubCache::new()?,
            translator: Translator::default(),
            scratch_ops: PredecodedBlock::default(),
            entries: 0,
        })
    }

    /// The thread runs no more guest code.
    pub(super) fn thread_ended(&mut self, thread: &GuestThread<E>) {
        self.code.threads.remove(&thread.ctx);
        self.stats.syscalls.passed += thread.ctx.syscalls_passed;
    }

    /// Completes the statistics at the guest's end.
    pub fn complete_stats(&mut self) {
        // Of threads that are still there; those that ended are in already.
        self.stats.syscalls.passed += self.code.threads.syscalls_passed();
        let cache = self.code.cache.stats;
        self.stats.blocks.links = cache.links;
        self.stats.cache.capacity_bytes = self.settings.cache_bytes as u64;
        self.stats.cache.evictions = cache.generations_retired + cache.flushes;
        self.stats.cache.invalidated = cache.invalidated;
        let (used, peak) = self.code.cache.used_and_peak_bytes();
        self.stats.cache.used_bytes = used as u64;
        self.stats.cache.peak_bytes = peak as u64;
        self.stats.superblocks = self.code.superblocks.outcomes.clone();
        self.stats.cache.indirect_map_bytes = self.code.cache.map.resident_bytes();
        self.stats.interpreter.native_instructions = self.stubs.runs();
        let reused = self.code.reuse.counts;
        self.stats.reuse.pieces = reused.pieces;
        self.stats.reuse.blocks = reused.blocks;
        self.stats.reuse.code_bytes = reused.bytes;
        self.stats.reuse.load_seconds = reused.seconds;
    }

    /// Does what comes next for the guest, as far as entering generated code.
    #[inline]
    pub(super) fn step(&mut self, thread: &mut GuestThread<E>, env: &mut E) -> Next {
        if thread.ctx.pending.load(Ordering::Relaxed) != 0 {
            self.stats.signals.delivered += 1;
            return env
                .deliver_pending(&mut thread.own, &mut thread.ctx, &mut self.code)
                .into();
        }
        let pc = thread.ctx.cpu.pc();
        // A single-stepping guest stays in the interpreter, which traps after each instruction.
        let tier1 = self.settings.max_tier >= Tier::Block && thread.ctx.cpu.rflags & flags::TF == 0;
        if tier1 && self.settings.verify {
            if self.code.threads.alone() {
                return self.verify(thread, env, pc).into();
            }
            self.end_verification();
        }
        if thread.burst > 0 {
            thread.burst -= 1;
            if thread.burst == 0 {
                if let Some(counters) = &mut self.code.counters {
                    counters.burst_over();
                }
                self.form_superblock(env);
            }
        } else if tier1 && let Some(host) = self.code.cache.lookup(pc) {
            return self.before_entering(thread, host);
        }
        self.interpret(thread, env, pc, tier1).into()
    }

    fn before_entering(&mut self, thread: &mut GuestThread<E>, host: HostAddr) -> Next {
        self.entries += 1;
        if self.settings.flush_every != 0 && self.entries.is_multiple_of(self.settings.flush_every)
        {
            self.code.flush();
            return EnvAction::Continue.into();
        }
        self.stats.blocks.entries += 1;
        self.forget_stale_far_targets(thread);
        thread.ctx.syscall_budget = SYSCALL_BUDGET;
        self.code.profile.interrupt_path();
        Next::Enter(host)
    }

    /// Generated code was left.
    pub(super) fn left(
        &mut self,
        thread: &mut GuestThread<E>,
        env: &mut E,
        exit: ExitKind,
    ) -> EnvAction {
        match exit {
            ExitKind::Untranslated => {
                self.stats.exits.direct += 1;
                EnvAction::Continue
            }
            ExitKind::Indirect => {
                self.stats.exits.indirect += 1;
                self.indirect_target(thread);
                EnvAction::Continue
            }
            ExitKind::Syscall => {
                if thread.ctx.pending.load(Ordering::Relaxed) != 0 {
                    // The signal comes first; the call runs after its handler.
                    thread.ctx.cpu.rip -= SYSCALL_BYTES;
                    return EnvAction::Continue;
                }
                self.stats.exits.syscall += 1;
                self.look_at_the_clock(thread);
                self.stats.syscalls.handled += 1;
                env.syscall(&mut thread.own, &mut thread.ctx, &mut self.code)
            }
            ExitKind::Fault => {
                self.stats.exits.fault += 1;
                self.fault(thread, env)
            }
            ExitKind::Interrupted => {
                self.stats.exits.interrupted += 1;
                if self.code.recover(&mut thread.ctx).is_none() {
                    return lost(&thread.ctx);
                }
                EnvAction::Continue
            }
            ExitKind::NotEntered => EnvAction::Continue,
            ExitKind::Counter => {
                self.stats.exits.counter += 1;
                self.counter_ran_out(thread, env);
                EnvAction::Continue
            }
        }
    }

    fn counter_ran_out(&mut self, thread: &mut GuestThread<E>, env: &mut E) {
        let head = thread.ctx.cpu.pc();
        if self.slice_over(head) {
            return;
        }
        let Some(counters) = &mut self.code.counters else {
            return;
        };
        let decision = counters.ran_out(head);
        thread.burst += decision.burst;
        if decision.burst > 0 {
            self.code.profile.save_if_due();
        }
        let superblocks = self.settings.max_tier >= Tier::Superblock
            && !self.settings.verify
            && self.code.threads.alone();
        let stays =
            superblocks && self.consider_superblock(thread, env, head, decision.hot, decision.rate);
        if decision.disable && !stays {
            self.code.cache.set_counter(head, false, false);
        }
    }

    /// What is to be done some times a second, at a visit to the dispatcher.
    fn look_at_the_clock(&mut self, thread: &mut GuestThread<E>) {
        let burst = self.code.counters.as_mut().map_or(0, Counters::visited);
        if burst > 0 {
            thread.burst += burst;
            self.code.profile.save_if_due();
        }
    }

    /// A second thread may change what the two runs of a block see.
    #[cold]
    fn end_verification(&mut self) {
        eprintln!(
            "temper: --verify: the program has started a thread; nothing is compared from here on"
        );
        self.settings.verify = false;
        // What was made to be compared isn't linked.
        self.code.flush();
    }

    /// One block in lockstep.
    fn verify(&mut self, thread: &mut GuestThread<E>, env: &mut E, pc: GuestAddr) -> EnvAction {
        let known = self.code.prepared.get(&pc).map(Rc::clone);
        let prepared = match known {
            Some(prepared) => prepared,
            None => {
                let decoder = self.code.decoder;
                let mut block = Block::default();
                match decode_watched(&decoder, &self.code.threads, env, pc, &mut block) {
                    Ok(true) => {}
                    Ok(false) => return self.interpret(thread, env, pc, false),
                    Err(trap) => {
                        return env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code);
                    }
                }
                let prepared = Rc::new(Prepared::new(block, &decoder, &mut self.stubs));
                self.code.prepared.insert(pc, Rc::clone(&prepared));
                prepared
            }
        };
        if !prepared.comparable {
            return self.interpret(thread, env, pc, false);
        }
        if !self.code.cache.contains(pc)
            && promote(
                &mut self.code,
                &mut self.translator,
                env,
                &self.settings,
                pc,
            )
            .is_err()
        {
            return self.interpret(thread, env, pc, false);
        }
        let Some(mut expected) = lockstep::expect(&mut thread.ctx, &mut self.stubs, &prepared)
        else {
            return self.interpret(thread, env, pc, false);
        };
        let Some(host) = self.code.cache.lookup(pc) else {
            return EnvAction::Continue;
        };
        self.stats.blocks.entries += 1;
        thread.ctx.syscall_budget = 0;
        // SAFETY: as in `enter`.
        let exit = unsafe { entry::enter(&mut thread.ctx, host) };
        match exit {
            ExitKind::Untranslated | ExitKind::Indirect | ExitKind::Syscall => {
                if let Err(difference) =
                    lockstep::compare(&mut thread.ctx, &mut expected, &prepared.block)
                {
                    eprintln!("temper: --verify: generated code differs in {difference}");
                    return EnvAction::Abort;
                }
                self.stats.blocks.verified += 1;
            }
            ExitKind::Fault | ExitKind::Interrupted | ExitKind::NotEntered | ExitKind::Counter => {}
        }
        self.left(thread, env, exit)
    }

    /// Lets the next indirect branch to where the guest is now stay in generated code.
    fn indirect_target(&mut self, thread: &mut GuestThread<E>) {
        let target = thread.ctx.cpu.pc();
        if self.settings.verify {
            return;
        }
        if self.code.cache.contains(target) {
            self.code.make_room(LATE_ENTRY_BYTES);
            self.code
                .cache
                .add_indirect_entry(target, late_indirect_entry);
            if target >= MAP_REACH
                && let Some(host) = self.code.cache.map.get(target)
            {
                self.forget_stale_far_targets(thread);
                thread.ctx.far_targets[far_index(target.0)] = FarTarget {
                    guest: target.0,
                    host: host.0,
                };
            }
        } else {
            self.code.cache.map.prepare(target);
        }
        self.code.indirect_targets.insert(target);
    }

    fn forget_stale_far_targets(&mut self, thread: &mut GuestThread<E>) {
        let epoch = self.code.cache.map.far_epoch;
        if thread.far_epoch != epoch {
            thread.far_epoch = epoch;
            thread.ctx.far_targets.fill(FarTarget::default());
        }
    }

    fn fault(&mut self, thread: &mut GuestThread<E>, env: &mut E) -> EnvAction {
        match self.code.recover(&mut thread.ctx) {
            None => lost(&thread.ctx),
            // The jump through the map itself faulted: its target is beyond the map.
            Some(Place::OnTheWay) => {
                self.indirect_target(thread);
                EnvAction::Continue
            }
            // The interpreter raises what the branch raises.
            Some(Place::AtWildBranch) => self.single(thread, env),
            Some(Place::AtInstruction) => {
                let fault = thread.ctx.fault;
                let trap = trap_from_signal(
                    fault.signal as i32,
                    fault.si_code as i32,
                    fault.trap_number,
                    fault.error_code,
                    fault.addr,
                );
                env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code)
            }
        }
    }

    fn interpret(
        &mut self,
        thread: &mut GuestThread<E>,
        env: &mut E,
        pc: GuestAddr,
        tier1: bool,
    ) -> EnvAction {
        if tier1 && thread.burst == 0 && self.reuse(env, pc) {
            return EnvAction::Continue;
        }
        let started = self.settings.timing.then(Instant::now);
        let (id, fresh) = match self.known_block(env, pc, tier1) {
            Ok(Some(found)) => found,
            Ok(None) => return self.single(thread, env),
            Err(trap) => return env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code),
        };
        let profile = &mut self.code.profile;
        let untranslatable = profile.is_untranslatable(id);
        // The alignment check is the CPU's in generated code, costly here.
        let careful = thread.ctx.cpu.rflags & (flags::TF | flags::AC) != 0;
        if tier1
            && (careful || profile.visits(id) >= self.settings.promote_after)
            && !untranslatable
            // A burst interprets code that the cache holds.
            && !self.code.cache.contains(pc)
            && self.code.fragments < self.settings.stop_after
        {
            return self.promote(env, pc, id);
        }
        if careful {
            return self.single(thread, env);
        }
        profile.enter(id);
        let watching = thread.burst > 0 || !tier1;
        if watching && profile.wants_watching(id) {
            let scratch = &mut self.code.scratch;
            // What can't be decoded now will be met again below.
            if fresh
                || (self.code.decoder)
                    .block_into(env.memory(), pc, MAX_BLOCK_INSTRUCTIONS, scratch)
                    .is_ok()
            {
                profile.choose_watched(id, scratch);
            }
        }
        // Code that will be translated the next time isn't worth keeping.
        let keep = !tier1 || untranslatable || thread.burst > 0 || self.settings.promote_after > 1;
        let predecoded = match self.code.predecoded.get(id) {
            Some(predecoded) => predecoded,
            None => {
                if !fresh {
                    let memory = env.memory();
                    let scratch = &mut self.code.scratch;
                    let decoder = &self.code.decoder;
                    if let Err(trap) =
                        decoder.block_into(memory, pc, MAX_BLOCK_INSTRUCTIONS, scratch)
                    {
                        return env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code);
                    }
                }
                if keep {
                    let made = PredecodedBlock::new(&self.code.scratch, &mut self.stubs);
                    self.code.predecoded.keep(id, made)
                } else {
                    self.scratch_ops.refill(&self.code.scratch, &mut self.stubs);
                    &self.scratch_ops
                }
            }
        };
        let end = predecoded.end();
        self.stats.interpreter.entries += 1;
        self.stats.interpreter.instructions += predecoded.len() as u64;
        let mut machine = Machine::new(
            &mut thread.ctx.cpu,
            &mut thread.ctx.vector,
            env.memory(),
            &mut self.stubs,
        )
        .interruptible(&thread.ctx.pending);
        let watched = watching.then(|| self.code.profile.watch(id)).flatten();
        let result = match watched {
            Some(mut watched) => predecoded.run_watched(&mut machine, |ip, cpu, memory| {
                watched.before(ip, cpu, memory);
            }),
            None => predecoded.run(&mut machine),
        };
        if let Some(started) = started {
            self.stats.interpreter.seconds += started.elapsed().as_secs_f64();
        }
        if let Err(trap) = result {
            return env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code);
        }
        match end {
            BlockEnd::Branch { taken, .. } => {
                let outcome = if thread.ctx.cpu.rip == taken.0 {
                    Way::Taken
                } else {
                    Way::Next
                };
                self.code.profile.edge(id, outcome);
                EnvAction::Continue
            }
            BlockEnd::Jump { .. } | BlockEnd::Next { .. } => EnvAction::Continue,
            // The callee may well return from generated code.
            BlockEnd::Call { return_to, .. } => {
                self.code.cache.map.prepare(return_to);
                EnvAction::Continue
            }
            BlockEnd::IndirectJump | BlockEnd::IndirectCall { .. } | BlockEnd::Return { .. } => {
                if let BlockEnd::IndirectCall { return_to } = end {
                    self.code.cache.map.prepare(return_to);
                }
                self.code.profile.indirect(id, thread.ctx.cpu.pc());
                if tier1 {
                    self.code.indirect_targets.insert(thread.ctx.cpu.pc());
                }
                EnvAction::Continue
            }
            // The block may have stopped before its end.
            BlockEnd::Syscall { at, .. } if thread.ctx.cpu.rip != at.0 => EnvAction::Continue,
            BlockEnd::Syscall { next, .. } => {
                thread.ctx.cpu.rip = next.0;
                self.look_at_the_clock(thread);
                self.stats.syscalls.handled += 1;
                env.syscall(&mut thread.own, &mut thread.ctx, &mut self.code)
            }
            BlockEnd::InterpretOne { .. } => self.single(thread, env),
        }
    }

    /// Executes one instruction, whatever it is.
    fn single(&mut self, thread: &mut GuestThread<E>, env: &mut E) -> EnvAction {
        self.stats.exits.interpret += 1;
        let pc = thread.ctx.cpu.pc();
        let decoder = self.code.decoder;
        let instruction = match decoder.instruction(env.memory(), pc) {
            Ok(instruction) => instruction,
            Err(trap) => return env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code),
        };
        if instruction.mnemonic() == iced_x86::Mnemonic::Syscall {
            thread.ctx.cpu.rip = instruction.next_ip();
            self.stats.syscalls.handled += 1;
            return env.syscall(&mut thread.own, &mut thread.ctx, &mut self.code);
        }
        self.stats.interpreter.instructions += 1;
        let mut machine = Machine::new(
            &mut thread.ctx.cpu,
            &mut thread.ctx.vector,
            env.memory(),
            &mut self.stubs,
        )
        .interruptible(&thread.ctx.pending);
        match step_one(&mut machine, &decoder, pc) {
            Ok(()) => EnvAction::Continue,
            Err(GuestTrap::Unsupported) => {
                eprintln!("temper: the instruction `{instruction}` at {pc} is not supported");
                EnvAction::Abort
            }
            Err(trap @ (GuestTrap::Breakpoint | GuestTrap::Overflow)) => {
                thread.ctx.cpu.rip = instruction.next_ip();
                env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code)
            }
            Err(trap) => env.trap(&mut thread.own, &mut thread.ctx, trap, &mut self.code),
        }
    }

    /// The known block at `pc`, and whether it was decoded (into `scratch`) just now. `None`:
    /// its code changes too often to be kept.
    fn known_block(
        &mut self,
        env: &mut E,
        pc: GuestAddr,
        tier1: bool,
    ) -> Result<Option<(BlockId, bool)>, GuestTrap> {
        if let Some(id) = self.code.profile.find(pc) {
            return Ok(Some((id, false)));
        }
        let block = &mut self.code.scratch;
        if !decode_watched(&self.code.decoder, &self.code.threads, env, pc, block)? {
            return Ok(None);
        }
        if self.settings.dump.blocks {
            eprintln!("{}", describe(block));
        }
        self.stats.interpreter.blocks += 1;
        let known_hot = tier1
            && self.code.profile.may_be_known(pc)
            && self.code.profile.known_hot(pc, &block.bytes).is_some();
        let starts_untranslatable =
            block.instructions.is_empty() && matches!(block.end, BlockEnd::InterpretOne { .. });
        let id = self.code.profile.block_id(block);
        if starts_untranslatable {
            self.code.profile.mark_untranslatable(id);
        }
        // What earlier runs had translated needn't be interpreted first.
        if known_hot {
            let enough = self.settings.promote_after;
            self.code.profile.assume_visits(id, enough);
        }
        Ok(Some((id, true)))
    }

    fn promote(&mut self, env: &mut E, pc: GuestAddr, id: BlockId) -> EnvAction {
        let started = self.settings.timing.then(Instant::now);
        match promote(
            &mut self.code,
            &mut self.translator,
            env,
            &self.settings,
            pc,
        ) {
            Ok(made) => {
                let stats = &mut self.stats.blocks;
                stats.translated += made.blocks;
                stats.translated_from_profile += made.from_profile;
                stats.guest_instructions += made.instructions;
                stats.guest_bytes += made.guest_bytes;
                stats.code_bytes += made.code_bytes;
            }
            // The tier below goes on.
            Err(error) => {
                tracing::debug!(target: "temper::translate", pc = pc.0, ?error, "not translated");
                self.code.profile.mark_untranslatable(id);
            }
        }
        if let Some(started) = started {
            self.stats.blocks.translation_seconds += started.elapsed().as_secs_f64();
        }
        EnvAction::Continue
    }
}

/// 0F 05: with a prefix it isn't translated.
const SYSCALL_BYTES: u64 = 2;

/// Pass-through system calls between two visits to the dispatcher.
const SYSCALL_BUDGET: u64 = 1 << 16;

fn lost(ctx: &ThreadContext) -> EnvAction {
    eprintln!(
        "temper: internal error: no guest state for host address {:#x}; \
         --max-tier interpreter avoids it",
        ctx.fault.host_pc
    );
    EnvAction::Abort
}
