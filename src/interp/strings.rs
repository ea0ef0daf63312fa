//! MOVS, CMPS, STOS, LODS and SCAS with every repeat prefix. RCX, RSI and RDI advance one
//! whole iteration at a time, so a fault in the middle leaves them as the CPU does. Long
//! ascending runs go in chunks that cross no page; a chunk that faults is done again element
//! by element, which finds the exact place.

use iced_x86::{Code, Instruction};

use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{Access, Gpr, GuestMemory, Width, flags, segmented};

use super::host_alu::{self, Binary};
use super::machine::{Machine, Step, Stop};
use super::op::{Handler, Op};
use super::operands::set_segment;
use super::scalar::{Scalar, by_width};

/// The repeat prefix: none, REP or REPE, REPNE.
const ONCE: u8 = 0;
const WHILE_EQUAL: u8 = 1;
const WHILE_NOT_EQUAL: u8 = 2;

/// Bytes in a chunk.
const CHUNK: usize = 512;
/// Fewer elements than this are not worth a chunk.
const MIN_CHUNKED: u64 = 8;

/// Sets a string register within the address size: 32-bit addressing clears the upper half.
#[inline(always)]
fn set_index(m: &mut u64, mask: u64, value: u64) {
    *m = if mask == 0xffff {
        *m & !mask | value & mask
    } else {
        value & mask
    };
}

#[inline(always)]
fn advance<M, W: Scalar>(m: &mut Machine<'_, M>, register: Gpr, mask: u64, elements: u64) {
    let bytes = elements.wrapping_mul(W::BYTES);
    let old = m.cpu.get(register);
    let new = if m.cpu.rflags & flags::DF != 0 {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    set_index(&mut m.cpu.gpr[register as usize], mask, new);
}

#[inline(always)]
fn source<M: GuestMemory>(op: &Op<M>, m: &Machine<'_, M>) -> GuestAddr {
    let offset = m.cpu.get(Gpr::Rsi) & op.special.address_mask();
    op.special.place::<M>(m.cpu, offset)
}

#[inline(always)]
fn destination<M: GuestMemory>(op: &Op<M>, m: &Machine<'_, M>) -> GuestAddr {
    const ES: u8 = 0;
    let offset = m.cpu.get(Gpr::Rdi) & op.special.address_mask();
    if M::SEGMENTED && op.special.is_segmented() {
        segmented(ES, offset)
    } else {
        GuestAddr(offset)
    }
}

/// What a chunk did.
struct Chunk {
    elements: u64,
    /// The comparison ended the repetition.
    ended: bool,
}

trait StringOp: 'static {
    const COMPARES: bool = false;

    /// One iteration, without RCX.
    fn step<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step;

    /// Up to `count` iterations at once, upwards; `None` when that can't be done here.
    fn chunk<M: GuestMemory, W: Scalar, const REPEAT: u8>(
        _op: &Op<M>,
        _m: &mut Machine<'_, M>,
        _count: u64,
    ) -> Option<Chunk> {
        None
    }
}

/// How many whole elements from the offset in `register` on stay within its page, its
/// address size and a chunk.
fn run_length<M: GuestMemory, W: Scalar>(
    op: &Op<M>,
    at: GuestAddr,
    offset: u64,
    count: u64,
) -> u64 {
    let mask = op.special.address_mask();
    let to_wrap = (mask - (offset & mask)).saturating_add(1);
    let bytes = (PAGE_SIZE - at.page_offset())
        .min(to_wrap)
        .min(CHUNK as u64);
    (bytes / W::BYTES).min(count)
}

/// Plain memory, where reading or writing in another width makes no difference.
fn plain<M: GuestMemory, W: Scalar>(
    m: &mut Machine<'_, M>,
    at: GuestAddr,
    elements: u64,
    access: Access,
) -> bool {
    let bytes = (elements * W::BYTES) as usize;
    elements > 1 && m.memory.direct(at, bytes, access).is_some()
}

struct Movs;

impl StringOp for Movs {
    #[inline(always)]
    fn step<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
        let value = m.load::<W>(source(op, m))?;
        m.store::<W>(destination(op, m), value)?;
        let mask = op.special.address_mask();
        advance::<M, W>(m, Gpr::Rsi, mask, 1);
        advance::<M, W>(m, Gpr::Rdi, mask, 1);
        Ok(())
    }

    fn chunk<M: GuestMemory, W: Scalar, const REPEAT: u8>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        count: u64,
    ) -> Option<Chunk> {
        let (from, to) = (source(op, m), destination(op, m));
        let mut elements = run_length::<M, W>(op, from, m.cpu.get(Gpr::Rsi), count);
        elements = run_length::<M, W>(op, to, m.cpu.get(Gpr::Rdi), elements);
        // A destination just above the source repeats what was just written.
        let distance = to.0.wrapping_sub(from.0);
        if distance != 0 {
            elements = elements.min(distance / W::BYTES);
        }
        if !plain::<M, W>(m, from, elements, Access::Read)
            || !plain::<M, W>(m, to, elements, Access::Write)
        {
            return None;
        }
        let mut buffer = [0; CHUNK];
        let buffer = &mut buffer[..(elements * W::BYTES) as usize];
        m.memory.read_bytes(from, buffer).ok()?;
        m.memory.write_bytes(to, buffer).ok()?;
        let mask = op.special.address_mask();
        advance::<M, W>(m, Gpr::Rsi, mask, elements);
        advance::<M, W>(m, Gpr::Rdi, mask, elements);
        Some(Chunk {
            elements,
            ended: false,
        })
    }
}

struct Stos;

impl StringOp for Stos {
    #[inline(always)]
    fn step<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
        let value = W::read(m.cpu, Gpr::Rax as u8);
        m.store::<W>(destination(op, m), value)?;
        advance::<M, W>(m, Gpr::Rdi, op.special.address_mask(), 1);
        Ok(())
    }

    fn chunk<M: GuestMemory, W: Scalar, const REPEAT: u8>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        count: u64,
    ) -> Option<Chunk> {
        let to = destination(op, m);
        let elements = run_length::<M, W>(op, to, m.cpu.get(Gpr::Rdi), count);
        if !plain::<M, W>(m, to, elements, Access::Write) {
            return None;
        }
        let value = W::read(m.cpu, Gpr::Rax as u8).to_le_bytes();
        let mut buffer = [0; CHUNK];
        let buffer = &mut buffer[..(elements * W::BYTES) as usize];
        for element in buffer.chunks_exact_mut(W::BYTES as usize) {
            element.copy_from_slice(&value[..W::BYTES as usize]);
        }
        m.memory.write_bytes(to, buffer).ok()?;
        advance::<M, W>(m, Gpr::Rdi, op.special.address_mask(), elements);
        Some(Chunk {
            elements,
            ended: false,
        })
    }
}

struct Lods;

impl StringOp for Lods {
    #[inline(always)]
    fn step<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
        let value = m.load::<W>(source(op, m))?;
        W::write(m.cpu, Gpr::Rax as u8, value);
        advance::<M, W>(m, Gpr::Rsi, op.special.address_mask(), 1);
        Ok(())
    }
}

/// Where two runs of elements first meet the end of the repetition; the flags are those of
/// the last comparison made.
fn compare_chunk<W: Scalar, const REPEAT: u8>(
    rflags: &mut u64,
    elements: u64,
    pair: impl Fn(usize) -> (u64, u64),
) -> Chunk {
    let ends = |index: u64| {
        let (a, b) = pair(index as usize);
        (a == b) == (REPEAT == WHILE_NOT_EQUAL)
    };
    let end = (0..elements).find(|&index| ends(index));
    let last = end.unwrap_or(elements - 1);
    let (a, b) = pair(last as usize);
    host_alu::Cmp::apply::<W>(a, b, rflags);
    Chunk {
        elements: last + 1,
        ended: end.is_some(),
    }
}

#[inline(always)]
fn element<W: Scalar>(bytes: &[u8], index: usize) -> u64 {
    let width = W::BYTES as usize;
    let mut value = [0; 8];
    value[..width].copy_from_slice(&bytes[index * width..][..width]);
    u64::from_le_bytes(value)
}

struct Cmps;

impl StringOp for Cmps {
    const COMPARES: bool = true;

    #[inline(always)]
    fn step<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
        let a = m.load::<W>(source(op, m))?;
        let b = m.load::<W>(destination(op, m))?;
        host_alu::Cmp::apply::<W>(a, b, &mut m.cpu.rflags);
        let mask = op.special.address_mask();
        advance::<M, W>(m, Gpr::Rsi, mask, 1);
        advance::<M, W>(m, Gpr::Rdi, mask, 1);
        Ok(())
    }

    fn chunk<M: GuestMemory, W: Scalar, const REPEAT: u8>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        count: u64,
    ) -> Option<Chunk> {
        let (from, to) = (source(op, m), destination(op, m));
        let mut elements = run_length::<M, W>(op, from, m.cpu.get(Gpr::Rsi), count);
        elements = run_length::<M, W>(op, to, m.cpu.get(Gpr::Rdi), elements);
        if !plain::<M, W>(m, from, elements, Access::Read)
            || !plain::<M, W>(m, to, elements, Access::Read)
        {
            return None;
        }
        let bytes = (elements * W::BYTES) as usize;
        let (mut a, mut b) = ([0; CHUNK], [0; CHUNK]);
        m.memory.read_bytes(from, &mut a[..bytes]).ok()?;
        m.memory.read_bytes(to, &mut b[..bytes]).ok()?;
        let chunk = compare_chunk::<W, REPEAT>(&mut m.cpu.rflags, elements, |index| {
            (element::<W>(&a, index), element::<W>(&b, index))
        });
        let mask = op.special.address_mask();
        advance::<M, W>(m, Gpr::Rsi, mask, chunk.elements);
        advance::<M, W>(m, Gpr::Rdi, mask, chunk.elements);
        Some(chunk)
    }
}

struct Scas;

impl StringOp for Scas {
    const COMPARES: bool = true;

    #[inline(always)]
    fn step<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
        let b = m.load::<W>(destination(op, m))?;
        let a = W::read(m.cpu, Gpr::Rax as u8);
        host_alu::Cmp::apply::<W>(a, b, &mut m.cpu.rflags);
        advance::<M, W>(m, Gpr::Rdi, op.special.address_mask(), 1);
        Ok(())
    }

    fn chunk<M: GuestMemory, W: Scalar, const REPEAT: u8>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        count: u64,
    ) -> Option<Chunk> {
        let to = destination(op, m);
        let elements = run_length::<M, W>(op, to, m.cpu.get(Gpr::Rdi), count);
        if !plain::<M, W>(m, to, elements, Access::Read) {
            return None;
        }
        let mut bytes = [0; CHUNK];
        m.memory
            .read_bytes(to, &mut bytes[..(elements * W::BYTES) as usize])
            .ok()?;
        let a = W::read(m.cpu, Gpr::Rax as u8);
        let chunk = compare_chunk::<W, REPEAT>(&mut m.cpu.rflags, elements, |index| {
            (a, element::<W>(&bytes, index))
        });
        advance::<M, W>(m, Gpr::Rdi, op.special.address_mask(), chunk.elements);
        Some(chunk)
    }
}

fn string<M: GuestMemory, O: StringOp, W: Scalar, const REPEAT: u8>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    if REPEAT == ONCE {
        return O::step::<M, W>(op, m);
    }
    let mask = op.special.address_mask();
    let in_chunks = m.cpu.rflags & (flags::DF | flags::AC | flags::TF) == 0;
    let stepping = m.cpu.rflags & flags::TF != 0;
    let flags_before = m.cpu.rflags;
    loop {
        let count = m.cpu.get(Gpr::Rcx) & mask;
        if count == 0 {
            return Ok(());
        }
        let chunk = if in_chunks && count >= MIN_CHUNKED {
            O::chunk::<M, W, REPEAT>(op, m, count)
        } else {
            None
        };
        let chunk = match chunk {
            Some(chunk) => chunk,
            None => {
                if let Err(stop) = O::step::<M, W>(op, m) {
                    // A fault restores the flags from before the whole instruction
                    // (Intel SDM volume 2, REP).
                    m.cpu.rflags = flags_before;
                    return Err(stop);
                }
                let equal = m.cpu.rflags & flags::ZF != 0;
                Chunk {
                    elements: 1,
                    ended: O::COMPARES && equal == (REPEAT == WHILE_NOT_EQUAL),
                }
            }
        };
        set_index(
            &mut m.cpu.gpr[Gpr::Rcx as usize],
            mask,
            count - chunk.elements,
        );
        if chunk.ended {
            return Ok(());
        }
        if stepping && count > chunk.elements {
            // The single-step trap comes between iterations too, at the instruction.
            m.cpu.rip = op.ip;
            return Ok(());
        }
        if m.is_interrupted() && count > chunk.elements {
            m.unfinished = true;
            return Err(Stop);
        }
    }
}

fn repeated<M: GuestMemory, O: StringOp>(instruction: &Instruction, width: Width) -> Handler<M> {
    if instruction.has_repne_prefix() {
        by_width!(width, W => string::<M, O, W, WHILE_NOT_EQUAL>)
    } else if instruction.has_rep_prefix() {
        by_width!(width, W => string::<M, O, W, WHILE_EQUAL>)
    } else {
        by_width!(width, W => string::<M, O, W, ONCE>)
    }
}

/// The handler for a string instruction other than INS and OUTS.
pub(super) fn handler<M: GuestMemory>(
    op: &mut Op<M>,
    instruction: &Instruction,
) -> Option<Handler<M>> {
    let handler = match instruction.code() {
        Code::Movsb_m8_m8 => repeated::<M, Movs>(instruction, Width::B1),
        Code::Movsw_m16_m16 => repeated::<M, Movs>(instruction, Width::B2),
        Code::Movsd_m32_m32 => repeated::<M, Movs>(instruction, Width::B4),
        Code::Movsq_m64_m64 => repeated::<M, Movs>(instruction, Width::B8),
        Code::Cmpsb_m8_m8 => repeated::<M, Cmps>(instruction, Width::B1),
        Code::Cmpsw_m16_m16 => repeated::<M, Cmps>(instruction, Width::B2),
        Code::Cmpsd_m32_m32 => repeated::<M, Cmps>(instruction, Width::B4),
        Code::Cmpsq_m64_m64 => repeated::<M, Cmps>(instruction, Width::B8),
        Code::Stosb_m8_AL => repeated::<M, Stos>(instruction, Width::B1),
        Code::Stosw_m16_AX => repeated::<M, Stos>(instruction, Width::B2),
        Code::Stosd_m32_EAX => repeated::<M, Stos>(instruction, Width::B4),
        Code::Stosq_m64_RAX => repeated::<M, Stos>(instruction, Width::B8),
        Code::Lodsb_AL_m8 => repeated::<M, Lods>(instruction, Width::B1),
        Code::Lodsw_AX_m16 => repeated::<M, Lods>(instruction, Width::B2),
        Code::Lodsd_EAX_m32 => repeated::<M, Lods>(instruction, Width::B4),
        Code::Lodsq_RAX_m64 => repeated::<M, Lods>(instruction, Width::B8),
        Code::Scasb_AL_m8 => repeated::<M, Scas>(instruction, Width::B1),
        Code::Scasw_AX_m16 => repeated::<M, Scas>(instruction, Width::B2),
        Code::Scasd_EAX_m32 => repeated::<M, Scas>(instruction, Width::B4),
        Code::Scasq_RAX_m64 => repeated::<M, Scas>(instruction, Width::B8),
        _ => return None,
    };
    op.special.set_address_bits(address_bits(instruction));
    set_segment(op, instruction);
    Some(handler)
}

/// The address size of the string operands.
fn address_bits(instruction: &Instruction) -> u32 {
    use iced_x86::OpKind;
    let of = |kind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(16),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(32),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(64),
        _ => None,
    };
    of(instruction.op0_kind())
        .or_else(|| of(instruction.op1_kind()))
        .unwrap_or(64)
}
