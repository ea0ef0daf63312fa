//! IN, OUT and their string forms, with the permission of the task state's bitmap.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::super::state::SegmentRegister;
use super::Vcpu;
use super::exceptions::{Outcome, general_protection};
use super::operands::width_of;
use crate::addr::GuestAddr;
use crate::guest::{Gpr, GuestMemory, Width, flags, segmented};

impl Vcpu {
    pub(super) fn port(&mut self, instruction: &Instruction) -> Outcome {
        match instruction.mnemonic() {
            Mnemonic::In => {
                let to = instruction.op0_register();
                let port = self.port_number(instruction, 1);
                let value = self.port_in(port, width_of(to.size()))?;
                self.set_register(to, value);
            }
            Mnemonic::Out => {
                let from = instruction.op1_register();
                let port = self.port_number(instruction, 0);
                let value = self.register(from);
                self.port_out(port, width_of(from.size()), value)?;
            }
            Mnemonic::Insb | Mnemonic::Outsb => self.port_string(instruction, Width::B1)?,
            Mnemonic::Insw | Mnemonic::Outsw => self.port_string(instruction, Width::B2)?,
            _ => self.port_string(instruction, Width::B4)?,
        }
        Ok(())
    }

    fn port_number(&self, instruction: &Instruction, operand: u32) -> u16 {
        if instruction.op_kind(operand) == OpKind::Register {
            self.register(Register::DX) as u16
        } else {
            u16::from(instruction.immediate8())
        }
    }

    fn port_in(&mut self, port: u16, width: Width) -> Outcome<u64> {
        self.check_port(port, width)?;
        let mut data = [0; 8];
        let bytes = width.bytes() as usize;
        self.mmu.physical.bus().port_read(port, &mut data[..bytes]);
        Ok(u64::from_le_bytes(data))
    }

    fn port_out(&mut self, port: u16, width: Width, value: u64) -> Outcome {
        self.check_port(port, width)?;
        let data = value.to_le_bytes();
        let bytes = width.bytes() as usize;
        self.mmu.physical.device().port_write(port, &data[..bytes]);
        Ok(())
    }

    /// Beyond IOPL, the task state's bitmap must allow every byte of the access.
    fn check_port(&mut self, port: u16, width: Width) -> Outcome {
        let iopl = self.cpu.rflags >> 12 & 3;
        if !self.mmu.is_protected() || u64::from(self.mmu.cpl) <= iopl {
            return Ok(());
        }
        const BITMAP: u64 = 0x66;
        let tr = self.mmu.sys.tr;
        let wide = tr.kind() & 0b1101 == 0b1001;
        if tr.unusable || !wide || u64::from(tr.limit) < BITMAP + 1 {
            return Err(general_protection(0));
        }
        let bitmap = self.read_task_state(BITMAP, Width::B2)?;
        let at = bitmap + u64::from(port / 8);
        // The CPU reads two bytes, so there must be one behind the last.
        if at + 1 > u64::from(tr.limit) {
            return Err(general_protection(0));
        }
        let bits = self.read_task_state(at, Width::B2)?;
        let wanted = (1 << width.bytes()) - 1;
        if bits >> (port % 8) & wanted != 0 {
            return Err(general_protection(0));
        }
        Ok(())
    }

    /// INS and OUTS. Registers advance element by element, so a fault leaves them exact.
    fn port_string(&mut self, instruction: &Instruction, width: Width) -> Outcome {
        let input = matches!(
            instruction.mnemonic(),
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd
        );
        let operand = if input { 0 } else { 1 };
        let bits = match instruction.op_kind(operand) {
            OpKind::MemoryESDI | OpKind::MemorySegSI => 16,
            OpKind::MemoryESEDI | OpKind::MemorySegESI => 32,
            _ => 64,
        };
        let mask = u64::MAX >> (64 - bits);
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let index = if input { Gpr::Rdi } else { Gpr::Rsi };
        let port = self.register(Register::DX) as u16;
        self.check_port(port, width)?;
        loop {
            let count = self.cpu.get(Gpr::Rcx) & mask;
            if repeated && count == 0 {
                return Ok(());
            }
            let offset = self.cpu.get(index) & mask;
            if input {
                let at = match self.mmu.code_mode() {
                    crate::guest::CpuMode::Bits64 => GuestAddr(offset),
                    _ => segmented(SegmentRegister::Es as u8, offset),
                };
                // A port must not be read for nothing.
                self.mmu.probe_write(at, width.bytes() as usize)?;
                let value = self.port_in(port, width)?;
                self.store(at, width, value)?;
            } else {
                let at = self.place(instruction, offset);
                let value = self.load(at, width)?;
                self.port_out(port, width, value)?;
            }
            let step = match self.cpu.rflags & flags::DF {
                0 => width.bytes(),
                _ => width.bytes().wrapping_neg(),
            };
            self.advance(index, mask, step);
            if !repeated {
                return Ok(());
            }
            self.advance(Gpr::Rcx, mask, u64::MAX);
        }
    }

    fn advance(&mut self, register: Gpr, mask: u64, by: u64) {
        let old = self.cpu.get(register);
        let new = old.wrapping_add(by) & mask;
        let kept = if mask == 0xffff { old & !mask } else { 0 };
        self.cpu.set(register, kept | new);
    }
}
