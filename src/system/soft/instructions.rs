//! The instructions that end a block: those that read or write system state. Each checks
//! its privilege first and changes nothing when it faults.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::super::state::{Segment, SegmentRegister};
use super::super::vcpu::VcpuExit;
use super::Vcpu;
use super::exceptions::{
    Event, Exception, Fault, Outcome, Source, general_protection, invalid_opcode,
};
use super::operands::{segment_register, width_of};
use super::registers::{cr0, cr4, rflags, vector};
use crate::guest::{CpuMode, Gpr, Width, flags};

impl Vcpu {
    /// Executes one such instruction and leaves RIP where the guest goes on.
    pub(super) fn execute(&mut self, instruction: &Instruction) -> Outcome {
        let next = instruction.next_ip();
        let before = self.cpu.rflags;
        let goes_on = match self.dispatch(instruction) {
            Ok(goes_on) => goes_on,
            Err(fault) => return Err(self.in_operands_segment(instruction, fault)),
        };
        if goes_on {
            self.cpu.rip = next;
        }
        if self.cpu.rflags & !before & flags::IF != 0 {
            self.look();
        }
        self.follow_mode();
        Ok(())
    }

    /// A non-canonical operand in the stack segment is #SS(0) instead of #GP(0).
    fn in_operands_segment(&self, instruction: &Instruction, fault: Fault) -> Fault {
        let plain = Exception::with_code(vector::GENERAL_PROTECTION, 0);
        let in_stack = instruction.memory_segment() == iced_x86::Register::SS
            && self.mmu.code_mode() == CpuMode::Bits64
            && (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
        match fault {
            Fault::Exception(exception)
                if exception == plain
                    && in_stack
                    && (instruction.is_vsib()
                        || !super::mmu::is_canonical(self.address(instruction, 0).0)) =>
            {
                Fault::Exception(Exception::with_code(vector::STACK, 0))
            }
            other => other,
        }
    }

    pub(super) fn require_ring_0(&self) -> Outcome {
        if self.mmu.cpl == 0 {
            Ok(())
        } else {
            Err(general_protection(0))
        }
    }

    fn require_protected(&self) -> Outcome {
        if self.mmu.is_protected() {
            Ok(())
        } else {
            Err(invalid_opcode())
        }
    }

    /// SGDT and its kin are ring 0's under CR4.UMIP.
    fn check_umip(&self) -> Outcome {
        if self.mmu.sys.cr4 & cr4::UMIP != 0 {
            self.require_ring_0()?;
        }
        Ok(())
    }

    /// False: the instruction set RIP itself.
    fn dispatch(&mut self, instruction: &Instruction) -> Outcome<bool> {
        match instruction.mnemonic() {
            Mnemonic::Mov => self.move_system(instruction)?,
            Mnemonic::Push => {
                let register = segment_register(instruction.op0_register());
                let selector = self.selector(register);
                let bytes = instruction.stack_pointer_increment().unsigned_abs();
                self.push(width_of(bytes as usize), selector)?;
            }
            Mnemonic::Pop => self.pop_segment(instruction)?,
            Mnemonic::Popf => self.popf(Width::B2)?,
            Mnemonic::Popfd => self.popf(Width::B4)?,
            Mnemonic::Popfq => self.popf(Width::B8)?,
            Mnemonic::Cli => {
                self.check_io_privilege()?;
                self.cpu.rflags &= !flags::IF;
            }
            Mnemonic::Sti => {
                self.check_io_privilege()?;
                // No interrupt between STI and the next instruction, if it was off.
                self.shadow = self.cpu.rflags & flags::IF == 0;
                self.cpu.rflags |= flags::IF;
            }
            Mnemonic::Clac | Mnemonic::Stac => {
                if self.mmu.sys.cr4 & cr4::SMAP == 0 || self.mmu.cpl != 0 {
                    return Err(invalid_opcode());
                }
                if instruction.mnemonic() == Mnemonic::Stac {
                    self.cpu.rflags |= flags::AC;
                } else {
                    self.cpu.rflags &= !flags::AC;
                }
            }
            Mnemonic::Hlt => {
                self.require_ring_0()?;
                self.halted = true;
                self.look();
            }
            Mnemonic::In
            | Mnemonic::Out
            | Mnemonic::Insb
            | Mnemonic::Insw
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsw
            | Mnemonic::Outsd => self.port(instruction)?,
            Mnemonic::Cpuid => self.cpuid(),
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => {
                if self.mmu.sys.cr4 & cr4::TSD != 0 {
                    self.require_ring_0()?;
                }
                let tsc = self.tsc();
                self.set_edx_eax(tsc);
                if instruction.mnemonic() == Mnemonic::Rdtscp {
                    self.cpu.set(Gpr::Rcx, self.mmu.sys.tsc_aux & 0xffff_ffff);
                }
            }
            Mnemonic::Rdpid => {
                let value = self.mmu.sys.tsc_aux & 0xffff_ffff;
                self.set_register(instruction.op0_register(), value);
            }
            Mnemonic::Rdmsr => {
                self.require_ring_0()?;
                let value = self.read_msr(self.cpu.get(Gpr::Rcx) as u32)?;
                self.set_edx_eax(value);
            }
            Mnemonic::Wrmsr => {
                self.require_ring_0()?;
                let value = self.edx_eax();
                self.write_msr(self.cpu.get(Gpr::Rcx) as u32, value)?;
            }
            Mnemonic::Rdfsbase
            | Mnemonic::Rdgsbase
            | Mnemonic::Wrfsbase
            | Mnemonic::Wrgsbase
            | Mnemonic::Swapgs => self.segment_base(instruction)?,
            Mnemonic::Lgdt | Mnemonic::Lidt => self.load_table(instruction)?,
            Mnemonic::Sgdt | Mnemonic::Sidt => self.store_table(instruction)?,
            Mnemonic::Lldt | Mnemonic::Ltr => {
                self.require_protected()?;
                self.require_ring_0()?;
                let selector = self.read_operand(instruction, 0, Width::B2)? as u16;
                if instruction.mnemonic() == Mnemonic::Lldt {
                    self.load_ldt(selector)?;
                } else {
                    self.load_task_register(selector)?;
                }
            }
            Mnemonic::Sldt | Mnemonic::Str => {
                self.require_protected()?;
                self.check_umip()?;
                let segment = if instruction.mnemonic() == Mnemonic::Sldt {
                    self.mmu.sys.ldtr
                } else {
                    self.mmu.sys.tr
                };
                self.write_selector(instruction, u64::from(segment.selector))?;
            }
            Mnemonic::Smsw => {
                self.check_umip()?;
                let value = self.mmu.sys.cr0;
                self.write_selector(instruction, value)?;
            }
            Mnemonic::Lmsw => {
                self.require_ring_0()?;
                let value = self.read_operand(instruction, 0, Width::B2)?;
                let old = self.mmu.sys.cr0;
                // LMSW can set PE but never clear it.
                let word = value & 15 | old & cr0::PE;
                self.set_cr0(old & !15 | word)?;
            }
            Mnemonic::Clts => {
                self.require_ring_0()?;
                self.mmu.sys.cr0 &= !cr0::TS;
            }
            Mnemonic::Lar | Mnemonic::Lsl => self.look_up_descriptor(instruction)?,
            Mnemonic::Verr | Mnemonic::Verw => self.verify_segment(instruction)?,
            Mnemonic::Lds => self.load_far_pointer(instruction, SegmentRegister::Ds)?,
            Mnemonic::Les => self.load_far_pointer(instruction, SegmentRegister::Es)?,
            Mnemonic::Lfs => self.load_far_pointer(instruction, SegmentRegister::Fs)?,
            Mnemonic::Lgs => self.load_far_pointer(instruction, SegmentRegister::Gs)?,
            Mnemonic::Lss => {
                self.load_far_pointer(instruction, SegmentRegister::Ss)?;
                self.shadow = true;
            }
            Mnemonic::Invlpg => {
                self.require_ring_0()?;
                let linear = match self.place(instruction, self.offset(instruction)) {
                    at if self.mmu.code_mode() == CpuMode::Bits64 => at.0,
                    _ => {
                        let register = segment_register(instruction.memory_segment());
                        let base = register.map_or(0, |r| self.mmu.segment(r).base);
                        base.wrapping_add(self.offset(instruction)) & 0xffff_ffff
                    }
                };
                self.mmu.flush_page(linear);
            }
            Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => self.require_ring_0()?,
            Mnemonic::Jmp
            | Mnemonic::Call
            | Mnemonic::Retf
            | Mnemonic::Iret
            | Mnemonic::Iretd
            | Mnemonic::Iretq => {
                self.far_transfer(instruction)?;
                return Ok(false);
            }
            Mnemonic::Syscall
            | Mnemonic::Sysret
            | Mnemonic::Sysretq
            | Mnemonic::Sysenter
            | Mnemonic::Sysexit
            | Mnemonic::Sysexitq => {
                self.fast_call(instruction)?;
                return Ok(false);
            }
            Mnemonic::Int3 => return self.software_interrupt(vector::BREAKPOINT, instruction),
            Mnemonic::Int => {
                return self.software_interrupt(instruction.immediate8(), instruction);
            }
            Mnemonic::Into if self.cpu.rflags & flags::OF != 0 => {
                return self.software_interrupt(vector::OVERFLOW, instruction);
            }
            Mnemonic::Into => {}
            Mnemonic::Int1 => {
                self.cpu.rip = instruction.next_ip();
                return Err(Fault::Exception(Exception::plain(vector::DEBUG)));
            }
            Mnemonic::Bound => self.bound(instruction)?,
            Mnemonic::Xgetbv | Mnemonic::Xsetbv => self.extended_control(instruction)?,
            _ if instruction.is_save_restore_instruction() => {
                self.save_or_restore(instruction)?;
            }
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => {
                self.masked_store(instruction)?;
            }
            Mnemonic::Vmaskmovps
            | Mnemonic::Vmaskmovpd
            | Mnemonic::Vpmaskmovd
            | Mnemonic::Vpmaskmovq => self.masked_move(instruction)?,
            _ if instruction.is_vsib() => self.gather(instruction)?,
            Mnemonic::Rdpmc => {
                // No performance counter exists.
                return Err(general_protection(0));
            }
            // What the guest's CPUID doesn't announce.
            Mnemonic::Ud0
            | Mnemonic::Ud1
            | Mnemonic::Ud2
            | Mnemonic::Monitor
            | Mnemonic::Mwait
            | Mnemonic::Monitorx
            | Mnemonic::Mwaitx
            | Mnemonic::Clzero
            | Mnemonic::Rdpkru
            | Mnemonic::Wrpkru
            | Mnemonic::Umonitor
            | Mnemonic::Umwait
            | Mnemonic::Tpause
            | Mnemonic::Enqcmd
            | Mnemonic::Movdir64b
            | Mnemonic::Invpcid
            | Mnemonic::Vmcall
            | Mnemonic::Vmmcall
            | Mnemonic::Xbegin
            | Mnemonic::Xabort
            | Mnemonic::Xend
            | Mnemonic::Rsm => return Err(invalid_opcode()),
            // Shadow stacks are off: the register stays.
            Mnemonic::Rdsspd | Mnemonic::Rdsspq => {}
            _ => return Err(self.unsupported(instruction)),
        }
        Ok(true)
    }

    /// The engine can't do this one: says which.
    pub(super) fn unsupported(&mut self, instruction: &Instruction) -> Fault {
        tracing::debug!(target: "temper::system", %instruction, "not executed");
        let mut bytes = [0; 15];
        let len = instruction.len();
        use crate::guest::GuestMemory;
        let at = crate::addr::GuestAddr(instruction.ip());
        if self.mmu.fetch(at, &mut bytes[..len]).is_err() {
            bytes = [0; 15];
        }
        Fault::Exit(VcpuExit::EmulationFailure {
            bytes,
            len: len as u8,
        })
    }

    fn selector(&self, register: Option<SegmentRegister>) -> u64 {
        register.map_or(0, |register| u64::from(self.mmu.segment(register).selector))
    }

    pub(super) fn edx_eax(&self) -> u64 {
        self.cpu.get(Gpr::Rdx) << 32 | self.cpu.get(Gpr::Rax) & 0xffff_ffff
    }

    pub(super) fn set_edx_eax(&mut self, value: u64) {
        self.cpu.set(Gpr::Rax, value & 0xffff_ffff);
        self.cpu.set(Gpr::Rdx, value >> 32);
    }

    fn move_system(&mut self, instruction: &Instruction) -> Outcome {
        if let Some(register) = segment_register(instruction.op0_register())
            && instruction.op0_kind() == OpKind::Register
        {
            if register == SegmentRegister::Cs {
                return Err(invalid_opcode());
            }
            let selector = self.read_operand(instruction, 1, Width::B2)?;
            self.load_segment(register, selector as u16)?;
            self.shadow = register == SegmentRegister::Ss;
            return Ok(());
        }
        if let Some(register) = segment_register(instruction.op1_register()) {
            let selector = self.selector(Some(register));
            return self.write_selector(instruction, selector);
        }
        self.move_control(instruction)
    }

    fn pop_segment(&mut self, instruction: &Instruction) -> Outcome {
        let Some(register) = segment_register(instruction.op0_register()) else {
            return Err(self.unsupported(instruction));
        };
        let bytes = instruction.stack_pointer_increment().unsigned_abs();
        let width = width_of(bytes as usize);
        let selector = self.peek(width, 0)?;
        let mask = self.stack_mask();
        let rsp = self.cpu.get(Gpr::Rsp);
        self.load_segment(register, selector as u16)?;
        // By the old stack's size, should SS have changed it.
        let moved = rsp.wrapping_add(width.bytes());
        self.cpu.set(Gpr::Rsp, rsp & !mask | moved & mask);
        self.shadow = register == SegmentRegister::Ss;
        Ok(())
    }

    fn popf(&mut self, width: Width) -> Outcome {
        let image = self.peek(width, 0)?;
        self.drop_stack(width.bytes());
        self.load_flags(image & !(rflags::RF | rflags::VM), width);
        Ok(())
    }

    /// CLI, STI and port accesses: CPL must not exceed IOPL.
    fn check_io_privilege(&self) -> Outcome {
        let iopl = self.cpu.rflags >> 12 & 3;
        if self.mmu.is_protected() && u64::from(self.mmu.cpl) > iopl {
            return Err(general_protection(0));
        }
        Ok(())
    }

    fn segment_base(&mut self, instruction: &Instruction) -> Outcome {
        if self.mmu.code_mode() != CpuMode::Bits64 {
            return Err(invalid_opcode());
        }
        let mnemonic = instruction.mnemonic();
        if mnemonic == Mnemonic::Swapgs {
            self.require_ring_0()?;
            let base = self.cpu.gs_base;
            self.set_base(SegmentRegister::Gs, self.mmu.sys.kernel_gs_base);
            self.mmu.sys.kernel_gs_base = base;
            return Ok(());
        }
        if self.mmu.sys.cr4 & cr4::FSGSBASE == 0 {
            return Err(invalid_opcode());
        }
        let register = match mnemonic {
            Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => SegmentRegister::Fs,
            _ => SegmentRegister::Gs,
        };
        if matches!(mnemonic, Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
            let base = self.mmu.segment(register).base;
            self.set_register(instruction.op0_register(), base);
            return Ok(());
        }
        let base = self.register(instruction.op0_register());
        if !super::mmu::is_canonical(base) {
            return Err(general_protection(0));
        }
        self.set_base(register, base);
        Ok(())
    }

    /// Sets the base of FS or GS, and nothing else of it.
    pub(super) fn set_base(&mut self, register: SegmentRegister, base: u64) {
        let segment = Segment {
            base,
            ..*self.mmu.segment(register)
        };
        self.set_segment(register, segment);
    }

    fn load_table(&mut self, instruction: &Instruction) -> Outcome {
        self.require_ring_0()?;
        let long = self.mmu.code_mode() == CpuMode::Bits64;
        let at = self.address(instruction, 0);
        let limit = self.load(at, Width::B2)? as u16;
        let at = self.address(instruction, 2);
        let base = self.load(at, if long { Width::B8 } else { Width::B4 })?;
        if long && !super::mmu::is_canonical(base) {
            return Err(general_protection(0));
        }
        // With a 16-bit operand, the base has 24 bits.
        let base = match instruction.code() {
            iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16 => base & 0xff_ffff,
            _ => base,
        };
        let table = super::super::state::TableRegister { base, limit };
        if instruction.mnemonic() == Mnemonic::Lgdt {
            self.mmu.sys.gdtr = table;
        } else {
            self.mmu.sys.idtr = table;
        }
        Ok(())
    }

    fn store_table(&mut self, instruction: &Instruction) -> Outcome {
        self.check_umip()?;
        let table = if instruction.mnemonic() == Mnemonic::Sgdt {
            self.mmu.sys.gdtr
        } else {
            self.mmu.sys.idtr
        };
        let long = self.mmu.code_mode() == CpuMode::Bits64;
        let at = self.address(instruction, 0);
        self.store(at, Width::B2, u64::from(table.limit))?;
        let at = self.address(instruction, 2);
        self.store(at, if long { Width::B8 } else { Width::B4 }, table.base)
    }

    fn set_zero_flag(&mut self, set: bool) {
        self.cpu.rflags &= !flags::ZF;
        self.cpu.rflags |= if set { flags::ZF } else { 0 };
    }

    /// LAR and LSL (Intel SDM volume 2 lists the system descriptors that each accepts).
    fn look_up_descriptor(&mut self, instruction: &Instruction) -> Outcome {
        self.require_protected()?;
        let selector = self.read_operand(instruction, 1, Width::B2)?;
        let long = self.mmu.is_long();
        let lar = instruction.mnemonic() == Mnemonic::Lar;
        let found = self
            .visible_descriptor(selector as u16)?
            .filter(|descriptor| {
                descriptor.is_segment()
                    || match descriptor.kind() {
                        2 | 9 | 11 => true,
                        1 | 3 => !long,
                        4 | 5 => lar && !long,
                        12 => lar,
                        _ => false,
                    }
            });
        self.set_zero_flag(found.is_some());
        if let Some(descriptor) = found {
            let value = if lar {
                descriptor.0 >> 32 & 0xff_ff00
            } else {
                u64::from(descriptor.limit())
            };
            self.set_register(instruction.op0_register(), value);
        }
        Ok(())
    }

    fn verify_segment(&mut self, instruction: &Instruction) -> Outcome {
        self.require_protected()?;
        let selector = self.read_operand(instruction, 0, Width::B2)?;
        let found = self.visible_descriptor(selector as u16)?;
        let good = found.is_some_and(|descriptor| {
            if instruction.mnemonic() == Mnemonic::Verr {
                descriptor.is_readable()
            } else {
                descriptor.is_writable_data()
            }
        });
        self.set_zero_flag(good);
        Ok(())
    }

    fn bound(&mut self, instruction: &Instruction) -> Outcome {
        let width = width_of(instruction.op0_register().size());
        let unused = 64 - width.bits();
        let signed = |value: u64| (value << unused) as i64 >> unused;
        let index = signed(self.register(instruction.op0_register()));
        let at = self.address(instruction, 0);
        let lower = signed(self.load(at, width)?);
        let at = self.address(instruction, width.bytes());
        let upper = signed(self.load(at, width)?);
        if index < lower || index > upper {
            return Err(Fault::Exception(Exception::plain(vector::BOUND_RANGE)));
        }
        Ok(())
    }

    /// INT n, INT3, INTO: straight to the handler, with RIP behind the instruction.
    fn software_interrupt(&mut self, vector: u8, instruction: &Instruction) -> Outcome<bool> {
        let event = Event {
            vector,
            code: None,
            source: Source::Software,
            return_to: instruction.next_ip(),
        };
        match self.enter_handler(event) {
            Ok(None) => Ok(false),
            Ok(Some(exit)) => Err(Fault::Exit(exit)),
            Err(error) => Err(Fault::Refused(error.to_string())),
        }
    }
}
