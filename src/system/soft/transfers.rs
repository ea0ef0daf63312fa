//! Far transfers: JMP, CALL, RET and IRET between segments and privilege levels, and call
//! gates (Intel SDM volume 3, sections 5.8 and 6.12).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::super::state::{Segment, SegmentRegister};
use super::Vcpu;
use super::exceptions::{Exception, Fault, Outcome, general_protection, null_stack};
use super::mmu::is_canonical;
use super::operands::width_of;
use super::registers::{rflags, vector};
use super::segments::{Descriptor, code_segment_in_use};
use crate::guest::{CpuMode, Gpr, Width, flags};

fn not_present(code: u32) -> Fault {
    Fault::Exception(Exception::with_code(vector::NOT_PRESENT, code))
}

/// What a selector in a far transfer leads to.
enum Target {
    Code(Descriptor),
    Gate {
        wide: bool,
        selector: u16,
        offset: u64,
        parameters: u64,
    },
}

impl Vcpu {
    /// Executes a far transfer. On a fault, registers and segments are as before it.
    pub(super) fn far_transfer(&mut self, instruction: &Instruction) -> Outcome {
        let cpu = self.cpu.clone();
        let segments = self.mmu.sys.segments;
        let cpl = self.mmu.cpl;
        let result = self.try_far_transfer(instruction);
        if result.is_err() {
            self.cpu = cpu;
            for (register, segment) in SegmentRegister::ALL.into_iter().zip(segments) {
                self.mmu.set_segment(register, segment);
            }
            self.mmu.cpl = cpl;
        }
        result
    }

    fn try_far_transfer(&mut self, instruction: &Instruction) -> Outcome {
        match instruction.mnemonic() {
            Mnemonic::Jmp => {
                let (selector, offset, _) = self.far_pointer(instruction)?;
                self.far_jump(selector, offset)
            }
            Mnemonic::Call => {
                let (selector, offset, width) = self.far_pointer(instruction)?;
                self.far_call(selector, offset, width, instruction.next_ip())
            }
            Mnemonic::Retf => {
                let width = match instruction.code() {
                    Code::Retfw | Code::Retfw_imm16 => Width::B2,
                    Code::Retfd | Code::Retfd_imm16 => Width::B4,
                    _ => Width::B8,
                };
                let extra = match instruction.op_count() {
                    0 => 0,
                    _ => u64::from(instruction.immediate16()),
                };
                self.far_return(width, extra)
            }
            Mnemonic::Iret => self.iret(Width::B2),
            Mnemonic::Iretd => self.iret(Width::B4),
            _ => self.iret(Width::B8),
        }
    }

    /// Selector, offset, and the width of what a call pushes.
    fn far_pointer(&mut self, instruction: &Instruction) -> Outcome<(u16, u64, Width)> {
        if instruction.op0_kind() == OpKind::FarBranch16 {
            let offset = u64::from(instruction.far_branch16());
            return Ok((instruction.far_branch_selector(), offset, Width::B2));
        }
        if instruction.op0_kind() == OpKind::FarBranch32 {
            let offset = u64::from(instruction.far_branch32());
            return Ok((instruction.far_branch_selector(), offset, Width::B4));
        }
        let width = match instruction.code() {
            Code::Jmp_m1616 | Code::Call_m1616 => Width::B2,
            Code::Jmp_m1632 | Code::Call_m1632 => Width::B4,
            _ => Width::B8,
        };
        let at = self.address(instruction, 0);
        let offset = self.load(at, width)?;
        let at = self.address(instruction, width.bytes());
        let selector = self.load(at, Width::B2)?;
        Ok((selector as u16, offset, width))
    }

    fn set_code(&mut self, selector: u16, segment: Segment, offset: u64) -> Outcome {
        let long = segment.has(Segment::L) && self.mmu.is_long();
        if long && !is_canonical(offset) || !long && offset > u64::from(segment.limit) {
            return Err(general_protection(0));
        }
        self.mmu.set_segment(
            SegmentRegister::Cs,
            Segment {
                selector,
                ..segment
            },
        );
        self.cpu.rip = offset;
        Ok(())
    }

    /// Looks up where a far JMP or CALL leads, with the checks that both share.
    fn target(&mut self, selector: u16) -> Outcome<Target> {
        let code = u32::from(selector & !3);
        let (cpl, rpl) = (self.mmu.cpl, (selector & 3) as u8);
        if selector & !3 == 0 {
            return Err(general_protection(0));
        }
        let (descriptor, at) = self
            .read_descriptor(selector)?
            .ok_or_else(|| general_protection(code))?;
        if descriptor.is_segment() {
            let reachable = if descriptor.is_conforming_code() {
                descriptor.dpl() <= cpl
            } else {
                rpl <= cpl && descriptor.dpl() == cpl
            };
            self.check_code(&descriptor, code)?;
            if !reachable {
                return Err(general_protection(code));
            }
            if !descriptor.is_present() {
                return Err(not_present(code));
            }
            self.mark_accessed(selector, &descriptor)?;
            return Ok(Target::Code(descriptor));
        }
        let long = self.mmu.is_long();
        match descriptor.kind() {
            0b0100 if !long => {}
            0b1100 => {}
            0b0101 | 0b0001 | 0b1001 if !long => {
                return Err(Fault::Refused(
                    "a far transfer to a task; hardware task switches are not supported".to_owned(),
                ));
            }
            _ => return Err(general_protection(code)),
        }
        if descriptor.dpl() < cpl.max(rpl) {
            return Err(general_protection(code));
        }
        if !descriptor.is_present() {
            return Err(not_present(code));
        }
        let raw = descriptor.0;
        let mut offset = raw & 0xffff;
        let wide = descriptor.kind() & 0b1000 != 0;
        if wide {
            offset |= raw >> 48 << 16;
        }
        if long {
            offset |= self.read_upper_base(at)? << 32;
        }
        Ok(Target::Gate {
            wide,
            selector: (raw >> 16) as u16,
            offset,
            parameters: raw >> 32 & 31,
        })
    }

    /// A code segment, and not both 64- and 32-bit in long mode.
    fn check_code(&self, descriptor: &Descriptor, code: u32) -> Outcome {
        let both = descriptor.is_64_bit() && descriptor.is_32_bit();
        if !descriptor.is_code() || self.mmu.is_long() && both {
            return Err(general_protection(code));
        }
        Ok(())
    }

    /// The code segment that a call gate names.
    fn gate_target(&mut self, selector: u16) -> Outcome<Descriptor> {
        let code = u32::from(selector & !3);
        if selector & !3 == 0 {
            return Err(general_protection(0));
        }
        let (descriptor, _) = self
            .read_descriptor(selector)?
            .ok_or_else(|| general_protection(code))?;
        if !descriptor.is_code() || descriptor.dpl() > self.mmu.cpl {
            return Err(general_protection(code));
        }
        if self.mmu.is_long() && (!descriptor.is_64_bit() || descriptor.is_32_bit()) {
            return Err(general_protection(code));
        }
        if !descriptor.is_present() {
            return Err(not_present(code));
        }
        self.mark_accessed(selector, &descriptor)?;
        Ok(descriptor)
    }

    fn far_jump(&mut self, selector: u16, offset: u64) -> Outcome {
        if !self.mmu.is_protected() {
            return self.real_mode_jump(selector, offset);
        }
        let cpl = u16::from(self.mmu.cpl);
        let (descriptor, selector, offset) = match self.target(selector)? {
            Target::Code(descriptor) => (descriptor, selector, offset),
            Target::Gate {
                selector, offset, ..
            } => {
                let descriptor = self.gate_target(selector)?;
                if !descriptor.is_conforming_code() && descriptor.dpl() != self.mmu.cpl {
                    return Err(general_protection(u32::from(selector & !3)));
                }
                (descriptor, selector, offset)
            }
        };
        let selector = selector & !3 | cpl;
        let segment = code_segment_in_use(&descriptor, selector);
        self.set_code(selector, segment, offset)
    }

    fn real_mode_jump(&mut self, selector: u16, offset: u64) -> Outcome {
        if offset > u64::from(self.mmu.segment(SegmentRegister::Cs).limit) {
            return Err(general_protection(0));
        }
        self.set_real_mode_segment(SegmentRegister::Cs, selector);
        self.cpu.rip = offset;
        Ok(())
    }

    fn far_call(&mut self, selector: u16, offset: u64, width: Width, next: u64) -> Outcome {
        let old_cs = u64::from(self.mmu.segment(SegmentRegister::Cs).selector);
        if !self.mmu.is_protected() {
            self.push(width, old_cs)?;
            self.push(width, next)?;
            return self.real_mode_jump(selector, offset);
        }
        let cpl = self.mmu.cpl;
        match self.target(selector)? {
            Target::Code(descriptor) => {
                self.push(width, old_cs)?;
                self.push(width, next)?;
                let selector = selector & !3 | u16::from(cpl);
                let segment = code_segment_in_use(&descriptor, selector);
                self.set_code(selector, segment, offset)
            }
            Target::Gate {
                wide,
                selector,
                offset,
                parameters,
            } => {
                let descriptor = self.gate_target(selector)?;
                let long = self.mmu.is_long();
                let width = match (long, wide) {
                    (true, _) => Width::B8,
                    (false, true) => Width::B4,
                    (false, false) => Width::B2,
                };
                let mut new_cpl = cpl;
                if !descriptor.is_conforming_code() && descriptor.dpl() < cpl {
                    new_cpl = descriptor.dpl();
                    self.switch_to_inner_stack(new_cpl, width, parameters)?;
                    self.mmu.cpl = new_cpl;
                }
                self.mmu.select(self.cpu.rflags);
                self.push(width, old_cs)?;
                self.push(width, next)?;
                let selector = selector & !3 | u16::from(new_cpl);
                let segment = code_segment_in_use(&descriptor, selector);
                self.set_code(selector, segment, offset)
            }
        }
    }

    /// A call gate to an inner level: its stack, with the outer one's place and parameters.
    fn switch_to_inner_stack(&mut self, cpl: u8, width: Width, parameters: u64) -> Outcome {
        let old_ss = u64::from(self.mmu.segment(SegmentRegister::Ss).selector);
        let old_rsp = self.cpu.get(Gpr::Rsp);
        let mut values = vec![old_ss, old_rsp];
        if self.mmu.is_long() {
            let mut at = self.read_task_state(4 + 8 * u64::from(cpl), Width::B8)?;
            for value in values {
                at = at.wrapping_sub(8);
                self.mmu.write_own(at, Width::B8, value, false)?;
            }
            self.set_segment(SegmentRegister::Ss, null_stack(cpl));
            self.cpu.set(Gpr::Rsp, at);
            return Ok(());
        }
        for slot in (0..parameters).rev() {
            values.push(self.peek(width, slot)?);
        }
        let (ss, esp) = self.inner_stack(cpl, 0)?;
        let esp = self.push_all(&ss, esp, width, &values, false)?;
        self.set_segment(SegmentRegister::Ss, ss);
        self.cpu.set(Gpr::Rsp, esp & 0xffff_ffff);
        Ok(())
    }

    fn far_return(&mut self, width: Width, extra: u64) -> Outcome {
        let offset = self.peek(width, 0)?;
        let selector = self.peek(width, 1)? as u16;
        if !self.mmu.is_protected() {
            self.drop_stack(2 * width.bytes() + extra);
            return self.real_mode_jump(selector, offset);
        }
        let (segment, outer) = self.return_target(selector)?;
        if outer {
            // The parameters lie between the return address and the outer stack's.
            let inner = self.cpu.get(Gpr::Rsp);
            self.drop_stack(2 * width.bytes() + extra);
            let rsp = self.peek(width, 0)?;
            let ss = self.peek(width, 1)? as u16;
            self.cpu.set(Gpr::Rsp, inner);
            self.set_code(selector, segment, offset)?;
            self.return_outwards((selector & 3) as u8, ss, rsp)?;
            self.drop_stack(extra);
        } else {
            self.set_code(selector, segment, offset)?;
            self.drop_stack(2 * width.bytes() + extra);
        }
        Ok(())
    }

    /// The code segment to return to, and whether it is at an outer level.
    fn return_target(&mut self, selector: u16) -> Outcome<(Segment, bool)> {
        let code = u32::from(selector & !3);
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            return Err(general_protection(0));
        }
        let (descriptor, _) = self
            .read_descriptor(selector)?
            .ok_or_else(|| general_protection(code))?;
        self.check_code(&descriptor, code)?;
        let fits = if descriptor.is_conforming_code() {
            descriptor.dpl() <= rpl
        } else {
            descriptor.dpl() == rpl
        };
        if rpl < self.mmu.cpl || !fits {
            return Err(general_protection(code));
        }
        if !descriptor.is_present() {
            return Err(not_present(code));
        }
        self.mark_accessed(selector, &descriptor)?;
        let segment = code_segment_in_use(&descriptor, selector);
        Ok((segment, rpl > self.mmu.cpl))
    }

    /// Takes the outer level's stack, and takes away data segments that it may not use.
    fn return_outwards(&mut self, cpl: u8, ss: u16, rsp: u64) -> Outcome {
        let to_64_bit = self.mmu.code_mode() == CpuMode::Bits64;
        let segment = if ss & !3 == 0 && to_64_bit && cpl != 3 && ss & 3 == u16::from(cpl) {
            null_stack(cpl)
        } else {
            self.load_stack_segment(ss, cpl, vector::GENERAL_PROTECTION, 0)?
        };
        let wide = segment.has(Segment::DB) || to_64_bit;
        self.set_segment(SegmentRegister::Ss, segment);
        self.mmu.cpl = cpl;
        let old = self.cpu.get(Gpr::Rsp);
        let rsp = if wide {
            rsp
        } else {
            old & !0xffff | rsp & 0xffff
        };
        self.cpu.set(Gpr::Rsp, rsp);
        for register in [
            SegmentRegister::Es,
            SegmentRegister::Ds,
            SegmentRegister::Fs,
            SegmentRegister::Gs,
        ] {
            let held = *self.mmu.segment(register);
            let conforming = held.kind() & 0b1100 == 0b1100;
            if !held.unusable && held.dpl() < cpl && !conforming {
                let base = held.base;
                self.set_segment(
                    register,
                    Segment {
                        base: if to_64_bit { base } else { 0 },
                        unusable: true,
                        ..Segment::default()
                    },
                );
            }
        }
        Ok(())
    }

    fn iret(&mut self, width: Width) -> Outcome {
        if !self.mmu.is_protected() {
            let offset = self.peek(width, 0)?;
            let selector = self.peek(width, 1)? as u16;
            let image = self.peek(width, 2)?;
            self.drop_stack(3 * width.bytes());
            self.real_mode_jump(selector, offset)?;
            self.load_flags(image, width);
            self.nmi_blocked = false;
            return Ok(());
        }
        let from_64_bit = self.mmu.code_mode() == CpuMode::Bits64;
        if self.cpu.rflags & rflags::NT != 0 {
            if self.mmu.is_long() {
                return Err(general_protection(0));
            }
            return Err(Fault::Refused(
                "IRET to another task; hardware task switches are not supported".to_owned(),
            ));
        }
        let offset = self.peek(width, 0)?;
        let selector = self.peek(width, 1)? as u16;
        let image = self.peek(width, 2)?;
        if image & rflags::VM != 0 && width != Width::B2 && self.mmu.cpl == 0 && !self.mmu.is_long()
        {
            return Err(Fault::Refused(
                "IRET to virtual-8086 mode, which is not supported".to_owned(),
            ));
        }
        let (segment, outer) = self.return_target(selector)?;
        if outer || from_64_bit {
            let rsp = self.peek(width, 3)?;
            let ss = self.peek(width, 4)? as u16;
            let rpl = (selector & 3) as u8;
            self.load_flags(image, width);
            self.set_code(selector, segment, offset)?;
            if outer {
                self.return_outwards(rpl, ss, rsp)?;
            } else {
                self.mmu.select(self.cpu.rflags);
                if ss & !3 == 0 && rpl != 3 {
                    self.set_segment(
                        SegmentRegister::Ss,
                        Segment {
                            selector: ss,
                            ..null_stack(rpl)
                        },
                    );
                } else {
                    self.load_segment(SegmentRegister::Ss, ss)?;
                }
                self.cpu.set(Gpr::Rsp, rsp);
            }
        } else {
            self.drop_stack(3 * width.bytes());
            self.load_flags(image, width);
            self.set_code(selector, segment, offset)?;
        }
        self.nmi_blocked = false;
        Ok(())
    }

    /// What POPF and IRET make of a flags image: privilege decides over IF and IOPL.
    pub(super) fn load_flags(&mut self, image: u64, width: Width) {
        let cpl = u64::from(self.mmu.cpl);
        let mut writable = flags::USER | rflags::NT;
        if cpl == 0 {
            writable |= rflags::IOPL;
        }
        if !self.mmu.is_protected() || cpl <= self.cpu.rflags >> 12 & 3 {
            writable |= flags::IF;
        }
        writable &= width.mask();
        if width != Width::B2 && cpl == 0 {
            writable |= rflags::VIF | rflags::VIP;
        }
        self.cpu.rflags = self.cpu.rflags & !writable | image & writable | flags::FIXED;
    }

    /// LDS and its kin: a far pointer into a segment register and a general one.
    pub(super) fn load_far_pointer(
        &mut self,
        instruction: &Instruction,
        register: SegmentRegister,
    ) -> Outcome {
        let width = width_of(instruction.op0_register().size());
        let at = self.address(instruction, 0);
        let offset = self.load(at, width)?;
        let at = self.address(instruction, width.bytes());
        let selector = self.load(at, Width::B2)?;
        self.load_segment(register, selector as u16)?;
        self.set_register(instruction.op0_register(), offset);
        Ok(())
    }
}
