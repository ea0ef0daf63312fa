//! SYSCALL, SYSRET, SYSENTER and SYSEXIT: to ring 0 and back with flat segments, without
//! memory (Intel SDM volume 3, section 5.8.7 and 5.8.8).

use iced_x86::{Instruction, Mnemonic};

use super::super::state::{Segment, SegmentRegister};
use super::Vcpu;
use super::exceptions::{Outcome, general_protection, invalid_opcode};
use super::mmu::is_canonical;
use super::registers::{efer, rflags};
use crate::guest::{CpuMode, Gpr, flags};

impl Vcpu {
    /// SYSCALL and SYSRET, SYSENTER and SYSEXIT.
    pub(super) fn fast_call(&mut self, instruction: &Instruction) -> Outcome {
        let next = instruction.next_ip();
        match instruction.mnemonic() {
            Mnemonic::Syscall => self.syscall(next),
            Mnemonic::Sysret | Mnemonic::Sysretq => {
                self.sysret(instruction.mnemonic() == Mnemonic::Sysretq)
            }
            Mnemonic::Sysenter => self.sysenter(),
            _ => self.sysexit(instruction.mnemonic() == Mnemonic::Sysexitq),
        }
    }

    fn flat(selector: u64, attributes: u16) -> Segment {
        Segment {
            selector: selector as u16,
            base: 0,
            limit: u32::MAX,
            attributes,
            unusable: false,
        }
    }

    fn set_flat_segments(&mut self, cs: u64, code: u16, ss: u64, cpl: u8) {
        let dpl = u16::from(cpl) << 5;
        self.mmu
            .set_segment(SegmentRegister::Cs, Vcpu::flat(cs, code | dpl));
        self.mmu
            .set_segment(SegmentRegister::Ss, Vcpu::flat(ss, 0xc093 | dpl));
        self.mmu.cpl = cpl;
    }

    fn syscall(&mut self, next: u64) -> Outcome {
        const CODE_64: u16 = 0xa09b;
        let sys = &self.mmu.sys;
        if sys.efer & efer::SCE == 0 || !self.mmu.is_long() {
            return Err(invalid_opcode());
        }
        let target = if self.mmu.code_mode() == CpuMode::Bits64 {
            sys.lstar
        } else {
            sys.cstar
        };
        let cs = sys.star >> 32 & 0xfffc;
        let mask = sys.sfmask;
        self.cpu.set(Gpr::Rcx, next);
        self.cpu.set(Gpr::R11, self.cpu.rflags & !rflags::RF);
        self.set_flat_segments(cs, CODE_64, cs + 8, 0);
        self.cpu.rflags = self.cpu.rflags & !mask & !rflags::RF | flags::FIXED;
        self.cpu.rip = target;
        Ok(())
    }

    fn sysret(&mut self, to_64_bit: bool) -> Outcome {
        let sys = &self.mmu.sys;
        if sys.efer & efer::SCE == 0 || !self.mmu.is_long() {
            return Err(invalid_opcode());
        }
        if self.mmu.cpl != 0 {
            return Err(general_protection(0));
        }
        let base = sys.star >> 48 & 0xfffc;
        let target = self.cpu.get(Gpr::Rcx);
        if to_64_bit && !is_canonical(target) {
            return Err(general_protection(0));
        }
        let settable = flags::USER | flags::IF | rflags::IOPL | rflags::VIF | rflags::VIP;
        self.cpu.rflags = self.cpu.get(Gpr::R11) & settable | flags::FIXED;
        if to_64_bit {
            self.set_flat_segments((base + 16) | 3, 0xa09b, (base + 8) | 3, 3);
            self.cpu.rip = target;
        } else {
            self.set_flat_segments(base | 3, 0xc09b, (base + 8) | 3, 3);
            self.cpu.rip = target & 0xffff_ffff;
        }
        Ok(())
    }

    fn sysenter(&mut self) -> Outcome {
        let sys = &self.mmu.sys;
        let cs = sys.sysenter_cs & 0xfffc;
        if !self.mmu.is_protected() || cs == 0 {
            return Err(general_protection(0));
        }
        let (rip, rsp) = (sys.sysenter_eip, sys.sysenter_esp);
        let long = self.mmu.is_long();
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        self.cpu.rflags &= !(flags::IF | rflags::VM | rflags::RF);
        self.set_flat_segments(cs, if long { 0xa09b } else { 0xc09b }, cs + 8, 0);
        self.cpu.rip = rip & mask;
        self.cpu.set(Gpr::Rsp, rsp & mask);
        Ok(())
    }

    fn sysexit(&mut self, to_64_bit: bool) -> Outcome {
        let cs = self.mmu.sys.sysenter_cs & 0xfffc;
        if !self.mmu.is_protected() || self.mmu.cpl != 0 || cs == 0 {
            return Err(general_protection(0));
        }
        let (rip, rsp) = (self.cpu.get(Gpr::Rdx), self.cpu.get(Gpr::Rcx));
        if to_64_bit {
            if !is_canonical(rip) || !is_canonical(rsp) {
                return Err(general_protection(0));
            }
            self.set_flat_segments((cs + 32) | 3, 0xa09b, (cs + 40) | 3, 3);
            self.cpu.rip = rip;
            self.cpu.set(Gpr::Rsp, rsp);
        } else {
            self.set_flat_segments((cs + 16) | 3, 0xc09b, (cs + 24) | 3, 3);
            self.cpu.rip = rip & 0xffff_ffff;
            self.cpu.set(Gpr::Rsp, rsp & 0xffff_ffff);
        }
        Ok(())
    }
}
