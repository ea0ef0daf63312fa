//! Moves, extensions, LEA, conditional moves and sets, byte swaps, XLAT, and the
//! instructions that change single flags.

use iced_x86::{Instruction, Mnemonic, Register};

use crate::addr::GuestAddr;
use crate::guest::{Gpr, GuestMemory, Width, flags};

use super::condition::{by_condition, holds};
use super::machine::{Machine, Step};
use super::op::{Dst, Handler, Imm, Mem, Op, Place, Source, Src};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;

fn mov<M: GuestMemory, W: Scalar, P: Place, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = S::get::<M, W>(op, m)?;
    let at = P::at(op, m.cpu);
    P::store::<M, W>(op, m, at, value)
}

/// MOVZX and, with `SIGNED`, MOVSX and MOVSXD: from width `F` to width `W`.
fn extend<M: GuestMemory, W: Scalar, F: Scalar, S: Source, const SIGNED: bool>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let value = S::get::<M, F>(op, m)?;
    let value = if SIGNED { F::sign_extend(value) } else { value };
    W::write(m.cpu, op.dst, value);
    Ok(())
}

fn lea<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let offset = op.offset(m.cpu);
    W::write(m.cpu, op.dst, offset);
    Ok(())
}

fn movbe_load<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = Mem::get::<M, W>(op, m)?;
    W::write(m.cpu, op.dst, value.swap_bytes() >> (64 - W::BITS));
    Ok(())
}

fn movbe_store<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = W::read(m.cpu, op.src).swap_bytes() >> (64 - W::BITS);
    let at = op.address(m.cpu);
    m.store::<W>(at, value)
}

// A 16-bit BSWAP is undefined; this and earlier CPUs of both makers clear the register.
fn bswap<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = if W::WIDTH == Width::B2 {
        0
    } else {
        W::read(m.cpu, op.dst).swap_bytes() >> (64 - W::BITS)
    };
    W::write(m.cpu, op.dst, value);
    Ok(())
}

// The source is always read (and may fault); a 32-bit destination is always written, which
// clears its upper half.
fn cmov<M: GuestMemory, W: Scalar, S: Source, const CC: u8>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let value = S::get::<M, W>(op, m)?;
    let old = W::read(m.cpu, op.dst);
    let taken = holds::<CC>(m.cpu.rflags);
    W::write(m.cpu, op.dst, if taken { value } else { old });
    Ok(())
}

fn set<M: GuestMemory, P: Place, const CC: u8>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = u64::from(holds::<CC>(m.cpu.rflags));
    let at = P::at(op, m.cpu);
    P::store::<M, u8>(op, m, at, value)
}

/// CBW, CWDE, CDQE: the accumulator's lower half `F` into all of it.
fn widen<M: GuestMemory, W: Scalar, F: Scalar>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = F::sign_extend(F::read(m.cpu, RAX));
    W::write(m.cpu, RAX, value);
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign into the data register.
fn spread<M: GuestMemory, W: Scalar>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = W::sign_extend(W::read(m.cpu, RAX)) as i64 >> 63;
    W::write(m.cpu, RDX, value as u64);
    Ok(())
}

fn xlat<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let at = op.address_displaced(m.cpu, m.cpu.get(Gpr::Rax) & 0xff);
    let value = m.load::<u8>(GuestAddr(at.0))?;
    u8::write(m.cpu, RAX, value);
    Ok(())
}

const LAHF_FLAGS: u64 = flags::SF | flags::ZF | flags::AF | flags::PF | flags::CF;

fn lahf<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = m.cpu.rflags & LAHF_FLAGS | flags::FIXED;
    u8::write(m.cpu, RAX | super::scalar::HIGH, value);
    Ok(())
}

fn sahf<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = u8::read(m.cpu, RAX | super::scalar::HIGH);
    m.cpu.rflags = m.cpu.rflags & !LAHF_FLAGS | value & LAHF_FLAGS;
    Ok(())
}

fn salc<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let carry = m.cpu.rflags & flags::CF;
    u8::write(m.cpu, RAX, carry.wrapping_neg());
    Ok(())
}

fn clear_flag<M: GuestMemory, const FLAG: u64>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.cpu.rflags &= !FLAG;
    Ok(())
}

fn set_flag<M: GuestMemory, const FLAG: u64>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.cpu.rflags |= FLAG;
    Ok(())
}

fn complement_carry<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.cpu.rflags ^= flags::CF;
    Ok(())
}

fn extend_handler<M: GuestMemory, F: Scalar, S: Source, const SIGNED: bool>(
    width: Width,
) -> Handler<M> {
    by_width!(width, W in [u16 u32 u64] => extend::<M, W, F, S, SIGNED>)
}

fn extend_from<M: GuestMemory, const SIGNED: bool>(operands: &Operands) -> Handler<M> {
    let width = operands.width;
    match (operands.second_width, operands.kinds[1]) {
        (Width::B1, Kind::Memory) => extend_handler::<M, u8, Mem, SIGNED>(width),
        (Width::B1, _) => extend_handler::<M, u8, Src, SIGNED>(width),
        (Width::B2, Kind::Memory) => extend_handler::<M, u16, Mem, SIGNED>(width),
        (Width::B2, _) => extend_handler::<M, u16, Src, SIGNED>(width),
        (_, Kind::Memory) => extend_handler::<M, u32, Mem, SIGNED>(width),
        _ => extend_handler::<M, u32, Src, SIGNED>(width),
    }
}

/// The handler for an instruction of this family. MOV of segment and control registers is
/// the system family's.
pub(super) fn handler<M: GuestMemory>(
    op: &mut Op<M>,
    instruction: &Instruction,
    operands: &Operands,
) -> Option<Handler<M>> {
    let width = operands.width;
    let kinds = operands.kinds;
    Some(match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movdiri => match (kinds[0], kinds[1]) {
            (Kind::Register, Kind::Register) => by_width!(width, W => mov::<M, W, Dst, Src>),
            (Kind::Register, Kind::Immediate) => by_width!(width, W => mov::<M, W, Dst, Imm>),
            (Kind::Register, Kind::Memory) => by_width!(width, W => mov::<M, W, Dst, Mem>),
            (Kind::Memory, Kind::Register) => by_width!(width, W => mov::<M, W, Mem, Src>),
            (Kind::Memory, Kind::Immediate) => by_width!(width, W => mov::<M, W, Mem, Imm>),
            _ => return None,
        },
        Mnemonic::Movzx => extend_from::<M, false>(operands),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend_from::<M, true>(operands),
        Mnemonic::Lea => by_width!(width, W in [u16 u32 u64] => lea::<M, W>),
        Mnemonic::Movbe if kinds[0] == Kind::Memory => {
            by_width!(operands.second_width, W in [u16 u32 u64] => movbe_store::<M, W>)
        }
        Mnemonic::Movbe => by_width!(width, W in [u16 u32 u64] => movbe_load::<M, W>),
        Mnemonic::Bswap => by_width!(width, W in [u16 u32 u64] => bswap::<M, W>),
        Mnemonic::Cbw => widen::<M, u16, u8>,
        Mnemonic::Cwde => widen::<M, u32, u16>,
        Mnemonic::Cdqe => widen::<M, u64, u32>,
        Mnemonic::Cwd => spread::<M, u16>,
        Mnemonic::Cdq => spread::<M, u32>,
        Mnemonic::Cqo => spread::<M, u64>,
        Mnemonic::Xlatb => {
            // iced has AL as the index; the handler adds it.
            op.index_factor = 0;
            op.special
                .set_address_bits(match instruction.memory_base() {
                    Register::BX => 16,
                    Register::EBX => 32,
                    _ => 64,
                });
            xlat
        }
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        Mnemonic::Clc => clear_flag::<M, { flags::CF }>,
        Mnemonic::Stc => set_flag::<M, { flags::CF }>,
        Mnemonic::Cld => clear_flag::<M, { flags::DF }>,
        Mnemonic::Std => set_flag::<M, { flags::DF }>,
        Mnemonic::Cmc => complement_carry,
        _ => return None,
    })
}

/// CMOVcc.
pub(super) fn cmov_handler<M: GuestMemory>(condition: u8, operands: &Operands) -> Handler<M> {
    match (operands.width, operands.kinds[1]) {
        (Width::B8, Kind::Memory) => by_condition!(condition, CC => cmov::<M, u64, Mem, CC>),
        (Width::B8, _) => by_condition!(condition, CC => cmov::<M, u64, Src, CC>),
        (Width::B4, Kind::Memory) => by_condition!(condition, CC => cmov::<M, u32, Mem, CC>),
        (Width::B4, _) => by_condition!(condition, CC => cmov::<M, u32, Src, CC>),
        (_, Kind::Memory) => by_condition!(condition, CC => cmov::<M, u16, Mem, CC>),
        (_, _) => by_condition!(condition, CC => cmov::<M, u16, Src, CC>),
    }
}

/// SETcc.
pub(super) fn set_handler<M: GuestMemory>(condition: u8, operands: &Operands) -> Handler<M> {
    match operands.kinds[0] {
        Kind::Memory => by_condition!(condition, CC => set::<M, Mem, CC>),
        _ => by_condition!(condition, CC => set::<M, Dst, CC>),
    }
}
