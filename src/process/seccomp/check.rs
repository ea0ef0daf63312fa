//! Which programs the kernel takes, after bpf_check_classic and bpf_convert_filter of
//! linux/net/core/filter.c and seccomp_check_filter of linux/kernel/seccomp.c. The kernel
//! answers EINVAL to all that is wrong, so there is one reason, not many.

use super::data::DATA_BYTES;
use super::program::{Alu, Instruction, MEMORY_WORDS, Program, RawInstruction, Source, Test};

/// The longest program (BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// The kernel would refuse this program (EINVAL).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalid;

/// Codes of linux/bpf_common.h that a filter may use, each a class with its mode or
/// operation and its source.
mod code {
    pub const LOAD: u16 = 0x00;
    pub const LOAD_ABSOLUTE: u16 = 0x20;
    pub const LOAD_MEMORY: u16 = 0x60;
    pub const LOAD_LENGTH: u16 = 0x80;
    pub const LOAD_X: u16 = 0x01;
    pub const LOAD_X_MEMORY: u16 = 0x61;
    pub const LOAD_X_LENGTH: u16 = 0x81;
    pub const STORE: u16 = 0x02;
    pub const STORE_X: u16 = 0x03;
    pub const NEGATE: u16 = 0x84;
    pub const SKIP: u16 = 0x05;
    pub const RETURN: u16 = 0x06;
    pub const RETURN_ACCUMULATOR: u16 = 0x16;
    pub const TO_X: u16 = 0x07;
    pub const FROM_X: u16 = 0x87;

    pub const CLASS: u16 = 0x07;
    pub const CLASS_ALU: u16 = 0x04;
    pub const CLASS_JUMP: u16 = 0x05;
    /// The second operand is X, not the constant.
    pub const SOURCE_X: u16 = 0x08;
}

impl Program {
    /// Checks a program.
    ///
    /// # Errors
    /// The kernel would refuse it.
    pub fn new(raw: Vec<RawInstruction>) -> Result<Program, Invalid> {
        if raw.is_empty() || raw.len() > MAX_INSTRUCTIONS {
            return Err(Invalid);
        }
        let instructions = raw
            .iter()
            .map(|&raw| instruction(raw))
            .collect::<Result<Vec<_>, _>>()?;
        check_skips(&instructions)?;
        check_slots(&instructions)?;
        match instructions.last() {
            Some(Instruction::Return(_) | Instruction::ReturnAccumulator) => {}
            _ => return Err(Invalid),
        }
        let kernel_length = PROLOGUE + instructions.iter().map(kernel_length).sum::<u32>();
        Ok(Program {
            raw: raw.into(),
            instructions: instructions.into(),
            kernel_length,
        })
    }
}

fn instruction(raw: RawInstruction) -> Result<Instruction, Invalid> {
    let RawInstruction { code, jt, jf, k } = raw;
    let slot = || {
        u8::try_from(k)
            .ok()
            .filter(|k| usize::from(*k) < MEMORY_WORDS)
    };
    let slot = || slot().ok_or(Invalid);
    Ok(match code {
        code::LOAD_ABSOLUTE if k < DATA_BYTES && k % 4 == 0 => Instruction::LoadData(k as u8),
        code::LOAD_ABSOLUTE => return Err(Invalid),
        code::LOAD => Instruction::LoadConstant(k),
        code::LOAD_LENGTH => Instruction::LoadConstant(DATA_BYTES),
        code::LOAD_MEMORY => Instruction::LoadSlot(slot()?),
        code::LOAD_X => Instruction::LoadXConstant(k),
        code::LOAD_X_LENGTH => Instruction::LoadXConstant(DATA_BYTES),
        code::LOAD_X_MEMORY => Instruction::LoadXSlot(slot()?),
        code::STORE => Instruction::Store(slot()?),
        code::STORE_X => Instruction::StoreX(slot()?),
        code::NEGATE => Instruction::Negate,
        code::SKIP => Instruction::Skip(k),
        code::RETURN => Instruction::Return(k),
        code::RETURN_ACCUMULATOR => Instruction::ReturnAccumulator,
        code::TO_X => Instruction::ToX,
        code::FROM_X => Instruction::FromX,
        _ => {
            let source = match code & code::SOURCE_X {
                0 => Source::Constant(k),
                _ => Source::X,
            };
            let operation = code & !code::CLASS & !code::SOURCE_X;
            match code & code::CLASS {
                code::CLASS_ALU => arithmetic(operation, source)?,
                code::CLASS_JUMP => Instruction::Branch {
                    test: test(operation)?,
                    source,
                    yes: jt,
                    no: jf,
                },
                _ => return Err(Invalid),
            }
        }
    })
}

fn arithmetic(operation: u16, source: Source) -> Result<Instruction, Invalid> {
    let alu = match operation {
        0x00 => Alu::Add,
        0x10 => Alu::Sub,
        0x20 => Alu::Mul,
        0x30 => Alu::Div,
        0x40 => Alu::Or,
        0x50 => Alu::And,
        0x60 => Alu::ShiftLeft,
        0x70 => Alu::ShiftRight,
        // 0x90, the remainder, is for sockets alone.
        0xa0 => Alu::Xor,
        _ => return Err(Invalid),
    };
    match (alu, source) {
        (Alu::Div, Source::Constant(0))
        | (Alu::ShiftLeft | Alu::ShiftRight, Source::Constant(32..)) => Err(Invalid),
        _ => Ok(Instruction::Alu(alu, source)),
    }
}

fn test(operation: u16) -> Result<Test, Invalid> {
    match operation {
        0x10 => Ok(Test::Equal),
        0x20 => Ok(Test::Greater),
        0x30 => Ok(Test::GreaterOrEqual),
        0x40 => Ok(Test::AnyBit),
        _ => Err(Invalid),
    }
}

/// Every skip ends in the program. (All are forwards, so every program ends.)
fn check_skips(instructions: &[Instruction]) -> Result<(), Invalid> {
    for (at, instruction) in instructions.iter().enumerate() {
        let longest = match *instruction {
            Instruction::Skip(count) => count,
            Instruction::Branch { yes, no, .. } => u32::from(yes.max(no)),
            _ => continue,
        };
        if longest as usize >= instructions.len() - at - 1 {
            return Err(Invalid);
        }
    }
    Ok(())
}

/// Every slot that is read was written, on every way there.
fn check_slots(instructions: &[Instruction]) -> Result<(), Invalid> {
    const ALL: u16 = u16::MAX;
    // By instruction: the slots that every jump to it has written.
    let mut at_target = vec![ALL; instructions.len()];
    let mut written: u16 = 0;
    for (at, instruction) in instructions.iter().enumerate() {
        written &= at_target[at];
        match *instruction {
            Instruction::Store(slot) | Instruction::StoreX(slot) => written |= 1 << slot,
            Instruction::LoadSlot(slot) | Instruction::LoadXSlot(slot)
                if written & (1 << slot) == 0 =>
            {
                return Err(Invalid);
            }
            Instruction::Skip(count) => {
                at_target[at + 1 + count as usize] &= written;
                written = ALL;
            }
            Instruction::Branch { yes, no, .. } => {
                at_target[at + 1 + usize::from(yes)] &= written;
                at_target[at + 1 + usize::from(no)] &= written;
                written = ALL;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Clearing both registers and moving the context.
const PROLOGUE: u32 = 3;

/// Into how many instructions the kernel converts one.
fn kernel_length(instruction: &Instruction) -> u32 {
    match *instruction {
        // Division by zero is tested for, and returns 0.
        Instruction::Alu(Alu::Div, Source::X) => 5,
        Instruction::Return(_) => 2,
        Instruction::Branch {
            test,
            source,
            yes,
            no,
        } => {
            // Immediates are signed there: a large one goes through a register.
            let large = matches!(source, Source::Constant(k) if k > i32::MAX as u32);
            let one = no == 0 || yes == 0 && test != Test::AnyBit;
            u32::from(large) + if one { 1 } else { 2 }
        }
        _ => 1,
    }
}
