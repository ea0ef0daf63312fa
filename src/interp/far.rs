//! Far transfers and returns from interrupts, as far as ring 3 of a flat 64-bit process goes:
//! to the code segment that the guest is in. Other selectors are a descriptor table's
//! business; those of Linux's 32-bit segment end in `Unsupported`, the rest in #GP.

use std::arch::x86_64::__cpuid;

use iced_x86::{Code, Instruction};

use crate::guest::{Gpr, GuestMemory, GuestTrap};

use super::machine::{Machine, Step};
use super::op::{Handler, Op};
use super::scalar::Scalar;
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

/// Whether the CPU reads a 64-bit offset with REX.W. AMD's reads 32 bits, whatever the
/// prefix (AMD64 manual volume 3, CALL far), and pushes by the prefix all the same.
pub(super) fn has_wide_far_pointers() -> bool {
    let vendor = __cpuid(0).ebx.to_le_bytes();
    !matches!(&vendor, b"Auth" | b"Hygo")
}

/// A far pointer in memory whose offset has width `F`.
fn far_pointer<M: GuestMemory, F: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step<u64> {
    let target = m.load::<F>(op.address(m.cpu))?;
    let selector = m.load::<u16>(op.address_displaced(m.cpu, F::BYTES))?;
    check_code_segment(m, selector)?;
    m.check_target(target)?;
    Ok(target)
}

fn jump<M: GuestMemory, F: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.cpu.rip = far_pointer::<M, F>(op, m)?;
    Ok(())
}

fn call<M: GuestMemory, F: Scalar, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let target = far_pointer::<M, F>(op, m)?;
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
    m.check_target(target)?;
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
    Some(match instruction.code() {
        Code::Jmp_m1616 => jump::<M, u16>,
        Code::Jmp_m1632 => jump::<M, u32>,
        Code::Jmp_m1664 if has_wide_far_pointers() => jump::<M, u64>,
        Code::Jmp_m1664 => jump::<M, u32>,
        Code::Call_m1616 => call::<M, u16, u16>,
        Code::Call_m1632 => call::<M, u32, u32>,
        Code::Call_m1664 if has_wide_far_pointers() => call::<M, u64, u64>,
        Code::Call_m1664 => call::<M, u32, u64>,
        Code::Retfw | Code::Retfw_imm16 => ret::<M, u16>,
        Code::Retfd | Code::Retfd_imm16 => ret::<M, u32>,
        Code::Retfq | Code::Retfq_imm16 => ret::<M, u64>,
        Code::Iretw => iret::<M, u16>,
        Code::Iretd => iret::<M, u32>,
        Code::Iretq => iret::<M, u64>,
        _ => return None,
    })
}
