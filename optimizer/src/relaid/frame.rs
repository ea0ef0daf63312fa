//! Where the stack pointer and the frame pointer are, relative to the stack pointer at the
//! region's head, and what lies on the stack: saved frame pointers and return addresses.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::region::{Next, Refusal, RegionEnd, RegionInput};

/// What the region itself put on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Saved {
    FramePointer(i32),
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
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Frame {
    pub rsp: Option<i32>,
    pub rbp: Option<i32>,
    words: Vec<Word>,
}

/// An access to a place on the stack that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameAccess {
    pub at: i32,
    pub bytes: u32,
}

impl Frame {
    fn at_head(delta: i64) -> Frame {
        Frame {
            rsp: Some(0),
            rbp: i32::try_from(delta).ok(),
            words: Vec::new(),
        }
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
            || !matches!(
                instruction.segment_prefix(),
                Register::None | Register::DS | Register::SS
            )
        {
            return None;
        }
        let base = match instruction.memory_base() {
            Register::RSP => self.rsp?,
            Register::RBP => self.rbp?,
            _ => return None,
        };
        let displacement = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
        base.checked_add(displacement)
    }

    fn forget(&mut self, at: i32, bytes: i32) {
        self.words
            .retain(|word| word.at + 8 <= at || at + bytes <= word.at);
    }

    fn push(&mut self, saved: Option<Saved>) {
        self.rsp = self.rsp.and_then(|rsp| rsp.checked_sub(8));
        if let Some(at) = self.rsp {
            self.forget(at, 8);
            self.words.extend(saved.map(|saved| Word {
                at,
                saved,
                doubtful: false,
            }));
        }
    }

    fn pop_frame_pointer(&mut self) {
        self.rbp = self
            .rsp
            .and_then(|rsp| self.word(rsp))
            .and_then(|word| match word.saved {
                Saved::FramePointer(rbp) => Some(rbp),
                Saved::ReturnTo(_) => None,
            });
        self.drop_bytes(8);
    }

    fn drop_bytes(&mut self, bytes: i32) {
        self.rsp = self.rsp.and_then(|rsp| rsp.checked_add(bytes));
        if let Some(rsp) = self.rsp {
            self.words.retain(|word| word.at >= rsp);
        }
    }

    /// A store to who knows where.
    pub fn doubt(&mut self) {
        for word in &mut self.words {
            word.doubtful = true;
        }
    }

    /// Goes past an instruction; `stores_anywhere` when it writes where nobody knows.
    pub fn step(&mut self, instruction: &Instruction, stores_anywhere: bool) {
        use Register::{RBP, RSP};
        if stores_anywhere {
            self.doubt();
        }
        let register = |n| {
            (instruction.op_count() > n && instruction.op_kind(n) == OpKind::Register)
                .then(|| instruction.op_register(n))
        };
        let constant = || {
            (instruction.op_count() == 2
                && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory))
            .then(|| instruction.immediate(1) as i64)
            .and_then(|value| i32::try_from(value).ok())
        };
        match (instruction.mnemonic(), register(0), register(1)) {
            (Mnemonic::Push, Some(RBP), _) => self.push(self.rbp.map(Saved::FramePointer)),
            (Mnemonic::Push, ..) if instruction.stack_pointer_increment() == -8 => self.push(None),
            (Mnemonic::Call, ..) => self.push(Some(Saved::ReturnTo(instruction.next_ip()))),
            (Mnemonic::Pop, Some(RBP), _) => self.pop_frame_pointer(),
            (Mnemonic::Pop, Some(to), _) if to.is_gpr64() && to != RSP => self.drop_bytes(8),
            (Mnemonic::Leave, ..) => {
                self.rsp = self.rbp;
                self.pop_frame_pointer();
            }
            (Mnemonic::Ret, ..) => self.drop_bytes(instruction.stack_pointer_increment()),
            (Mnemonic::Mov, Some(RBP), Some(RSP)) => self.rbp = self.rsp,
            (Mnemonic::Mov, Some(RSP), Some(RBP)) => {
                self.rsp = self.rbp;
                self.drop_bytes(0);
            }
            (Mnemonic::Add, Some(RSP), None) if constant().is_some() => {
                self.drop_bytes(constant().unwrap_or(0));
            }
            (Mnemonic::Sub, Some(RSP), None) if constant().is_some() => {
                let bytes = constant().unwrap_or(0);
                self.drop_bytes(bytes.checked_neg().unwrap_or(0));
            }
            (Mnemonic::Lea, Some(to @ (RSP | RBP)), _) => {
                let place = self.place(instruction);
                if to == RSP {
                    self.rsp = place;
                    self.drop_bytes(0);
                } else {
                    self.rbp = place;
                }
            }
            _ => {
                if let Some(access) = self.access(instruction) {
                    self.forget(access.at, access.bytes as i32);
                }
                let mut info = iced_x86::InstructionInfoFactory::new();
                for used in info.info(instruction).used_registers() {
                    let writes = !matches!(
                        used.access(),
                        iced_x86::OpAccess::Read
                            | iced_x86::OpAccess::CondRead
                            | iced_x86::OpAccess::NoMemAccess
                    );
                    match used.register().full_register() {
                        RSP if writes => self.rsp = None,
                        RBP if writes => self.rbp = None,
                        _ => {}
                    }
                }
            }
        }
    }

    /// What holds on both ways. True when that is less than before.
    fn meet(&mut self, other: &Frame) -> bool {
        let before = self.clone();
        if self.rsp != other.rsp {
            self.rsp = None;
        }
        if self.rbp != other.rbp {
            self.rbp = None;
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
            if frame.rsp.is_none() {
                return Err(Refusal::StackPointer {
                    at: instruction.ip(),
                });
            }
        }
        // Only the return that was expected goes on inside.
        debug_assert!(
            !matches!(block.end, RegionEnd::Return { .. }) || !block.instructions.is_empty()
        );
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
            && frame.rsp.is_none()
        {
            return Err(Refusal::StackPointer {
                at: region.blocks[index].start,
            });
        }
    }
    Ok(at)
}
