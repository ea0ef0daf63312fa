//! Exceptions and interrupts: from a trap to the first instruction of its handler, through
//! the real-mode vector table, a 16-, 32- or 64-bit gate, and whatever goes wrong on the way
//! (Intel SDM volume 3, chapter 6).

use super::super::state::{Segment, SegmentRegister};
use super::super::vcpu::{VcpuError, VcpuExit};
use super::Vcpu;
use super::mmu::is_canonical;
use super::registers::{rflags, vector};
use super::segments::code_segment_in_use;
use crate::guest::{Gpr, GuestTrap, Width, flags};

/// An exception as the CPU raises it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    pub vector: u8,
    pub code: Option<u32>,
    /// What CR2 will hold.
    pub address: Option<u64>,
}

impl Exception {
    pub const fn plain(vector: u8) -> Exception {
        Exception {
            vector,
            code: None,
            address: None,
        }
    }

    pub const fn with_code(vector: u8, code: u32) -> Exception {
        Exception {
            vector,
            code: Some(code),
            address: None,
        }
    }
}

/// Why an instruction didn't complete.
#[derive(Debug)]
pub enum Fault {
    Exception(Exception),
    /// The store would change code in physical memory: those blocks go first, then the
    /// instruction runs again.
    CodeChanges {
        physical: u64,
        len: u64,
    },
    /// The CPU stops with this.
    Exit(VcpuExit),
    /// What the engine refuses, in words.
    Refused(String),
}

pub type Outcome<T = ()> = Result<T, Fault>;

pub fn general_protection(code: u32) -> Fault {
    Fault::Exception(Exception::with_code(vector::GENERAL_PROTECTION, code))
}

pub fn invalid_opcode() -> Fault {
    Fault::Exception(Exception::plain(vector::INVALID_OPCODE))
}

impl From<GuestTrap> for Fault {
    fn from(trap: GuestTrap) -> Fault {
        let plain = |vector| Fault::Exception(Exception::plain(vector));
        match trap {
            GuestTrap::DivideError => plain(vector::DIVIDE_ERROR),
            GuestTrap::Debug => plain(vector::DEBUG),
            GuestTrap::Breakpoint => plain(vector::BREAKPOINT),
            GuestTrap::Overflow => plain(vector::OVERFLOW),
            GuestTrap::BoundRange => plain(vector::BOUND_RANGE),
            GuestTrap::InvalidOpcode => invalid_opcode(),
            GuestTrap::GeneralProtection => general_protection(0),
            GuestTrap::X87FloatingPoint => plain(vector::X87),
            GuestTrap::SimdFloatingPoint => plain(vector::SIMD),
            GuestTrap::AlignmentCheck => {
                Fault::Exception(Exception::with_code(vector::ALIGNMENT_CHECK, 0))
            }
            GuestTrap::SoftwareInterrupt(_) | GuestTrap::Unsupported => {
                Fault::Exit(VcpuExit::EmulationFailure {
                    bytes: [0; 15],
                    len: 0,
                })
            }
            GuestTrap::Memory(fault) if fault.trap_number == super::mmu::CODE_CHANGES => {
                Fault::CodeChanges {
                    physical: fault.addr.0,
                    len: u64::from(fault.error_code),
                }
            }
            GuestTrap::Memory(fault) => Fault::Exception(Exception {
                vector: fault.trap_number,
                code: Some(fault.error_code),
                address: (fault.trap_number == vector::PAGE_FAULT).then_some(fault.addr.0),
            }),
        }
    }
}

/// Where an event comes from: software interrupts check the gate's DPL, and the EXT bit of
/// error codes tells the others apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    Exception,
    /// INT n, INT3, INTO.
    Software,
    /// A device's, or an NMI.
    Hardware,
}

/// An event on its way to its handler.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub vector: u8,
    pub code: Option<u32>,
    pub source: Source,
    /// What is pushed as RIP.
    pub return_to: u64,
}

/// How exceptions combine into a double fault (Intel SDM volume 3, table 6-5).
fn is_contributory(vector: u8) -> bool {
    matches!(
        vector,
        vector::DIVIDE_ERROR
            | vector::INVALID_TSS
            | vector::NOT_PRESENT
            | vector::STACK
            | vector::GENERAL_PROTECTION
    )
}

fn makes_double_fault(first: u8, second: u8) -> bool {
    is_contributory(first) && is_contributory(second)
        || first == vector::PAGE_FAULT && (is_contributory(second) || second == vector::PAGE_FAULT)
}

/// Exceptions that are reported behind their instruction.
fn is_trap(vector: u8) -> bool {
    matches!(
        vector,
        vector::DEBUG | vector::BREAKPOINT | vector::OVERFLOW | vector::NMI
    )
}

impl Vcpu {
    /// Raises an exception of the instruction at RIP.
    ///
    /// # Errors
    /// A triple fault (the state stays as at the last one), or what the engine refuses.
    pub(super) fn raise(&mut self, exception: Exception) -> Result<Option<VcpuExit>, VcpuError> {
        if let Some(address) = exception.address {
            self.mmu.sys.cr2 = address;
        }
        self.enter_handler(Event {
            vector: exception.vector,
            code: exception.code,
            source: Source::Exception,
            return_to: self.cpu.rip,
        })
    }

    /// Brings the CPU to the handler of `event`, or of what delivering it raises.
    ///
    /// # Errors
    /// As [`Vcpu::raise`].
    pub(super) fn enter_handler(
        &mut self,
        mut event: Event,
    ) -> Result<Option<VcpuExit>, VcpuError> {
        if let Some(profile) = &mut self.profile {
            profile.interrupt_path();
        }
        loop {
            self.stats.exceptions[usize::from(event.vector)] += 1;
            let cpu = self.cpu.clone();
            let segments = self.mmu.sys.segments;
            let cpl = self.mmu.cpl;
            let fault = match self.try_enter_handler(event) {
                Ok(()) => {
                    self.halted = false;
                    self.mmu.select(self.cpu.rflags);
                    return Ok(None);
                }
                Err(fault) => fault,
            };
            self.cpu = cpu;
            for (register, segment) in SegmentRegister::ALL.into_iter().zip(segments) {
                self.mmu.set_segment(register, segment);
            }
            self.mmu.cpl = cpl;
            self.mmu.select(self.cpu.rflags);
            let second = match fault {
                Fault::Exception(second) => second,
                Fault::CodeChanges { physical, len } => {
                    self.forget_code(physical, len);
                    continue;
                }
                Fault::Exit(exit) => return Ok(Some(exit)),
                Fault::Refused(what) => return Err(VcpuError::Unsupported(what)),
            };
            if let Some(address) = second.address {
                self.mmu.sys.cr2 = address;
            }
            if event.vector == vector::DOUBLE_FAULT && event.source == Source::Exception {
                return Ok(Some(VcpuExit::Shutdown));
            }
            let first_is_exception = event.source == Source::Exception;
            event = if first_is_exception && makes_double_fault(event.vector, second.vector) {
                Event {
                    vector: vector::DOUBLE_FAULT,
                    code: Some(0),
                    source: Source::Exception,
                    return_to: self.cpu.rip,
                }
            } else {
                Event {
                    vector: second.vector,
                    code: second.code,
                    source: Source::Exception,
                    return_to: self.cpu.rip,
                }
            };
        }
    }

    fn try_enter_handler(&mut self, event: Event) -> Outcome {
        if !self.mmu.is_protected() {
            return self.enter_real_mode_handler(event);
        }
        let long = self.mmu.is_long();
        let external = u32::from(event.source != Source::Software);
        let of_gate = u32::from(event.vector) << 3 | 2 | external;
        let size = if long { 16 } else { 8 };
        let at = u64::from(event.vector) * size;
        if at + size - 1 > u64::from(self.mmu.sys.idtr.limit) {
            return Err(general_protection(of_gate));
        }
        let base = self.mmu.sys.idtr.base.wrapping_add(at);
        let low = self.mmu.read_own(base, Width::B8, false)?;
        let high = if long {
            self.mmu.read_own(base.wrapping_add(8), Width::B8, false)?
        } else {
            0
        };
        let gate = Gate::new(low, high);
        let known = match gate.kind {
            0b0110 | 0b0111 => !long,
            0b1110 | 0b1111 => true,
            _ => false,
        };
        if gate.kind == 0b0101 && !long {
            return Err(Fault::Refused(format!(
                "interrupt {} goes through a task gate; hardware task switches are not supported",
                event.vector
            )));
        }
        if !known {
            return Err(general_protection(of_gate));
        }
        if event.source == Source::Software && gate.dpl < self.mmu.cpl {
            return Err(general_protection(of_gate));
        }
        if !gate.present {
            return Err(Fault::Exception(Exception::with_code(
                vector::NOT_PRESENT,
                of_gate,
            )));
        }
        self.enter_gate(event, gate, external)
    }

    fn enter_gate(&mut self, event: Event, gate: Gate, external: u32) -> Outcome {
        let long = self.mmu.is_long();
        let of_selector = u32::from(gate.selector & !3) | external;
        if gate.selector & !3 == 0 {
            return Err(general_protection(external));
        }
        let (descriptor, _) = self
            .read_descriptor(gate.selector)?
            .ok_or_else(|| general_protection(of_selector))?;
        let cpl = self.mmu.cpl;
        if !descriptor.is_code() || descriptor.dpl() > cpl {
            return Err(general_protection(of_selector));
        }
        if long && (!descriptor.is_64_bit() || descriptor.is_32_bit()) {
            return Err(general_protection(of_selector));
        }
        if !descriptor.is_present() {
            return Err(Fault::Exception(Exception::with_code(
                vector::NOT_PRESENT,
                of_selector,
            )));
        }
        let inner = !descriptor.is_conforming_code() && descriptor.dpl() < cpl;
        let new_cpl = if inner { descriptor.dpl() } else { cpl };
        self.mark_accessed(gate.selector, &descriptor)?;
        let frame = self.frame_values(event);
        if long {
            self.push_long_frame(&frame, gate.stack, inner, new_cpl, external)?;
        } else {
            let width = if gate.kind & 0b1000 != 0 {
                Width::B4
            } else {
                Width::B2
            };
            let offset_limit = u64::from(descriptor.limit());
            self.push_legacy_frame(&frame, width, inner, new_cpl, external)?;
            if gate.offset > offset_limit {
                return Err(general_protection(external));
            }
        }
        self.mmu.cpl = new_cpl;
        let selector = gate.selector & !3 | u16::from(new_cpl);
        self.mmu.set_segment(
            SegmentRegister::Cs,
            code_segment_in_use(&descriptor, selector),
        );
        self.cpu.rip = gate.offset;
        let mut cleared = flags::TF | rflags::NT | rflags::RF | rflags::VM;
        if gate.kind & 1 == 0 {
            cleared |= flags::IF;
        }
        self.cpu.rflags &= !cleared;
        Ok(())
    }

    /// SS, RSP, RFLAGS, CS, RIP and the error code, in the order of pushing.
    fn frame_values(&self, event: Event) -> Frame {
        // Faults return with RF set, so that a breakpoint on the instruction isn't hit twice.
        let is_fault = event.source == Source::Exception && !is_trap(event.vector);
        let image = self.cpu.rflags | if is_fault { rflags::RF } else { 0 };
        Frame {
            ss: u64::from(self.mmu.segment(SegmentRegister::Ss).selector),
            rsp: self.cpu.get(Gpr::Rsp),
            rflags: image,
            cs: u64::from(self.mmu.segment(SegmentRegister::Cs).selector),
            rip: event.return_to,
            code: event.code,
        }
    }

    fn push_long_frame(
        &mut self,
        frame: &Frame,
        stack: u8,
        inner: bool,
        new_cpl: u8,
        external: u32,
    ) -> Outcome {
        let top = if stack != 0 {
            self.read_task_state(0x24 + 8 * u64::from(stack - 1), Width::B8)?
        } else if inner {
            self.read_task_state(4 + 8 * u64::from(new_cpl), Width::B8)?
        } else {
            self.cpu.get(Gpr::Rsp)
        };
        if !is_canonical(top) {
            return Err(Fault::Exception(Exception::with_code(
                vector::STACK,
                external,
            )));
        }
        let values = [
            Some(frame.ss),
            Some(frame.rsp),
            Some(frame.rflags),
            Some(frame.cs),
            Some(frame.rip),
            frame.code.map(u64::from),
        ];
        let mut at = top & !15;
        for value in values.into_iter().flatten() {
            at = at.wrapping_sub(8);
            if !is_canonical(at) {
                return Err(Fault::Exception(Exception::with_code(
                    vector::STACK,
                    external,
                )));
            }
            self.mmu.write_own(at, Width::B8, value, new_cpl == 3)?;
        }
        if inner {
            self.mmu
                .set_segment(SegmentRegister::Ss, null_stack(new_cpl));
        }
        self.cpu.set(Gpr::Rsp, at);
        Ok(())
    }

    fn push_legacy_frame(
        &mut self,
        frame: &Frame,
        width: Width,
        inner: bool,
        new_cpl: u8,
        external: u32,
    ) -> Outcome {
        let (ss, esp) = if inner {
            self.inner_stack(new_cpl, external)?
        } else {
            (*self.mmu.segment(SegmentRegister::Ss), frame.rsp)
        };
        let outer = [frame.ss, frame.rsp];
        let always = [frame.rflags, frame.cs, frame.rip];
        let outer = outer.into_iter().filter(|_| inner);
        let values = outer.chain(always).chain(frame.code.map(u64::from));
        let values: Vec<u64> = values.collect();
        let rsp = self.push_all(&ss, esp, width, &values, new_cpl == 3)?;
        if inner {
            self.mmu.set_segment(SegmentRegister::Ss, ss);
            self.cpu.set(Gpr::Rsp, rsp & 0xffff_ffff);
        } else {
            self.cpu.set(Gpr::Rsp, rsp);
        }
        Ok(())
    }

    /// Pushes onto the stack in segment `ss` at `esp`; the new stack pointer.
    pub(super) fn push_all(
        &mut self,
        ss: &Segment,
        esp: u64,
        width: Width,
        values: &[u64],
        user: bool,
    ) -> Outcome<u64> {
        let mask = if ss.has(Segment::DB) {
            0xffff_ffff
        } else {
            0xffff
        };
        let mut esp = esp;
        for &value in values {
            let offset = esp.wrapping_sub(width.bytes()) & mask;
            let linear = self
                .mmu
                .in_segment(ss, true, offset as u32, width.bytes(), true)?;
            self.mmu.write_own(linear, width, value, user)?;
            esp = esp & !mask | offset;
        }
        Ok(esp)
    }

    /// A field of the current task state segment.
    ///
    /// # Errors
    /// #TS with TR's selector when the field lies beyond the limit.
    pub(super) fn read_task_state(&mut self, offset: u64, width: Width) -> Outcome<u64> {
        let tr = self.mmu.sys.tr;
        if tr.unusable || offset + width.bytes() - 1 > u64::from(tr.limit) {
            return Err(Fault::Exception(Exception::with_code(
                vector::INVALID_TSS,
                u32::from(tr.selector & !3),
            )));
        }
        Ok(self
            .mmu
            .read_own(tr.base.wrapping_add(offset), width, false)?)
    }

    /// The stack for privilege level `cpl` from a 16- or 32-bit task state.
    pub(super) fn inner_stack(&mut self, cpl: u8, external: u32) -> Outcome<(Segment, u64)> {
        let wide = self.mmu.sys.tr.kind() & 0b1000 != 0;
        let level = u64::from(cpl);
        let (esp, selector) = if wide {
            let esp = self.read_task_state(4 + 8 * level, Width::B4)?;
            (esp, self.read_task_state(8 + 8 * level, Width::B2)?)
        } else {
            let esp = self.read_task_state(2 + 4 * level, Width::B2)?;
            (esp, self.read_task_state(4 + 4 * level, Width::B2)?)
        };
        let ss = self.load_stack_segment(selector as u16, cpl, vector::INVALID_TSS, external)?;
        Ok((ss, esp))
    }

    fn enter_real_mode_handler(&mut self, event: Event) -> Outcome {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.mmu.sys.idtr.limit) {
            return Err(general_protection(0));
        }
        let base = self.mmu.sys.idtr.base.wrapping_add(at);
        let entry = self.mmu.read_own(base, Width::B4, false)?;
        let ss = *self.mmu.segment(SegmentRegister::Ss);
        let cs = u64::from(self.mmu.segment(SegmentRegister::Cs).selector);
        let values = [self.cpu.rflags, cs, event.return_to];
        let rsp = self.cpu.get(Gpr::Rsp);
        let rsp = self.push_all(&ss, rsp, Width::B2, &values, false)?;
        self.cpu.set(Gpr::Rsp, rsp);
        self.set_real_mode_segment(SegmentRegister::Cs, (entry >> 16) as u16);
        self.cpu.rip = entry & 0xffff;
        self.cpu.rflags &= !(flags::IF | flags::TF | flags::AC | rflags::RF);
        Ok(())
    }
}

struct Frame {
    ss: u64,
    rsp: u64,
    rflags: u64,
    cs: u64,
    rip: u64,
    code: Option<u32>,
}

/// SS as a 64-bit handler at an inner privilege level finds it.
pub(super) fn null_stack(cpl: u8) -> Segment {
    Segment {
        selector: u16::from(cpl),
        base: 0,
        limit: 0,
        attributes: u16::from(cpl) << 5,
        unusable: true,
    }
}

/// An entry of the interrupt descriptor table.
#[derive(Clone, Copy, Debug)]
struct Gate {
    kind: u8,
    dpl: u8,
    present: bool,
    selector: u16,
    offset: u64,
    /// The interrupt stack table's entry, 0 for none.
    stack: u8,
}

impl Gate {
    fn new(low: u64, high: u64) -> Gate {
        let kind = (low >> 40 & 15) as u8 | if low >> 44 & 1 != 0 { 0x10 } else { 0 };
        let wide = kind & 0b1000 != 0;
        let mut offset = low & 0xffff | high << 32;
        if wide {
            offset |= (low >> 48) << 16;
        }
        Gate {
            kind,
            dpl: (low >> 45 & 3) as u8,
            present: low >> 47 & 1 != 0,
            selector: (low >> 16) as u16,
            offset,
            stack: (low >> 32 & 7) as u8,
        }
    }
}
