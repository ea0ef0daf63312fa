//! PUSH, POP and their relatives, ENTER, LEAVE, and the flags' way over the stack.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::guest::{Gpr, GuestMemory, Width, flags};

use super::machine::{Machine, Step, Stop};
use super::op::{Dst, Handler, Imm, Mem, Op, Place, Source};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};
use super::segments;

// The operand is read before RSP moves: PUSH RSP pushes the old value.
fn push<M: GuestMemory, W: Scalar, S: Source>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = S::get::<M, W>(op, m)?;
    m.push::<W>(op.stack_mask(), value)
}

// A memory operand addressed by RSP uses the value after the pop.
fn pop<M: GuestMemory, W: Scalar, P: Place>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let before = m.cpu.get(Gpr::Rsp);
    let value = m.pop::<W>(op.stack_mask())?;
    let at = P::at(op, m.cpu);
    let result = P::store::<M, W>(op, m, at, value);
    if result.is_err() {
        m.cpu.set(Gpr::Rsp, before);
    }
    result
}

fn push_segment<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.push::<W>(op.stack_mask(), u64::from(segments::selector(op.imm as u8)))
}

fn pop_segment<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let before = m.cpu.get(Gpr::Rsp);
    let value = m.pop::<W>(op.stack_mask())?;
    let result = segments::load(m, op.imm as u8, value as u16);
    if result.is_err() {
        m.cpu.set(Gpr::Rsp, before);
    }
    result
}

fn pushf<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    // RF and VM read as zero in the pushed image (Intel SDM volume 2, PUSHF).
    let image = m.cpu.rflags & !(0b11 << 16);
    m.push::<W>(op.stack_mask(), image)
}

/// What ring 3 makes of a flags image that it loads: IF and IOPL stay.
pub(super) fn set_user_flags<M, W: Scalar>(m: &mut Machine<'_, M>, image: u64) {
    let writable = flags::USER & W::MASK;
    m.cpu.rflags = m.cpu.rflags & !writable | image & writable | flags::FIXED;
}

// A set TF traps after the next instruction, a set AC changes how memory is accessed from
// there on: either way the block ends here.
fn popf<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let image = m.pop::<W>(op.stack_mask())?;
    set_user_flags::<M, W>(m, image);
    if m.cpu.rflags & (flags::TF | flags::AC) != 0 {
        return Err(Stop);
    }
    Ok(())
}

fn pusha<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let mask = op.stack_mask();
    let before = m.cpu.get(Gpr::Rsp);
    for register in 0..8 {
        let value = if register == Gpr::Rsp as u8 {
            before
        } else {
            W::read(m.cpu, register)
        };
        if let Err(stop) = m.push::<W>(mask, value) {
            m.cpu.set(Gpr::Rsp, before);
            return Err(stop);
        }
    }
    Ok(())
}

fn popa<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let mask = op.stack_mask();
    let mut values = [0; 8];
    for (slot, value) in values.iter_mut().enumerate() {
        *value = m.peek::<W>(mask, slot as u64 * W::BYTES)?;
    }
    let top = m.stack_at(mask, 8 * W::BYTES as i64);
    for register in (0..8).filter(|&r| r != Gpr::Rsp as u8) {
        W::write(m.cpu, register, values[usize::from(7 - register)]);
    }
    m.set_stack(mask, top);
    Ok(())
}

/// `op.imm` holds the frame size, and the nesting level above bit 16.
fn enter<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let mask = op.stack_mask();
    let size = op.imm & 0xffff;
    let level = (op.imm >> 16) & 31;
    let before = m.cpu.get(Gpr::Rsp);
    let old_frame = m.cpu.get(Gpr::Rbp);
    let result = (|| {
        m.push::<W>(mask, old_frame)?;
        let frame = m.cpu.get(Gpr::Rsp);
        for above in 1..level {
            let display = old_frame.wrapping_sub(above * W::BYTES) & mask;
            let value = m.load::<W>(Machine::<M>::stack_place(mask, display))?;
            m.push::<W>(mask, value)?;
        }
        if level > 0 {
            m.push::<W>(mask, frame)?;
        }
        let top = m.stack_at(mask, -(size as i64));
        // The CPU makes sure that the new top could be written (SDM volume 2, ENTER).
        let at = Machine::<M>::stack_place(mask, top);
        let probe = m.load_to_modify::<W>(at)?;
        m.store::<W>(at, probe)?;
        m.set_stack(mask, top);
        Ok(frame)
    })();
    match result {
        Ok(frame) => {
            W::write(m.cpu, Gpr::Rbp as u8, frame);
            Ok(())
        }
        Err(stop) => {
            m.cpu.set(Gpr::Rsp, before);
            Err(stop)
        }
    }
}

fn leave<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let mask = op.stack_mask();
    let frame = m.cpu.get(Gpr::Rbp);
    let value = m.load::<W>(Machine::<M>::stack_place(mask, frame & mask))?;
    m.set_stack(mask, frame.wrapping_add(W::BYTES));
    W::write(m.cpu, Gpr::Rbp as u8, value);
    Ok(())
}

/// How many bytes one push or pop of this instruction moves.
fn stack_width(instruction: &Instruction) -> Width {
    match instruction.stack_pointer_increment().abs() {
        2 => Width::B2,
        4 => Width::B4,
        _ => Width::B8,
    }
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(
    op: &mut Op<M>,
    instruction: &Instruction,
    operands: &Operands,
) -> Option<Handler<M>> {
    let width = || stack_width(instruction);
    Some(match instruction.mnemonic() {
        Mnemonic::Push => match operands.kinds[0] {
            Kind::Register => by_width!(width(), W in [u16 u32 u64] => push::<M, W, Dst>),
            Kind::Memory => by_width!(width(), W in [u16 u32 u64] => push::<M, W, Mem>),
            Kind::Immediate => by_width!(width(), W in [u16 u32 u64] => push::<M, W, Imm>),
            Kind::Other | Kind::None => {
                op.imm = segments::index(instruction.op0_register())?;
                by_width!(width(), W in [u16 u32 u64] => push_segment::<M, W>)
            }
        },
        Mnemonic::Pop => match operands.kinds[0] {
            Kind::Register => by_width!(width(), W in [u16 u32 u64] => pop::<M, W, Dst>),
            Kind::Memory => by_width!(width(), W in [u16 u32 u64] => pop::<M, W, Mem>),
            Kind::Immediate | Kind::Other | Kind::None => {
                op.imm = segments::index(instruction.op0_register())?;
                by_width!(width(), W in [u16 u32 u64] => pop_segment::<M, W>)
            }
        },
        Mnemonic::Pushf => pushf::<M, u16>,
        Mnemonic::Pushfd => pushf::<M, u32>,
        Mnemonic::Pushfq => pushf::<M, u64>,
        Mnemonic::Popf => popf::<M, u16>,
        Mnemonic::Popfd => popf::<M, u32>,
        Mnemonic::Popfq => popf::<M, u64>,
        Mnemonic::Pusha => pusha::<M, u16>,
        Mnemonic::Pushad => pusha::<M, u32>,
        Mnemonic::Popa => popa::<M, u16>,
        Mnemonic::Popad => popa::<M, u32>,
        Mnemonic::Enter => {
            op.imm = u64::from(instruction.immediate16())
                | u64::from(instruction.immediate8_2nd()) << 16;
            match instruction.code() {
                Code::Enterw_imm16_imm8 => enter::<M, u16>,
                Code::Enterd_imm16_imm8 => enter::<M, u32>,
                _ => enter::<M, u64>,
            }
        }
        Mnemonic::Leave => match instruction.code() {
            Code::Leavew => leave::<M, u16>,
            Code::Leaved => leave::<M, u32>,
            _ => leave::<M, u64>,
        },
        _ => return None,
    })
}
