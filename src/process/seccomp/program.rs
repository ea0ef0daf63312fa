//! A filter's program: the wire form (struct sock_filter) and the checked one, in which an
//! instruction that the kernel would refuse can't be written.

/// Bytes of a struct sock_filter.
pub const INSTRUCTION_BYTES: usize = 8;

/// Words of scratch memory (BPF_MEMWORDS).
pub const MEMORY_WORDS: usize = 16;

/// One instruction as the guest gives it (struct sock_filter of linux/filter.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawInstruction {
    pub code: u16,
    /// Instructions to skip if a test holds, and if it doesn't.
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

impl RawInstruction {
    pub fn from_bytes(bytes: [u8; INSTRUCTION_BYTES]) -> RawInstruction {
        let [c0, c1, jt, jf, k @ ..] = bytes;
        RawInstruction {
            code: u16::from_le_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_le_bytes(k),
        }
    }

    pub fn to_bytes(self) -> [u8; INSTRUCTION_BYTES] {
        let [c0, c1] = self.code.to_le_bytes();
        let [k0, k1, k2, k3] = self.k.to_le_bytes();
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// Where an operation's second operand comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    Constant(u32),
    X,
}

/// What is done with the accumulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

/// What the accumulator is tested for; all comparisons are unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    AnyBit,
}

/// A checked instruction: slots are below [`MEMORY_WORDS`] and written before they are read,
/// skips stay in the program, constants divide and shift by what is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// The accumulator becomes the data's word at this offset, a multiple of 4.
    LoadData(u8),
    LoadConstant(u32),
    LoadSlot(u8),
    LoadXConstant(u32),
    LoadXSlot(u8),
    Store(u8),
    StoreX(u8),
    Alu(Alu, Source),
    Negate,
    /// X becomes the accumulator.
    ToX,
    FromX,
    Skip(u32),
    Branch {
        test: Test,
        source: Source,
        yes: u8,
        no: u8,
    },
    Return(u32),
    ReturnAccumulator,
}

/// A program that passed the checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    pub(super) raw: Box<[RawInstruction]>,
    pub(super) instructions: Box<[Instruction]>,
    /// Instructions of the kernel's own form of it, by which the kernel bounds the sum of a
    /// thread's filters.
    pub(super) kernel_length: u32,
}

impl Program {
    /// As the guest gave it.
    pub fn raw(&self) -> &[RawInstruction] {
        &self.raw
    }
}
