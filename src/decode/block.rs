//! Decodes one block and classifies its end.

use iced_x86::{Code, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::machine::MachineCode;
use crate::addr::GuestAddr;
use crate::guest::{CpuMode, GuestMemory, GuestTrap};

/// A block never holds more instructions than this; longer runs are split ([`BlockEnd::Next`]).
pub const MAX_BLOCK_INSTRUCTIONS: usize = 64;

/// The longest x86 instruction, in bytes (Intel SDM volume 2, section 2.3.11).
const MAX_INSTRUCTION_BYTES: usize = 15;

/// Why an instruction is left to the interpreter even in translated code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InterpretReason {
    /// Always traps, or may (INT, UD2, HLT, privileged instructions).
    Traps,
    /// Uses the guest's gs segment, which belongs to Temper while guest code runs.
    GsSegment,
    /// A far transfer or a return from an interrupt.
    FarTransfer,
    /// Begins a hardware transaction, which never succeeds under translation.
    Transaction,
    /// POPF, which may turn single-stepping on.
    LoadsFlags,
    /// SYSCALL with meaningless prefixes: whoever goes back to a call goes back two bytes.
    PrefixedSyscall,
    /// Concerns a machine's system state: segments, ports, control registers.
    System,
    /// Needs a unit (x87, SSE, AVX) that a machine's control registers disable.
    UnitDisabled,
    /// The bytes are no instruction; the interpreter raises #UD.
    Invalid,
}

/// How control leaves a block. `Syscall` and `InterpretOne` leave *before* their
/// instruction, which is not among the block's instructions and is decoded again by whoever
/// executes it; every other kind's transfer is the block's last instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockEnd {
    Jump {
        target: GuestAddr,
    },
    /// Jcc, LOOPcc, J(E/R)CXZ.
    Branch {
        taken: GuestAddr,
        next: GuestAddr,
    },
    Call {
        target: GuestAddr,
        return_to: GuestAddr,
    },
    IndirectJump,
    IndirectCall {
        return_to: GuestAddr,
    },
    /// RET; `pop` is the immediate of RET imm16.
    Return {
        pop: u16,
    },
    /// SYSCALL without prefixes at `at`; execution goes on at `next`.
    Syscall {
        at: GuestAddr,
        next: GuestAddr,
    },
    InterpretOne {
        at: GuestAddr,
        why: InterpretReason,
    },
    /// The block was split here: its limit, or bytes that can't be fetched.
    Next {
        at: GuestAddr,
    },
}

impl BlockEnd {
    /// The same end of a block that lies `by` bytes further on, as far as it names addresses.
    pub fn moved(self, by: i64) -> BlockEnd {
        match self {
            BlockEnd::Jump { target } => BlockEnd::Jump {
                target: target.offset(by),
            },
            BlockEnd::Branch { taken, next } => BlockEnd::Branch {
                taken: taken.offset(by),
                next: next.offset(by),
            },
            BlockEnd::Call { target, return_to } => BlockEnd::Call {
                target: target.offset(by),
                return_to: return_to.offset(by),
            },
            BlockEnd::IndirectCall { return_to } => BlockEnd::IndirectCall {
                return_to: return_to.offset(by),
            },
            BlockEnd::IndirectJump => BlockEnd::IndirectJump,
            BlockEnd::Return { pop } => BlockEnd::Return { pop },
            BlockEnd::Syscall { at, next } => BlockEnd::Syscall {
                at: at.offset(by),
                next: next.offset(by),
            },
            BlockEnd::InterpretOne { at, why } => BlockEnd::InterpretOne {
                at: at.offset(by),
                why,
            },
            BlockEnd::Next { at } => BlockEnd::Next { at: at.offset(by) },
        }
    }
}

/// Straight-line guest code.
#[derive(Clone, Debug)]
pub struct Block {
    pub start: GuestAddr,
    pub instructions: Vec<Instruction>,
    /// The instructions' bytes, in order.
    pub bytes: Vec<u8>,
    pub end: BlockEnd,
    /// The instruction that a `Syscall` or `InterpretOne` end leaves before, if its bytes are one.
    pub left: Option<Instruction>,
    /// The stack's address size.
    pub stack: CpuMode,
    /// Bytes of guest code that the block depends on, from `start` (with a SYSCALL or
    /// InterpretOne end, that instruction's too).
    pub len: u32,
}

impl Default for Block {
    fn default() -> Self {
        Block {
            start: GuestAddr(0),
            instructions: Vec::new(),
            bytes: Vec::new(),
            end: BlockEnd::Next { at: GuestAddr(0) },
            left: None,
            stack: CpuMode::Bits64,
            len: 0,
        }
    }
}

impl Block {
    /// The guest code that the block was made from.
    pub fn range(&self) -> std::ops::Range<GuestAddr> {
        self.start..self.start.offset(i64::from(self.len))
    }
}

/// Guest code that is a copy of host code placed elsewhere (the vdso): RIP-relative operands
/// that leave `start..end` are meant relative to the original, `bias` bytes away.
#[derive(Clone, Copy, Debug)]
pub struct CodeAlias {
    pub start: GuestAddr,
    pub end: GuestAddr,
    pub bias: i64,
}

/// Decodes blocks in one CPU mode.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    pub mode: CpuMode,
    pub alias: Option<CodeAlias>,
    /// The stack's address size; a machine's stack segment has one of its own.
    pub stack: CpuMode,
    /// The code is a machine's, not a ring-3 process's.
    pub machine: Option<MachineCode>,
}

impl Decoder {
    pub fn new(mode: CpuMode) -> Decoder {
        Decoder {
            mode,
            alias: None,
            stack: mode,
            machine: None,
        }
    }

    /// Decodes the block at `start`.
    ///
    /// # Errors
    /// The trap of fetching the first instruction. A later instruction that can't be
    /// fetched ends the block before it.
    pub fn block(
        &self,
        memory: &mut impl GuestMemory,
        start: GuestAddr,
    ) -> Result<Block, GuestTrap> {
        self.block_limited(memory, start, MAX_BLOCK_INSTRUCTIONS)
    }

    /// As [`Decoder::block`], with at most `limit` (at least 1) instructions.
    pub fn block_limited(
        &self,
        memory: &mut impl GuestMemory,
        start: GuestAddr,
        limit: usize,
    ) -> Result<Block, GuestTrap> {
        let mut block = Block::default();
        self.block_into(memory, start, limit, &mut block)?;
        Ok(block)
    }

    /// As [`Decoder::block_limited`], into a block whose memory is used again.
    ///
    /// # Errors
    /// As [`Decoder::block`]; `block` is then of no use.
    pub fn block_into(
        &self,
        memory: &mut impl GuestMemory,
        start: GuestAddr,
        limit: usize,
        block: &mut Block,
    ) -> Result<(), GuestTrap> {
        block.start = start;
        block.instructions.clear();
        block.bytes.clear();
        block.end = BlockEnd::Next { at: start };
        block.left = None;
        block.stack = self.stack;
        block.len = 0;
        let mut window = [0u8; 128];
        let mut window_len = memory.fetch(start, &mut window)?;
        let mut at = start;
        loop {
            match self.decode_window(memory, at, &window[..window_len], limit, block)? {
                None => return Ok(()),
                Some(next) => at = next,
            }
            match memory.fetch(at, &mut window) {
                Ok(len) => window_len = len,
                Err(_) => {
                    block.end = BlockEnd::Next { at };
                    return Ok(());
                }
            }
        }
    }

    /// Decodes from `code`, which lies at `start`. `Some`: more code is needed from there on.
    fn decode_window(
        &self,
        memory: &mut impl GuestMemory,
        start: GuestAddr,
        code: &[u8],
        limit: usize,
        block: &mut Block,
    ) -> Result<Option<GuestAddr>, GuestTrap> {
        let mut at = start;
        let mut decoder =
            iced_x86::Decoder::with_ip(self.mode.bits(), code, at.0, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        loop {
            let used = decoder.position();
            let left = code.len() - used;
            if left < MAX_INSTRUCTION_BYTES && used > 0 {
                return Ok(Some(at));
            }
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                // Bytes that end at an unfetchable page: the fault is that of fetching the rest.
                if left < MAX_INSTRUCTION_BYTES
                    && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
                {
                    if !block.instructions.is_empty() {
                        block.end = BlockEnd::Next { at };
                        return Ok(None);
                    }
                    memory.fetch(at.offset(left as i64), &mut [0u8; 1])?;
                }
                block.end = BlockEnd::InterpretOne {
                    at,
                    why: InterpretReason::Invalid,
                };
                block.len += left.clamp(1, MAX_INSTRUCTION_BYTES) as u32;
                return Ok(None);
            }
            if let Some(alias) = self.alias {
                alias.apply(&mut instruction);
            }
            let len = instruction.len();
            let next = self.wrap(at.offset(len as i64));
            let end = match &self.machine {
                None => classify(&instruction, at, next),
                Some(machine) => {
                    if machine.crosses_page(at, next) && !block.instructions.is_empty() {
                        block.end = BlockEnd::Next { at };
                        return Ok(None);
                    }
                    machine.classify(&instruction, at, next)
                }
            };
            block.len += len as u32;
            if let Some(end @ (BlockEnd::Syscall { .. } | BlockEnd::InterpretOne { .. })) = end {
                block.end = end;
                block.left = Some(instruction);
                return Ok(None);
            }
            block.bytes.extend_from_slice(&code[used..used + len]);
            block.instructions.push(instruction);
            if let Some(end) = end {
                block.end = end;
                return Ok(None);
            }
            at = next;
            let page_ends = self.machine.is_some_and(|m| m.at_page_end(start, next));
            if block.instructions.len() >= limit || page_ends {
                block.end = BlockEnd::Next { at };
                return Ok(None);
            }
        }
    }

    /// Decodes one instruction, whatever it is.
    ///
    /// # Errors
    /// The trap of fetching it, or `InvalidOpcode`.
    pub fn instruction(
        &self,
        memory: &mut impl GuestMemory,
        at: GuestAddr,
    ) -> Result<Instruction, GuestTrap> {
        let mut bytes = [0u8; MAX_INSTRUCTION_BYTES];
        let len = memory.fetch(at, &mut bytes)?;
        let mut decoder =
            iced_x86::Decoder::with_ip(self.mode.bits(), &bytes[..len], at.0, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        if instruction.is_invalid() {
            if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes && len < bytes.len() {
                memory.fetch(at.offset(len as i64), &mut [0u8; 1])?;
            }
            return Err(GuestTrap::InvalidOpcode);
        }
        if let Some(alias) = self.alias {
            alias.apply(&mut instruction);
        }
        Ok(instruction)
    }

    fn wrap(&self, addr: GuestAddr) -> GuestAddr {
        match self.mode {
            CpuMode::Bits64 => addr,
            CpuMode::Bits32 | CpuMode::Bits16 => GuestAddr(addr.0 & 0xffff_ffff),
        }
    }
}

impl CodeAlias {
    fn apply(&self, instruction: &mut Instruction) {
        let inside = |addr: u64| (self.start.0..self.end.0).contains(&addr);
        if instruction.is_ip_rel_memory_operand()
            && inside(instruction.ip())
            && !inside(instruction.memory_displacement64())
        {
            let target = instruction
                .memory_displacement64()
                .wrapping_add_signed(self.bias);
            instruction.set_memory_displacement64(target);
        }
    }
}

/// Not SAHF, which writes arithmetic flags alone.
fn loads_flags(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq
    )
}

/// How `instruction` ends a block; `None` when it doesn't.
pub(super) fn classify(
    instruction: &Instruction,
    at: GuestAddr,
    next: GuestAddr,
) -> Option<BlockEnd> {
    let interpret = |why| Some(BlockEnd::InterpretOne { at, why });
    let target = || GuestAddr(instruction.near_branch_target());
    match instruction.flow_control() {
        FlowControl::Next => {
            if uses_gs(instruction) {
                interpret(InterpretReason::GsSegment)
            } else if is_privileged(instruction) {
                interpret(InterpretReason::Traps)
            } else if loads_flags(instruction) {
                interpret(InterpretReason::LoadsFlags)
            } else {
                None
            }
        }
        FlowControl::UnconditionalBranch => match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                Some(BlockEnd::Jump { target: target() })
            }
            _ => interpret(InterpretReason::FarTransfer),
        },
        FlowControl::ConditionalBranch => Some(BlockEnd::Branch {
            taken: target(),
            next,
        }),
        FlowControl::Call => match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                Some(BlockEnd::Call {
                    target: target(),
                    return_to: next,
                })
            }
            _ if instruction.mnemonic() == Mnemonic::Syscall => {
                if instruction.len() == 2 {
                    Some(BlockEnd::Syscall { at, next })
                } else {
                    interpret(InterpretReason::PrefixedSyscall)
                }
            }
            _ => interpret(InterpretReason::FarTransfer),
        },
        FlowControl::IndirectBranch => {
            if is_far(instruction) {
                interpret(InterpretReason::FarTransfer)
            } else if uses_gs(instruction) {
                interpret(InterpretReason::GsSegment)
            } else {
                Some(BlockEnd::IndirectJump)
            }
        }
        FlowControl::IndirectCall => {
            if is_far(instruction) {
                interpret(InterpretReason::FarTransfer)
            } else if uses_gs(instruction) {
                interpret(InterpretReason::GsSegment)
            } else {
                Some(BlockEnd::IndirectCall { return_to: next })
            }
        }
        FlowControl::Return => match instruction.mnemonic() {
            Mnemonic::Ret => {
                let pop = if instruction.op_count() == 1 {
                    instruction.immediate16()
                } else {
                    0
                };
                Some(BlockEnd::Return { pop })
            }
            _ => interpret(InterpretReason::FarTransfer),
        },
        FlowControl::Interrupt => interpret(InterpretReason::Traps),
        FlowControl::XbeginXabortXend => interpret(InterpretReason::Transaction),
        FlowControl::Exception => interpret(InterpretReason::Traps),
    }
}

pub(super) fn is_far(instruction: &Instruction) -> bool {
    matches!(
        instruction.code(),
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    )
}

fn uses_gs(instruction: &Instruction) -> bool {
    let names_base = matches!(
        instruction.mnemonic(),
        Mnemonic::Rdgsbase | Mnemonic::Wrgsbase | Mnemonic::Swapgs | Mnemonic::Lgs
    );
    let writes_selector = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == Register::GS;
    let addresses = instruction.mnemonic() != Mnemonic::Lea
        && instruction.segment_prefix() == Register::GS
        && (0..instruction.op_count()).any(|i| {
            matches!(
                instruction.op_kind(i),
                OpKind::Memory
                    | OpKind::MemorySegSI
                    | OpKind::MemorySegESI
                    | OpKind::MemorySegRSI
                    | OpKind::MemorySegDI
                    | OpKind::MemorySegEDI
                    | OpKind::MemorySegRDI
            )
        });
    names_base || writes_selector || addresses
}

/// Instructions that fault or depend on privilege in user mode, left to the interpreter.
fn is_privileged(instruction: &Instruction) -> bool {
    instruction.is_privileged()
        || matches!(instruction.mnemonic(), Mnemonic::Into | Mnemonic::Bound)
}
