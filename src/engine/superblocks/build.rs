//! Makes a superblock and puts it into the cache.

use std::ops::Range;
use std::rc::Rc;

use profile_db::content_hash;

use super::Wanted;
use crate::addr::{GuestAddr, HostAddr};
use crate::codecache::{CodeCache, Counter, Detour, NewExit, NewFragment, Space, Superblock};
use crate::decode::Block;
use crate::engine::code::Code;
use crate::engine::dispatch::Engine;
use crate::engine::promote::decode_watched;
use crate::guest::{GuestEnv, offsets};
use crate::superblock::{
    ContextLayout, Formed, Guide, OptimizedCode, RegionInput, Steps, form, relay,
};
use crate::translate::{counter_stub, exit_stub};

impl<E: GuestEnv> Engine<E> {
    /// Installs the superblock of a head, unselected. Returns what tells its code from others'; `None`
    /// when making room took away what it stands on.
    ///
    /// # Errors
    /// Why it can't be made, or isn't worth it.
    pub(super) fn build(&mut self, env: &mut E, wanted: Wanted) -> Result<Option<u64>, String> {
        let head = wanted.head;
        let mut around = Around::new(&mut self.code, env);
        let formed = form(head, &mut around).ok_or("nothing to form")?;
        let region_hash = content_hash(&around.content);
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
            steps: if self.code.superblocks.outcomes.formed < settings.rewrite {
                settings.steps
            } else {
                Steps::NONE
            },
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
            return Ok(None);
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
        tracing::debug!(target: "temper::superblock", %head, number = outcomes.formed, ?summary, "made");
        outcomes.guest_instructions += u64::from(summary.guest_instructions);
        outcomes.host_instructions += u64::from(summary.host_instructions);
        outcomes.code_bytes += bytes as u64;
        outcomes.renamed += u64::from(summary.renamed + summary.renamed_vector);
        outcomes.guards += u64::from(summary.guards);
        outcomes.inlined_calls += u64::from(summary.inlined_calls);
        table.codes.insert(id, Rc::new(code));
        Ok(Some(region_hash))
    }

    /// The bytes of the block at `addr`.
    pub(super) fn bytes_at(&mut self, env: &mut E, addr: GuestAddr) -> Option<Vec<u8>> {
        let mut around = Around::new(&mut self.code, env);
        let mut block = Block::default();
        around.block(addr, &mut block).then_some(block.bytes)
    }
}

/// What the former asks about the code around a head.
struct Around<'a, E: GuestEnv> {
    code: &'a mut Code<E::Memory>,
    env: &'a mut E,
    /// All blocks that were asked for, one behind the other.
    content: Vec<u8>,
}

impl<'a, E: GuestEnv> Around<'a, E> {
    fn new(code: &'a mut Code<E::Memory>, env: &'a mut E) -> Self {
        Around {
            code,
            env,
            content: Vec::new(),
        }
    }
}

impl<E: GuestEnv> Guide for Around<'_, E> {
    fn block(&mut self, addr: GuestAddr, into: &mut Block) -> bool {
        let decoder = self.code.decoder;
        let decoded = decode_watched(&decoder, &self.code.threads, self.env, addr, into);
        if !matches!(decoded, Ok(true)) || into.instructions.is_empty() {
            return false;
        }
        // A block that is invalidated is found by its number.
        if self.code.profile.find(addr).is_none() {
            self.code.profile.block_id(into);
        }
        self.content.extend_from_slice(&into.bytes);
        true
    }

    fn entered(&mut self, block: &Block) -> u64 {
        let profile = &mut self.code.profile;
        let lately = profile
            .find(block.start)
            .map_or(0, |id| u64::from(profile.entered(id)));
        if lately > 0 {
            return lately;
        }
        let past = profile.past(block.start, &block.bytes);
        past.map_or(0, |past| past.block().count)
    }

    fn outcomes(&mut self, block: &Block) -> (u64, u64) {
        let profile = &mut self.code.profile;
        let (taken, next) = profile
            .find(block.start)
            .map_or((0, 0), |id| profile.outcomes(id));
        if taken > 0 || next > 0 {
            return (taken.into(), next.into());
        }
        let past = profile.past(block.start, &block.bytes);
        past.map_or((0, 0), |past| past.outcomes())
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
    sources: Vec<Range<GuestAddr>>,
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
