//! Everything that isn't integer code: the real instruction, run by a stub of `native` on
//! the guest's registers, with its memory operand given as a host pointer.

use iced_x86::{Instruction, OpKind, Register};

use crate::guest::{Access, GuestMemory, GuestTrap};
use crate::native::{Addressing, StubCache};

use super::machine::{Machine, Step, through_stack_segment};
use super::op::Op;

/// The largest memory operand that is bounced (an XSAVE area with AMX tiles fits).
const MAX_BOUNCE: usize = 16 * 1024;

const ACCESS_SHIFT: u32 = 32;
const BYTES_MASK: u64 = 0xffff_ffff;

/// Makes `op` run `instruction` through a stub, or trap where there can be none.
pub(super) fn prepare<M: GuestMemory>(
    op: &mut Op<M>,
    instruction: &Instruction,
    stubs: &mut StubCache,
) {
    // A segment prefix without a memory operand means nothing, but would make another stub.
    let mut plain;
    let mut instruction = instruction;
    if instruction.has_segment_prefix() && !touches_memory(instruction) {
        plain = *instruction;
        plain.set_segment_prefix(Register::None);
        instruction = &plain;
    }
    let id = match stubs.stub(instruction) {
        Ok(id) => id,
        Err(refusal) => {
            tracing::debug!(target: "interp", at = %format_args!("{:#x}", op.ip), %refusal);
            op.run = unsupported;
            return;
        }
    };
    op.stub = Some(id);
    op.run = match stubs.memory_operand(id) {
        None => on_registers,
        Some(memory) => {
            let access = match memory.access {
                Access::Read => 0,
                Access::Write => 1,
                Access::ReadWrite => 2,
            };
            op.imm = memory.bytes as u64 & BYTES_MASK | access << ACCESS_SHIFT;
            match memory.addressing {
                Addressing::Pointer => on_memory,
                Addressing::AsWritten => as_written,
            }
        }
    };
}

fn touches_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| {
        matches!(
            instruction.op_kind(i),
            OpKind::Memory
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
        )
    })
}

fn unsupported<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    Err(m.stop(GuestTrap::Unsupported))
}

fn run<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>, memory: *mut u8) -> Step {
    let Some(id) = op.stub else {
        return unsupported(op, m);
    };
    // SAFETY: `memory` is null where the stub takes none; otherwise it is what `direct`
    // granted for the operand's size and access, or a bounce buffer of that size. Guest
    // memory that grants pointers at the guest's own addresses is identity mapped.
    let result = unsafe { m.stubs.run(id, m.cpu, m.vector, memory) };
    match result {
        Ok(()) => Ok(()),
        Err(trap) => Err(m.stop(trap)),
    }
}

fn on_registers<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    run(op, m, std::ptr::null_mut())
}

fn operand<M: GuestMemory>(op: &Op<M>) -> (usize, Access) {
    let access = match op.imm >> ACCESS_SHIFT {
        0 => Access::Read,
        1 => Access::Write,
        _ => Access::ReadWrite,
    };
    ((op.imm & BYTES_MASK) as usize, access)
}

fn on_memory<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let (bytes, access) = operand(op);
    let at = op.address(m.cpu);
    match m.memory.direct(at, bytes, access) {
        Some(pointer) => run(op, m, pointer),
        None => bounce(op, m, bytes, access),
    }
}

/// Gathers and their like, which address memory themselves: only where a guest address is
/// a host address.
fn as_written<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let (bytes, access) = operand(op);
    let at = op.address(m.cpu);
    match m.memory.direct(at, bytes, access) {
        Some(pointer) if pointer as u64 == at.0 => run(op, m, pointer),
        _ => unsupported(op, m),
    }
}

#[cold]
fn bounce<M: GuestMemory>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
    bytes: usize,
    access: Access,
) -> Step {
    #[repr(align(64))]
    struct Aligned([u8; MAX_BOUNCE + 64]);
    if bytes > MAX_BOUNCE {
        return unsupported(op, m);
    }
    let at = op.address(m.cpu);
    let mut buffer = Aligned([0; MAX_BOUNCE + 64]);
    // An operand that must be aligned faults in the buffer just as it would in place.
    let start = (at.0 & 63) as usize;
    let window = start..start + bytes;
    // A written operand is read first too: masked stores leave bytes alone.
    if let Err(trap) = m.memory.read_bytes(at, &mut buffer.0[window.clone()]) {
        return Err(m.stop(bounced(op, trap)));
    }
    if access != Access::Read
        && let Err(trap) = m.memory.probe_write(at, bytes)
    {
        return Err(m.stop(bounced(op, trap)));
    }
    run(op, m, buffer.0[window.clone()].as_mut_ptr())?;
    match access {
        Access::Read => Ok(()),
        Access::Write | Access::ReadWrite => m
            .memory
            .write_bytes(at, &buffer.0[window])
            .map_err(|trap| m.stop(bounced(op, trap))),
    }
}

/// The trap of copying an operand, as the instruction itself would have raised it.
fn bounced<M: GuestMemory>(op: &Op<M>, trap: GuestTrap) -> GuestTrap {
    if op.is_in_stack_segment() {
        through_stack_segment(trap)
    } else {
        trap
    }
}
