//! Operands of the instructions that the engine executes itself, taken from iced's
//! description each time: they are too rare for anything faster.

use iced_x86::{CodeSize, Instruction, OpKind, Register};

use super::super::state::SegmentRegister;
use super::Vcpu;
use super::exceptions::{Exception, Fault, Outcome};
use super::registers::vector;
use crate::addr::GuestAddr;
use crate::guest::{CpuMode, Gpr, GuestMemory, GuestTrap, Width, segmented};

/// The width of a general-purpose register or of that many bytes.
pub fn width_of(bytes: usize) -> Width {
    match bytes {
        1 => Width::B1,
        2 => Width::B2,
        4 => Width::B4,
        _ => Width::B8,
    }
}

/// The segment register that iced's names.
pub fn segment_register(register: Register) -> Option<SegmentRegister> {
    Some(match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::DS => SegmentRegister::Ds,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => return None,
    })
}

/// A trap of an access through the stack: what would be #GP is #SS.
fn through_stack(trap: GuestTrap) -> Fault {
    match Fault::from(trap) {
        Fault::Exception(exception) if exception.vector == vector::GENERAL_PROTECTION => {
            Fault::Exception(Exception::with_code(vector::STACK, 0))
        }
        fault => fault,
    }
}

impl Vcpu {
    /// The value of a general-purpose register of any size but AH to BH.
    pub(super) fn register(&self, register: Register) -> u64 {
        let whole = self.cpu.gpr[register.full_register().number() & 15];
        whole & width_of(register.size()).mask()
    }

    /// Sets a general-purpose register; 32-bit values clear the upper half.
    pub(super) fn set_register(&mut self, register: Register, value: u64) {
        let width = width_of(register.size());
        let whole = &mut self.cpu.gpr[register.full_register().number() & 15];
        *whole = match width {
            Width::B8 | Width::B4 => value & width.mask(),
            Width::B1 | Width::B2 => *whole & !width.mask() | value & width.mask(),
        };
    }

    /// The memory operand's offset in its segment.
    pub(super) fn offset(&self, instruction: &Instruction) -> u64 {
        let base = instruction.memory_base();
        let index = instruction.memory_index();
        let mut sum = instruction.memory_displacement64();
        let mut bytes = 0;
        if base.is_gpr() {
            sum = sum.wrapping_add(self.register(base));
            bytes = base.size();
        }
        if index.is_gpr() {
            let scale = u64::from(instruction.memory_index_scale());
            sum = sum.wrapping_add(self.register(index).wrapping_mul(scale));
            bytes = index.size();
        }
        if bytes == 0 {
            bytes = match (base, instruction.memory_displ_size()) {
                (Register::EIP, _) => 4,
                (Register::RIP, _) => 8,
                (_, 2) => 2,
                (_, 4) => 4,
                _ => 8,
            };
        }
        sum & width_of(bytes).mask()
    }

    /// The address of `offset` in the segment of the instruction's memory operand.
    pub(super) fn place(&self, instruction: &Instruction, offset: u64) -> GuestAddr {
        let segment = instruction.memory_segment();
        if instruction.code_size() == CodeSize::Code64 {
            let base = match segment {
                Register::FS => self.cpu.fs_base,
                Register::GS => self.cpu.gs_base,
                _ => 0,
            };
            return GuestAddr(base.wrapping_add(offset));
        }
        let register = segment_register(segment).unwrap_or(SegmentRegister::Ds);
        segmented(register as u8, offset)
    }

    /// The address `by` bytes into the memory operand.
    pub(super) fn address(&self, instruction: &Instruction, by: u64) -> GuestAddr {
        self.place(instruction, self.offset(instruction).wrapping_add(by))
    }

    pub(super) fn load(&mut self, at: GuestAddr, width: Width) -> Outcome<u64> {
        Ok(self.mmu.load(at, width)?)
    }

    pub(super) fn store(&mut self, at: GuestAddr, width: Width, value: u64) -> Outcome {
        Ok(self.mmu.store(at, width, value)?)
    }

    /// Reads operand `index`, a register or memory, in `width`.
    pub(super) fn read_operand(
        &mut self,
        instruction: &Instruction,
        index: u32,
        width: Width,
    ) -> Outcome<u64> {
        if instruction.op_kind(index) == OpKind::Register {
            Ok(self.register(instruction.op_register(index)) & width.mask())
        } else {
            let at = self.address(instruction, 0);
            self.load(at, width)
        }
    }

    /// Writes operand 0: a register in its own width, or 16 bits of memory.
    pub(super) fn write_selector(&mut self, instruction: &Instruction, value: u64) -> Outcome {
        if instruction.op0_kind() == OpKind::Register {
            self.set_register(instruction.op0_register(), value);
            Ok(())
        } else {
            let at = self.address(instruction, 0);
            self.store(at, Width::B2, value)
        }
    }

    /// Which bits of RSP the stack uses.
    pub(super) fn stack_mask(&self) -> u64 {
        match self.mmu.stack_mode() {
            CpuMode::Bits64 => u64::MAX,
            CpuMode::Bits32 => 0xffff_ffff,
            CpuMode::Bits16 => 0xffff,
        }
    }

    /// The address `by` bytes above the top of the stack.
    fn stack_address(&self, by: i64) -> GuestAddr {
        let mask = self.stack_mask();
        let offset = self.cpu.get(Gpr::Rsp).wrapping_add_signed(by) & mask;
        if mask == u64::MAX {
            GuestAddr(offset)
        } else {
            segmented(SegmentRegister::Ss as u8, offset)
        }
    }

    /// Reads the stack `slot` values above its top.
    pub(super) fn peek(&mut self, width: Width, slot: u64) -> Outcome<u64> {
        let at = self.stack_address((slot * width.bytes()) as i64);
        self.mmu.load(at, width).map_err(through_stack)
    }

    /// Moves the stack pointer up by `bytes`.
    pub(super) fn drop_stack(&mut self, bytes: u64) {
        let mask = self.stack_mask();
        let rsp = self.cpu.get(Gpr::Rsp);
        self.cpu
            .set(Gpr::Rsp, rsp & !mask | rsp.wrapping_add(bytes) & mask);
    }

    pub(super) fn push(&mut self, width: Width, value: u64) -> Outcome {
        let at = self.stack_address(-(width.bytes() as i64));
        self.mmu.store(at, width, value).map_err(through_stack)?;
        self.drop_stack(width.bytes().wrapping_neg());
        Ok(())
    }
}
