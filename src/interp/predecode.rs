//! Chooses the handler of one instruction.

use iced_x86::{ConditionCode, Instruction};

use crate::guest::{CpuMode, GuestMemory};
use crate::native::{IdentityMemory, StubCache};

use super::op::Op;
use super::operands::{Kind, Operands, translate};
use super::{
    alu, bits, control, data, exchange, far, muldiv, op, shifts, stack, strings, stubbed, system,
};

/// Predecodes `instruction`, whatever it is. `stack` is the stack's address size.
pub(super) fn predecode<M: GuestMemory>(
    instruction: &Instruction,
    stack: CpuMode,
    stubs: &mut StubCache,
) -> Op<M> {
    let (mut op, operands) = translate(instruction, stack, system::invalid_opcode::<M>());
    match choose(&mut op, instruction, &operands) {
        Some(handler) => op.run = handler,
        None => stubbed::prepare(&mut op, instruction, stubs),
    }
    op
}

/// The interpreter's own handler, the families most often met first.
fn choose<M: GuestMemory>(
    op: &mut Op<M>,
    instruction: &Instruction,
    operands: &Operands,
) -> Option<op::Handler<M>> {
    let mnemonic = instruction.mnemonic();
    let condition = instruction.condition_code();
    if condition != ConditionCode::None {
        // iced numbers them as encoded, from 1.
        let condition = condition as u8 - 1;
        match (operands.count, operands.kinds[0]) {
            (1, Kind::Other) if instruction.is_jcc_short_or_near() => {
                return Some(control::jcc_handler(condition));
            }
            (1, Kind::Register | Kind::Memory) => {
                return Some(data::set_handler(condition, operands));
            }
            (2, Kind::Register) => return Some(data::cmov_handler(condition, operands)),
            _ => {}
        }
    }
    let plain = data::handler(op, instruction, operands)
        .or_else(|| alu::handler(mnemonic, operands))
        .or_else(|| control::handler(instruction, operands))
        .or_else(|| stack::handler(op, instruction, operands))
        .or_else(|| shifts::handler(mnemonic, operands))
        .or_else(|| muldiv::handler(mnemonic, operands))
        .or_else(|| bits::handler(mnemonic, operands))
        .or_else(|| exchange::handler(mnemonic, operands))
        .or_else(|| strings::handler(op, instruction))
        .or_else(|| system::handler(op, instruction, operands))
        .or_else(|| far::handler(instruction))?;
    if system::host_has(mnemonic) {
        Some(plain)
    } else {
        Some(system::invalid_opcode())
    }
}

/// How the interpreter executes an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handling {
    /// By a handler of its own.
    Own,
    /// As the real instruction, in a stub.
    Stub,
    /// It raises #UD, as on this CPU, which lacks it.
    Undefined,
    Unsupported,
}

/// How the interpreter executes `instruction`, for people to read.
pub fn handling(instruction: &Instruction, stubs: &mut StubCache) -> Handling {
    if is_own(instruction) {
        Handling::Own
    } else if !system::host_has(instruction.mnemonic()) {
        Handling::Undefined
    } else if stubs.stub(instruction).is_ok() {
        Handling::Stub
    } else {
        Handling::Unsupported
    }
}

/// Whether the interpreter executes `instruction` itself.
pub(super) fn is_own(instruction: &Instruction) -> bool {
    let (mut op, operands) =
        translate::<IdentityMemory>(instruction, CpuMode::Bits64, system::invalid_opcode());
    choose(&mut op, instruction, &operands).is_some() && system::host_has(instruction.mnemonic())
}
