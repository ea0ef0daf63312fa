//! ADD to CMP, TEST, INC, DEC, NEG, NOT, and the decimal adjustments of 16- and 32-bit code.

use iced_x86::Mnemonic;

use crate::guest::{GuestMemory, GuestTrap, flags};

use super::host_alu::{self, Binary, Unary};
use super::machine::{Machine, Step};
use super::op::{Dst, Handler, Imm, Mem, Op, Place, Source, Src};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};

fn binary<M: GuestMemory, O: Binary, W: Scalar, P: Place, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let b = S::get::<M, W>(op, m)?;
    if O::WRITES {
        let at = P::at(op, m.cpu);
        let a = P::load::<M, W>(op, m, at)?;
        let mut rflags = m.cpu.rflags;
        let result = O::apply::<W>(a, b, &mut rflags);
        P::store::<M, W>(op, m, at, result)?;
        m.cpu.rflags = rflags;
    } else {
        let a = P::get::<M, W>(op, m)?;
        O::apply::<W>(a, b, &mut m.cpu.rflags);
    }
    Ok(())
}

fn binary_locked<M: GuestMemory, O: Binary, W: Scalar, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let b = S::get::<M, W>(op, m)?;
    let (_, rflags) = m.update::<W, _>(op.address(m.cpu), |cpu, old| {
        let mut rflags = cpu.rflags;
        (O::apply::<W>(old, b, &mut rflags), rflags)
    })?;
    m.cpu.rflags = rflags;
    Ok(())
}

fn unary<M: GuestMemory, O: Unary, W: Scalar, P: Place>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let at = P::at(op, m.cpu);
    let a = P::load::<M, W>(op, m, at)?;
    let mut rflags = m.cpu.rflags;
    let result = O::apply::<W>(a, &mut rflags);
    P::store::<M, W>(op, m, at, result)?;
    m.cpu.rflags = rflags;
    Ok(())
}

fn unary_locked<M: GuestMemory, O: Unary, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let (_, rflags) = m.update::<W, _>(op.address(m.cpu), |cpu, old| {
        let mut rflags = cpu.rflags;
        (O::apply::<W>(old, &mut rflags), rflags)
    })?;
    m.cpu.rflags = rflags;
    Ok(())
}

fn binary_handler<M: GuestMemory, O: Binary>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.kinds[0], operands.kinds[1], operands.locked) {
        (Kind::Memory, Kind::Immediate, true) => {
            by_width!(width, W => binary_locked::<M, O, W, Imm>)
        }
        (Kind::Memory, _, true) => by_width!(width, W => binary_locked::<M, O, W, Src>),
        (Kind::Memory, Kind::Immediate, false) => {
            by_width!(width, W => binary::<M, O, W, Mem, Imm>)
        }
        (Kind::Memory, _, false) => by_width!(width, W => binary::<M, O, W, Mem, Src>),
        (_, Kind::Memory, _) => by_width!(width, W => binary::<M, O, W, Dst, Mem>),
        (_, Kind::Immediate, _) => by_width!(width, W => binary::<M, O, W, Dst, Imm>),
        _ => by_width!(width, W => binary::<M, O, W, Dst, Src>),
    }
}

fn unary_handler<M: GuestMemory, O: Unary>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.kinds[0], operands.locked) {
        (Kind::Memory, true) => by_width!(width, W => unary_locked::<M, O, W>),
        (Kind::Memory, false) => by_width!(width, W => unary::<M, O, W, Mem>),
        _ => by_width!(width, W => unary::<M, O, W, Dst>),
    }
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(
    mnemonic: Mnemonic,
    operands: &Operands,
) -> Option<Handler<M>> {
    Some(match mnemonic {
        Mnemonic::Add => binary_handler::<M, host_alu::Add>(operands),
        Mnemonic::Or => binary_handler::<M, host_alu::Or>(operands),
        Mnemonic::Adc => binary_handler::<M, host_alu::Adc>(operands),
        Mnemonic::Sbb => binary_handler::<M, host_alu::Sbb>(operands),
        Mnemonic::And => binary_handler::<M, host_alu::And>(operands),
        Mnemonic::Sub => binary_handler::<M, host_alu::Sub>(operands),
        Mnemonic::Xor => binary_handler::<M, host_alu::Xor>(operands),
        Mnemonic::Cmp => binary_handler::<M, host_alu::Cmp>(operands),
        Mnemonic::Test => binary_handler::<M, host_alu::Test>(operands),
        Mnemonic::Inc => unary_handler::<M, host_alu::Inc>(operands),
        Mnemonic::Dec => unary_handler::<M, host_alu::Dec>(operands),
        Mnemonic::Neg => unary_handler::<M, host_alu::Neg>(operands),
        Mnemonic::Not => unary_handler::<M, host_alu::Not>(operands),
        Mnemonic::Aaa => ascii_adjust::<M, true>,
        Mnemonic::Aas => ascii_adjust::<M, false>,
        Mnemonic::Daa => decimal_adjust::<M, true>,
        Mnemonic::Das => decimal_adjust::<M, false>,
        Mnemonic::Aam => adjust_after_multiply,
        Mnemonic::Aad => adjust_before_divide,
        _ => return None,
    })
}

/// SF, ZF and PF of an 8-bit result, CF and AF as given. These instructions don't exist in
/// 64-bit mode, so the host's ALU can't be asked; OF is undefined and cleared.
fn set_decimal_flags<M>(m: &mut Machine<'_, M>, result: u64, carry: bool, adjust: bool) {
    host_alu::Test::apply::<u8>(result, result, &mut m.cpu.rflags);
    m.cpu.rflags &= !(flags::CF | flags::AF);
    m.cpu.rflags |= if carry { flags::CF } else { 0 } | if adjust { flags::AF } else { 0 };
}

fn ascii_adjust<M: GuestMemory, const ADD: bool>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let ax = u16::read(m.cpu, 0);
    let adjust = ax & 0xf > 9 || m.cpu.rflags & flags::AF != 0;
    let result = match (adjust, ADD) {
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(6).wrapping_sub(0x100),
        (false, _) => ax,
    } & 0xff0f;
    u16::write(m.cpu, 0, result);
    set_decimal_flags(m, result & 0xff, adjust, adjust);
    Ok(())
}

fn decimal_adjust<M: GuestMemory, const ADD: bool>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let old = u8::read(m.cpu, 0);
    let old_carry = m.cpu.rflags & flags::CF != 0;
    let adjust = old & 0xf > 9 || m.cpu.rflags & flags::AF != 0;
    let high = old > 0x99 || old_carry;
    let amount = if adjust { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let result = if ADD {
        old.wrapping_add(amount)
    } else {
        old.wrapping_sub(amount)
    } & 0xff;
    let carry = high || (!ADD && adjust && old < 6);
    u8::write(m.cpu, 0, result);
    set_decimal_flags(m, result, carry, adjust);
    Ok(())
}

fn adjust_after_multiply<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let base = op.imm & 0xff;
    if base == 0 {
        return Err(m.stop(GuestTrap::DivideError));
    }
    let al = u8::read(m.cpu, 0);
    u16::write(m.cpu, 0, ((al / base) << 8) | (al % base));
    set_decimal_flags(m, al % base, false, false);
    Ok(())
}

fn adjust_before_divide<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let ax = u16::read(m.cpu, 0);
    let al = (ax & 0xff).wrapping_add((ax >> 8).wrapping_mul(op.imm & 0xff)) & 0xff;
    u16::write(m.cpu, 0, al);
    set_decimal_flags(m, al, false, false);
    Ok(())
}
