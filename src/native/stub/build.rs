//! Emits a stub: loads, the instruction, stores. All of it goes through iced's encoder, so
//! that there is one place in the world that knows encodings.
//!
//! On entry RDI, RSI and RDX hold the CPU state, the vector state and the memory operand
//! (see [`super::enter`]). Vector registers and masks are loaded first and integer registers
//! last, since the pointers live in integer registers; stores go the other way round, the
//! flags last of all (nothing before them changes any).

use std::mem::offset_of;

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

use super::plan::{Plan, VectorUse};
use crate::guest::{CpuState, VectorState};
use crate::host::XsaveLayout;

const MXCSR: i64 = offset_of!(VectorState, area) as i64 + 24;
const AREA: usize = offset_of!(VectorState, area);
const XMM: usize = AREA + 160;

/// Where the host keeps the parts of wide registers; `None` where it has none.
#[derive(Clone, Copy, Debug)]
pub struct HostVectors {
    /// Bytes 16 to 31 of registers 0 to 15, each 16 bytes.
    upper_ymm: Option<usize>,
    /// Bytes 32 to 63 of registers 0 to 15.
    upper_zmm: Option<usize>,
    /// All of registers 16 to 31.
    high_zmm: Option<usize>,
    masks: Option<usize>,
    /// KMOVQ exists (AVX-512BW); otherwise masks have 16 bits.
    wide_masks: bool,
}

impl HostVectors {
    pub fn detect() -> HostVectors {
        let layout = XsaveLayout::get();
        let at = |bit: u32| layout.offset_of(1 << bit).map(|at| AREA + at);
        HostVectors {
            upper_ymm: at(2),
            masks: at(5),
            upper_zmm: at(6),
            high_zmm: at(7),
            wide_masks: std::arch::is_x86_feature_detected!("avx512bw"),
        }
    }
}

/// Appends instructions to a buffer.
pub struct Emitter<'a> {
    pub encoder: &'a mut Encoder,
    pub vectors: HostVectors,
    /// Where the next byte will be executed.
    pub rip: u64,
    /// The address of the host's MXCSR value.
    pub host_mxcsr: u64,
}

fn at(base: Register, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, displacement)
}

impl Emitter<'_> {
    pub fn emit(&mut self, instruction: &Instruction) -> Result<(), IcedError> {
        self.rip += self.encoder.encode(instruction, self.rip)? as u64;
        Ok(())
    }

    fn load_gpr(&mut self, to: Register, base: Register, offset: usize) -> Result<(), IcedError> {
        self.emit(&Instruction::with2(
            Code::Mov_r64_rm64,
            to,
            at(base, offset as i64),
        )?)
    }

    fn store_gpr(
        &mut self,
        from: Register,
        base: Register,
        offset: usize,
    ) -> Result<(), IcedError> {
        self.emit(&Instruction::with2(
            Code::Mov_rm64_r64,
            at(base, offset as i64),
            from,
        )?)
    }

    pub fn copy_gpr(&mut self, to: Register, from: Register) -> Result<(), IcedError> {
        if to == from {
            return Ok(());
        }
        self.emit(&Instruction::with2(Code::Mov_r64_rm64, to, from)?)
    }

    pub fn host_mxcsr(&mut self) -> Result<(), IcedError> {
        let value = MemoryOperand::with_base_displ(Register::RIP, self.host_mxcsr as i64);
        self.emit(&Instruction::with1(Code::Ldmxcsr_m32, value)?)
    }

    /// The whole stub for `plan`.
    pub fn stub(&mut self, plan: &Plan) -> Result<(), IcedError> {
        self.load(plan)?;
        self.emit(&plan.instruction)?;
        self.store(plan)?;
        self.emit(&Instruction::with(Code::Retnq))
    }

    fn load(&mut self, plan: &Plan) -> Result<(), IcedError> {
        // Each target is either the source itself or a register that holds no argument, so
        // the order doesn't matter.
        self.copy_gpr(plan.cpu, Register::RDI)?;
        self.copy_gpr(plan.vector, Register::RSI)?;
        if let Some(pointer) = plan.pointer {
            self.copy_gpr(pointer, Register::RDX)?;
        }
        for (index, used) in plan.vectors.iter().enumerate() {
            self.load_vector(plan.vector, index, used.load)?;
        }
        for (index, &(load, _)) in plan.masks.iter().enumerate() {
            if load {
                self.mask(plan.vector, index, false)?;
            }
        }
        if plan.mxcsr {
            self.emit(&Instruction::with1(
                Code::Ldmxcsr_m32,
                at(plan.vector, MXCSR),
            )?)?;
        }
        if plan.flags_in != 0 {
            self.load_flags(plan)?;
        }
        for gpr in plan.gprs.iter().filter(|g| g.load) {
            self.load_gpr(gpr.host, plan.cpu, gpr_offset(gpr.guest))?;
        }
        if let Some(base) = plan.segment_base {
            let offset = match base.segment {
                Register::FS => offset_of!(CpuState, fs_base),
                _ => offset_of!(CpuState, gs_base),
            };
            let code = if base.alone {
                Code::Mov_r64_rm64
            } else {
                Code::Add_r64_rm64
            };
            self.emit(&Instruction::with2(
                code,
                base.host,
                at(plan.cpu, offset as i64),
            )?)?;
        }
        Ok(())
    }

    /// POPFQ with the arithmetic flags alone: not even for one instruction may the guest's
    /// trap or alignment flag hold in a stub.
    fn load_flags(&mut self, plan: &Plan) -> Result<(), IcedError> {
        let scratch = plan.scratch();
        self.load_gpr(scratch, plan.cpu, offset_of!(CpuState, rflags))?;
        self.emit(&Instruction::with2(
            Code::And_rm32_imm32,
            resized32(scratch),
            crate::guest::flags::ARITHMETIC as i32,
        )?)?;
        self.emit(&Instruction::with1(Code::Push_r64, scratch)?)?;
        self.emit(&Instruction::with(Code::Popfq))
    }

    fn store(&mut self, plan: &Plan) -> Result<(), IcedError> {
        for gpr in plan.gprs.iter().filter(|g| g.store) {
            self.store_gpr(gpr.host, plan.cpu, gpr_offset(gpr.guest))?;
        }
        if plan.mxcsr {
            self.emit(&Instruction::with1(
                Code::Stmxcsr_m32,
                at(plan.vector, MXCSR),
            )?)?;
            self.host_mxcsr()?;
        }
        for (index, &VectorUse { store, .. }) in plan.vectors.iter().enumerate() {
            if store {
                self.store_vector(plan.vector, index, plan.keeps_upper)?;
            }
        }
        for (index, &(_, store)) in plan.masks.iter().enumerate() {
            if store {
                self.mask(plan.vector, index, true)?;
            }
        }
        if plan.flags_out != 0 {
            self.store_flags(plan)?;
        }
        let wide = plan.vectors.iter().take(16).any(|v| v.load > 16)
            || !plan.keeps_upper && plan.vectors.iter().take(16).any(|v| v.store);
        if wide && self.vectors.upper_ymm.is_some() {
            // Dirty upper halves would slow down the SSE code of Rust on some CPUs.
            self.emit(&Instruction::with(Code::VEX_Vzeroupper))?;
        }
        Ok(())
    }

    fn store_flags(&mut self, plan: &Plan) -> Result<(), IcedError> {
        // The integer registers are stored already: all but the pointers are free.
        let (new, old) = plan.two_scratch();
        let rflags = offset_of!(CpuState, rflags);
        let mask = plan.flags_out as i32;
        self.emit(&Instruction::with(Code::Pushfq))?;
        self.emit(&Instruction::with1(Code::Pop_r64, new)?)?;
        self.load_gpr(old, plan.cpu, rflags)?;
        self.emit(&Instruction::with2(Code::And_rm64_imm32, new, mask)?)?;
        self.emit(&Instruction::with2(Code::And_rm64_imm32, old, !mask)?)?;
        self.emit(&Instruction::with2(Code::Or_r64_rm64, old, new)?)?;
        self.store_gpr(old, plan.cpu, rflags)
    }

    /// Loads the low `bytes` of vector register `index`, or as many as the host has.
    fn load_vector(&mut self, base: Register, index: usize, bytes: usize) -> Result<(), IcedError> {
        if bytes == 0 {
            return Ok(());
        }
        let n = index as u32;
        let (xmm, ymm, zmm) = (Register::XMM0 + n, Register::YMM0 + n, Register::ZMM0 + n);
        if index >= 16 {
            if let Some(offset) = self.vectors.high_zmm {
                let from = at(base, (offset + (index - 16) * 64) as i64);
                self.emit(&Instruction::with2(
                    Code::EVEX_Vmovups_zmm_k1z_zmmm512,
                    zmm,
                    from,
                )?)?;
            }
            return Ok(());
        }
        let low = at(base, (XMM + index * 16) as i64);
        self.emit(&Instruction::with2(Code::Movups_xmm_xmmm128, xmm, low)?)?;
        if bytes > 16
            && let Some(offset) = self.vectors.upper_ymm
        {
            let from = at(base, (offset + index * 16) as i64);
            self.emit(&Instruction::with4(
                Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8,
                ymm,
                ymm,
                from,
                1,
            )?)?;
        }
        if bytes > 32
            && let Some(offset) = self.vectors.upper_zmm
        {
            let from = at(base, (offset + index * 32) as i64);
            self.emit(&Instruction::with4(
                Code::EVEX_Vinsertf64x4_zmm_k1z_zmm_ymmm256_imm8,
                zmm,
                zmm,
                from,
                1,
            )?)?;
        }
        Ok(())
    }

    /// Stores vector register `index`: the low 16 bytes, or all that the host has.
    fn store_vector(
        &mut self,
        base: Register,
        index: usize,
        low_only: bool,
    ) -> Result<(), IcedError> {
        let n = index as u32;
        let (xmm, ymm, zmm) = (Register::XMM0 + n, Register::YMM0 + n, Register::ZMM0 + n);
        if index >= 16 {
            if let Some(offset) = self.vectors.high_zmm {
                let to = at(base, (offset + (index - 16) * 64) as i64);
                self.emit(&Instruction::with2(
                    Code::EVEX_Vmovups_zmmm512_k1z_zmm,
                    to,
                    zmm,
                )?)?;
            }
            return Ok(());
        }
        let low = at(base, (XMM + index * 16) as i64);
        self.emit(&Instruction::with2(Code::Movups_xmmm128_xmm, low, xmm)?)?;
        if low_only {
            return Ok(());
        }
        if let Some(offset) = self.vectors.upper_ymm {
            let to = at(base, (offset + index * 16) as i64);
            self.emit(&Instruction::with3(
                Code::VEX_Vextractf128_xmmm128_ymm_imm8,
                to,
                ymm,
                1,
            )?)?;
        }
        if let Some(offset) = self.vectors.upper_zmm {
            let to = at(base, (offset + index * 32) as i64);
            self.emit(&Instruction::with3(
                Code::EVEX_Vextractf64x4_ymmm256_k1z_zmm_imm8,
                to,
                zmm,
                1,
            )?)?;
        }
        Ok(())
    }

    fn mask(&mut self, base: Register, index: usize, store: bool) -> Result<(), IcedError> {
        let Some(offset) = self.vectors.masks else {
            return Ok(());
        };
        let k = Register::K0 + index as u32;
        let slot = at(base, (offset + index * 8) as i64);
        self.emit(&match (store, self.vectors.wide_masks) {
            (false, true) => Instruction::with2(Code::VEX_Kmovq_kr_km64, k, slot)?,
            (false, false) => Instruction::with2(Code::VEX_Kmovw_kr_km16, k, slot)?,
            (true, true) => Instruction::with2(Code::VEX_Kmovq_m64_kr, slot, k)?,
            (true, false) => Instruction::with2(Code::VEX_Kmovw_m16_kr, slot, k)?,
        })
    }

    /// A stub for an instruction that saves or restores components at run time's choice: the
    /// guest's whole vector state is in the CPU around it.
    pub fn whole_state_stub(
        &mut self,
        instruction: &Instruction,
        base: Register,
    ) -> Result<(), IcedError> {
        const CPU: Register = Register::R14;
        const STATE: Register = Register::R15;
        self.copy_gpr(CPU, Register::RDI)?;
        self.copy_gpr(STATE, Register::RSI)?;
        self.copy_gpr(base, Register::RDX)?;
        self.transfer_all(Code::Xrstor_mem, STATE)?;
        for gpr in [Register::RAX, Register::RCX, Register::RDX] {
            self.load_gpr(gpr, CPU, gpr_offset(gpr.number()))?;
        }
        self.emit(instruction)?;
        // Of these instructions XGETBV alone writes integer registers.
        for gpr in [Register::RAX, Register::RDX] {
            self.store_gpr(gpr, CPU, gpr_offset(gpr.number()))?;
        }
        self.transfer_all(Code::Xsave_mem, STATE)?;
        self.host_mxcsr()?;
        if self.vectors.upper_ymm.is_some() {
            self.emit(&Instruction::with(Code::VEX_Vzeroupper))?;
        }
        self.emit(&Instruction::with(Code::Retnq))
    }

    fn transfer_all(&mut self, code: Code, state: Register) -> Result<(), IcedError> {
        let mask = XsaveLayout::get().vector_mask as i32;
        self.emit(&Instruction::with2(
            Code::Mov_r32_imm32,
            Register::EAX,
            mask,
        )?)?;
        self.emit(&Instruction::with2(
            Code::Xor_r32_rm32,
            Register::EDX,
            Register::EDX,
        )?)?;
        self.emit(&Instruction::with1(code, at(state, AREA as i64))?)
    }
}

fn gpr_offset(number: usize) -> usize {
    offset_of!(CpuState, gpr) + number * 8
}

fn resized32(register: Register) -> Register {
    Register::EAX + register.number() as u32
}
