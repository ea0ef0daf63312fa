//! The four operand widths as types, so that handlers are specialised at compile time, and
//! how each reads and writes a general-purpose register (Intel SDM volume 1, section 3.4.1.1:
//! 32-bit results are zero-extended, narrower ones leave the rest of the register alone).

use crate::guest::{CpuState, Width};

/// Set in a register number that means AH, CH, DH or BH.
pub(super) const HIGH: u8 = 0x10;

/// An operand width. Values travel as `u64`: zero-extended when read, and with whatever
/// lies above the width ignored when written.
pub(super) trait Scalar: 'static {
    const WIDTH: Width;
    const BITS: u32 = Self::WIDTH.bits();
    const BYTES: u64 = Self::WIDTH.bytes();
    const MASK: u64 = Self::WIDTH.mask();

    fn read(cpu: &CpuState, register: u8) -> u64;
    fn write(cpu: &mut CpuState, register: u8, value: u64);

    /// The low bits of `value` as a signed number, extended to 64 bits.
    #[inline(always)]
    fn sign_extend(value: u64) -> u64 {
        let unused = 64 - Self::BITS;
        (((value << unused) as i64) >> unused) as u64
    }
}

impl Scalar for u8 {
    const WIDTH: Width = Width::B1;

    #[inline(always)]
    fn read(cpu: &CpuState, register: u8) -> u64 {
        (cpu.gpr[usize::from(register & 15)] >> ((register & HIGH) >> 1)) & 0xff
    }

    // Merged and written whole: a byte store would stall the next 64-bit read of it.
    #[inline(always)]
    fn write(cpu: &mut CpuState, register: u8, value: u64) {
        let shift = (register & HIGH) >> 1;
        let whole = &mut cpu.gpr[usize::from(register & 15)];
        *whole = *whole & !(0xff << shift) | (value & 0xff) << shift;
    }
}

impl Scalar for u16 {
    const WIDTH: Width = Width::B2;

    #[inline(always)]
    fn read(cpu: &CpuState, register: u8) -> u64 {
        cpu.gpr[usize::from(register & 15)] & 0xffff
    }

    #[inline(always)]
    fn write(cpu: &mut CpuState, register: u8, value: u64) {
        let whole = &mut cpu.gpr[usize::from(register & 15)];
        *whole = *whole & !0xffff | value & 0xffff;
    }
}

impl Scalar for u32 {
    const WIDTH: Width = Width::B4;

    #[inline(always)]
    fn read(cpu: &CpuState, register: u8) -> u64 {
        cpu.gpr[usize::from(register & 15)] & 0xffff_ffff
    }

    #[inline(always)]
    fn write(cpu: &mut CpuState, register: u8, value: u64) {
        cpu.gpr[usize::from(register & 15)] = value & 0xffff_ffff;
    }
}

impl Scalar for u64 {
    const WIDTH: Width = Width::B8;

    #[inline(always)]
    fn read(cpu: &CpuState, register: u8) -> u64 {
        cpu.gpr[usize::from(register & 15)]
    }

    #[inline(always)]
    fn write(cpu: &mut CpuState, register: u8, value: u64) {
        cpu.gpr[usize::from(register & 15)] = value;
    }
}

/// Names the handler for a width known only when a block is predecoded:
/// `by_width!(width, W => handler::<M, W>)`, optionally with fewer widths.
macro_rules! by_width {
    ($width:expr, $w:ident => $handler:expr) => {
        by_width!($width, $w in [u8 u16 u32 u64] => $handler)
    };
    ($width:expr, $w:ident in [u8 u16 u32 u64] => $handler:expr) => {
        match $width {
            $crate::guest::Width::B1 => {
                type $w = u8;
                $handler as $crate::interp::op::Handler<M>
            }
            $crate::guest::Width::B2 => {
                type $w = u16;
                $handler as $crate::interp::op::Handler<M>
            }
            $crate::guest::Width::B4 => {
                type $w = u32;
                $handler as $crate::interp::op::Handler<M>
            }
            $crate::guest::Width::B8 => {
                type $w = u64;
                $handler as $crate::interp::op::Handler<M>
            }
        }
    };
    // Operand-size instructions have no 8-bit form.
    ($width:expr, $w:ident in [u16 u32 u64] => $handler:expr) => {
        match $width {
            $crate::guest::Width::B1 | $crate::guest::Width::B2 => {
                type $w = u16;
                $handler as $crate::interp::op::Handler<M>
            }
            $crate::guest::Width::B4 => {
                type $w = u32;
                $handler as $crate::interp::op::Handler<M>
            }
            $crate::guest::Width::B8 => {
                type $w = u64;
                $handler as $crate::interp::op::Handler<M>
            }
        }
    };
    // VEX-coded integer instructions.
    ($width:expr, $w:ident in [u32 u64] => $handler:expr) => {
        match $width {
            $crate::guest::Width::B8 => {
                type $w = u64;
                $handler as $crate::interp::op::Handler<M>
            }
            _ => {
                type $w = u32;
                $handler as $crate::interp::op::Handler<M>
            }
        }
    };
}
pub(super) use by_width;
