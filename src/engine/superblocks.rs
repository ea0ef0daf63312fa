//! Superblocks of the running program: which heads get one, trying it against the fragments
//! that it would replace, and keeping it or not. The state of a guest that is interrupted in
//! one is found here, too.

use std::arch::asm;
use std::rc::Rc;

use hashbrown::HashMap;

use super::code::Code;
use super::dispatch::Engine;
use super::promote::decode_watched;
use super::stats::SuperblockStats;
use crate::addr::{GuestAddr, HostAddr};
use crate::codecache::{
    CodeCache, Counter, Detour, FragmentId, NewExit, NewFragment, Space, Superblock,
};
use crate::decode::Block;
use crate::guest::{
    CpuState, ExitKind, Gpr, GuestEnv, GuestMemory, ThreadContext, Watched, flags, offsets,
};
use crate::host::probe::context_switches;
use crate::superblock::{
    ContextLayout, FlagsOf, FlagsOperation, Formed, Guide, OptimizedCode, RegionInput, Steps, Sum,
    Trial, Value, Verdict, form, relay, state_at,
};
use crate::translate::recovery::Place;
use crate::translate::{counter_stub, exit_stub};

/// How superblocks are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblocks {
    /// Keep each one without a trial, and take in heads as soon as they are met.
    pub forced: bool,
    /// Make no more after so many.
    pub stop_after: u64,
    pub steps: Steps,
}

impl Default for Superblocks {
    fn default() -> Self {
        Superblocks {
            forced: false,
            stop_after: u64::MAX,
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
    started: u64,
    switches: u64,
}

/// Superblocks, and heads that had their chance.
#[derive(Default)]
pub(super) struct SuperblockTable {
    codes: HashMap<FragmentId, Rc<OptimizedCode>>,
    heads: HashMap<GuestAddr, Head>,
    wanted: Option<Wanted>,
    pub outcomes: SuperblockStats,
}

/// Blocks that are interpreted before a region is formed, for fresh counts.
const LOOK_BLOCKS: u32 = 2000;
/// The same where everything is hot at once.
const FORCED_LOOK_BLOCKS: u32 = 100;

impl SuperblockTable {
    pub fn code(&self, id: FragmentId) -> Option<Rc<OptimizedCode>> {
        self.codes.get(&id).map(Rc::clone)
    }

    /// A hot head: true if it is worth a look.
    pub fn consider(&mut self, ctx: &ThreadContext, head: GuestAddr) -> bool {
        if self.wanted.is_some() || self.heads.contains_key(&head) {
            return false;
        }
        let stack = ctx.cpu.get(Gpr::Rsp);
        let frame = ctx.cpu.get(Gpr::Rbp);
        self.wanted = Some(Wanted {
            head,
            frame_delta: frame.wrapping_sub(stack) as i64,
            stack,
        });
        true
    }
}

impl<E: GuestEnv> Engine<E> {
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
            return false;
        }
        let now = cycles();
        let disturbed = context_switches() != trying.switches;
        let elapsed = now.saturating_sub(trying.started);
        let cache = &mut self.code.cache;
        match trying.trial.slice_ended(elapsed, disturbed) {
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
            }
            Verdict::Slower(ratio) => {
                tracing::debug!(target: "temper::superblock", %head, ratio, "rejected");
                cache.drop_superblock(head);
                cache.set_counter(head, false, false);
                table.heads.insert(head, Head::Rejected);
                table.outcomes.rejected += 1;
            }
        }
        true
    }

    /// Blocks to interpret before [`Engine::form_superblock`].
    pub(super) fn look_blocks(&self) -> u32 {
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
        let possible = self.code.threads.alone()
            && self.code.cache.contains(head)
            && self.code.superblocks.outcomes.formed < self.settings.superblocks.stop_after
            && (self.settings.superblocks.forced || self.code.cache.has_counter(head));
        if !possible {
            return;
        }
        match self.build(env, wanted) {
            Ok(()) => {}
            Err(why) => {
                tracing::debug!(target: "temper::superblock", %head, why, "not rebuilt");
                self.code.superblocks.heads.insert(head, Head::Refused);
                self.code.superblocks.outcomes.refused += 1;
            }
        }
    }

    fn build(&mut self, env: &mut E, wanted: Wanted) -> Result<(), String> {
        let head = wanted.head;
        let mut around = Around {
            code: &mut self.code,
            env,
        };
        let formed = form(head, &mut around).ok_or("nothing to form")?;
        let settings = self.settings.superblocks;
        let cell = self
            .code
            .counters
            .as_mut()
            .and_then(|own| own.known_cell(head));
        let Formed { blocks, sources } = formed;
        let region = RegionInput {
            blocks,
            frame_delta: wanted.frame_delta,
            stack: wanted.stack,
            layout: layout(),
            cell: cell.filter(|_| !settings.forced),
            has_bmi2: std::is_x86_feature_detected!("bmi2"),
            steps: settings.steps,
        };
        let code = relay(&region).map_err(|refusal| refusal.to_string())?;
        let summary = code.summary;
        let gains = summary.renamed + summary.renamed_vector + summary.inlined_calls > 0;
        if !gains && !settings.forced {
            return Err("nothing to gain".to_owned());
        }
        let bytes = code.bytes.len() + STUB_BYTES * (code.exits.len() + 1);
        if bytes > self.code.cache.max_fragment() {
            return Err("it is too large for the cache".to_owned());
        }
        self.code.make_room(bytes);
        let space = self.code.cache.reserve(bytes);
        // Making room may have dropped what it stands on.
        if !self.code.cache.contains(head) {
            return Ok(());
        }
        let fragment = assemble(&self.code.cache, space, head, sources, &code)
            .ok_or("its data is out of reach")?;
        let id = self.code.cache.install(space, &fragment, true);
        self.code.cache.add_superblock(head, id);
        if self.settings.dump.superblocks {
            eprintln!("{}", describe(head, &region, &code));
        }
        let table = &mut self.code.superblocks;
        let outcomes = &mut table.outcomes;
        outcomes.formed += 1;
        outcomes.guest_instructions += u64::from(summary.guest_instructions);
        outcomes.host_instructions += u64::from(summary.host_instructions);
        outcomes.code_bytes += bytes as u64;
        outcomes.renamed += u64::from(summary.renamed + summary.renamed_vector);
        outcomes.guards += u64::from(summary.guards);
        outcomes.inlined_calls += u64::from(summary.inlined_calls);
        table.codes.insert(id, Rc::new(code));
        if settings.forced {
            self.code.cache.select_superblock(head, true);
            table.heads.insert(head, Head::Kept);
            table.outcomes.kept += 1;
            return Ok(());
        }
        let trial = Trial::default();
        let slice = trial.slice();
        if let Some(counters) = &mut self.code.counters {
            counters.set_passes(head, slice.passes);
        }
        self.code.cache.set_counter(head, slice.upper, true);
        let trying = Trying {
            trial,
            switches: context_switches(),
            started: cycles(),
        };
        table.heads.insert(head, Head::Trying(Box::new(trying)));
        Ok(())
    }
}

impl<M: GuestMemory> Code<M> {
    /// A second thread is there: what assumed that there is one isn't used any more.
    pub(super) fn retire_superblocks(&mut self) {
        self.cache.deselect_superblocks();
        self.superblocks.wanted = None;
        for (&head, state) in &mut self.superblocks.heads {
            if let Head::Trying(_) = state {
                self.cache.set_counter(head, false, false);
            }
            *state = Head::Refused;
        }
    }
}

/// What the former asks about the code around a head.
struct Around<'a, E: GuestEnv> {
    code: &'a mut Code<E::Memory>,
    env: &'a mut E,
}

impl<E: GuestEnv> Guide for Around<'_, E> {
    fn block(&mut self, addr: GuestAddr, into: &mut Block) -> bool {
        let decoder = self.code.decoder;
        let decoded = decode_watched(&decoder, &self.code.threads, self.env, addr, into);
        matches!(decoded, Ok(true))
            && !into.instructions.is_empty()
            // Found again when it is invalidated.
            && matches!(
                self.env.watch_code(into.range(), &self.code.threads),
                Watched::Already
            )
    }

    fn entered(&self, addr: GuestAddr) -> u32 {
        let profile = &self.code.profile;
        profile.find(addr).map_or(0, |id| profile.entered(id))
    }

    fn outcomes(&self, addr: GuestAddr) -> (u32, u32) {
        let profile = &self.code.profile;
        match profile.find(addr) {
            Some(id) => match profile.outcomes(id) {
                (0, 0) if profile.usually_taken(id) => (1, 0),
                outcomes => outcomes,
            },
            None => (0, 0),
        }
    }
}

fn layout() -> ContextLayout {
    ContextLayout {
        registers: offsets::BORROWED as u32,
        vectors: offsets::BORROWED_VECTORS as u32,
        spill: offsets::SPILL as u32,
    }
}

/// The longest exit stub.
const STUB_BYTES: usize = 48;

/// A superblock as the cache takes it. `None`: static data is out of reach from there.
fn assemble(
    cache: &CodeCache,
    space: Space,
    head: GuestAddr,
    sources: Vec<std::ops::Range<GuestAddr>>,
    code: &OptimizedCode,
) -> Option<NewFragment> {
    let base = cache.exec_addr(space.code_at);
    let mut fragment = NewFragment {
        code: code.bytes.clone(),
        ..NewFragment::default()
    };
    for relocation in &code.relocations {
        let end = base.offset(i64::from(relocation.at) + i64::from(relocation.to_end));
        let distance = i32::try_from(relocation.target.wrapping_sub(end.0) as i64).ok()?;
        put_rel32(&mut fragment.code, relocation.at, distance);
    }
    let stubs: Vec<(u32, Vec<u8>)> = code
        .exits
        .iter()
        .map(|exit| (exit.patch_at, exit_stub(GuestAddr(exit.target))))
        .chain(
            code.counter
                .map(|counter| (counter.exit_at, counter_stub(head))),
        )
        .collect();
    let total: usize = stubs.iter().map(|(_, stub)| stub.len()).sum();
    let stubs_base = cache.exec_addr(space.stubs_end).offset(-(total as i64));
    for (index, (patch_at, stub)) in stubs.iter().enumerate() {
        let stub_at = fragment.stubs.len() as u32;
        let next = base.offset(i64::from(*patch_at) + 4);
        let target: HostAddr = stubs_base.offset(i64::from(stub_at));
        put_rel32(
            &mut fragment.code,
            *patch_at,
            (target.0 as i64 - next.0 as i64) as i32,
        );
        match code.exits.get(index) {
            Some(exit) => fragment.exits.push(NewExit {
                target: GuestAddr(exit.target),
                patch_at: exit.patch_at,
                stub_at,
                lower: exit.lower,
            }),
            None => fragment.counters.push(Counter {
                head,
                patch_at: *patch_at,
                stub_at,
                // RCX is intact until it leaves.
                spilled: 0..0,
                out_at: u32::MAX,
            }),
        }
        fragment.stubs.extend_from_slice(stub);
    }
    fragment.superblock = Some(Superblock {
        head,
        sources,
        detour: code.counter.map(|counter| Detour {
            at: counter.detour_at,
            to: counter.code_at,
        }),
    });
    Some(fragment)
}

fn put_rel32(code: &mut [u8], at: u32, value: i32) {
    code[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
}

/// Turns the registers that a superblock was interrupted with into the guest's.
pub(super) fn recover(ctx: &mut ThreadContext, code: &OptimizedCode, offset: u32) -> Option<Place> {
    let state = state_at(code, offset)?;
    let host = ctx.cpu.clone();
    ctx.cpu.rip = state.guest;
    if let Some(store) = state.store {
        let base = if store.base == 4 { Gpr::Rsp } else { Gpr::Rbp };
        let at = host
            .get(base)
            .wrapping_add_signed(i64::from(store.displacement));
        if ctx.exit_kind == ExitKind::Fault as u64 {
            // The store itself: the guest is before the instruction.
            ctx.cpu.rip = store.instruction;
        } else {
            ctx.vector.materialize();
            let value = if store.is_vector {
                let lanes = ctx.vector.register(usize::from(store.register));
                u64::from_le_bytes(lanes[..8].try_into().expect("8 bytes"))
            } else {
                host.gpr[usize::from(store.register)]
            };
            // SAFETY: the guest's own frame, where the interrupted code was about to store;
            // it was read there when the superblock was entered.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    value.to_le_bytes().as_ptr(),
                    at as *mut u8,
                    usize::from(store.bytes),
                );
            }
        }
    }
    for &(register, value) in &state.registers {
        ctx.cpu.gpr[usize::from(register)] = evaluate(value, &host);
    }
    if state.spilled {
        ctx.cpu.set(Gpr::Rcx, ctx.spill[0]);
    }
    if let Some(pending) = state.flags {
        let status = status_flags(pending, &host);
        ctx.cpu.rflags = ctx.cpu.rflags & !flags::STATUS | status & flags::STATUS;
    }
    if !state.vectors.is_empty() || !code.borrowed_vectors.is_empty() {
        ctx.vector.materialize();
    }
    for &(register, from) in &state.vectors {
        let low = ctx.vector.register(usize::from(from));
        let mut value = ctx.vector.register(usize::from(register));
        value[..16].copy_from_slice(&low[..16]);
        ctx.vector.set_register(usize::from(register), &value);
    }
    if offset >= code.borrowed_from {
        for &register in &code.borrowed {
            // RCX may be what was spilled; then it isn't borrowed.
            ctx.cpu.gpr[usize::from(register)] = ctx.borrowed[usize::from(register)];
        }
        for &register in &code.borrowed_vectors {
            let mut value = ctx.vector.register(usize::from(register));
            value[..16].copy_from_slice(&ctx.borrowed_vectors[usize::from(register)]);
            ctx.vector.set_register(usize::from(register), &value);
        }
    }
    Some(Place::AtInstruction)
}

fn evaluate(value: Value, host: &CpuState) -> u64 {
    let register = |number: u8| host.gpr[usize::from(number)];
    match value {
        Value::SignExtended(of) => register(of) as u32 as i32 as i64 as u64,
        Value::Sum(Sum {
            base,
            index,
            displacement,
            is_32,
        }) => {
            let base = base.map_or(0, register);
            let index = index.map_or(0, |(index, scale)| {
                register(index).wrapping_mul(u64::from(scale))
            });
            let sum = base
                .wrapping_add(index)
                .wrapping_add_signed(i64::from(displacement));
            if is_32 { u64::from(sum as u32) } else { sum }
        }
    }
}

/// The flags that the CPU makes of an operation.
fn status_flags(of: FlagsOf, host: &CpuState) -> u64 {
    let left = evaluate(of.left, host);
    let right = evaluate(of.right, host);
    let flags: u64;
    // SAFETY: arithmetic on registers; the stack is used as a compiler may.
    unsafe {
        match (of.operation, of.is_32) {
            (FlagsOperation::Add, false) => asm!(
                "add {a}, {b}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::Add, true) => asm!(
                "add {a:e}, {b:e}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::Sub, false) => asm!(
                "sub {a}, {b}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::Sub, true) => asm!(
                "sub {a:e}, {b:e}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::ShiftLeft, false) => asm!(
                "shl {a}, cl", "pushfq", "pop {f}",
                a = inout(reg) left => _, in("cl") right as u8, f = lateout(reg) flags),
            (FlagsOperation::ShiftLeft, true) => asm!(
                "shl {a:e}, cl", "pushfq", "pop {f}",
                a = inout(reg) left => _, in("cl") right as u8, f = lateout(reg) flags),
        }
    }
    flags
}

fn cycles() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it enabled.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A superblock as text: guest blocks in their order, then the code.
fn describe(head: GuestAddr, region: &RegionInput, code: &OptimizedCode) -> String {
    use std::fmt::Write as _;
    let mut text = format!("superblock {head}: {:?}\n", code.summary);
    for (index, block) in region.blocks.iter().enumerate() {
        let _ = writeln!(
            text,
            "  block {index} at {:#x}, {} times, then {:?}",
            block.start, block.count, block.end
        );
        for instruction in &block.instructions {
            let _ = writeln!(text, "    {:#x}  {instruction}", instruction.ip());
        }
    }
    let mut points = code.states.iter().peekable();
    for instruction in iced_x86::Decoder::with_ip(64, &code.bytes, 0, 0) {
        while let Some(point) = points.next_if(|point| u64::from(point.host) <= instruction.ip()) {
            let _ = writeln!(text, "  -- {:#x}", point.guest);
            for (register, value) in &point.registers {
                let _ = writeln!(text, "     r{register} = {value:?}");
            }
        }
        let _ = writeln!(text, "  {:4x}  {instruction}", instruction.ip());
    }
    for exit in &code.exits {
        let _ = writeln!(text, "  exit {:#x} to {:#x}", exit.patch_at, exit.target);
    }
    text
}
