//! Which frame slots live in registers.

use iced_x86::{Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic, Register};

use super::form::{
    Class, has_high_byte, is_relayable, stored_bytes, stores_anywhere, substitutable,
};
use super::frame::{Frame, FrameAccess, follow};
use crate::region::{Next, Refusal, RegionEnd, RegionInput, Steps};

/// A frame slot that a register stands in for. Memory keeps its value too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    /// Offset from the head's RSP.
    pub at: i32,
    pub bytes: u32,
    pub class: Class,
    /// The register's number within its class.
    pub register: u8,
    /// It belongs to a frame that is there at the head: loaded at the entry.
    pub own: bool,
}

impl Slot {
    pub fn overlaps(&self, access: FrameAccess) -> bool {
        self.at < access.at + access.bytes as i32 && access.at < self.at + self.bytes as i32
    }
}

/// Registers that don't occur in the region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub general: u16,
    pub vector: u16,
}

/// Stores through unknown pointers into `at..at + (1 << shift)` leave the region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GuardBox {
    pub at: i32,
    pub shift: u8,
}

/// What stands where while the region runs.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub slots: Vec<Slot>,
    pub frames: Vec<Option<Frame>>,
    pub guard: Option<GuardBox>,
    /// Registers for what comes and goes.
    pub temporaries: Vec<u8>,
    /// The region stands on what is known of its frames, which the entry checks.
    pub checks: bool,
    /// There are enough of them for flags that may have to be computed late.
    pub folds_flags: bool,
    /// Hold the guard's constants.
    pub guard_base: u8,
    pub guard_shift: u8,
    /// Static data is written: the stack must be where it was.
    pub checks_stack: bool,
    /// RCX doesn't occur in the region.
    pub rcx_is_free: bool,
    /// Registers that are the region's own while it runs.
    pub borrowed: Vec<u8>,
    pub borrowed_vectors: Vec<u8>,
    /// For each block, a bit for each slot that is in its register at the block's start.
    pub loaded: Vec<u64>,
}

/// Slots are counted in the bits of a word.
const MAX_SLOTS: usize = 64;
/// Memory that far below RSP belongs to a function that calls no other (System V ABI,
/// section 3.2.2).
const RED_ZONE: i32 = 128;
const RCX: u8 = 1;

/// Temporaries that folding needs.
const TEMPORARIES: usize = 3;
/// Most bytes that one guard covers.
const MAX_BOX: i32 = 1 << 12;

#[derive(Clone, Copy, Debug)]
struct Candidate {
    at: i32,
    bytes: u32,
    general: u64,
    vector: u64,
    /// Weight of accesses that a register makes costlier.
    against: u64,
}

impl Candidate {
    fn class(&self) -> Class {
        if self.vector > self.general {
            Class::Vector
        } else {
            Class::General
        }
    }

    fn gain(&self) -> i64 {
        self.general.max(self.vector) as i64 - 2 * self.against as i64
    }
}

/// Chooses slots, registers and the guard.
///
/// # Errors
/// The region can't be rebuilt.
pub(super) fn plan(region: &RegionInput) -> Result<Plan, Refusal> {
    let mut factory = InstructionInfoFactory::new();
    let free = free_registers(region, &mut factory)?;
    let frames = follow(region, |frame, instruction| {
        let mut factory = InstructionInfoFactory::new();
        stores_anywhere(frame, instruction, factory.info(instruction), region.stack)
    })?;

    let mut candidates: Vec<Candidate> = Vec::new();
    let mut accesses: Vec<(FrameAccess, u64)> = Vec::new();
    // Places whose address goes somewhere: what stores through pointers is meant for.
    let mut taken: Vec<i32> = Vec::new();
    let mut max_store = 0;
    let mut unknown_stores = 0u64;
    let mut checks_stack = false;
    for (block, frame) in region.blocks.iter().zip(&frames) {
        let Some(mut frame) = frame.clone() else {
            continue;
        };
        for instruction in &block.instructions {
            let info = factory.info(instruction);
            let anywhere = stores_anywhere(&frame, instruction, info, region.stack);
            if anywhere {
                max_store = max_store.max(stored_bytes(instruction, info).unwrap_or(0));
                unknown_stores += block.count.max(1);
            } else if stored_bytes(instruction, info).is_some()
                && frame.place(instruction).is_none()
            {
                checks_stack = true;
            }
            if instruction.mnemonic() == Mnemonic::Lea {
                let is_pointer =
                    ![Register::RSP, Register::RBP].contains(&instruction.op0_register());
                taken.extend(frame.place(instruction).filter(|_| is_pointer));
            } else if let Some(access) = frame.access(instruction) {
                let weight = block.count.max(1);
                accesses.push((access, weight));
                if let Some(form) = substitutable(instruction, info) {
                    let found = candidates
                        .iter_mut()
                        .find(|known| (known.at, known.bytes) == (access.at, access.bytes));
                    let candidate = match found {
                        Some(candidate) => candidate,
                        None => {
                            candidates.push(Candidate {
                                at: access.at,
                                bytes: access.bytes,
                                general: 0,
                                vector: 0,
                                against: 0,
                            });
                            candidates.last_mut().expect("just added")
                        }
                    };
                    // A store costs what it did; what a register saves is loads.
                    let worth = match (form.reads, form.writes) {
                        (true, true) => 3 * weight,
                        (true, false) => weight,
                        (false, _) => 0,
                    };
                    match form.class {
                        Class::General => candidate.general += worth,
                        Class::Vector => candidate.vector += worth,
                    }
                }
            }
            frame.step(instruction, anywhere);
        }
    }
    // Accesses of another size: reads go to memory, writes make the register be loaded again.
    for candidate in &mut candidates {
        for (access, weight) in &accesses {
            let same = access.at == candidate.at && access.bytes <= candidate.bytes;
            let slot = FrameAccess {
                at: candidate.at,
                bytes: candidate.bytes,
            };
            let overlaps = slot.at < access.at + access.bytes as i32
                && access.at < slot.at + slot.bytes as i32;
            if overlaps && !(same && access.bytes == candidate.bytes) {
                candidate.against += weight;
            }
        }
    }
    let allowed = |candidate: &Candidate, steps: &Steps| match candidate.class() {
        Class::General => steps.rename,
        Class::Vector => steps.rename_vector,
    };
    candidates.retain(|candidate| candidate.gain() > 0 && allowed(candidate, &region.steps));
    candidates.sort_by_key(|candidate| std::cmp::Reverse((candidate.gain(), candidate.at)));

    // One slot for one place.
    let mut distinct: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let access = FrameAccess {
            at: candidate.at,
            bytes: candidate.bytes,
        };
        let overlaps = |other: &Candidate| {
            other.at < access.at + access.bytes as i32 && access.at < other.at + other.bytes as i32
        };
        if !distinct.iter().any(overlaps) {
            distinct.push(candidate);
        }
    }
    let needs_guard = unknown_stores > 0;
    let mut guard = None;
    if needs_guard {
        (distinct, guard) = if region.has_bmi2 {
            best_cluster(distinct, &taken, max_store)
        } else {
            (Vec::new(), None)
        };
    }
    distinct.truncate(MAX_SLOTS);

    // Checks need RCX; it is free, or moved away for as long as that takes.
    let rcx_is_free = free.general & 1 << RCX != 0;
    let free = Free {
        general: free.general & !(1 << RCX),
        ..free
    };
    let mut general: Vec<u8> = (0..16).filter(|n| free.general & 1 << n != 0).collect();
    let mut vector: Vec<u8> = (0..16).filter(|n| free.vector & 1 << n != 0).collect();
    let constants = if needs_guard && !distinct.is_empty() {
        2
    } else {
        0
    };
    let wanted = constants + if region.steps.fold { TEMPORARIES } else { 1 };
    if general.len() < constants + 1 {
        distinct.clear();
    }
    let temporaries_at = general.len().saturating_sub(wanted.min(general.len()));
    let reserved = general.split_off(temporaries_at);
    let mut slots = Vec::new();
    for candidate in &distinct {
        let pool = match candidate.class() {
            Class::General => &mut general,
            Class::Vector => &mut vector,
        };
        if let Some(register) = pool.pop() {
            slots.push(Slot {
                at: candidate.at,
                bytes: candidate.bytes,
                class: candidate.class(),
                register,
                own: true,
            });
        }
    }
    let has_calls = region
        .blocks
        .iter()
        .any(|block| matches!(block.end, RegionEnd::Call { .. }));
    let lowest = if has_calls { 0 } else { -RED_ZONE };
    for slot in &mut slots {
        slot.own = slot.at >= lowest;
    }
    let guard = guard.filter(|_| !slots.is_empty());
    // Without anything to check or to keep, nothing is borrowed.
    let checks = has_calls || !slots.is_empty();
    let (constants, temporaries) = match guard {
        _ if !checks => reserved.split_at(reserved.len()),
        Some(_) => reserved.split_at(2),
        None => reserved.split_at(0),
    };
    let reserved = if checks { reserved.as_slice() } else { &[] };
    let mut borrowed: Vec<u8> = reserved.to_vec();
    let mut borrowed_vectors = Vec::new();
    for slot in &slots {
        match slot.class {
            Class::General => borrowed.push(slot.register),
            Class::Vector => borrowed_vectors.push(slot.register),
        }
    }
    if rcx_is_free && checks {
        borrowed.push(RCX);
    }
    let loaded = loaded(region, &slots, &frames);
    Ok(Plan {
        frames,
        guard,
        rcx_is_free,
        borrowed,
        borrowed_vectors,
        loaded,
        checks,
        folds_flags: checks && temporaries.len() > 1,
        temporaries: if checks {
            temporaries.to_vec()
        } else {
            Vec::new()
        },
        guard_base: constants.first().copied().unwrap_or(0),
        guard_shift: constants.get(1).copied().unwrap_or(0),
        checks_stack: checks_stack && !slots.is_empty(),
        slots,
    })
}

/// The smallest box of a power of two that covers `low..high` for stores of up to so many
/// bytes that begin before it, where it has none of the places in `taken`.
fn guard_box(low: i32, high: i32, taken: &[i32], max_store: u32) -> Option<GuardBox> {
    let before = max_store.max(1) as i32 - 1;
    let needed = (high - low + before) as u32;
    let length = needed.next_power_of_two();
    let spare = (length - needed) as i32;
    // As far up as possible, as far down, and in the middle.
    [0, spare, spare / 2].into_iter().find_map(|down| {
        let at = low - before - down;
        let covers = |place: &i32| (at..at + length as i32).contains(place);
        (length as i32 <= MAX_BOX && !taken.iter().any(covers)).then_some(GuardBox {
            at,
            shift: length.trailing_zeros() as u8,
        })
    })
}

/// Slots that one guard can cover, the best first.
fn best_cluster(
    candidates: Vec<Candidate>,
    taken: &[i32],
    max_store: u32,
) -> (Vec<Candidate>, Option<GuardBox>) {
    let mut guard = None;
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let end = candidate.at + candidate.bytes as i32;
        let low = kept.iter().map(|own| own.at).min().unwrap_or(i32::MAX);
        let high = kept.iter().map(|own| own.at + own.bytes as i32).max();
        let (low, high) = (low.min(candidate.at), high.unwrap_or(i32::MIN).max(end));
        if high.saturating_sub(low) <= MAX_BOX
            && let Some(found) = guard_box(low, high, taken, max_store)
        {
            guard = Some(found);
            kept.push(candidate);
        }
    }
    (kept, guard)
}

/// What a frame access does to what registers hold: bits of slots that are loaded, and of
/// those that aren't any more.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Effect {
    pub loads: u64,
    pub unloads: u64,
    /// Slots that have to be loaded again at once.
    pub reloads: u64,
}

/// The slot that stands in for the whole memory operand.
pub(super) fn exact_slot(
    slots: &[Slot],
    access: FrameAccess,
    class: Class,
) -> Option<(usize, Slot)> {
    slots
        .iter()
        .position(|slot| (slot.at, slot.bytes, slot.class) == (access.at, access.bytes, class))
        .map(|index| (index, slots[index]))
}

pub(super) fn effect(
    slots: &[Slot],
    frame: &Frame,
    instruction: &Instruction,
    info: &InstructionInfo,
) -> Effect {
    let mut effect = Effect::default();
    let mut written = |access: FrameAccess| {
        for (index, slot) in slots.iter().enumerate() {
            if slot.overlaps(access) {
                if slot.own {
                    effect.reloads |= 1 << index;
                } else {
                    effect.unloads |= 1 << index;
                }
            }
        }
    };
    if matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Call)
        && let Some(rsp) = frame.rsp()
    {
        written(FrameAccess {
            at: rsp - 8,
            bytes: 8,
        });
    }
    if instruction.mnemonic() == Mnemonic::Lea {
        return effect;
    }
    if let Some(access) = frame.access(instruction) {
        let exact = substitutable(instruction, info)
            .filter(|_| !has_high_byte(instruction))
            .and_then(|form| exact_slot(slots, access, form.class));
        match exact {
            Some((index, _)) => effect.loads |= 1 << index,
            None if stored_bytes(instruction, info).is_some() => written(access),
            None => {}
        }
    }
    effect
}

/// Which slots' registers hold their values at the start of each block, on every way there.
fn loaded(region: &RegionInput, slots: &[Slot], frames: &[Option<Frame>]) -> Vec<u64> {
    let own = slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.own)
        .fold(0u64, |bits, (index, _)| bits | 1 << index);
    let mut at = vec![u64::MAX; region.blocks.len()];
    at[0] = own;
    let mut factory = InstructionInfoFactory::new();
    let mut work = vec![0];
    while let Some(index) = work.pop() {
        let block = &region.blocks[index];
        let Some(mut frame) = frames[index].clone() else {
            continue;
        };
        let mut bits = at[index];
        for instruction in &block.instructions {
            let info = factory.info(instruction);
            let effect = effect(slots, &frame, instruction, info);
            bits = (bits | effect.loads) & !effect.unloads;
            let anywhere = stores_anywhere(&frame, instruction, info, region.stack);
            frame.step(instruction, anywhere);
        }
        if matches!(block.end, RegionEnd::Call { .. }) {
            bits &= !below(slots, frame.rsp().unwrap_or(0));
        }
        for next in block.end.successors() {
            if let Next::Block(to) = next
                && at[to] & bits != at[to]
            {
                at[to] &= bits;
                work.push(to);
            }
        }
    }
    at
}

/// Slots of frames that a call makes anew.
pub(super) fn below(slots: &[Slot], rsp: i32) -> u64 {
    slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| !slot.own && slot.at < rsp)
        .fold(0, |bits, (index, _)| bits | 1 << index)
}

fn free_registers(
    region: &RegionInput,
    factory: &mut InstructionInfoFactory,
) -> Result<Free, Refusal> {
    let mut general = 0u16;
    let mut vector = 0u16;
    let mut wide = false;
    for instruction in region.blocks.iter().flat_map(|block| &block.instructions) {
        let is_transfer = instruction.flow_control() != iced_x86::FlowControl::Next;
        if !is_transfer && !is_relayable(instruction) {
            return Err(Refusal::Instruction {
                at: instruction.ip(),
            });
        }
        for used in factory.info(instruction).used_registers() {
            let register = used.register();
            let full = register.full_register();
            if full.is_gpr64() {
                general |= 1 << full.number();
            } else if register.is_vector_register() {
                vector |= 1u16.checked_shl(register.number() as u32).unwrap_or(0);
                wide |= !register.is_xmm();
            }
        }
        wide |= instruction.op_code().encoding() != iced_x86::EncodingKind::Legacy;
        // x87 and MMX keep their own state; nothing of theirs is renamed.
    }
    general |= 1 << Register::RSP.number() | 1 << Register::RBP.number();
    Ok(Free {
        general: !general,
        // Legacy and VEX encodings differ in what becomes of the upper parts.
        vector: if wide { 0 } else { !vector },
    })
}
