//! Bit tests, scans and counts, BMI1, BMI2, ADX and CRC32.

use iced_x86::Mnemonic;

use crate::guest::{GuestMemory, Width};

use super::host_alu::{self, Scan, Ternary};
use super::machine::{Machine, Step};
use super::op::{Dst, Handler, Imm, Mem, Op, Place, Source, Src, Third};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};

/// An instruction on the whole destination register and a source.
fn scan<M: GuestMemory, O: Scan, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let b = S::get::<M, W>(op, m)?;
    let a = m.cpu.gpr[usize::from(op.dst & 15)];
    m.cpu.gpr[usize::from(op.dst & 15)] = O::apply::<W>(a, b, &mut m.cpu.rflags);
    Ok(())
}

/// BLSI and its kin: the result goes to a register that isn't read.
fn one_source<M: GuestMemory, O: Scan, W: Scalar, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let b = S::get::<M, W>(op, m)?;
    let result = O::apply::<W>(0, b, &mut m.cpu.rflags);
    W::write(m.cpu, op.dst, result);
    Ok(())
}

fn ternary<M: GuestMemory, O: Ternary, W: Scalar, A: Source, B: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let a = A::get::<M, W>(op, m)?;
    let b = B::get::<M, W>(op, m)?;
    let result = O::apply::<W>(a, b, &mut m.cpu.rflags);
    W::write(m.cpu, op.dst, result);
    Ok(())
}

fn crc32<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let data = S::get::<M, W>(op, m)?;
    let crc = m.cpu.gpr[usize::from(op.dst & 15)];
    m.cpu.gpr[usize::from(op.dst & 15)] = host_alu::crc32::<W>(crc, data);
    Ok(())
}

/// BT of a register or of memory by an immediate, which is taken modulo the width.
fn test_bit<M: GuestMemory, W: Scalar, P: Source, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let index = S::get::<M, W>(op, m)? & u64::from(W::BITS - 1);
    let a = P::get::<M, W>(op, m)?;
    host_alu::Bt::apply::<W>(a, index, &mut m.cpu.rflags);
    Ok(())
}

/// BTS, BTR, BTC likewise.
fn change_bit<M: GuestMemory, O: Scan, W: Scalar, P: Place, S: Source>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let index = S::get::<M, W>(op, m)? & u64::from(W::BITS - 1);
    let at = P::at(op, m.cpu);
    let a = P::load::<M, W>(op, m, at)?;
    let mut rflags = m.cpu.rflags;
    let result = O::apply::<W>(a, index, &mut rflags);
    P::store::<M, W>(op, m, at, result)?;
    m.cpu.rflags = rflags;
    Ok(())
}

/// Where a bit string in memory keeps the bit that register `op.src` names: the address of
/// its word, and the bit's number there (Intel SDM volume 1, figure 4-13 and BT).
fn bit_string<M: GuestMemory, W: Scalar>(
    op: &Op<M>,
    m: &Machine<'_, M>,
) -> (crate::addr::GuestAddr, u64) {
    let bit = W::sign_extend(W::read(m.cpu, op.src));
    let words = (bit as i64) >> W::BITS.trailing_zeros();
    let at = op.address_displaced(m.cpu, (words as u64).wrapping_mul(W::BYTES));
    (at, bit & u64::from(W::BITS - 1))
}

fn test_string<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let (at, bit) = bit_string::<M, W>(op, m);
    let word = m.load::<W>(at)?;
    host_alu::Bt::apply::<W>(word, bit, &mut m.cpu.rflags);
    Ok(())
}

fn change_string<M: GuestMemory, O: Scan, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let (at, bit) = bit_string::<M, W>(op, m);
    let word = m.load_to_modify::<W>(at)?;
    let mut rflags = m.cpu.rflags;
    let result = O::apply::<W>(word, bit, &mut rflags);
    m.store::<W>(at, result)?;
    m.cpu.rflags = rflags;
    Ok(())
}

fn change_bit_locked<M: GuestMemory, O: Scan, W: Scalar, const STRING: bool>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let (at, bit) = if STRING {
        bit_string::<M, W>(op, m)
    } else {
        (op.address(m.cpu), op.imm & u64::from(W::BITS - 1))
    };
    let (_, rflags) = m.update::<W, _>(at, |cpu, old| {
        let mut rflags = cpu.rflags;
        (O::apply::<W>(old, bit, &mut rflags), rflags)
    })?;
    m.cpu.rflags = rflags;
    Ok(())
}

fn scan_handler<M: GuestMemory, O: Scan>(operands: &Operands) -> Handler<M> {
    match operands.kinds[1] {
        Kind::Memory => by_width!(operands.width, W in [u16 u32 u64] => scan::<M, O, W, Mem>),
        _ => by_width!(operands.width, W in [u16 u32 u64] => scan::<M, O, W, Src>),
    }
}

fn one_source_handler<M: GuestMemory, O: Scan>(operands: &Operands) -> Handler<M> {
    match operands.kinds[1] {
        Kind::Memory => by_width!(operands.width, W in [u32 u64] => one_source::<M, O, W, Mem>),
        _ => by_width!(operands.width, W in [u32 u64] => one_source::<M, O, W, Src>),
    }
}

fn ternary_handler<M: GuestMemory, O: Ternary>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.kinds[1], operands.kinds[2]) {
        (Kind::Memory, _) => by_width!(width, W in [u32 u64] => ternary::<M, O, W, Mem, Third>),
        (_, Kind::Memory) => by_width!(width, W in [u32 u64] => ternary::<M, O, W, Src, Mem>),
        _ => by_width!(width, W in [u32 u64] => ternary::<M, O, W, Src, Third>),
    }
}

fn change_handler<M: GuestMemory, O: Scan>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.kinds[0], operands.kinds[1], operands.locked) {
        (Kind::Memory, Kind::Immediate, true) => {
            by_width!(width, W in [u16 u32 u64] => change_bit_locked::<M, O, W, false>)
        }
        (Kind::Memory, _, true) => {
            by_width!(width, W in [u16 u32 u64] => change_bit_locked::<M, O, W, true>)
        }
        (Kind::Memory, Kind::Immediate, false) => {
            by_width!(width, W in [u16 u32 u64] => change_bit::<M, O, W, Mem, Imm>)
        }
        (Kind::Memory, _, false) => {
            by_width!(width, W in [u16 u32 u64] => change_string::<M, O, W>)
        }
        (_, Kind::Immediate, _) => {
            by_width!(width, W in [u16 u32 u64] => change_bit::<M, O, W, Dst, Imm>)
        }
        _ => by_width!(width, W in [u16 u32 u64] => change_bit::<M, O, W, Dst, Src>),
    }
}

fn test_handler<M: GuestMemory>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.kinds[0], operands.kinds[1]) {
        (Kind::Memory, Kind::Immediate) => {
            by_width!(width, W in [u16 u32 u64] => test_bit::<M, W, Mem, Imm>)
        }
        (Kind::Memory, _) => by_width!(width, W in [u16 u32 u64] => test_string::<M, W>),
        (_, Kind::Immediate) => {
            by_width!(width, W in [u16 u32 u64] => test_bit::<M, W, Dst, Imm>)
        }
        _ => by_width!(width, W in [u16 u32 u64] => test_bit::<M, W, Dst, Src>),
    }
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(
    mnemonic: Mnemonic,
    operands: &Operands,
) -> Option<Handler<M>> {
    Some(match mnemonic {
        Mnemonic::Bt => test_handler(operands),
        Mnemonic::Bts => change_handler::<M, host_alu::Bts>(operands),
        Mnemonic::Btr => change_handler::<M, host_alu::Btr>(operands),
        Mnemonic::Btc => change_handler::<M, host_alu::Btc>(operands),
        Mnemonic::Bsf => scan_handler::<M, host_alu::Bsf>(operands),
        Mnemonic::Bsr => scan_handler::<M, host_alu::Bsr>(operands),
        Mnemonic::Lzcnt => scan_handler::<M, host_alu::Lzcnt>(operands),
        Mnemonic::Tzcnt => scan_handler::<M, host_alu::Tzcnt>(operands),
        Mnemonic::Popcnt => scan_handler::<M, host_alu::Popcnt>(operands),
        Mnemonic::Adcx => scan_handler::<M, host_alu::Adcx>(operands),
        Mnemonic::Adox => scan_handler::<M, host_alu::Adox>(operands),
        Mnemonic::Blsi => one_source_handler::<M, host_alu::Blsi>(operands),
        Mnemonic::Blsmsk => one_source_handler::<M, host_alu::Blsmsk>(operands),
        Mnemonic::Blsr => one_source_handler::<M, host_alu::Blsr>(operands),
        Mnemonic::Andn => ternary_handler::<M, host_alu::Andn>(operands),
        Mnemonic::Bextr if operands.kinds[2] != Kind::Immediate => {
            ternary_handler::<M, host_alu::Bextr>(operands)
        }
        Mnemonic::Bzhi => ternary_handler::<M, host_alu::Bzhi>(operands),
        Mnemonic::Pdep => ternary_handler::<M, host_alu::Pdep>(operands),
        Mnemonic::Pext => ternary_handler::<M, host_alu::Pext>(operands),
        Mnemonic::Crc32 => {
            let width: Width = operands.second_width;
            match operands.kinds[1] {
                Kind::Memory => by_width!(width, W => crc32::<M, W, Mem>),
                _ => by_width!(width, W => crc32::<M, W, Src>),
            }
        }
        _ => return None,
    })
}
