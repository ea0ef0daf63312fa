//! Near transfers: Jcc, LOOP, JRCXZ, JMP, CALL, RET. `cpu.rip` is preset to the address
//! behind the block, so only taken branches write it.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::guest::{Gpr, GuestMemory, Width, flags};

use super::condition::{by_condition, holds};
use super::machine::{Machine, Step, is_canonical};
use super::op::{Dst, Handler, Mem, Op, Source};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};

const RCX: u8 = Gpr::Rcx as u8;

fn jcc<M: GuestMemory, const CC: u8>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    if holds::<CC>(m.cpu.rflags) {
        m.cpu.rip = op.imm;
    }
    Ok(())
}

fn jump<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.cpu.rip = op.imm;
    Ok(())
}

fn jump_indirect<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let target = S::get::<M, W>(op, m)?;
    m.check_target(target)?;
    m.cpu.rip = target;
    Ok(())
}

fn call<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.push::<W>(op.stack_mask(), op.next_ip())?;
    m.cpu.rip = op.imm;
    Ok(())
}

fn call_indirect<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let target = S::get::<M, W>(op, m)?;
    if !is_canonical(target) {
        // The stack's own fault comes first, but nothing is written.
        let mask = op.stack_mask();
        let top = m.stack_at(mask, -(W::BYTES as i64));
        m.update::<W, _>(Machine::<M>::stack_place(mask, top), |_, old| (old, ()))?;
    }
    m.check_target(target)?;
    m.push::<W>(op.stack_mask(), op.next_ip())?;
    m.cpu.rip = target;
    Ok(())
}

/// `op.imm` is the number of argument bytes to drop.
fn ret<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let mask = op.stack_mask();
    let target = m.peek::<W>(mask, 0)?;
    m.check_target(target)?;
    let top = m.stack_at(mask, W::BYTES as i64 + op.imm as i64);
    m.set_stack(mask, top);
    m.cpu.rip = target;
    Ok(())
}

/// What LOOPcc asks of ZF.
const ANY: u8 = 0;
const ZERO: u8 = 1;
const NOT_ZERO: u8 = 2;

/// LOOP counts in CX, ECX or RCX by address size, without touching flags.
fn loop_<M: GuestMemory, W: Scalar, const WANT: u8>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let count = W::read(m.cpu, RCX).wrapping_sub(1) & W::MASK;
    W::write(m.cpu, RCX, count);
    let zero = m.cpu.rflags & flags::ZF != 0;
    let wanted = match WANT {
        ZERO => zero,
        NOT_ZERO => !zero,
        _ => true,
    };
    if count != 0 && wanted {
        m.cpu.rip = op.imm;
    }
    Ok(())
}

fn jrcxz<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    if W::read(m.cpu, RCX) == 0 {
        m.cpu.rip = op.imm;
    }
    Ok(())
}

/// The counter's width of a LOOPcc.
fn counter_width(code: Code) -> Width {
    match code {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => Width::B2,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => Width::B8,
        _ => Width::B4,
    }
}

/// The width of the return address that a CALL or RET moves.
fn link_width(code: Code) -> Width {
    match code {
        Code::Call_rel16 | Code::Retnw | Code::Retnw_imm16 => Width::B2,
        Code::Call_rel32_32 | Code::Retnd | Code::Retnd_imm16 => Width::B4,
        _ => Width::B8,
    }
}

/// The handler for Jcc.
pub(super) fn jcc_handler<M: GuestMemory>(condition: u8) -> Handler<M> {
    by_condition!(condition, CC => jcc::<M, CC>)
}

/// The handler for an instruction of this family; far transfers are not in it.
pub(super) fn handler<M: GuestMemory>(
    instruction: &Instruction,
    operands: &Operands,
) -> Option<Handler<M>> {
    let code = instruction.code();
    let near = matches!(
        instruction.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    );
    let far_pointer = matches!(
        code,
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    );
    let width = operands.width;
    Some(match instruction.mnemonic() {
        Mnemonic::Jmp if near => jump,
        Mnemonic::Call if near => by_width!(link_width(code), W in [u16 u32 u64] => call::<M, W>),
        Mnemonic::Jmp if !far_pointer => match operands.kinds[0] {
            Kind::Register => by_width!(width, W in [u16 u32 u64] => jump_indirect::<M, W, Dst>),
            Kind::Memory => by_width!(width, W in [u16 u32 u64] => jump_indirect::<M, W, Mem>),
            Kind::Immediate | Kind::Other | Kind::None => return None,
        },
        Mnemonic::Call if !far_pointer => match operands.kinds[0] {
            Kind::Register => by_width!(width, W in [u16 u32 u64] => call_indirect::<M, W, Dst>),
            Kind::Memory => by_width!(width, W in [u16 u32 u64] => call_indirect::<M, W, Mem>),
            Kind::Immediate | Kind::Other | Kind::None => return None,
        },
        Mnemonic::Ret => by_width!(link_width(code), W in [u16 u32 u64] => ret::<M, W>),
        Mnemonic::Loop => {
            by_width!(counter_width(code), W in [u16 u32 u64] => loop_::<M, W, ANY>)
        }
        Mnemonic::Loope => {
            by_width!(counter_width(code), W in [u16 u32 u64] => loop_::<M, W, ZERO>)
        }
        Mnemonic::Loopne => {
            by_width!(counter_width(code), W in [u16 u32 u64] => loop_::<M, W, NOT_ZERO>)
        }
        Mnemonic::Jcxz => jrcxz::<M, u16>,
        Mnemonic::Jecxz => jrcxz::<M, u32>,
        Mnemonic::Jrcxz => jrcxz::<M, u64>,
        _ => return None,
    })
}
