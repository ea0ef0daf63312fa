//! Builds one fragment from guest blocks.

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use profile_db::content_hash;

use super::emit::{COUNT_DOWN_BYTES, Emitter};
use super::recovery::{Fix, Recorder};
use crate::addr::{GuestAddr, HostAddr};
use crate::codecache::{
    Counter, Entry, IndirectEntry, MAP_REACH, NewExit, NewFragment, Part, Relocation,
};
use crate::decode::{Block, BlockEnd};
use crate::guest::{HostRoutine, offsets};

/// What the engine decides while a fragment grows.
pub trait Plan {
    /// Decodes the block at `addr` for translation; false when its code can't be translated
    /// now.
    fn block(&mut self, addr: GuestAddr, into: &mut Block) -> bool;

    /// Whether `addr` is worth following: seen to run, and not translated yet.
    fn wants(&mut self, addr: GuestAddr) -> bool;

    /// Whether the branch that ends the block at `start` is usually taken.
    fn usually_taken(&mut self, start: GuestAddr) -> bool;

    /// Whether indirect branches were seen to reach `addr`.
    fn reached_indirectly(&mut self, addr: GuestAddr) -> bool;

    /// The address of the cell that counts executions of `addr`, if it is a path head that
    /// is to be counted.
    fn counter(&mut self, addr: GuestAddr) -> Option<u32>;
}

/// How to translate.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where the code and the end of the stubs will be.
    pub code_base: HostAddr,
    pub stubs_end: HostAddr,
    /// Code and stubs together stay below this many bytes.
    pub max_bytes: usize,
    pub max_blocks: usize,
    /// Indirect targets may lie beyond the map's reach: resolve them outside it.
    pub exact_indirect: bool,
}

/// A fragment ready for the cache.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a> {
    pub fragment: &'a NewFragment,
    /// Guest addresses where returns are expected.
    pub return_sites: &'a [GuestAddr],
    pub instructions: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslateError {
    /// The head block can't be translated (its first instruction is the interpreter's).
    Untranslatable,
    /// iced could not encode an instruction.
    Encoding { at: GuestAddr },
}

/// Most code bytes for one guest block: 64 instructions of 15 bytes, each possibly spilled.
const WORST_BLOCK: usize = 64 * 48 + 128;

impl Translator {
    /// Translates the block at `head` and what follows it, as `plan` wants.
    ///
    /// # Errors
    /// See [`TranslateError`]; the lower tier goes on.
    pub fn translate(
        &mut self,
        head: GuestAddr,
        plan: &mut dyn Plan,
        settings: Settings,
    ) -> Result<Translation<'_>, TranslateError> {
        self.restart(head, settings);
        let mut block = std::mem::take(&mut self.block);
        let result = self.follow(head, plan, &mut block);
        self.block = block;
        result?;
        self.finish();
        self.fragment.parts.push(Part {
            code_at: 0,
            recovery_at: 0,
            head,
            hash: content_hash(&self.copied),
        });
        Ok(Translation {
            fragment: &self.fragment,
            return_sites: &self.return_sites,
            instructions: self.instructions,
        })
    }

    fn follow(
        &mut self,
        head: GuestAddr,
        plan: &mut dyn Plan,
        block: &mut Block,
    ) -> Result<(), TranslateError> {
        let settings = self.settings;
        let mut next = Some((head, Arrival::Head));
        while let Some((addr, arrival)) = next {
            let full = self.bytes() + WORST_BLOCK > settings.max_bytes
                || self.fragment.entries.len() >= settings.max_blocks;
            let usable = !full
                && plan.block(addr, block)
                && (!block.instructions.is_empty() || is_syscall(block));
            if !usable {
                if self.fragment.entries.is_empty() {
                    return Err(TranslateError::Untranslatable);
                }
                match arrival {
                    Arrival::Fallthrough => self.exit(addr),
                    // Nothing falls in here: the returning code goes through the map.
                    Arrival::Head | Arrival::ReturnSite => {}
                }
                break;
            }
            next = self.add(block, arrival, plan)?;
        }
        Ok(())
    }
}

/// The one form that ends a block as a system call.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

fn is_syscall(block: &Block) -> bool {
    matches!(block.end, BlockEnd::Syscall { .. })
}

/// How control comes to a block inside the fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arrival {
    Head,
    Fallthrough,
    /// After a call: only indirect branches (returns) and links come here.
    ReturnSite,
}

/// Makes fragments. Keeps its buffers from one to the next.
pub struct Translator {
    settings: Settings,
    /// The block being translated.
    block: Block,
    pub(super) code: Emitter,
    stubs: Emitter,
    pub(super) recorder: Recorder,
    /// The bytes of all blocks so far.
    copied: Vec<u8>,
    pub(super) fragment: NewFragment,
    /// Stubs: exits, then indirect entries as (entry index).
    pub(super) exits: Vec<(u32, GuestAddr)>,
    pub(super) outlined_entries: Vec<usize>,
    /// Counters: offset of the displacement of the jump to the stub, path head, cell.
    pub(super) counters: Vec<(u32, GuestAddr, u32)>,
    return_sites: Vec<GuestAddr>,
    instructions: u64,
    encoder: Encoder,
    info: InstructionInfoFactory,
}

impl Default for Translator {
    fn default() -> Translator {
        Translator {
            settings: Settings {
                code_base: HostAddr(0),
                stubs_end: HostAddr(0),
                max_bytes: 0,
                max_blocks: 0,
                exact_indirect: false,
            },
            block: Block::default(),
            code: Emitter::new(HostAddr(0)),
            stubs: Emitter::new(HostAddr(0)),
            recorder: Recorder::default(),
            copied: Vec::new(),
            fragment: NewFragment::default(),
            exits: Vec::new(),
            outlined_entries: Vec::new(),
            counters: Vec::new(),
            return_sites: Vec::new(),
            instructions: 0,
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
        }
    }
}

impl Translator {
    pub(super) fn restart(&mut self, head: GuestAddr, settings: Settings) {
        self.settings = settings;
        self.code.restart(settings.code_base);
        self.recorder.restart(head);
        self.copied.clear();
        self.fragment.clear();
        self.fragment.movable = !settings.exact_indirect;
        self.exits.clear();
        self.outlined_entries.clear();
        self.counters.clear();
        self.return_sites.clear();
        self.instructions = 0;
    }

    fn bytes(&self) -> usize {
        self.code.offset() as usize
            + self.exits.len() * 32
            + self.counters.len() * 76
            + self.outlined_entries.len() * 14
    }

    fn point(&mut self, guest: GuestAddr, fix: Fix) {
        self.recorder.point(self.code.offset(), guest, fix);
    }

    fn contains(&self, addr: GuestAddr) -> bool {
        self.fragment
            .entries
            .iter()
            .any(|entry| entry.guest == addr)
    }

    /// Ends the run with a jump to `target`.
    fn exit(&mut self, target: GuestAddr) {
        self.point(target, Fix::Exact);
        let at = self.code.patchable_jump();
        self.exits.push((at, target));
    }

    fn wants(&self, plan: &mut dyn Plan, addr: GuestAddr) -> bool {
        !self.contains(addr) && plan.wants(addr)
    }

    /// Translates one block; says which block follows in the fragment.
    fn add(
        &mut self,
        block: &Block,
        arrival: Arrival,
        plan: &mut dyn Plan,
    ) -> Result<Option<(GuestAddr, Arrival)>, TranslateError> {
        let start = block.start;
        let mut indirect = None;
        match arrival {
            Arrival::Head | Arrival::ReturnSite => {
                if arrival == Arrival::ReturnSite || plan.reached_indirectly(start) {
                    indirect = Some(IndirectEntry::Code(self.code.offset()));
                    self.point(start, Fix::R11InSlot);
                    self.code.load_r11();
                }
            }
            Arrival::Fallthrough => {
                if plan.reached_indirectly(start) {
                    self.outlined_entries.push(self.fragment.entries.len());
                }
            }
        }
        self.fragment.entries.push(Entry {
            guest: start,
            guest_len: block.len,
            copied: block.bytes.len() as u32 + is_syscall(block) as u32 * SYSCALL.len() as u32,
            code_at: self.code.offset(),
            indirect,
        });
        self.copied.extend_from_slice(&block.bytes);
        if is_syscall(block) {
            self.copied.extend_from_slice(&SYSCALL);
        }
        self.point(start, Fix::Exact);
        if let Some(cell) = plan.counter(start) {
            let patch_at = self.code.detour();
            self.counters.push((patch_at, start, cell));
        }

        let transfer = match block.end {
            BlockEnd::Syscall { .. } | BlockEnd::InterpretOne { .. } | BlockEnd::Next { .. } => 0,
            BlockEnd::Jump { .. }
            | BlockEnd::Branch { .. }
            | BlockEnd::Call { .. }
            | BlockEnd::IndirectJump
            | BlockEnd::IndirectCall { .. }
            | BlockEnd::Return { .. } => 1,
        };
        let (body, last) = block
            .instructions
            .split_at(block.instructions.len() - transfer);
        let mut at = 0;
        for instruction in body {
            let bytes = &block.bytes[at..at + instruction.len()];
            at += instruction.len();
            self.copy(instruction, bytes)
                .map_err(|_| TranslateError::Encoding {
                    at: GuestAddr(instruction.ip()),
                })?;
        }
        self.instructions += block.instructions.len() as u64;
        let transfer_bytes = &block.bytes[at..];
        let branch_at = last.first().map_or(start, |i| GuestAddr(i.ip()));
        let encoding = |_| TranslateError::Encoding { at: branch_at };

        match block.end {
            BlockEnd::Jump { target } => Ok(self.go_on(target, plan)),
            BlockEnd::Next { at } => Ok(self.go_on(at, plan)),
            BlockEnd::InterpretOne { at, .. } => {
                self.exit(at);
                Ok(None)
            }
            BlockEnd::Branch { taken, next } => {
                self.branch(&last[0], transfer_bytes, start, taken, next, plan)
            }
            BlockEnd::Call { target, return_to } => {
                self.point(branch_at, Fix::Exact);
                self.push_return(return_to);
                self.point(target, Fix::Exact);
                let at = self.code.patchable_jump();
                self.exits.push((at, target));
                Ok(self.after_call(return_to, plan))
            }
            BlockEnd::IndirectCall { return_to } => {
                self.load_target(&last[0], branch_at).map_err(encoding)?;
                self.point(branch_at, Fix::R11InSlot);
                self.push_return(return_to);
                self.jump_indirect(branch_at, -8);
                Ok(self.after_call(return_to, plan))
            }
            BlockEnd::IndirectJump => {
                self.load_target(&last[0], branch_at).map_err(encoding)?;
                self.jump_indirect(branch_at, 0);
                Ok(None)
            }
            BlockEnd::Return { pop } => {
                self.point(branch_at, Fix::Exact);
                self.code.store_r11();
                self.code.pop_r11();
                if pop > 0 {
                    self.point(branch_at, Fix::Jumping { pop, undo: 8 });
                    self.code.drop_stack(u32::from(pop));
                }
                self.jump_indirect(branch_at, 8 + i32::from(pop));
                Ok(None)
            }
            BlockEnd::Syscall { at, next } => {
                self.point(at, Fix::Exact);
                self.code.store_rip(next);
                self.holds_address(next);
                self.code.store_r11();
                // lea (where generated code goes on),%r11
                self.code.raw(&[0x4c, 0x8d, 0x1d]);
                let displacement = self.code.offset();
                self.code.u32(0);
                self.point(at, Fix::R11InSlot);
                self.code.jump_to_routine(HostRoutine::Syscall);
                let here = self.code.here();
                self.code.set_rel32(displacement, here);
                self.point(next, Fix::Exact);
                // What follows is known to run.
                if self.contains(next) || !plan.wants(next) {
                    self.exit(next);
                    Ok(None)
                } else {
                    Ok(Some((next, Arrival::Fallthrough)))
                }
            }
        }
    }

    fn go_on(&mut self, target: GuestAddr, plan: &mut dyn Plan) -> Option<(GuestAddr, Arrival)> {
        if self.wants(plan, target) {
            Some((target, Arrival::Fallthrough))
        } else {
            self.exit(target);
            None
        }
    }

    fn after_call(
        &mut self,
        return_to: GuestAddr,
        plan: &mut dyn Plan,
    ) -> Option<(GuestAddr, Arrival)> {
        self.return_sites.push(return_to);
        self.wants(plan, return_to)
            .then_some((return_to, Arrival::ReturnSite))
    }

    fn branch(
        &mut self,
        branch: &Instruction,
        bytes: &[u8],
        start: GuestAddr,
        taken: GuestAddr,
        next: GuestAddr,
        plan: &mut dyn Plan,
    ) -> Result<Option<(GuestAddr, Arrival)>, TranslateError> {
        let at = GuestAddr(branch.ip());
        self.point(at, Fix::Exact);
        let wants_next = self.wants(plan, next);
        let wants_taken = taken != next && self.wants(plan, taken);
        let follow_taken = wants_taken && (!wants_next || plan.usually_taken(start));
        if branch.is_jcc_short_or_near() {
            let cc = condition_nibble(branch);
            if follow_taken {
                let patch = self.code.patchable_branch(cc ^ 1);
                self.exits.push((patch, next));
                return Ok(Some((taken, Arrival::Fallthrough)));
            }
            let patch = self.code.patchable_branch(cc);
            self.exits.push((patch, taken));
        } else {
            // LOOPcc and JRCXZ exist with 8-bit displacements only: jump over a jump.
            let (last, opcode) = bytes.split_last().expect("an instruction has bytes");
            let _ = last;
            self.code.raw(opcode);
            let displacement = self.code.offset();
            self.code.raw(&[0]);
            self.point(next, Fix::Exact);
            let patch = self.code.patchable_jump();
            self.exits.push((patch, next));
            let distance = self.code.offset() - displacement - 1;
            self.code.patch_u8(displacement, distance as u8);
            self.point(taken, Fix::Exact);
            return Ok(self.go_on(taken, plan));
        }
        if wants_next {
            Ok(Some((next, Arrival::Fallthrough)))
        } else {
            self.exit(next);
            Ok(None)
        }
    }

    /// Leaves the branch's target in r11 and guest r11 in its slot.
    fn load_target(
        &mut self,
        branch: &Instruction,
        at: GuestAddr,
    ) -> Result<(), iced_x86::IcedError> {
        self.point(at, Fix::Exact);
        self.code.store_r11();
        match branch.op0_kind() {
            OpKind::Register => self.code.copy_to_r11(branch.op0_register()),
            _ if branch.is_ip_rel_memory_operand()
                && !self.code.reaches(branch.ip_rel_memory_address()) =>
            {
                self.fragment.movable = false;
                self.code
                    .load_immediate(Register::R11, branch.ip_rel_memory_address());
                self.point(at, Fix::R11InSlot);
                // mov (%r11),%r11
                self.code.raw(&[0x4d, 0x8b, 0x1b]);
            }
            _ => {
                self.code.load_target(&mut self.encoder, branch)?;
                if branch.is_ip_rel_memory_operand() {
                    let field = self.code.offset() - 4;
                    self.fragment.relocations.push(Relocation::distance(field));
                    self.fragment.movable &= branch.memory_base() == Register::RIP;
                }
            }
        }
        Ok(())
    }

    /// The code made last ends in 32 bits that hold a guest address.
    fn holds_address(&mut self, addr: GuestAddr) {
        let field = self.code.offset() - 4;
        self.fragment.relocations.push(Relocation::address(field));
        self.fragment.movable &= addr < MAP_REACH;
    }

    fn jump_indirect(&mut self, branch: GuestAddr, undo: i32) {
        self.point(branch, Fix::Jumping { pop: 0, undo });
        if self.settings.exact_indirect {
            self.code.jump_to_routine(HostRoutine::ExactIndirect);
        } else {
            self.code.jump_through_map();
        }
    }

    /// Pushes a return address. Beyond 2 GiB it is written in halves, below rsp first, where
    /// the push will overwrite anyway: a fault in between leaves the state exact.
    fn push_return(&mut self, return_to: GuestAddr) {
        if let Ok(value) = i32::try_from(return_to.0) {
            self.code.push_immediate(value);
            self.holds_address(return_to);
        } else {
            self.fragment.movable = false;
            self.code.store_below_stack(-4, (return_to.0 >> 32) as u32);
            self.code.store_below_stack(-8, return_to.0 as u32);
            self.code.raw(&[0x48, 0x8d, 0x64, 0x24, 0xf8]);
        }
    }

    /// Copies one instruction that doesn't transfer control.
    fn copy(&mut self, instruction: &Instruction, bytes: &[u8]) -> Result<(), iced_x86::IcedError> {
        let at = GuestAddr(instruction.ip());
        match instruction.mnemonic() {
            // They do nothing here, whatever their length.
            Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 => return Ok(()),
            _ => {}
        }
        self.point(at, Fix::Exact);
        if !instruction.is_ip_rel_memory_operand() {
            self.code.raw(bytes);
            return Ok(());
        }
        let target = instruction.ip_rel_memory_address();
        if instruction.memory_base() == Register::RIP && self.code.reaches(target) {
            let mut decoder = iced_x86::Decoder::with_ip(64, bytes, at.0, 0);
            let again = decoder.decode();
            let constants = decoder.get_constant_offsets(&again);
            let displacement = constants.displacement_offset();
            debug_assert!(constants.has_displacement() && constants.displacement_size() == 4);
            let start = self.code.offset();
            let next = self.code.here().offset(bytes.len() as i64);
            self.code.raw(bytes);
            let value = target.wrapping_sub(next.0) as u32;
            let field = start + displacement as u32;
            self.code.patch_u32(field, value);
            self.fragment.relocations.push(Relocation::distance(field));
            return Ok(());
        }
        self.fragment.movable = false;
        if instruction.mnemonic() == Mnemonic::Lea {
            let reg = instruction.op0_register();
            if reg.size() == 8 {
                self.code.load_immediate(reg, target);
                return Ok(());
            }
        }
        self.copy_out_of_reach(instruction, target)
    }

    /// A RIP-relative operand that 32 bits can't reach: its address goes into a register
    /// that the instruction doesn't use.
    fn copy_out_of_reach(
        &mut self,
        instruction: &Instruction,
        target: u64,
    ) -> Result<(), iced_x86::IcedError> {
        const CANDIDATES: [Register; 8] = [
            Register::RBX,
            Register::RSI,
            Register::RDI,
            Register::RCX,
            Register::RDX,
            Register::RAX,
            Register::RBP,
            Register::R8,
        ];
        let at = GuestAddr(instruction.ip());
        let next = GuestAddr(instruction.next_ip());
        let used = self.info.info(instruction);
        let free = |reg: &&Register| {
            used.used_registers()
                .iter()
                .all(|other| other.register().full_register() != **reg)
        };
        // At most four registers occur in an instruction with a RIP-relative operand.
        let scratch = *CANDIDATES.iter().find(free).expect("a free register");
        self.code.spill(scratch, offsets::SPILL);
        self.code.load_immediate(scratch, target);
        self.point(at, Fix::Spilled(scratch));
        let mut rewritten = *instruction;
        rewritten.set_memory_base(scratch);
        rewritten.set_memory_displacement64(0);
        rewritten.set_memory_displ_size(0);
        self.code.encode(&mut self.encoder, &rewritten)?;
        self.point(next, Fix::Spilled(scratch));
        self.code.unspill(scratch, offsets::SPILL);
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        // Stubs are laid out from their start; their total size fixes their addresses.
        let exit_bytes: usize = self
            .exits
            .iter()
            .map(|&(_, target)| stub_bytes(target))
            .sum();
        let counter_bytes: usize = self
            .counters
            .iter()
            .map(|&(_, head, _)| COUNT_DOWN_BYTES as usize + stub_bytes(head))
            .sum();
        let total = exit_bytes
            + counter_bytes
            + self.outlined_entries.len() * crate::codecache::LATE_ENTRY_BYTES;
        let base = self.settings.stubs_end.offset(-(total as i64));
        let stubs = &mut self.stubs;
        stubs.restart(base);
        for &(patch_at, target) in &self.exits {
            self.code.set_rel32(patch_at, stubs.here());
            self.fragment.exits.push(NewExit {
                target,
                patch_at,
                stub_at: stubs.offset(),
                lower: false,
            });
            stubs.store_rip(target);
            stubs.jump_to_routine(HostRoutine::Leave);
        }
        for &index in &self.outlined_entries {
            let entry = &mut self.fragment.entries[index];
            entry.indirect = Some(IndirectEntry::Stub(stubs.offset()));
            stubs.load_r11();
            stubs.jump_to(self.settings.code_base.offset(i64::from(entry.code_at)));
        }
        for &(patch_at, head, cell) in &self.counters {
            self.code.set_rel32(patch_at, stubs.here());
            let stub_at = stubs.offset();
            let back = self.settings.code_base.offset(i64::from(patch_at) + 4);
            let (spilled, out_at) = stubs.count_down(cell, back);
            stubs.store_rip(head);
            stubs.jump_to_routine(HostRoutine::Counter);
            self.fragment.counters.push(Counter {
                head,
                patch_at,
                stub_at,
                spilled,
                out_at,
            });
        }
        debug_assert_eq!(stubs.bytes().len(), total);
        self.fragment.stubs.extend_from_slice(stubs.bytes());
        self.fragment.code.extend_from_slice(self.code.bytes());
        self.fragment
            .recovery
            .extend_from_slice(self.recorder.bytes());
    }
}

pub(super) fn stub_bytes(target: GuestAddr) -> usize {
    8 + if i32::try_from(target.0).is_ok() {
        13
    } else {
        24
    }
}

/// The condition as the low nibble of the opcode (Intel SDM volume 2, appendix B.1.4.7).
fn condition_nibble(branch: &Instruction) -> u8 {
    // ConditionCode: None, o, no, b, ae, e, ne, be, a, s, ns, p, np, l, ge, le, g
    branch.condition_code() as u8 - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Code;

    #[test]
    fn conditions_have_the_opcode_order() {
        for (code, nibble) in [
            (Code::Jo_rel8_64, 0),
            (Code::Jb_rel8_64, 2),
            (Code::Je_rel8_64, 4),
            (Code::Jbe_rel8_64, 6),
            (Code::Js_rel8_64, 8),
            (Code::Jp_rel8_64, 10),
            (Code::Jl_rel8_64, 12),
            (Code::Jg_rel8_64, 15),
        ] {
            let branch = Instruction::with_branch(code, 0x1000).expect("a branch");
            assert_eq!(condition_nibble(&branch), nibble, "{code:?}");
        }
    }
}
