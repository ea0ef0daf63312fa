//! MUL, IMUL, DIV, IDIV and MULX. Division overflow is found before the host divides, so
//! the host never raises #DE.

use iced_x86::Mnemonic;

use crate::guest::{Gpr, GuestMemory, GuestTrap, Width};

use super::host_alu::{self, Divide, Multiply, Scan};
use super::machine::{Machine, Step};
use super::op::{Dst, Handler, Mem, Op, Source, Src, Third};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;

/// Writes a double-width result: AX, or xDX:xAX.
#[inline(always)]
fn write_pair<M, W: Scalar>(m: &mut Machine<'_, M>, low: u64, high: u64) {
    if W::WIDTH == Width::B1 {
        u16::write(m.cpu, RAX, low);
    } else {
        W::write(m.cpu, RAX, low);
        W::write(m.cpu, RDX, high);
    }
}

fn multiply<M: GuestMemory, O: Multiply, W: Scalar, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let b = S::get::<M, W>(op, m)?;
    let a = W::read(m.cpu, RAX);
    let (low, high) = O::apply::<W>(a, b, &mut m.cpu.rflags);
    write_pair::<M, W>(m, low, high);
    Ok(())
}

fn imul_two<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let b = S::get::<M, W>(op, m)?;
    let a = W::read(m.cpu, op.dst);
    let product = host_alu::ImulTwo::apply::<W>(a, b, &mut m.cpu.rflags);
    W::write(m.cpu, op.dst, product);
    Ok(())
}

fn imul_three<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let a = S::get::<M, W>(op, m)?;
    let product = host_alu::ImulTwo::apply::<W>(a, op.imm, &mut m.cpu.rflags);
    W::write(m.cpu, op.dst, product);
    Ok(())
}

/// The destination pair's high half (`op.dst`) is written last: it wins when both are one.
fn mulx<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let b = S::get::<M, W>(op, m)?;
    let product = u128::from(W::read(m.cpu, RDX)) * u128::from(b);
    W::write(m.cpu, op.src, product as u64);
    W::write(m.cpu, op.dst, (product >> W::BITS) as u64);
    Ok(())
}

trait Overflow: Divide {
    /// Whether the quotient of (high:low) / divisor doesn't fit. The divisor isn't zero.
    fn overflows<W: Scalar>(low: u64, high: u64, divisor: u64) -> bool;
}

impl Overflow for host_alu::Div {
    #[inline(always)]
    fn overflows<W: Scalar>(_: u64, high: u64, divisor: u64) -> bool {
        high >= divisor
    }
}

impl Overflow for host_alu::Idiv {
    #[inline(always)]
    fn overflows<W: Scalar>(low: u64, high: u64, divisor: u64) -> bool {
        let high = W::sign_extend(high);
        let divisor = W::sign_extend(divisor) as i64;
        let low_sign = ((W::sign_extend(low) as i64) >> 63) as u64;
        // A dividend that fits the width overflows only when the minimum is negated.
        if high == low_sign && divisor != -1 {
            return false;
        }
        let dividend = i128::from(high as i64) << W::BITS | i128::from(low & W::MASK);
        match dividend.checked_div(i128::from(divisor)) {
            None => true,
            Some(quotient) => {
                let limit = 1i128 << (W::BITS - 1);
                !(-limit..limit).contains(&quotient)
            }
        }
    }
}

fn divide<M: GuestMemory, O: Overflow, W: Scalar, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let divisor = S::get::<M, W>(op, m)?;
    let (low, high) = if W::WIDTH == Width::B1 {
        let ax = u16::read(m.cpu, RAX);
        (ax, ax >> 8)
    } else {
        (W::read(m.cpu, RAX), W::read(m.cpu, RDX))
    };
    if divisor == 0 || O::overflows::<W>(low & W::MASK, high, divisor) {
        return Err(m.stop(GuestTrap::DivideError));
    }
    let (low, high) = O::apply::<W>(low, high, divisor, &mut m.cpu.rflags);
    write_pair::<M, W>(m, low, high);
    Ok(())
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(
    mnemonic: Mnemonic,
    operands: &Operands,
) -> Option<Handler<M>> {
    let width = operands.width;
    let memory = operands.kinds[0] == Kind::Memory;
    let second_memory = operands.kinds[1] == Kind::Memory;
    Some(match (mnemonic, operands.count) {
        (Mnemonic::Mul, _) if memory => {
            by_width!(width, W => multiply::<M, host_alu::Mul, W, Mem>)
        }
        (Mnemonic::Mul, _) => by_width!(width, W => multiply::<M, host_alu::Mul, W, Dst>),
        (Mnemonic::Imul, 1) if memory => {
            by_width!(width, W => multiply::<M, host_alu::Imul, W, Mem>)
        }
        (Mnemonic::Imul, 1) => by_width!(width, W => multiply::<M, host_alu::Imul, W, Dst>),
        (Mnemonic::Imul, 2) if second_memory => {
            by_width!(width, W in [u16 u32 u64] => imul_two::<M, W, Mem>)
        }
        (Mnemonic::Imul, 2) => by_width!(width, W in [u16 u32 u64] => imul_two::<M, W, Src>),
        (Mnemonic::Imul, _) if second_memory => {
            by_width!(width, W in [u16 u32 u64] => imul_three::<M, W, Mem>)
        }
        (Mnemonic::Imul, _) => by_width!(width, W in [u16 u32 u64] => imul_three::<M, W, Src>),
        (Mnemonic::Div, _) if memory => by_width!(width, W => divide::<M, host_alu::Div, W, Mem>),
        (Mnemonic::Div, _) => by_width!(width, W => divide::<M, host_alu::Div, W, Dst>),
        (Mnemonic::Idiv, _) if memory => {
            by_width!(width, W => divide::<M, host_alu::Idiv, W, Mem>)
        }
        (Mnemonic::Idiv, _) => by_width!(width, W => divide::<M, host_alu::Idiv, W, Dst>),
        (Mnemonic::Mulx, _) if operands.kinds[2] == Kind::Memory => {
            by_width!(width, W in [u32 u64] => mulx::<M, W, Mem>)
        }
        (Mnemonic::Mulx, _) => by_width!(width, W in [u32 u64] => mulx::<M, W, Third>),
        _ => return None,
    })
}
