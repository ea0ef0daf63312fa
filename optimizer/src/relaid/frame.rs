//! Which registers hold addresses on the stack, relative to the stack pointer at the region's
//! head, and what of that lies on the stack itself: saved frame pointers, pointers that were
//! handed to calls, return addresses.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::form::writes;
use crate::region::{Next, Refusal, RegionInput};

/// What the region itself put on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Saved {
    /// The address of a place on the stack.
    Address(i32),
    ReturnTo(u64),
}

/// Known stack contents at an offset. `doubtful` after a store to who knows where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word {
    pub at: i32,
    pub saved: Saved,
    pub doubtful: bool,
}

/// Offsets from the head's RSP; `None`: not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    registers: [Option<i32>; 16],
    words: Vec<Word>,
}

/// An access to a place on the stack that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameAccess {
    pub at: i32,
    pub bytes: u32,
}

const RSP: usize = 4;
const RBP: usize = 5;

impl Frame {
    fn at_head(delta: i64) -> Frame {
        let mut registers = [None; 16];
        registers[RSP] = Some(0);
        registers[RBP] = i32::try_from(delta).ok();
        Frame {
            registers,
            words: Vec::new(),
        }
    }

    pub fn rsp(&self) -> Option<i32> {
        self.registers[RSP]
    }

    pub fn rbp(&self) -> Option<i32> {
        self.registers[RBP]
    }

    pub fn word(&self, at: i32) -> Option<Word> {
        self.words.iter().find(|word| word.at == at).copied()
    }

    /// Where the explicit memory operand lies, if on a known place of the stack.
    pub fn access(&self, instruction: &Instruction) -> Option<FrameAccess> {
        let at = self.place(instruction)?;
        let bytes = instruction.memory_size().size() as u32;
        (bytes > 0).then_some(FrameAccess { at, bytes })
    }

    /// The offset that the explicit memory operand addresses.
    pub fn place(&self, instruction: &Instruction) -> Option<i32> {
        if !has_memory_operand(instruction)
            || instruction.memory_index() != Register::None
            || !instruction.memory_base().is_gpr64()
            || !matches!(
                instruction.segment_prefix(),
                Register::None | Register::DS | Register::SS
            )
        {
            return None;
        }
        let base = self.registers[instruction.memory_base().number()]?;
        let displacement = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
        base.checked_add(displacement)
    }

    fn forget(&mut self, at: i32, bytes: i32) {
        self.words
            .retain(|word| word.at + 8 <= at || at + bytes <= word.at);
    }

    fn save(&mut self, at: i32, saved: Option<Saved>) {
        self.forget(at, 8);
        self.words.extend(saved.map(|saved| Word {
            at,
            saved,
            doubtful: false,
        }));
    }

    fn push(&mut self, saved: Option<Saved>) {
        self.registers[RSP] = self.rsp().and_then(|rsp| rsp.checked_sub(8));
        if let Some(at) = self.rsp() {
            self.save(at, saved);
        }
    }

    /// The address that is saved at a place.
    fn saved_address(&self, at: Option<i32>, even_doubtful: bool) -> Option<i32> {
        let word = self.word(at?)?;
        match word.saved {
            Saved::Address(to) if even_doubtful || !word.doubtful => Some(to),
            Saved::Address(_) | Saved::ReturnTo(_) => None,
        }
    }

    fn pop(&mut self, to: usize) {
        // A frame pointer that may have been overwritten is checked.
        let address = self.saved_address(self.rsp(), to == RBP);
        self.drop_bytes(8);
        self.registers[to] = address;
    }

    fn drop_bytes(&mut self, bytes: i32) {
        self.set_stack(self.rsp().and_then(|rsp| rsp.checked_add(bytes)));
    }

    fn set_stack(&mut self, rsp: Option<i32>) {
        self.registers[RSP] = rsp;
        if let Some(rsp) = rsp {
            self.words.retain(|word| word.at >= rsp);
        }
    }

    fn set(&mut self, register: usize, to: Option<i32>) {
        if register == RSP {
            self.set_stack(to);
        } else {
            self.registers[register] = to;
        }
    }

    /// A store to who knows where.
    fn doubt(&mut self) {
        for word in &mut self.words {
            word.doubtful = true;
        }
    }

    /// Goes past an instruction; `stores_anywhere` when it writes where nobody knows.
    pub fn step(&mut self, instruction: &Instruction, stores_anywhere: bool) {
        if stores_anywhere {
            self.doubt();
        }
        let register = |n| {
            let is_register = instruction.op_count() > n
                && instruction.op_kind(n) == OpKind::Register
                && instruction.op_register(n).is_gpr64();
            is_register.then(|| instruction.op_register(n).number())
        };
        let is_memory = |n| instruction.op_count() > n && instruction.op_kind(n) == OpKind::Memory;
        let constant = || {
            let is_constant = instruction.op_count() == 2
                && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
            let value = is_constant.then(|| instruction.immediate(1) as i64)?;
            i32::try_from(value).ok()
        };
        match (instruction.mnemonic(), register(0), register(1)) {
            (Mnemonic::Push, from, _) if instruction.stack_pointer_increment() == -8 => {
                let address = from.and_then(|from| self.registers[from]);
                self.push(address.map(Saved::Address));
            }
            (Mnemonic::Call, ..) => self.push(Some(Saved::ReturnTo(instruction.next_ip()))),
            (Mnemonic::Pop, Some(to), _) if to != RSP => self.pop(to),
            (Mnemonic::Leave, ..) => {
                self.set_stack(self.rbp());
                self.pop(RBP);
            }
            (Mnemonic::Ret, ..) => self.drop_bytes(instruction.stack_pointer_increment()),
            (Mnemonic::Mov, Some(to), Some(from)) => self.set(to, self.registers[from]),
            (Mnemonic::Mov, Some(to), None) if is_memory(1) => {
                let address = self.saved_address(self.place(instruction), false);
                self.set(to, address);
            }
            (Mnemonic::Mov, None, Some(from)) if is_memory(0) => {
                if let Some(at) = self.place(instruction) {
                    self.save(at, self.registers[from].map(Saved::Address));
                }
            }
            (Mnemonic::Add, Some(to), None) if constant().is_some() => {
                let sum = self.registers[to].zip(constant());
                self.set(to, sum.and_then(|(at, by)| at.checked_add(by)));
            }
            (Mnemonic::Sub, Some(to), None) if constant().is_some() => {
                let sum = self.registers[to].zip(constant());
                self.set(to, sum.and_then(|(at, by)| at.checked_sub(by)));
            }
            (Mnemonic::Lea, Some(to), _) => self.set(to, self.place(instruction)),
            _ => self.step_over(instruction),
        }
    }

    /// An instruction that is only known by what it writes.
    fn step_over(&mut self, instruction: &Instruction) {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        if let Some(access) = self.access(instruction)
            && super::form::stored_bytes(instruction, info).is_some()
        {
            self.forget(access.at, access.bytes as i32);
        }
        for used in info.used_registers() {
            let full = used.register().full_register();
            if full.is_gpr64() && writes(used.access()) {
                self.set(full.number(), None);
            }
        }
    }

    /// What holds on both ways. True when that is less than before.
    fn meet(&mut self, other: &Frame) -> bool {
        let before = self.clone();
        for (own, there) in self.registers.iter_mut().zip(&other.registers) {
            if own != there {
                *own = None;
            }
        }
        self.words.retain_mut(|word| match other.word(word.at) {
            Some(there) => {
                word.doubtful |= there.doubtful;
                there.saved == word.saved
            }
            None => false,
        });
        *self != before
    }
}

pub(super) fn has_memory_operand(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory)
}

/// The frames at the start of each block that is reached.
///
/// # Errors
/// The stack pointer isn't known somewhere.
pub(super) fn follow(
    region: &RegionInput,
    stores_anywhere: impl Fn(&Frame, &Instruction) -> bool,
) -> Result<Vec<Option<Frame>>, Refusal> {
    let mut at: Vec<Option<Frame>> = vec![None; region.blocks.len()];
    at[0] = Some(Frame::at_head(region.frame_delta));
    let mut work = vec![0];
    while let Some(index) = work.pop() {
        let block = &region.blocks[index];
        let mut frame = at[index].clone().expect("reached");
        for instruction in &block.instructions {
            let anywhere = stores_anywhere(&frame, instruction);
            frame.step(instruction, anywhere);
            if frame.rsp().is_none() {
                return Err(Refusal::StackPointer {
                    at: instruction.ip(),
                });
            }
        }
        for next in block.end.successors() {
            let Next::Block(to) = next else { continue };
            let changed = match &mut at[to] {
                Some(known) => known.meet(&frame),
                empty @ None => {
                    *empty = Some(frame.clone());
                    true
                }
            };
            if changed {
                work.push(to);
            }
        }
    }
    for (index, frame) in at.iter().enumerate() {
        if let Some(frame) = frame
            && frame.rsp().is_none()
        {
            return Err(Refusal::StackPointer {
                at: region.blocks[index].start,
            });
        }
    }
    Ok(at)
}
