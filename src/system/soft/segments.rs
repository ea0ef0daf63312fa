//! Descriptors and loads of segment registers (Intel SDM volume 3, chapters 3 and 5).

use super::super::state::{Segment, SegmentRegister};
use super::Vcpu;
use super::exceptions::{Exception, Fault, Outcome, general_protection};
use super::registers::vector;
use crate::guest::{CpuMode, Width};

/// An 8-byte descriptor as it lies in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor(pub u64);

impl Descriptor {
    pub fn kind(&self) -> u8 {
        (self.0 >> 40 & 15) as u8
    }

    /// Code or data, not a system descriptor.
    pub fn is_segment(&self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    pub fn is_code(&self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }

    pub fn is_conforming_code(&self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    pub fn is_writable_data(&self) -> bool {
        self.is_segment() && self.kind() & 0b1010 == 0b0010
    }

    /// Data, or code that may be read.
    pub fn is_readable(&self) -> bool {
        self.is_segment() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }

    pub fn dpl(&self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    pub fn is_present(&self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    pub fn is_64_bit(&self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    pub fn is_32_bit(&self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    /// The last valid offset.
    pub fn limit(&self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    pub fn base(&self) -> u32 {
        (self.0 >> 16 & 0xff_ffff | self.0 >> 56 << 24) as u32
    }

    /// The register that a load of this descriptor makes.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment {
            selector,
            base: u64::from(self.base()),
            limit: self.limit(),
            attributes: (self.0 >> 40) as u16 & 0xf0ff,
            unusable: false,
        }
    }
}

/// CS with this descriptor: marked as accessed, as the table entry is.
pub fn code_segment_in_use(descriptor: &Descriptor, selector: u16) -> Segment {
    let mut segment = descriptor.segment(selector);
    segment.attributes |= 1;
    segment
}

fn not_present(vector: u8, code: u32) -> Fault {
    Fault::Exception(Exception::with_code(vector, code))
}

impl Vcpu {
    /// The descriptor that a selector names, and its linear address. `None`: beyond its
    /// table's limit, or there is no LDT.
    pub(super) fn read_descriptor(&mut self, selector: u16) -> Outcome<Option<(Descriptor, u64)>> {
        let sys = &self.mmu.sys;
        let (base, limit) = if selector & 4 == 0 {
            (sys.gdtr.base, u32::from(sys.gdtr.limit))
        } else if sys.ldtr.unusable {
            return Ok(None);
        } else {
            (sys.ldtr.base, sys.ldtr.limit)
        };
        let index = u32::from(selector & !7);
        if index + 7 > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(u64::from(index));
        let raw = self.mmu.read_own(at, Width::B8, false)?;
        Ok(Some((Descriptor(raw), at)))
    }

    /// The upper half of a 16-byte system descriptor: base bits 32 to 63.
    pub(super) fn read_upper_base(&mut self, at: u64) -> Outcome<u64> {
        Ok(self.mmu.read_own(at.wrapping_add(8), Width::B4, false)?)
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(super) fn mark_accessed(&mut self, selector: u16, descriptor: &Descriptor) -> Outcome {
        if descriptor.0 >> 40 & 1 != 0 {
            return Ok(());
        }
        if let Some((_, at)) = self.read_descriptor(selector)? {
            let kind = descriptor.0 >> 40 & 0xff | 1;
            self.mmu
                .write_own(at.wrapping_add(5), Width::B1, kind, false)?;
        }
        Ok(())
    }

    /// Loads a segment register in real mode: the base changes, the rest stays.
    pub(super) fn set_real_mode_segment(&mut self, register: SegmentRegister, selector: u16) {
        let mut segment = *self.mmu.segment(register);
        segment.selector = selector;
        segment.base = u64::from(selector) << 4;
        if register == SegmentRegister::Cs {
            // What protected mode left would forbid writing through it.
            segment.attributes = 0x93;
        }
        self.set_segment(register, segment);
    }

    /// Replaces a segment register, the live base of FS and GS included.
    pub(super) fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        match register {
            SegmentRegister::Fs => self.cpu.fs_base = segment.base,
            SegmentRegister::Gs => self.cpu.gs_base = segment.base,
            SegmentRegister::Es
            | SegmentRegister::Cs
            | SegmentRegister::Ss
            | SegmentRegister::Ds => {}
        }
        self.mmu.set_segment(register, segment);
    }

    /// MOV, POP or LDS into a segment register other than CS.
    pub(super) fn load_segment(&mut self, register: SegmentRegister, selector: u16) -> Outcome {
        if !self.mmu.is_protected() {
            self.set_real_mode_segment(register, selector);
            return Ok(());
        }
        if register == SegmentRegister::Ss {
            let cpl = self.mmu.cpl;
            let null_allowed = self.mmu.code_mode() == CpuMode::Bits64
                && cpl < 3
                && selector & 3 == u16::from(cpl);
            let segment = if selector & !3 == 0 && null_allowed {
                let mut segment = super::exceptions::null_stack(cpl);
                segment.selector = selector;
                segment
            } else {
                self.load_stack_segment(selector, cpl, vector::GENERAL_PROTECTION, 0)?
            };
            self.set_segment(register, segment);
            return Ok(());
        }
        let segment = self.data_segment(selector)?;
        self.set_segment(register, segment);
        Ok(())
    }

    fn data_segment(&mut self, selector: u16) -> Outcome<Segment> {
        if selector & !3 == 0 {
            return Ok(Segment {
                selector,
                unusable: true,
                ..Segment::default()
            });
        }
        let code = u32::from(selector & !3);
        let (descriptor, _) = self
            .read_descriptor(selector)?
            .ok_or_else(|| general_protection(code))?;
        let weakest = self.mmu.cpl.max((selector & 3) as u8);
        let private = !descriptor.is_conforming_code();
        if !descriptor.is_readable() || private && descriptor.dpl() < weakest {
            return Err(general_protection(code));
        }
        if !descriptor.is_present() {
            return Err(not_present(vector::NOT_PRESENT, code));
        }
        self.mark_accessed(selector, &descriptor)?;
        let mut segment = descriptor.segment(selector);
        segment.attributes |= 1;
        Ok(segment)
    }

    /// What loading SS with `selector` at privilege level `cpl` makes. `invalid` is the
    /// exception for a selector that won't do.
    pub(super) fn load_stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        invalid: u8,
        external: u32,
    ) -> Outcome<Segment> {
        let code = u32::from(selector & !3) | external;
        let refuse = |code| Fault::Exception(Exception::with_code(invalid, code));
        if selector & !3 == 0 {
            return Err(refuse(external));
        }
        let (descriptor, _) = self
            .read_descriptor(selector)?
            .ok_or_else(|| refuse(code))?;
        if selector & 3 != u16::from(cpl)
            || !descriptor.is_writable_data()
            || descriptor.dpl() != cpl
        {
            return Err(refuse(code));
        }
        if !descriptor.is_present() {
            return Err(not_present(vector::STACK, code));
        }
        self.mark_accessed(selector, &descriptor)?;
        let mut segment = descriptor.segment(selector);
        segment.attributes |= 1;
        Ok(segment)
    }

    /// LLDT.
    pub(super) fn load_ldt(&mut self, selector: u16) -> Outcome {
        if selector & !3 == 0 {
            self.mmu.sys.ldtr = Segment {
                selector,
                unusable: true,
                ..Segment::default()
            };
            return Ok(());
        }
        let segment = self.system_segment(selector, &[2])?;
        self.mmu.sys.ldtr = segment;
        Ok(())
    }

    /// LTR: the task state becomes busy.
    pub(super) fn load_task_register(&mut self, selector: u16) -> Outcome {
        if selector & !3 == 0 {
            return Err(general_protection(0));
        }
        let kinds: &[u8] = if self.mmu.is_long() { &[9] } else { &[1, 9] };
        let mut segment = self.system_segment(selector, kinds)?;
        if let Some((descriptor, at)) = self.read_descriptor(selector)? {
            let busy = descriptor.0 >> 40 & 0xff | 2;
            self.mmu
                .write_own(at.wrapping_add(5), Width::B1, busy, false)?;
        }
        segment.attributes |= 2;
        self.mmu.sys.tr = segment;
        Ok(())
    }

    fn system_segment(&mut self, selector: u16, kinds: &[u8]) -> Outcome<Segment> {
        let code = u32::from(selector & !3);
        if selector & 4 != 0 {
            return Err(general_protection(code));
        }
        let (descriptor, at) = self
            .read_descriptor(selector)?
            .ok_or_else(|| general_protection(code))?;
        if descriptor.is_segment() || !kinds.contains(&descriptor.kind()) {
            return Err(general_protection(code));
        }
        if !descriptor.is_present() {
            return Err(not_present(vector::NOT_PRESENT, code));
        }
        let mut segment = descriptor.segment(selector);
        if self.mmu.is_long() {
            segment.base |= self.read_upper_base(at)? << 32;
            if !super::mmu::is_canonical(segment.base) {
                return Err(general_protection(code));
            }
        }
        Ok(segment)
    }

    /// What LAR, LSL, VERR and VERW look at: the descriptor, if the selector's rights allow a
    /// look.
    pub(super) fn visible_descriptor(&mut self, selector: u16) -> Outcome<Option<Descriptor>> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let Some((descriptor, _)) = self.read_descriptor(selector)? else {
            return Ok(None);
        };
        let weakest = self.mmu.cpl.max((selector & 3) as u8);
        let visible = descriptor.is_conforming_code() || descriptor.dpl() >= weakest;
        Ok(visible.then_some(descriptor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_descriptor_reaches_the_last_byte() {
        let flat = Descriptor(0x00cf_9b00_0000_ffff);
        assert_eq!(flat.limit(), u32::MAX);
        assert!(flat.is_code() && flat.is_present() && flat.is_32_bit());
        let segment = flat.segment(8);
        assert_eq!(segment.attributes, 0xc09b);
        let small = Descriptor(0x1200_9234_5678_00ff);
        assert_eq!((small.base(), small.limit()), (0x1234_5678, 0xff));
        assert!(small.is_writable_data());
    }
}
