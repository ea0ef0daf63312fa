//! Runs a program. The data's words may be unknown: then so is what depends on them, which
//! tells the calls that a filter allows whatever their arguments.

use super::program::{Alu, Instruction, MEMORY_WORDS, Program, Source, Test};

impl Program {
    /// What the program returns, as the kernel's form of it would. `None`: that depends on
    /// words that `word` (by offset in struct seccomp_data) doesn't know.
    #[inline]
    pub fn run(&self, word: impl Fn(u8) -> Option<u32>) -> Option<u32> {
        let mut accumulator = Some(0);
        let mut x = Some(0);
        let mut slots = [Some(0); MEMORY_WORDS];
        let mut at = 0;
        loop {
            // Checked: it ends before the program does.
            let instruction = self.instructions[at];
            at += 1;
            let operand = |source| match source {
                Source::Constant(k) => Some(k),
                Source::X => x,
            };
            match instruction {
                Instruction::LoadData(offset) => accumulator = word(offset),
                Instruction::LoadConstant(k) => accumulator = Some(k),
                Instruction::LoadSlot(slot) => accumulator = slots[usize::from(slot)],
                Instruction::LoadXConstant(k) => x = Some(k),
                Instruction::LoadXSlot(slot) => x = slots[usize::from(slot)],
                Instruction::Store(slot) => slots[usize::from(slot)] = accumulator,
                Instruction::StoreX(slot) => slots[usize::from(slot)] = x,
                Instruction::ToX => x = accumulator,
                Instruction::FromX => accumulator = x,
                Instruction::Negate => accumulator = accumulator.map(u32::wrapping_neg),
                // The program ends with 0 where it divides by 0.
                Instruction::Alu(Alu::Div, source) => match operand(source)? {
                    0 => return Some(0),
                    divisor => accumulator = accumulator.map(|value| value / divisor),
                },
                Instruction::Alu(alu, source) => {
                    let both = accumulator.zip(operand(source));
                    accumulator = both.map(|(left, right)| compute(alu, left, right));
                }
                Instruction::Skip(count) => at += count as usize,
                Instruction::Branch {
                    test,
                    source,
                    yes,
                    no,
                } => {
                    let held = holds(test, accumulator?, operand(source)?);
                    let skip = if held { yes } else { no };
                    at += usize::from(skip);
                }
                Instruction::Return(k) => return Some(k),
                Instruction::ReturnAccumulator => return accumulator,
            }
        }
    }
}

fn compute(alu: Alu, left: u32, right: u32) -> u32 {
    match alu {
        Alu::Add => left.wrapping_add(right),
        Alu::Sub => left.wrapping_sub(right),
        Alu::Mul => left.wrapping_mul(right),
        Alu::Div => left / right,
        Alu::And => left & right,
        Alu::Or => left | right,
        Alu::Xor => left ^ right,
        // Shifts by X count modulo 32, as on the CPU (and in the kernel since 5.13).
        Alu::ShiftLeft => left.wrapping_shl(right),
        Alu::ShiftRight => left.wrapping_shr(right),
    }
}

fn holds(test: Test, left: u32, right: u32) -> bool {
    match test {
        Test::Equal => left == right,
        Test::Greater => left > right,
        Test::GreaterOrEqual => left >= right,
        Test::AnyBit => left & right != 0,
    }
}
