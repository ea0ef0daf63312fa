//! A predecoded instruction: its handler and its operands in the handler's own terms.
//! A register is its number (with [`HIGH`](super::scalar::HIGH) for AH to BH); a memory
//! operand is base + index * scale + displacement, branch-free in the usual case.

use crate::addr::GuestAddr;
use crate::guest::{CpuState, Gpr, GuestMemory, segmented};
use crate::native::StubId;

use super::machine::{Machine, Step};
use super::scalar::Scalar;

pub(super) type Handler<M> = fn(&Op<M>, &mut Machine<'_, M>) -> Step;

/// The addressing particulars that are not the usual ones; all zero is 64-bit addressing
/// without a segment base, on a 64-bit stack.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Special(u8);

impl Special {
    const ADDRESS_32: u8 = 1;
    const ADDRESS_16: u8 = 2;
    const FS: u8 = 4;
    const GS: u8 = 8;
    const STACK_32: u8 = 16;
    const STACK_16: u8 = 32;
    /// 16- or 32-bit code of a machine: the segment register's number is in the bits of FS
    /// and GS, and above.
    const SEGMENTED: u8 = 64;
    const SEGMENT_HIGH: u8 = 128;

    pub(super) fn set_address_bits(&mut self, bits: u32) {
        self.0 |= match bits {
            16 => Self::ADDRESS_16,
            32 => Self::ADDRESS_32,
            _ => 0,
        };
    }

    pub(super) fn set_stack_bits(&mut self, bits: u32) {
        self.0 |= match bits {
            16 => Self::STACK_16,
            32 => Self::STACK_32,
            _ => 0,
        };
    }

    pub(super) fn set_fs(&mut self) {
        self.0 |= Self::FS;
    }

    pub(super) fn set_gs(&mut self) {
        self.0 |= Self::GS;
    }

    /// The operand is in segment register `segment` of 16- or 32-bit code.
    pub(super) fn set_segmented(&mut self, segment: u8) {
        self.0 &= !(Self::FS | Self::GS | Self::SEGMENT_HIGH);
        self.0 |= Self::SEGMENTED | (segment & 3) << 2 | (segment & 4) << 5;
    }

    #[inline(always)]
    pub(super) fn is_segmented(self) -> bool {
        self.0 & Self::SEGMENTED != 0
    }

    fn segment(self) -> u8 {
        self.0 >> 2 & 3 | self.0 >> 5 & 4
    }

    /// The address of `offset` in the operand's segment.
    #[inline(always)]
    pub(super) fn place<M: GuestMemory>(self, cpu: &CpuState, offset: u64) -> GuestAddr {
        if M::SEGMENTED && self.is_segmented() {
            segmented(self.segment(), offset)
        } else {
            GuestAddr(self.segment_base(cpu).wrapping_add(offset))
        }
    }

    #[inline(always)]
    fn is_usual(self) -> bool {
        self.0 & !(Self::STACK_32 | Self::STACK_16) == 0
    }

    pub(super) fn has_segment(self) -> bool {
        self.0 & (Self::FS | Self::GS) != 0
    }

    pub(super) fn address_mask(self) -> u64 {
        match self.0 & (Self::ADDRESS_32 | Self::ADDRESS_16) {
            0 => u64::MAX,
            Self::ADDRESS_32 => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    #[inline(always)]
    fn stack_mask(self) -> u64 {
        match self.0 & (Self::STACK_32 | Self::STACK_16) {
            0 => u64::MAX,
            Self::STACK_32 => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    fn segment_base(self, cpu: &CpuState) -> u64 {
        if self.0 & Self::FS != 0 {
            cpu.fs_base
        } else if self.0 & Self::GS != 0 {
            cpu.gs_base
        } else {
            0
        }
    }
}

/// One predecoded instruction.
pub(super) struct Op<M: GuestMemory> {
    pub run: Handler<M>,
    /// The displacement; for RIP-relative operands the whole address.
    pub disp: u64,
    /// The immediate, a branch target, a third register, or what the handler's family says.
    pub imm: u64,
    /// The instruction's guest address.
    pub ip: u64,
    pub dst: u8,
    pub src: u8,
    pub base: u8,
    pub index: u8,
    /// 1 with a base register, 0 without one.
    pub base_factor: u8,
    /// The index register's scale; 0 without one.
    pub index_factor: u8,
    pub special: Special,
    pub len: u8,
    /// For instructions that a stub runs.
    pub stub: Option<StubId>,
}

impl<M: GuestMemory> Op<M> {
    /// The address of the instruction behind this one.
    #[inline(always)]
    pub fn next_ip(&self) -> u64 {
        self.ip.wrapping_add(u64::from(self.len))
    }

    #[inline(always)]
    fn sum(&self, cpu: &CpuState) -> u64 {
        // Factors instead of branches: two short multiplications cost less than one
        // mispredicted jump among the address forms.
        let base = cpu.gpr[usize::from(self.base & 15)].wrapping_mul(u64::from(self.base_factor));
        let index =
            cpu.gpr[usize::from(self.index & 15)].wrapping_mul(u64::from(self.index_factor));
        self.disp.wrapping_add(base).wrapping_add(index)
    }

    /// The memory operand's offset in its segment (what LEA computes).
    #[inline(always)]
    pub fn offset(&self, cpu: &CpuState) -> u64 {
        let sum = self.sum(cpu);
        if self.special.is_usual() {
            sum
        } else {
            sum & self.special.address_mask()
        }
    }

    /// The memory operand's linear address.
    #[inline(always)]
    pub fn address(&self, cpu: &CpuState) -> GuestAddr {
        if self.special.is_usual() {
            GuestAddr(self.sum(cpu))
        } else {
            self.address_displaced(cpu, 0)
        }
    }

    /// The linear address `by` bytes past the operand's offset, wrapped within its segment
    /// first.
    pub fn address_displaced(&self, cpu: &CpuState, by: u64) -> GuestAddr {
        let offset = self.sum(cpu).wrapping_add(by) & self.special.address_mask();
        self.special.place::<M>(cpu, offset)
    }

    /// With RSP or RBP as base and no override, the memory operand is in the stack segment.
    /// (Memory that knows segments raises the right fault by itself.)
    pub fn is_in_stack_segment(&self) -> bool {
        self.base_factor != 0
            && !self.special.is_segmented()
            && (self.base == Gpr::Rsp as u8 || self.base == Gpr::Rbp as u8)
            && !self.special.has_segment()
    }

    /// Which bits of RSP the stack's address size uses.
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        self.special.stack_mask()
    }
}

/// Where an operand's value comes from.
pub(super) trait Source: 'static {
    fn get<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step<u64>;
}

/// An operand that is read and written, with its address computed once.
pub(super) trait Place: Source {
    type At: Copy;
    fn at<M: GuestMemory>(op: &Op<M>, cpu: &CpuState) -> Self::At;
    fn load<M: GuestMemory, W: Scalar>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        at: Self::At,
    ) -> Step<u64>;
    fn store<M: GuestMemory, W: Scalar>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        at: Self::At,
        value: u64,
    ) -> Step;
}

/// The register `op.dst`.
pub(super) struct Dst;
/// The register `op.src`.
pub(super) struct Src;
/// The constant `op.imm`.
pub(super) struct Imm;
/// The memory operand.
pub(super) struct Mem;
/// The register CL.
pub(super) struct Cl;
/// The register whose number is `op.imm`.
pub(super) struct Third;

impl Source for Dst {
    #[inline(always)]
    fn get<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step<u64> {
        Ok(W::read(m.cpu, op.dst))
    }
}

impl Source for Src {
    #[inline(always)]
    fn get<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step<u64> {
        Ok(W::read(m.cpu, op.src))
    }
}

impl Source for Imm {
    #[inline(always)]
    fn get<M: GuestMemory, W: Scalar>(op: &Op<M>, _: &mut Machine<'_, M>) -> Step<u64> {
        Ok(op.imm)
    }
}

impl Source for Mem {
    #[inline(always)]
    fn get<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step<u64> {
        let at = op.address(m.cpu);
        m.load::<W>(at)
    }
}

impl Source for Cl {
    #[inline(always)]
    fn get<M: GuestMemory, W: Scalar>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step<u64> {
        Ok(m.cpu.gpr[1] & 0xff)
    }
}

impl Source for Third {
    #[inline(always)]
    fn get<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step<u64> {
        Ok(W::read(m.cpu, op.imm as u8))
    }
}

impl Place for Dst {
    type At = ();

    #[inline(always)]
    fn at<M: GuestMemory>(_: &Op<M>, _: &CpuState) {}

    #[inline(always)]
    fn load<M: GuestMemory, W: Scalar>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        (): Self::At,
    ) -> Step<u64> {
        Ok(W::read(m.cpu, op.dst))
    }

    #[inline(always)]
    fn store<M: GuestMemory, W: Scalar>(
        op: &Op<M>,
        m: &mut Machine<'_, M>,
        (): Self::At,
        value: u64,
    ) -> Step {
        W::write(m.cpu, op.dst, value);
        Ok(())
    }
}

impl Place for Mem {
    type At = GuestAddr;

    #[inline(always)]
    fn at<M: GuestMemory>(op: &Op<M>, cpu: &CpuState) -> GuestAddr {
        op.address(cpu)
    }

    #[inline(always)]
    fn load<M: GuestMemory, W: Scalar>(
        _: &Op<M>,
        m: &mut Machine<'_, M>,
        at: GuestAddr,
    ) -> Step<u64> {
        m.load_to_modify::<W>(at)
    }

    #[inline(always)]
    fn store<M: GuestMemory, W: Scalar>(
        _: &Op<M>,
        m: &mut Machine<'_, M>,
        at: GuestAddr,
        value: u64,
    ) -> Step {
        m.store::<W>(at, value)
    }
}
