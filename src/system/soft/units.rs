//! x87 and vector units as a guest kernel manages them: disabled units, XCR0, FXSAVE and the
//! XSAVE family, and what stubs can't do behind an MMU.
//!
//! The real instructions run on a buffer, with the components masked by the guest's XCR0, and
//! only the bytes that the guest's own CPU would touch are copied. XSAVEOPT and XSAVEC aren't
//! announced: the host's tracking of which area was restored last would be wrong here.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Vcpu;
use super::cpuid::{supported_xcr0, xsave_bytes};
use super::exceptions::{Exception, Fault, Outcome, general_protection, invalid_opcode};
use super::registers::{cr0, cr4, vector};
use crate::addr::GuestAddr;
use crate::decode::Units;
use crate::guest::{Gpr, GuestMemory};
use crate::system::state::{XSAVE_BYTES, XsaveArea};

const XSTATE_BV: usize = 512;
const HEADER_END: usize = 576;

fn device_not_available() -> Fault {
    Fault::Exception(Exception::plain(vector::DEVICE_NOT_AVAILABLE))
}

/// x87 state while Rust code of other parts runs: an XSAVE area of that component alone.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct X87 {
    pub area: [u8; HEADER_END],
}

impl Default for X87 {
    fn default() -> Self {
        X87 {
            area: XsaveArea::default().0[..HEADER_END]
                .try_into()
                .expect("the legacy region and header"),
        }
    }
}

impl X87 {
    /// Brings the state into the CPU.
    pub fn load(&mut self) {
        self.area[XSTATE_BV] = 1;
        // SAFETY: restores x87 alone, which no Rust code uses; the area is valid and aligned.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) self.area.as_ptr(), in("eax") 1, in("edx") 0,
                options(nostack));
        }
    }

    /// Takes the state from the CPU, which is left as after FNINIT.
    pub fn store(&mut self) {
        // SAFETY: as in `load`; the area is large enough for the legacy region and header.
        unsafe {
            asm!("xsave64 [{}]", "fninit", in(reg) self.area.as_mut_ptr(), in("eax") 1,
                in("edx") 0, options(nostack));
        }
        if self.area[XSTATE_BV] & 1 == 0 {
            *self = X87::default();
        }
    }
}

impl Vcpu {
    /// The units whose instructions raise nothing now.
    pub(super) fn units(&self) -> Units {
        let sys = &self.mmu.sys;
        let usable = sys.cr0 & (cr0::EM | cr0::TS) == 0;
        let xsave = usable && sys.cr4 & cr4::OSXSAVE != 0;
        Units {
            x87: usable,
            sse: usable && sys.cr4 & cr4::OSFXSR != 0,
            avx: xsave && sys.xcr0 & 0b110 == 0b110,
            avx512: false,
        }
    }

    /// What an instruction of a disabled unit raises (Intel SDM volume 3, tables 2-1 and 13-1).
    pub(super) fn disabled_unit(&mut self, instruction: &Instruction) -> Fault {
        use iced_x86::EncodingKind;
        let sys = &self.mmu.sys;
        let has = |bit| sys.cr0 & bit != 0;
        let legacy = matches!(
            instruction.encoding(),
            EncodingKind::Legacy | EncodingKind::D3NOW
        );
        if !legacy {
            let state = if instruction.encoding() == EncodingKind::EVEX {
                0xe6
            } else {
                0b110
            };
            if sys.cr4 & cr4::OSXSAVE == 0 || sys.xcr0 & state != state {
                return invalid_opcode();
            }
            return device_not_available();
        }
        let registers = |test: fn(Register) -> bool| {
            (0..instruction.op_count()).any(|i| {
                instruction.op_kind(i) == OpKind::Register && test(instruction.op_register(i))
            })
        };
        let mxcsr = matches!(
            instruction.mnemonic(),
            Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr
        );
        let sse = mxcsr || registers(Register::is_xmm);
        if sse {
            if has(cr0::EM) || sys.cr4 & cr4::OSFXSR == 0 {
                return invalid_opcode();
            }
            return device_not_available();
        }
        let mmx = registers(Register::is_mm) || instruction.mnemonic() == Mnemonic::Emms;
        if mmx && has(cr0::EM) {
            return invalid_opcode();
        }
        device_not_available()
    }

    /// WAIT heeds TS only with MP, and EM not at all.
    pub(super) fn wait_is_allowed(&self) -> bool {
        self.mmu.sys.cr0 & (cr0::TS | cr0::MP) != cr0::TS | cr0::MP
    }

    /// XGETBV and XSETBV.
    pub(super) fn extended_control(&mut self, instruction: &Instruction) -> Outcome {
        if self.mmu.sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(invalid_opcode());
        }
        let index = self.cpu.get(Gpr::Rcx) as u32;
        if instruction.mnemonic() == Mnemonic::Xgetbv {
            if index != 0 {
                return Err(general_protection(0));
            }
            let value = self.mmu.sys.xcr0;
            self.set_edx_eax(value);
            return Ok(());
        }
        self.require_ring_0()?;
        let value = self.edx_eax();
        let avx_without_sse = value & 0b110 == 0b100;
        if index != 0 || value & 1 == 0 || value & !supported_xcr0() != 0 || avx_without_sse {
            return Err(general_protection(0));
        }
        self.mmu.sys.xcr0 = value;
        Ok(())
    }

    /// FXSAVE, FXRSTOR, XSAVE, XRSTOR in both operand sizes.
    pub(super) fn save_or_restore(&mut self, instruction: &Instruction) -> Outcome {
        let sys = &self.mmu.sys;
        let (restores, extended) = match instruction.mnemonic() {
            Mnemonic::Fxsave | Mnemonic::Fxsave64 => (false, false),
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => (true, false),
            Mnemonic::Xsave | Mnemonic::Xsave64 => (false, true),
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => (true, true),
            Mnemonic::Fnsave | Mnemonic::Frstor | Mnemonic::Fnstenv | Mnemonic::Fldenv => {
                return self.run_plainly(instruction);
            }
            _ => return Err(invalid_opcode()),
        };
        if extended && sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(invalid_opcode());
        }
        if sys.cr0 & cr0::TS != 0 || !extended && sys.cr0 & cr0::EM != 0 {
            return Err(device_not_available());
        }
        let at = self.address(instruction, 0);
        // (#GP, or #SS where the address isn't canonical either.)
        if !at.0.is_multiple_of(if extended { 64 } else { 16 }) {
            return Err(general_protection(0));
        }
        let mask = if extended {
            self.edx_eax() & sys.xcr0
        } else {
            0
        };
        let len = if extended {
            xsave_bytes(mask) as usize
        } else {
            512
        };
        let mut area = Box::<XsaveArea>::default();
        self.mmu.read_bytes(at, &mut area.0[..len])?;
        if extended && restores {
            self.check_header(&area)?;
        }
        if !restores {
            self.mmu.probe_write(at, len)?;
        }
        let (rax, rdx) = (self.cpu.get(Gpr::Rax), self.cpu.get(Gpr::Rdx));
        self.cpu.set(Gpr::Rax, mask & 0xffff_ffff);
        self.cpu.set(Gpr::Rdx, mask >> 32);
        let result = self.run_on_buffer(instruction, &mut area.0);
        self.cpu.set(Gpr::Rax, rax);
        self.cpu.set(Gpr::Rdx, rdx);
        result?;
        if !restores {
            self.mmu.write_bytes(at, &area.0[..len])?;
        }
        Ok(())
    }

    /// XRSTOR's checks against the guest's XCR0; the host's CPU makes the others.
    fn check_header(&self, area: &XsaveArea) -> Outcome {
        let word = |at: usize| u64::from_le_bytes(area.0[at..at + 8].try_into().expect("8 bytes"));
        // The compacted form isn't announced.
        let zero = (520..HEADER_END).step_by(8).all(|at| word(at) == 0);
        if word(XSTATE_BV) & !self.mmu.sys.xcr0 != 0 || !zero {
            return Err(general_protection(0));
        }
        Ok(())
    }

    /// Runs the real instruction with its memory operand in `buffer`.
    fn run_on_buffer(
        &mut self,
        instruction: &Instruction,
        buffer: &mut [u8; XSAVE_BYTES],
    ) -> Outcome {
        let Ok(id) = self.stubs.stub(instruction) else {
            return Err(self.unsupported(instruction));
        };
        // SAFETY: the buffer holds whatever the components in RDX:RAX need, at most x87, SSE
        // and AVX state, whose standard-format areas end far below its size.
        let result = unsafe {
            self.stubs
                .run(id, &mut self.cpu, &mut self.vector, buffer.as_mut_ptr())
        };
        Ok(result?)
    }

    /// The gathers of AVX2: each element whose mask has its sign bit set is loaded, and its
    /// mask cleared, lowest first, so that one which faults goes on where it was.
    pub(super) fn gather(&mut self, instruction: &Instruction) -> Outcome {
        use Mnemonic::{
            Vgatherdpd, Vgatherdps, Vgatherqpd, Vgatherqps, Vpgatherdd, Vpgatherdq, Vpgatherqd,
            Vpgatherqq,
        };
        let (index_bytes, bytes) = match instruction.mnemonic() {
            Vpgatherdd | Vgatherdps => (4, 4),
            Vpgatherdq | Vgatherdpd => (4, 8),
            Vpgatherqd | Vgatherqps => (8, 4),
            Vpgatherqq | Vgatherqpd => (8, 8),
            _ => return Err(self.unsupported(instruction)),
        };
        let index = instruction.memory_index();
        let (to, mask) = (instruction.op0_register(), instruction.op2_register());
        let distinct = to.number() != mask.number()
            && to.number() != index.number()
            && mask.number() != index.number();
        if instruction.encoding() != iced_x86::EncodingKind::VEX || !distinct {
            return Err(invalid_opcode());
        }
        self.vector.materialize();
        let indices = self.vector.register(index.number());
        let size = to.size().min(index.size() / index_bytes * bytes);
        let width = super::operands::width_of(bytes);
        let base = instruction.memory_base();
        let bits = if base.is_gpr32() { 32 } else { 64 };
        let start = if base.is_gpr() {
            self.register(base)
        } else {
            0
        };
        let start = start.wrapping_add(instruction.memory_displacement64());
        for element in 0..size / bytes {
            let at = element * bytes;
            let mut masks = self.vector.register(mask.number());
            let mut values = self.vector.register(to.number());
            if masks[at + bytes - 1] & 0x80 != 0 {
                let from = element * index_bytes;
                let mut wide = [0; 8];
                wide[..index_bytes].copy_from_slice(&indices[from..from + index_bytes]);
                let unused = 64 - 8 * index_bytes as u32;
                let signed = (u64::from_le_bytes(wide) << unused) as i64 >> unused;
                let scale = i64::from(instruction.memory_index_scale());
                let offset = start.wrapping_add_signed(signed.wrapping_mul(scale));
                let place = self.place(instruction, offset & u64::MAX >> (64 - bits));
                let value = self.load(place, width)?.to_le_bytes();
                values[at..at + bytes].copy_from_slice(&value[..bytes]);
            }
            masks[at..at + bytes].fill(0);
            values[to.size()..].fill(0);
            self.vector.set_register(mask.number(), &masks);
            self.vector.set_register(to.number(), &values);
        }
        // What lies above the last element is cleared.
        for register in [to, mask] {
            let mut value = self.vector.register(register.number());
            let keep = if register == to { size } else { 0 };
            value[keep..].fill(0);
            self.vector.set_register(register.number(), &value);
        }
        Ok(())
    }

    /// VMASKMOV and VPMASKMOV: elements whose mask has its sign bit set are loaded or stored,
    /// and memory of the others isn't touched.
    pub(super) fn masked_move(&mut self, instruction: &Instruction) -> Outcome {
        let bytes = match instruction.mnemonic() {
            Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => 8,
            _ => 4,
        };
        let width = super::operands::width_of(bytes);
        let loads = instruction.op0_kind() == OpKind::Register;
        let mask = instruction.op1_register();
        self.vector.materialize();
        let masks = self.vector.register(mask.number());
        let wanted = |at: &usize| masks[at + bytes - 1] & 0x80 != 0;
        let elements: Vec<usize> = (0..mask.size()).step_by(bytes).filter(wanted).collect();
        if loads {
            let mut values = [0; 64];
            for at in elements {
                let place = self.address(instruction, at as u64);
                let value = self.load(place, width)?.to_le_bytes();
                values[at..at + bytes].copy_from_slice(&value[..bytes]);
            }
            let to = instruction.op0_register().number();
            self.vector.set_register(to, &values);
            return Ok(());
        }
        let values = self.vector.register(instruction.op2_register().number());
        for &at in &elements {
            let place = self.address(instruction, at as u64);
            self.mmu.probe_write(place, bytes)?;
        }
        for at in elements {
            let place = self.address(instruction, at as u64);
            self.mmu.write_bytes(place, &values[at..at + bytes])?;
        }
        Ok(())
    }

    /// MASKMOVQ and MASKMOVDQU: bytes with their mask's sign bit set go to DS:RDI.
    pub(super) fn masked_store(&mut self, instruction: &Instruction) -> Outcome {
        if instruction.mnemonic() == Mnemonic::Maskmovq {
            return Err(self.unsupported(instruction));
        }
        self.vector.materialize();
        let operand = instruction.op_count() - 2;
        let data = self
            .vector
            .register(instruction.op_register(operand).number());
        let mask = self
            .vector
            .register(instruction.op_register(operand + 1).number());
        let bits = match instruction.op0_kind() {
            OpKind::MemorySegDI => 16,
            OpKind::MemorySegEDI => 32,
            _ => 64,
        };
        let start = self.cpu.get(Gpr::Rdi) & u64::MAX >> (64 - bits);
        let at = |index: usize| self.place(instruction, start.wrapping_add(index as u64));
        let wanted: Vec<(GuestAddr, u8)> = (0..16)
            .filter(|&index| mask[index] & 0x80 != 0)
            .map(|index| (at(index), data[index]))
            .collect();
        for &(at, _) in &wanted {
            self.mmu.probe_write(at, 1)?;
        }
        for (at, byte) in wanted {
            self.mmu.write_bytes(at, &[byte])?;
        }
        Ok(())
    }
}
