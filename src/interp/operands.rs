//! Turns iced's operands into an [`Op`]'s: register numbers, constants, address forms.

use iced_x86::{CodeSize, Instruction, OpKind, Register};

use crate::guest::{CpuMode, GuestMemory, Width};

use super::op::{Handler, Op};
use super::scalar::HIGH;

const DS: u64 = 3;

/// What an operand is, as far as choosing a handler goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    None,
    Register,
    Immediate,
    Memory,
    /// A segment, control or vector register, a branch target, a string operand.
    Other,
}

/// The shape of an instruction's operands.
pub(super) struct Operands {
    pub kinds: [Kind; 3],
    pub count: u32,
    /// The first operand's width.
    pub width: Width,
    /// The second operand's width.
    pub second_width: Width,
    pub locked: bool,
}

/// Predecodes the operands; the handler is still `placeholder`. Registers go by position:
/// the first operand's to `dst`, the second's to `src`, the third's to `imm`.
pub(super) fn translate<M: GuestMemory>(
    instruction: &Instruction,
    stack: CpuMode,
    placeholder: Handler<M>,
) -> (Op<M>, Operands) {
    let mut op = Op {
        run: placeholder,
        disp: 0,
        imm: 0,
        ip: instruction.ip(),
        dst: 0,
        src: 0,
        base: 0,
        index: 0,
        base_factor: 0,
        index_factor: 0,
        special: Default::default(),
        len: instruction.len() as u8,
        stub: None,
    };
    let count = instruction.op_count();
    let mut operands = Operands {
        kinds: [Kind::None; 3],
        count,
        width: Width::B8,
        second_width: Width::B8,
        locked: instruction.has_lock_prefix(),
    };
    op.special.set_stack_bits(stack.bits());
    for position in 0..count.min(3) {
        let (kind, width) = match instruction.op_kind(position) {
            OpKind::Register => match number(instruction.op_register(position)) {
                Some((register, width)) => {
                    match position {
                        0 => op.dst = register,
                        1 => op.src = register,
                        _ => op.imm = u64::from(register),
                    }
                    (Kind::Register, Some(width))
                }
                None => (Kind::Other, None),
            },
            OpKind::Memory => {
                set_address(&mut op, instruction);
                (Kind::Memory, scalar_width(instruction.memory_size().size()))
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = instruction.near_branch_target();
                (Kind::Other, None)
            }
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {
                op.imm = instruction.immediate(position);
                (Kind::Immediate, None)
            }
            OpKind::FarBranch16
            | OpKind::FarBranch32
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI => (Kind::Other, None),
        };
        operands.kinds[position as usize] = kind;
        if let Some(width) = width {
            match position {
                0 => operands.width = width,
                1 => operands.second_width = width,
                _ => {}
            }
        }
    }
    (op, operands)
}

/// The number and width of a general-purpose register.
pub(super) fn number(register: Register) -> Option<(u8, Width)> {
    // Each class is contiguous and in encoding order, but the bytes have AH to BH between.
    let at = register as u32;
    let from = |first: Register| (at - first as u32) as u8;
    if at < Register::AL as u32 || at > Register::R15 as u32 {
        None
    } else if at < Register::AX as u32 {
        let number = match from(Register::AL) {
            low @ 0..=3 => low,
            high @ 4..=7 => (high - 4) | HIGH,
            other => other - 4,
        };
        Some((number, Width::B1))
    } else if at < Register::EAX as u32 {
        Some((from(Register::AX), Width::B2))
    } else if at < Register::RAX as u32 {
        Some((from(Register::EAX), Width::B4))
    } else {
        Some((from(Register::RAX), Width::B8))
    }
}

/// The width of a scalar of `bytes`, where there is one.
fn scalar_width(bytes: usize) -> Option<Width> {
    match bytes {
        1 => Some(Width::B1),
        2 => Some(Width::B2),
        4 => Some(Width::B4),
        8 => Some(Width::B8),
        _ => None,
    }
}

fn set_address<M: GuestMemory>(op: &mut Op<M>, instruction: &Instruction) {
    op.disp = instruction.memory_displacement64();
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    let mut bits = None;
    match number(base) {
        Some((register, width)) => {
            op.base = register;
            op.base_factor = 1;
            bits = Some(width.bits());
        }
        None if base == Register::EIP => bits = Some(32),
        None if base == Register::RIP => bits = Some(64),
        None => {}
    }
    // A vector index (VSIB) is the stub's business.
    if let Some((register, width)) = number(index) {
        op.index = register;
        op.index_factor = instruction.memory_index_scale() as u8;
        bits = Some(width.bits());
    }
    let bits = bits.unwrap_or_else(|| match instruction.memory_displ_size() {
        2 => 16,
        4 => 32,
        _ => 64,
    });
    op.special.set_address_bits(bits);
    set_segment(op, instruction);
}

/// Takes note of the operand's segment. In 64-bit mode only FS and GS have a base.
pub(super) fn set_segment<M: GuestMemory>(op: &mut Op<M>, instruction: &Instruction) {
    if M::SEGMENTED && instruction.code_size() != CodeSize::Code64 {
        let segment = super::segments::index(instruction.memory_segment());
        op.special.set_segmented(segment.unwrap_or(DS) as u8);
        return;
    }
    match instruction.segment_prefix() {
        Register::FS => op.special.set_fs(),
        Register::GS => op.special.set_gs(),
        _ => {}
    }
}
