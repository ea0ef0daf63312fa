//! Shifts and rotates, SHLD and SHRD, and the flagless shifts of BMI2.

use iced_x86::Mnemonic;

use crate::guest::GuestMemory;

use super::host_alu::{self, DoubleShift, Shift};
use super::machine::{Machine, Step};
use super::op::{Cl, Dst, Handler, Imm, Mem, Op, Place, Source, Src};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};

// A count of zero still reads and writes a memory operand, as the CPU does: it faults on a
// read-only page.
fn shift<M: GuestMemory, O: Shift, W: Scalar, P: Place, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let count = S::get::<M, u8>(op, m)? as u8;
    let at = P::at(op, m.cpu);
    let a = P::load::<M, W>(op, m, at)?;
    let mut rflags = m.cpu.rflags;
    let result = O::apply::<W>(a, count, &mut rflags);
    P::store::<M, W>(op, m, at, result)?;
    m.cpu.rflags = rflags;
    Ok(())
}

fn double_shift<M: GuestMemory, O: DoubleShift, W: Scalar, P: Place, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let count = S::get::<M, u8>(op, m)? as u8;
    let filler = W::read(m.cpu, op.src);
    let at = P::at(op, m.cpu);
    let a = P::load::<M, W>(op, m, at)?;
    let mut rflags = m.cpu.rflags;
    let result = O::apply::<W>(a, filler, count, &mut rflags);
    P::store::<M, W>(op, m, at, result)?;
    m.cpu.rflags = rflags;
    Ok(())
}

/// SARX, SHLX and SHRX by a register, RORX by an immediate: no flags.
trait PlainShift: 'static {
    fn apply<W: Scalar>(a: u64, count: u32) -> u64;
}

struct Left;
struct Right;
struct Arithmetic;
struct Rotate;

impl PlainShift for Left {
    #[inline(always)]
    fn apply<W: Scalar>(a: u64, count: u32) -> u64 {
        a << count
    }
}

impl PlainShift for Right {
    #[inline(always)]
    fn apply<W: Scalar>(a: u64, count: u32) -> u64 {
        a >> count
    }
}

impl PlainShift for Arithmetic {
    #[inline(always)]
    fn apply<W: Scalar>(a: u64, count: u32) -> u64 {
        ((W::sign_extend(a) as i64) >> count) as u64
    }
}

impl PlainShift for Rotate {
    #[inline(always)]
    fn apply<W: Scalar>(a: u64, count: u32) -> u64 {
        a >> count | a << ((W::BITS - count) & (W::BITS - 1))
    }
}

fn plain<M: GuestMemory, O: PlainShift, W: Scalar, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let a = S::get::<M, W>(op, m)?;
    let count = W::read(m.cpu, op.imm as u8) as u32 & (W::BITS - 1);
    W::write(m.cpu, op.dst, O::apply::<W>(a, count));
    Ok(())
}

fn rorx<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let a = S::get::<M, W>(op, m)?;
    let count = op.imm as u32 & (W::BITS - 1);
    W::write(m.cpu, op.dst, Rotate::apply::<W>(a, count));
    Ok(())
}

fn shift_handler<M: GuestMemory, O: Shift>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.kinds[0], operands.kinds[1]) {
        (Kind::Memory, Kind::Immediate) => by_width!(width, W => shift::<M, O, W, Mem, Imm>),
        (Kind::Memory, _) => by_width!(width, W => shift::<M, O, W, Mem, Cl>),
        (_, Kind::Immediate) => by_width!(width, W => shift::<M, O, W, Dst, Imm>),
        _ => by_width!(width, W => shift::<M, O, W, Dst, Cl>),
    }
}

fn double_handler<M: GuestMemory, O: DoubleShift>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.kinds[0], operands.kinds[2]) {
        (Kind::Memory, Kind::Immediate) => {
            by_width!(width, W in [u16 u32 u64] => double_shift::<M, O, W, Mem, Imm>)
        }
        (Kind::Memory, _) => {
            by_width!(width, W in [u16 u32 u64] => double_shift::<M, O, W, Mem, Cl>)
        }
        (_, Kind::Immediate) => {
            by_width!(width, W in [u16 u32 u64] => double_shift::<M, O, W, Dst, Imm>)
        }
        _ => by_width!(width, W in [u16 u32 u64] => double_shift::<M, O, W, Dst, Cl>),
    }
}

fn plain_handler<M: GuestMemory, O: PlainShift>(operands: &Operands) -> Handler<M> {
    match operands.kinds[1] {
        Kind::Memory => by_width!(operands.width, W in [u32 u64] => plain::<M, O, W, Mem>),
        _ => by_width!(operands.width, W in [u32 u64] => plain::<M, O, W, Src>),
    }
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(
    mnemonic: Mnemonic,
    operands: &Operands,
) -> Option<Handler<M>> {
    Some(match mnemonic {
        Mnemonic::Rol => shift_handler::<M, host_alu::Rol>(operands),
        Mnemonic::Ror => shift_handler::<M, host_alu::Ror>(operands),
        Mnemonic::Rcl => shift_handler::<M, host_alu::Rcl>(operands),
        Mnemonic::Rcr => shift_handler::<M, host_alu::Rcr>(operands),
        Mnemonic::Shl | Mnemonic::Sal => shift_handler::<M, host_alu::Shl>(operands),
        Mnemonic::Shr => shift_handler::<M, host_alu::Shr>(operands),
        Mnemonic::Sar => shift_handler::<M, host_alu::Sar>(operands),
        Mnemonic::Shld => double_handler::<M, host_alu::Shld>(operands),
        Mnemonic::Shrd => double_handler::<M, host_alu::Shrd>(operands),
        Mnemonic::Shlx => plain_handler::<M, Left>(operands),
        Mnemonic::Shrx => plain_handler::<M, Right>(operands),
        Mnemonic::Sarx => plain_handler::<M, Arithmetic>(operands),
        Mnemonic::Rorx => match operands.kinds[1] {
            Kind::Memory => by_width!(operands.width, W in [u32 u64] => rorx::<M, W, Mem>),
            _ => by_width!(operands.width, W in [u32 u64] => rorx::<M, W, Src>),
        },
        _ => return None,
    })
}
