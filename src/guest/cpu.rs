//! The integer state of one guest CPU. Laid out for generated code, which addresses it by
//! fixed offsets. Vector and x87 state live elsewhere ([`super::VectorState`]).

/// General-purpose registers in their encoding order (Intel SDM volume 2, table 2-2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// How the CPU decodes: the operand and address size defaults.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CpuMode {
    /// Real mode and 16-bit protected mode.
    Bits16,
    /// 32-bit protected mode and compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CpuMode {
    /// The mode's width in bits: 16, 32 or 64.
    pub const fn bits(self) -> u32 {
        match self {
            CpuMode::Bits16 => 16,
            CpuMode::Bits32 => 32,
            CpuMode::Bits64 => 64,
        }
    }
}

/// RFLAGS bits (Intel SDM volume 1, section 3.4.3).
pub mod flags {
    pub const CF: u64 = 1 << 0;
    /// Bit 1 always reads as one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    /// OF, SF, ZF, AF, PF and CF.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    pub const AC: u64 = 1 << 18;
    pub const ID: u64 = 1 << 21;
    /// The six flags that arithmetic writes.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
    /// What ring 3 may change with POPF.
    pub const USER: u64 = ARITHMETIC | TF | DF | 1 << 14 | AC | ID;
}

/// Integer registers, instruction pointer, flags and the two segment bases that user code
/// can set. Part of [`super::ThreadContext`]; generated code reads it at fixed offsets.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CpuState {
    /// Indexed by [`Gpr`].
    pub gpr: [u64; 16],
    pub rip: u64,
    /// Architectural RFLAGS, always up to date (no lazy flags).
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

impl Default for CpuState {
    fn default() -> Self {
        CpuState {
            gpr: [0; 16],
            rip: 0,
            rflags: flags::FIXED | flags::IF,
            fs_base: 0,
            gs_base: 0,
        }
    }
}

impl CpuState {
    /// The value of a general-purpose register.
    pub fn get(&self, reg: Gpr) -> u64 {
        self.gpr[reg as usize]
    }

    /// Sets a general-purpose register, all 64 bits.
    pub fn set(&mut self, reg: Gpr, value: u64) {
        self.gpr[reg as usize] = value;
    }

    /// The address of the next instruction.
    pub fn pc(&self) -> crate::addr::GuestAddr {
        crate::addr::GuestAddr(self.rip)
    }
}
