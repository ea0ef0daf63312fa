//! Control and debug registers, and model-specific registers.

use iced_x86::{Instruction, Register};

use super::super::state::{Segment, SegmentRegister};
use super::Vcpu;
use super::exceptions::{Exception, Fault, Outcome, general_protection, invalid_opcode};
use super::mmu::is_canonical;
use super::registers::{cr0, cr4, efer, msr, vector};
use super::walk::PHYSICAL_BITS;
use crate::guest::CpuMode;

/// DR6 bits that are always one.
pub const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR6: the exception came from a debug register access.
const DR6_BD: u64 = 1 << 13;
/// DR6: single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR7: debug register accesses raise #DB.
const DR7_GD: u64 = 1 << 13;

impl Vcpu {
    /// MOV to or from a control or debug register.
    pub(super) fn move_control(&mut self, instruction: &Instruction) -> Outcome {
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        self.require_ring_0()?;
        // In 64-bit mode all of the general register, else 32 bits.
        let wide = self.mmu.code_mode() == CpuMode::Bits64;
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        if to.is_cr() {
            let value = self.register(from) & mask;
            self.write_control(to.number(), value)
        } else if from.is_cr() {
            let value = self.read_control(from.number())?;
            self.set_register(to, value & mask);
            Ok(())
        } else if to.is_dr() {
            let value = self.register(from) & mask;
            let number = self.debug_register(to)?;
            self.write_debug(number, value)
        } else if from.is_dr() {
            let number = self.debug_register(from)?;
            let sys = &self.mmu.sys;
            let value = match number {
                6 => sys.dr6,
                7 => sys.dr7,
                n => sys.breakpoints[n & 3],
            };
            self.set_register(to, value & mask);
            Ok(())
        } else {
            Err(invalid_opcode())
        }
    }

    fn read_control(&mut self, number: usize) -> Outcome<u64> {
        Ok(match number {
            0 => self.mmu.sys.cr0,
            2 => self.mmu.sys.cr2,
            3 => self.mmu.sys.cr3,
            4 => self.mmu.sys.cr4,
            8 => self.mmu.physical.device().task_priority(),
            _ => return Err(invalid_opcode()),
        })
    }

    fn write_control(&mut self, number: usize, value: u64) -> Outcome {
        match number {
            0 => self.set_cr0(value),
            2 => {
                self.mmu.sys.cr2 = value;
                Ok(())
            }
            3 => self.set_cr3(value),
            4 => self.set_cr4(value),
            8 if value <= 15 => {
                self.mmu.physical.device().set_task_priority(value);
                Ok(())
            }
            8 => Err(general_protection(0)),
            _ => Err(invalid_opcode()),
        }
    }

    /// # Errors
    /// #GP(0) for combinations that the manual forbids (volume 2, MOV to control registers).
    pub(super) fn set_cr0(&mut self, value: u64) -> Outcome {
        let sys = &self.mmu.sys;
        let old = sys.cr0;
        let has = |bit: u64| value & bit != 0;
        let forbidden =
            value >> 32 != 0 || has(cr0::PG) && !has(cr0::PE) || has(cr0::NW) && !has(cr0::CD);
        if forbidden {
            return Err(general_protection(0));
        }
        let value = value & cr0::ALL | cr0::ET;
        let paging_begins = has(cr0::PG) && old & cr0::PG == 0;
        let paging_ends = !has(cr0::PG) && old & cr0::PG != 0;
        let mut new_efer = sys.efer;
        if paging_begins && sys.efer & efer::LME != 0 {
            let long_code = self.mmu.segment(SegmentRegister::Cs).has(Segment::L);
            if sys.cr4 & cr4::PAE == 0 || long_code {
                return Err(general_protection(0));
            }
            new_efer |= efer::LMA;
        }
        if paging_ends && self.mmu.is_long() {
            if self.mmu.code_mode() == CpuMode::Bits64 {
                return Err(general_protection(0));
            }
            new_efer &= !efer::LMA;
        }
        if paging_begins && sys.cr4 & cr4::PAE != 0 && new_efer & efer::LMA == 0 {
            let cr3 = sys.cr3;
            let loaded = self.mmu.load_pdptes(cr3);
            loaded.map_err(|()| general_protection(0))?;
        }
        self.mmu.sys.efer = new_efer;
        self.mmu.sys.cr0 = value;
        if (old ^ value) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.mmu.flush();
        }
        if (old ^ value) & cr0::PE != 0 {
            // CS keeps its hidden part until it is loaded; CPL is 0 on both sides.
            self.mmu.cpl = 0;
        }
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Outcome {
        if self.mmu.is_long() {
            if value >> PHYSICAL_BITS != 0 {
                return Err(general_protection(0));
            }
        } else if self.mmu.sys.cr4 & cr4::PAE != 0 && self.mmu.sys.cr0 & cr0::PG != 0 {
            let loaded = self.mmu.load_pdptes(value);
            loaded.map_err(|()| general_protection(0))?;
        }
        self.mmu.sys.cr3 = value;
        self.mmu.flush_but_global();
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Outcome {
        let old = self.mmu.sys.cr4;
        let leaves_pae = old & cr4::PAE != 0 && value & cr4::PAE == 0;
        if value & !cr4::ALL != 0 || leaves_pae && self.mmu.is_long() {
            return Err(general_protection(0));
        }
        let changed = old ^ value;
        let paging = cr4::PGE | cr4::PSE | cr4::PAE | cr4::SMEP | cr4::SMAP;
        let loads = cr4::PGE | cr4::PSE | cr4::PAE | cr4::SMEP;
        let pae = value & cr4::PAE != 0 && self.mmu.sys.cr0 & cr0::PG != 0;
        if pae && !self.mmu.is_long() && changed & loads != 0 {
            let cr3 = self.mmu.sys.cr3;
            let loaded = self.mmu.load_pdptes(cr3);
            loaded.map_err(|()| general_protection(0))?;
        }
        self.mmu.sys.cr4 = value;
        if changed & paging != 0 {
            self.mmu.flush();
        }
        Ok(())
    }

    /// The number of a debug register; DR4 and DR5 are DR6 and DR7 unless CR4.DE is set.
    fn debug_register(&mut self, register: Register) -> Outcome<usize> {
        let number = register.number();
        if self.mmu.sys.dr7 & DR7_GD != 0 {
            self.mmu.sys.dr6 |= DR6_BD;
            self.mmu.sys.dr7 &= !DR7_GD;
            return Err(Fault::Exception(Exception::plain(vector::DEBUG)));
        }
        match number {
            4 | 5 if self.mmu.sys.cr4 & cr4::DE != 0 => Err(invalid_opcode()),
            4 | 5 => Ok(number + 2),
            0..=7 => Ok(number),
            _ => Err(invalid_opcode()),
        }
    }

    fn write_debug(&mut self, number: usize, value: u64) -> Outcome {
        if number >= 6 && value >> 32 != 0 {
            return Err(general_protection(0));
        }
        match number {
            6 => self.mmu.sys.dr6 = value & 0xe00f | DR6_FIXED,
            7 => self.mmu.sys.dr7 = value & 0xffff_2fff | 1 << 10,
            n => self.mmu.sys.breakpoints[n & 3] = value,
        }
        self.mmu.select_breakpoints();
        Ok(())
    }

    /// # Errors
    /// #GP(0) for an MSR that doesn't exist.
    pub(super) fn read_msr(&mut self, index: u32) -> Outcome<u64> {
        let sys = &self.mmu.sys;
        Ok(match index {
            msr::TSC => self.tsc(),
            msr::SYSENTER_CS => sys.sysenter_cs,
            msr::SYSENTER_ESP => sys.sysenter_esp,
            msr::SYSENTER_EIP => sys.sysenter_eip,
            msr::PAT => sys.pat,
            msr::EFER => sys.efer,
            msr::STAR => sys.star,
            msr::LSTAR => sys.lstar,
            msr::CSTAR => sys.cstar,
            msr::SFMASK => sys.sfmask,
            msr::FS_BASE => self.cpu.fs_base,
            msr::GS_BASE => self.cpu.gs_base,
            msr::KERNEL_GS_BASE => sys.kernel_gs_base,
            msr::TSC_AUX => sys.tsc_aux,
            _ => match self.mmu.physical.device().msr_read(index) {
                Some(value) => value,
                None => self.stored_msr(index)?,
            },
        })
    }

    /// MSRs without an effect here, which keep what is written to them.
    fn stored_msr(&self, index: u32) -> Outcome<u64> {
        if let Some(&value) = self.mmu.sys.other_msrs.get(&index) {
            return Ok(value);
        }
        match initial_msr(index) {
            Some(value) => Ok(value),
            None => {
                tracing::debug!(target: "temper::system", index, "RDMSR of an unknown register");
                Err(general_protection(0))
            }
        }
    }

    /// # Errors
    /// #GP(0) for an MSR that doesn't exist, or a value that it refuses.
    pub(super) fn write_msr(&mut self, index: u32, value: u64) -> Outcome {
        let canonical = matches!(
            index,
            msr::LSTAR
                | msr::CSTAR
                | msr::FS_BASE
                | msr::GS_BASE
                | msr::KERNEL_GS_BASE
                | msr::SYSENTER_ESP
                | msr::SYSENTER_EIP
        );
        if canonical && !is_canonical(value) {
            return Err(general_protection(0));
        }
        let sys = &mut self.mmu.sys;
        match index {
            msr::TSC => self.set_tsc(value),
            msr::SYSENTER_CS => sys.sysenter_cs = value,
            msr::SYSENTER_ESP => sys.sysenter_esp = value,
            msr::SYSENTER_EIP => sys.sysenter_eip = value,
            msr::PAT => {
                let valid = |kind: u8| matches!(kind, 0 | 1 | 4..=7);
                if !value.to_le_bytes().into_iter().all(valid) {
                    return Err(general_protection(0));
                }
                sys.pat = value;
            }
            msr::EFER => self.set_efer(value)?,
            msr::STAR => sys.star = value,
            msr::LSTAR => sys.lstar = value,
            msr::CSTAR => sys.cstar = value,
            msr::SFMASK => sys.sfmask = value & 0xffff_ffff,
            msr::FS_BASE => self.set_base(SegmentRegister::Fs, value),
            msr::GS_BASE => self.set_base(SegmentRegister::Gs, value),
            msr::KERNEL_GS_BASE => sys.kernel_gs_base = value,
            msr::TSC_AUX => sys.tsc_aux = value & 0xffff_ffff,
            _ => {
                if self.mmu.physical.device().msr_write(index, value).is_some() {
                    return Ok(());
                }
                if initial_msr(index).is_some() {
                    self.mmu.sys.other_msrs.insert(index, value);
                } else {
                    tracing::debug!(target: "temper::system", index, value, "WRMSR of an unknown register");
                    return Err(general_protection(0));
                }
            }
        }
        Ok(())
    }

    fn set_efer(&mut self, value: u64) -> Outcome {
        let settable = efer::SCE | efer::LME | efer::NXE;
        let old = self.mmu.sys.efer;
        let paging = self.mmu.sys.cr0 & cr0::PG != 0;
        if value & !(settable | efer::LMA) != 0 || paging && (value ^ old) & efer::LME != 0 {
            return Err(general_protection(0));
        }
        self.mmu.sys.efer = value & settable | old & efer::LMA;
        if (value ^ old) & efer::NXE != 0 {
            self.mmu.flush();
        }
        Ok(())
    }
}

/// What MSRs that only keep their value hold at first: memory type ranges, machine checks
/// (none), and those of AMD's that its kernels touch unconditionally.
fn initial_msr(index: u32) -> Option<u64> {
    const MTRR_CAP: u32 = 0xfe;
    const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    Some(match index {
        // Eight variable ranges, fixed ranges, write-combining.
        MTRR_CAP => 0x508,
        0x200..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f => 0,
        // Enabled, write-back where no range says otherwise.
        MTRR_DEFAULT_TYPE => 0xc06,
        // Microcode revision, platform information, feature control.
        0x8b | 0xce | 0x17 => 0,
        0x1a0 => 1,
        // SYSCFG, HWCR, NB_CFG, the interrupt-pending message, DE_CFG.
        0xc001_0010 | 0xc001_0015 | 0xc001_001f | 0xc001_0055 | 0xc001_1029 => 0,
        _ => return None,
    })
}
