//! XCHG, XADD and the CMPXCHG family. With LOCK (XCHG with memory: always) one atomic step
//! through [`GuestMemory::compare_exchange`].

use iced_x86::Mnemonic;

use crate::guest::{Gpr, GuestMemory, GuestTrap, Width, flags};

use super::host_alu::{self, Binary};
use super::machine::{Machine, Step, is_canonical};
use super::op::{Handler, Op};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};

const RAX: u8 = Gpr::Rax as u8;

fn swap_registers<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let a = W::read(m.cpu, op.dst);
    let b = W::read(m.cpu, op.src);
    W::write(m.cpu, op.dst, b);
    W::write(m.cpu, op.src, a);
    Ok(())
}

fn swap_memory<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let (old, ()) = m.update::<W, _>(op.address(m.cpu), |cpu, _| (W::read(cpu, op.src), ()))?;
    W::write(m.cpu, op.src, old);
    Ok(())
}

/// As [`swap_memory`], written `xchg reg, mem`.
fn swap_with_memory<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let (old, ()) = m.update::<W, _>(op.address(m.cpu), |cpu, _| (W::read(cpu, op.dst), ()))?;
    W::write(m.cpu, op.dst, old);
    Ok(())
}

// The source is written before the destination, which wins when both are one register.
fn add_registers<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let old = W::read(m.cpu, op.dst);
    let added = W::read(m.cpu, op.src);
    let sum = host_alu::Add::apply::<W>(old, added, &mut m.cpu.rflags);
    W::write(m.cpu, op.src, old);
    W::write(m.cpu, op.dst, sum);
    Ok(())
}

fn add_memory<M: GuestMemory, W: Scalar, const LOCKED: bool>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let at = op.address(m.cpu);
    let added = W::read(m.cpu, op.src);
    let (old, rflags) = if LOCKED {
        m.update::<W, _>(at, |cpu, old| {
            let mut rflags = cpu.rflags;
            (host_alu::Add::apply::<W>(old, added, &mut rflags), rflags)
        })?
    } else {
        let old = m.load_to_modify::<W>(at)?;
        let mut rflags = m.cpu.rflags;
        let sum = host_alu::Add::apply::<W>(old, added, &mut rflags);
        m.store::<W>(at, sum)?;
        (old, rflags)
    };
    W::write(m.cpu, op.src, old);
    m.cpu.rflags = rflags;
    Ok(())
}

fn compare_registers<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    // AH to BH are operated on as if they stood in a register's low byte.
    if W::WIDTH == Width::B1 {
        let accumulator = u8::read(m.cpu, RAX);
        let held = u8::read(m.cpu, op.dst);
        let source = u8::read(m.cpu, op.src);
        host_alu::Cmp::apply::<u8>(accumulator, held, &mut m.cpu.rflags);
        if accumulator == held {
            u8::write(m.cpu, op.dst, source);
        } else {
            u8::write(m.cpu, RAX, held);
        }
        return Ok(());
    }
    let destination = usize::from(op.dst & 15);
    let source = m.cpu.gpr[usize::from(op.src & 15)];
    let (accumulator, held) = host_alu::cmpxchg::<W>(
        m.cpu.gpr[0],
        m.cpu.gpr[destination],
        source,
        &mut m.cpu.rflags,
    );
    // The accumulator as destination always compares equal.
    m.cpu.gpr[0] = accumulator;
    m.cpu.gpr[destination] = held;
    Ok(())
}

/// CMPXCHG with memory. Without LOCK it is still one step: atomic is stronger than asked.
/// Memory is written even when the comparison fails, as the CPU does.
fn compare_memory<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let accumulator = W::read(m.cpu, RAX);
    let source = W::read(m.cpu, op.src);
    let at = op.address(m.cpu);
    let held = match m.memory.compare_exchange(at, W::WIDTH, accumulator, source) {
        Ok(held) => held,
        Err(trap) => return Err(m.stop(trap)),
    };
    host_alu::Cmp::apply::<W>(accumulator, held, &mut m.cpu.rflags);
    if held != accumulator {
        W::write(m.cpu, RAX, held);
    }
    Ok(())
}

/// CMPXCHG8B (`W` is u32) and CMPXCHG16B (u64).
fn compare_pair<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let at = op.address(m.cpu);
    let pair = |m: &Machine<'_, M>, high: Gpr, low: Gpr| {
        u128::from(W::read(m.cpu, high as u8)) << W::BITS | u128::from(W::read(m.cpu, low as u8))
    };
    let expected = pair(m, Gpr::Rdx, Gpr::Rax);
    let new = pair(m, Gpr::Rcx, Gpr::Rbx);
    if W::WIDTH == Width::B8 && at.0 & 15 != 0 && is_canonical(at.0) {
        return Err(m.stop(GuestTrap::GeneralProtection));
    }
    let held = if W::WIDTH == Width::B8 {
        m.memory.compare_exchange_16(at, expected, new)
    } else {
        m.memory
            .compare_exchange(at, Width::B8, expected as u64, new as u64)
            .map(u128::from)
    };
    let held = match held {
        Ok(held) => held,
        Err(trap) => return Err(m.stop(trap)),
    };
    if held == expected {
        m.cpu.rflags |= flags::ZF;
    } else {
        m.cpu.rflags &= !flags::ZF;
        W::write(m.cpu, RAX, held as u64);
        W::write(m.cpu, Gpr::Rdx as u8, (held >> W::BITS) as u64);
    }
    Ok(())
}

fn no_such_instruction<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    Err(m.stop(GuestTrap::InvalidOpcode))
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(
    mnemonic: Mnemonic,
    operands: &Operands,
) -> Option<Handler<M>> {
    let width = operands.width;
    let memory = operands.kinds[0] == Kind::Memory;
    Some(match mnemonic {
        Mnemonic::Xchg if memory => by_width!(width, W => swap_memory::<M, W>),
        Mnemonic::Xchg if operands.kinds[1] == Kind::Memory => {
            by_width!(width, W => swap_with_memory::<M, W>)
        }
        Mnemonic::Xchg => by_width!(width, W => swap_registers::<M, W>),
        Mnemonic::Xadd if memory && operands.locked => {
            by_width!(width, W => add_memory::<M, W, true>)
        }
        Mnemonic::Xadd if memory => by_width!(width, W => add_memory::<M, W, false>),
        Mnemonic::Xadd => by_width!(width, W => add_registers::<M, W>),
        Mnemonic::Cmpxchg if memory => by_width!(width, W => compare_memory::<M, W>),
        Mnemonic::Cmpxchg => by_width!(width, W => compare_registers::<M, W>),
        Mnemonic::Cmpxchg8b if memory => compare_pair::<M, u32>,
        Mnemonic::Cmpxchg16b if memory => compare_pair::<M, u64>,
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => no_such_instruction,
        _ => return None,
    })
}
