//! Far transfers and returns from interrupts, as far as ring 3 of a flat 64-bit process goes:
//! to the code segment that the guest is in. Other selectors are a descriptor table's
//! business; those of Linux's 32-bit segment end in `Unsupported`, the rest in #GP.

use iced_x86::{Code, Instruction};

use crate::guest::{Gpr, GuestMemory, GuestTrap, Width};

use super::machine::{Machine, Step};
use super::op::{Handler, Op};
use super::scalar::{Scalar, by_width};
use super::{segments, stack};

const CS: u8 = 1;
const SS: u8 = 2;
/// Linux's selector of 32-bit user code.
const USER32_CS: u16 = 0x23;

fn check_code_segment<M: GuestMemory>(m: &mut Machine<'_, M>, selector: u64) -> Step {
    let selector = selector as u16;
    if selector == segments::selector(CS) {
        Ok(())
    } else if selector == USER32_CS {
        Err(m.stop(GuestTrap::Unsupported))
    } else {
        Err(m.stop(GuestTrap::GeneralProtection))
    }
}

fn jump<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let target = m.load::<W>(op.address(m.cpu))?;
    let selector = m.load::<u16>(op.address_displaced(m.cpu, W::BYTES))?;
    check_code_segment(m, selector)?;
    m.cpu.rip = target;
    Ok(())
}

fn call<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let target = m.load::<W>(op.address(m.cpu))?;
    let selector = m.load::<u16>(op.address_displaced(m.cpu, W::BYTES))?;
    check_code_segment(m, selector)?;
    let before = m.cpu.get(Gpr::Rsp);
    m.push::<W>(op.stack_mask(), u64::from(segments::selector(CS)))?;
    if let Err(stop) = m.push::<W>(op.stack_mask(), op.next_ip()) {
        m.cpu.set(Gpr::Rsp, before);
        return Err(stop);
    }
    m.cpu.rip = target;
    Ok(())
}

/// `op.imm` is the number of argument bytes to drop.
fn ret<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let mask = op.stack_mask();
    let [target, selector] = peek::<M, W, 2>(op, m)?;
    check_code_segment(m, selector)?;
    let top = m.stack_at(mask, 2 * W::BYTES as i64 + op.imm as i64);
    m.set_stack(mask, top);
    m.cpu.rip = target;
    Ok(())
}

/// In 64-bit mode IRET always pops all five values.
fn iret<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let [target, code, image, top, stack] = peek::<M, W, 5>(op, m)?;
    check_code_segment(m, code)?;
    if stack as u16 != segments::selector(SS) {
        return Err(m.stop(GuestTrap::GeneralProtection));
    }
    stack::set_user_flags::<M, W>(m, image);
    m.cpu.set(Gpr::Rsp, top);
    m.cpu.rip = target;
    Ok(())
}

/// The `N` topmost values of the stack.
fn peek<M: GuestMemory, W: Scalar, const N: usize>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step<[u64; N]> {
    let mut values = [0; N];
    for (slot, value) in values.iter_mut().enumerate() {
        *value = m.peek::<W>(op.stack_mask(), slot as u64 * W::BYTES)?;
    }
    Ok(values)
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(instruction: &Instruction) -> Option<Handler<M>> {
    enum Kind {
        Jump,
        Call,
        Return,
        Interrupt,
    }
    let (kind, width) = match instruction.code() {
        Code::Jmp_m1616 => (Kind::Jump, Width::B2),
        Code::Jmp_m1632 => (Kind::Jump, Width::B4),
        Code::Jmp_m1664 => (Kind::Jump, Width::B8),
        Code::Call_m1616 => (Kind::Call, Width::B2),
        Code::Call_m1632 => (Kind::Call, Width::B4),
        Code::Call_m1664 => (Kind::Call, Width::B8),
        Code::Retfw | Code::Retfw_imm16 => (Kind::Return, Width::B2),
        Code::Retfd | Code::Retfd_imm16 => (Kind::Return, Width::B4),
        Code::Retfq | Code::Retfq_imm16 => (Kind::Return, Width::B8),
        Code::Iretw => (Kind::Interrupt, Width::B2),
        Code::Iretd => (Kind::Interrupt, Width::B4),
        Code::Iretq => (Kind::Interrupt, Width::B8),
        _ => return None,
    };
    Some(match kind {
        Kind::Jump => by_width!(width, W in [u16 u32 u64] => jump::<M, W>),
        Kind::Call => by_width!(width, W in [u16 u32 u64] => call::<M, W>),
        Kind::Return => by_width!(width, W in [u16 u32 u64] => ret::<M, W>),
        Kind::Interrupt => by_width!(width, W in [u16 u32 u64] => iret::<M, W>),
    })
}
