//! From a host address in a superblock back to the guest's state.

use std::arch::asm;

use crate::guest::{CpuState, ExitKind, Gpr, ThreadContext, flags};
use crate::superblock::{FlagsOf, FlagsOperation, OptimizedCode, Sum, Value, state_at};
use crate::translate::recovery::Place;

/// Turns the registers that a superblock was interrupted with into the guest's.
pub(in crate::engine) fn recover(
    ctx: &mut ThreadContext,
    code: &OptimizedCode,
    offset: u32,
) -> Option<Place> {
    let state = state_at(code, offset)?;
    let host = ctx.cpu.clone();
    ctx.cpu.rip = state.guest;
    if let Some(store) = state.store {
        let at = host
            .get(Gpr::Rsp)
            .wrapping_add_signed(i64::from(store.displacement));
        if ctx.exit_kind == ExitKind::Fault as u64 {
            // The store itself: the guest is before the instruction.
            ctx.cpu.rip = store.instruction;
        } else {
            ctx.vector.materialize();
            let value = if store.is_vector {
                let lanes = ctx.vector.register(usize::from(store.register));
                u64::from_le_bytes(lanes[..8].try_into().expect("8 bytes"))
            } else {
                host.gpr[usize::from(store.register)]
            };
            // SAFETY: the guest's own frame, where the interrupted code was about to store;
            // it was read there when the superblock was entered.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    value.to_le_bytes().as_ptr(),
                    at as *mut u8,
                    usize::from(store.bytes),
                );
            }
        }
    }
    for &(register, value) in &state.registers {
        ctx.cpu.gpr[usize::from(register)] = evaluate(value, &host);
    }
    if state.spilled {
        ctx.cpu.set(Gpr::Rcx, ctx.spill[0]);
    }
    if let Some(pending) = state.flags {
        let status = status_flags(pending, &host);
        ctx.cpu.rflags = ctx.cpu.rflags & !flags::STATUS | status & flags::STATUS;
    }
    if !state.vectors.is_empty() || !code.borrowed_vectors.is_empty() {
        ctx.vector.materialize();
    }
    for &(register, from) in &state.vectors {
        let low = ctx.vector.register(usize::from(from));
        let mut value = ctx.vector.register(usize::from(register));
        value[..16].copy_from_slice(&low[..16]);
        ctx.vector.set_register(usize::from(register), &value);
    }
    if offset >= code.borrowed_from {
        for &register in &code.borrowed {
            // RCX may be what was spilled; then it isn't borrowed.
            ctx.cpu.gpr[usize::from(register)] = ctx.borrowed[usize::from(register)];
        }
        for &register in &code.borrowed_vectors {
            let mut value = ctx.vector.register(usize::from(register));
            value[..16].copy_from_slice(&ctx.borrowed_vectors[usize::from(register)]);
            ctx.vector.set_register(usize::from(register), &value);
        }
    }
    Some(Place::AtInstruction)
}

fn evaluate(value: Value, host: &CpuState) -> u64 {
    let register = |number: u8| host.gpr[usize::from(number)];
    match value {
        Value::SignExtended(of) => register(of) as u32 as i32 as i64 as u64,
        Value::Sum(Sum {
            base,
            index,
            displacement,
            is_32,
        }) => {
            let base = base.map_or(0, register);
            let index = index.map_or(0, |(index, scale)| {
                register(index).wrapping_mul(u64::from(scale))
            });
            let sum = base
                .wrapping_add(index)
                .wrapping_add_signed(i64::from(displacement));
            if is_32 { u64::from(sum as u32) } else { sum }
        }
    }
}

/// The flags that the CPU makes of an operation.
fn status_flags(of: FlagsOf, host: &CpuState) -> u64 {
    let left = evaluate(of.left, host);
    let right = evaluate(of.right, host);
    let flags: u64;
    // SAFETY: arithmetic on registers; the stack is used as a compiler may.
    unsafe {
        match (of.operation, of.is_32) {
            (FlagsOperation::Add, false) => asm!(
                "add {a}, {b}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::Add, true) => asm!(
                "add {a:e}, {b:e}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::Sub, false) => asm!(
                "sub {a}, {b}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::Sub, true) => asm!(
                "sub {a:e}, {b:e}", "pushfq", "pop {f}",
                a = inout(reg) left => _, b = in(reg) right, f = lateout(reg) flags),
            (FlagsOperation::ShiftLeft, false) => asm!(
                "shl {a}, cl", "pushfq", "pop {f}",
                a = inout(reg) left => _, in("cl") right as u8, f = lateout(reg) flags),
            (FlagsOperation::ShiftLeft, true) => asm!(
                "shl {a:e}, cl", "pushfq", "pop {f}",
                a = inout(reg) left => _, in("cl") right as u8, f = lateout(reg) flags),
        }
    }
    flags
}
