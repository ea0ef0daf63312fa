//! Operands of rewritten instructions.

use iced_x86::{Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind, Register};

use super::emit::gpr;
use crate::region::{Sum, Value};

/// `movss`, `movsd` or `movq` between memory and a vector register.
pub(super) fn is_vector_move(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Movss | Mnemonic::Movsd | Mnemonic::Movq
    )
}

/// Whether any general register can be encoded as this operand.
pub(super) fn takes_any_general(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as Kind;
    matches!(
        kind,
        Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::r8_reg
            | Kind::r16_reg
            | Kind::r32_reg
            | Kind::r64_reg
            | Kind::r32_rm
            | Kind::r64_rm
            | Kind::r32_vvvv
            | Kind::r64_vvvv
    )
}

pub(super) fn takes_any_vector(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as Kind;
    matches!(kind, Kind::xmm_reg | Kind::xmm_or_mem | Kind::xmm_rm)
}

/// The low 32 bits of a value, extended with zeros.
pub(super) fn low_half(value: Value) -> Value {
    match value {
        Value::Sum(sum) => Value::Sum(Sum { is_32: true, ..sum }),
        Value::SignExtended(of) => Value::Sum(Sum {
            base: Some(of),
            is_32: true,
            ..Sum::default()
        }),
    }
}

fn displ_size(sum: &Sum) -> u32 {
    match (sum.base, sum.displacement) {
        (None, _) => 8,
        (Some(_), 0) => 0,
        (Some(_), _) => 1,
    }
}

pub(super) fn operand(sum: Sum) -> MemoryOperand {
    MemoryOperand::new(
        sum.base.map_or(Register::None, gpr),
        sum.index.map_or(Register::None, |(index, _)| gpr(index)),
        sum.index.map_or(1, |(_, scale)| u32::from(scale)),
        i64::from(sum.displacement),
        displ_size(&sum),
        false,
        Register::None,
    )
}

pub(super) fn set_address(out: &mut Instruction, sum: Sum) {
    out.set_memory_base(sum.base.map_or(Register::None, gpr));
    out.set_memory_index(sum.index.map_or(Register::None, |(index, _)| gpr(index)));
    out.set_memory_index_scale(sum.index.map_or(1, |(_, scale)| u32::from(scale)));
    out.set_memory_displacement64(i64::from(sum.displacement) as u64);
    out.set_memory_displ_size(displ_size(&sum));
}
