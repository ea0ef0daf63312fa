//! From an instruction code to a random instruction of that code: operands of every kind that
//! iced knows, prefixes, masks and rounding. Addresses are chosen here as expressions; the
//! values that make them meet the test's memory come from `aim`.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, OpCodeInfo,
    OpCodeOperandKind as Kind, OpKind, Register, RoundingControl,
};
use temper::host::Features;

use crate::machine::{CODE, INSTRUCTION_AT, NO_ACCESS, READ_ONLY, WRITABLE, WRITABLE_BYTES};
use crate::values::Rng;

/// An instruction, its bytes, and where its memory operand is meant to lie.
pub struct Shape {
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    pub target: u64,
}

/// A random instruction with `code`, as the decoder gives it back. `None` when some
/// combinations drawn aren't encodable, or the decoder reads the bytes as something else.
pub fn shape(code: Code, rng: &mut Rng) -> Option<Shape> {
    (0..12).find_map(|_| attempt(code, rng))
}

fn attempt(code: Code, rng: &mut Rng) -> Option<Shape> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let target = target(&instruction, rng);
    let mut draw = Draw {
        instruction,
        info,
        target,
        immediates: 0,
        rng,
    };
    for (operand, &kind) in info.op_kinds().iter().enumerate() {
        draw.operand(operand as u32, kind)?;
    }
    draw.decorations();
    let mut encoder = Encoder::new(64);
    encoder.encode(&draw.instruction, INSTRUCTION_AT).ok()?;
    let bytes = encoder.take_buffer();
    let mut decoder = Decoder::with_ip(64, &bytes, INSTRUCTION_AT, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (instruction.code() == code && instruction.len() == bytes.len()).then_some(Shape {
        instruction,
        bytes,
        target,
    })
}

/// Where a memory operand lies: mostly in writable memory and aligned, else somewhere that
/// may fault.
fn target(instruction: &Instruction, rng: &mut Rng) -> u64 {
    let size = match instruction.code().op_code().memory_size().size() as u64 {
        0 => 64,
        size => size,
    };
    let room = WRITABLE_BYTES as u64 - 0x400;
    let inside = WRITABLE + 0x200 + rng.below(room);
    match rng.below(100) {
        0..75 => inside & !(size.next_power_of_two() - 1),
        75..88 => inside,
        // Across the boundary between the two writable pages.
        88..90 => WRITABLE + WRITABLE_BYTES as u64 / 2 - rng.below(size.max(2)),
        90..93 => READ_ONLY - rng.below(size.max(2)),
        93..95 => READ_ONLY + rng.below(64) * 8,
        95..97 => NO_ACCESS - rng.below(size.max(2)),
        97..99 => WRITABLE - rng.below(size.max(2)),
        _ => 1 << 63 | rng.next(),
    }
}

struct Draw<'a> {
    instruction: Instruction,
    info: &'static OpCodeInfo,
    target: u64,
    /// Immediates set so far: a second one has a place of its own.
    immediates: u32,
    rng: &'a mut Rng,
}

impl Draw<'_> {
    fn operand(&mut self, n: u32, kind: Kind) -> Option<()> {
        let evex = self.info.encoding() == EncodingKind::EVEX;
        let vectors = if evex { 32 } else { 16 };
        match kind {
            Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::r32_or_mem_mpx
            | Kind::r64_or_mem_mpx
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
            | Kind::zmm_or_mem
            | Kind::bnd_or_mem_mpx
            | Kind::k_or_mem
                if self.rng.percent(50) =>
            {
                self.memory(n, Register::None)
            }
            Kind::mem | Kind::mem_mpx | Kind::mem_mib => self.memory(n, Register::None),
            Kind::mem_vsib32x | Kind::mem_vsib64x => self.memory(n, Register::XMM0),
            Kind::mem_vsib32y | Kind::mem_vsib64y => self.memory(n, Register::YMM0),
            Kind::mem_vsib32z | Kind::mem_vsib64z => self.memory(n, Register::ZMM0),
            Kind::mem_offs => {
                self.instruction.set_op_kind(n, OpKind::Memory);
                self.instruction.set_memory_displ_size(8);
                self.instruction.set_memory_displacement64(self.target);
                Some(())
            }
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => {
                let any = self.rng.pick(&[Register::AL, Register::SPL, Register::R8L]);
                let count = if any == Register::R8L { 8 } else { 4 };
                if any == Register::AL && self.rng.percent(40) {
                    return self.register(n, Register::AH, 4);
                }
                self.register(n, any, count)
            }
            Kind::r16_or_mem
            | Kind::r16_reg
            | Kind::r16_reg_mem
            | Kind::r16_rm
            | Kind::r16_opcode => self.register(n, Register::AX, 16),
            Kind::r32_or_mem
            | Kind::r32_or_mem_mpx
            | Kind::r32_reg
            | Kind::r32_reg_mem
            | Kind::r32_rm
            | Kind::r32_opcode
            | Kind::r32_vvvv => self.register(n, Register::EAX, 16),
            Kind::r64_or_mem
            | Kind::r64_or_mem_mpx
            | Kind::r64_reg
            | Kind::r64_reg_mem
            | Kind::r64_rm
            | Kind::r64_opcode
            | Kind::r64_vvvv => self.register(n, Register::RAX, 16),
            Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => self.register(n, Register::MM0, 8),
            Kind::k_or_mem | Kind::k_reg | Kind::kp1_reg | Kind::k_rm | Kind::k_vvvv => {
                self.register(n, Register::K0, 8)
            }
            Kind::bnd_or_mem_mpx | Kind::bnd_reg => self.register(n, Register::BND0, 4),
            Kind::xmm_or_mem
            | Kind::xmm_reg
            | Kind::xmm_rm
            | Kind::xmm_vvvv
            | Kind::xmmp3_vvvv
            | Kind::xmm_is4
            | Kind::xmm_is5 => self.register(n, Register::XMM0, vectors),
            Kind::ymm_or_mem
            | Kind::ymm_reg
            | Kind::ymm_rm
            | Kind::ymm_vvvv
            | Kind::ymm_is4
            | Kind::ymm_is5 => self.register(n, Register::YMM0, vectors),
            Kind::zmm_or_mem | Kind::zmm_reg | Kind::zmm_rm | Kind::zmm_vvvv | Kind::zmmp3_vvvv => {
                self.register(n, Register::ZMM0, vectors)
            }
            Kind::seg_reg => self.register(n, Register::ES, 6),
            Kind::cr_reg => self.register(n, Register::CR0, 16),
            Kind::dr_reg => self.register(n, Register::DR0, 16),
            Kind::tr_reg => self.register(n, Register::TR0, 8),
            Kind::es => self.register(n, Register::ES, 1),
            Kind::cs => self.register(n, Register::CS, 1),
            Kind::ss => self.register(n, Register::SS, 1),
            Kind::ds => self.register(n, Register::DS, 1),
            Kind::fs => self.register(n, Register::FS, 1),
            Kind::gs => self.register(n, Register::GS, 1),
            Kind::al => self.register(n, Register::AL, 1),
            Kind::cl => self.register(n, Register::CL, 1),
            Kind::ax => self.register(n, Register::AX, 1),
            Kind::dx => self.register(n, Register::DX, 1),
            Kind::eax => self.register(n, Register::EAX, 1),
            Kind::rax => self.register(n, Register::RAX, 1),
            Kind::st0 => self.register(n, Register::ST0, 1),
            Kind::sti_opcode => self.register(n, Register::ST0, 8),
            Kind::imm4_m2z => {
                let value = self.rng.below(4) as u8;
                self.immediate(n, OpKind::Immediate8, u64::from(value))
            }
            Kind::imm8 => {
                let value = self.rng.next() as u8;
                let kind = if self.immediates > 0 {
                    OpKind::Immediate8_2nd
                } else {
                    OpKind::Immediate8
                };
                self.immediate(n, kind, u64::from(value))
            }
            Kind::imm8_const_1 => self.immediate(n, OpKind::Immediate8, 1),
            Kind::imm8sex16 => self.signed(n, OpKind::Immediate8to16),
            Kind::imm8sex32 => self.signed(n, OpKind::Immediate8to32),
            Kind::imm8sex64 => self.signed(n, OpKind::Immediate8to64),
            Kind::imm16 => {
                let value = self.rng.integer() & 0xffff;
                self.immediate(n, OpKind::Immediate16, value)
            }
            Kind::imm32 => {
                let value = self.rng.integer() & 0xffff_ffff;
                self.immediate(n, OpKind::Immediate32, value)
            }
            Kind::imm32sex64 => {
                let value = self.rng.integer() as i32 as i64 as u64;
                self.immediate(n, OpKind::Immediate32to64, value)
            }
            Kind::imm64 => {
                let value = self.rng.integer();
                self.immediate(n, OpKind::Immediate64, value)
            }
            Kind::seg_rSI => self.implicit(n, OpKind::MemorySegRSI, OpKind::MemorySegESI),
            Kind::es_rDI => self.implicit(n, OpKind::MemoryESRDI, OpKind::MemoryESEDI),
            Kind::seg_rDI => self.implicit(n, OpKind::MemorySegRDI, OpKind::MemorySegEDI),
            Kind::seg_rBX_al => {
                self.instruction.set_op_kind(n, OpKind::Memory);
                self.instruction.set_memory_base(Register::RBX);
                self.instruction.set_memory_index(Register::AL);
                Some(())
            }
            Kind::br64_1 => self.branch(n, 100),
            Kind::br64_4 => self.branch(n, 0x700),
            // Branches with 16-bit operands truncate RIP (or not, by vendor); far pointers,
            // transactions and tiles have no 64-bit or no testable form.
            _ => None,
        }
    }

    fn register(&mut self, n: u32, first: Register, count: u64) -> Option<()> {
        let register = first + self.rng.below(count) as u32;
        self.instruction.set_op_kind(n, OpKind::Register);
        self.instruction.set_op_register(n, register);
        Some(())
    }

    fn immediate(&mut self, n: u32, kind: OpKind, value: u64) -> Option<()> {
        self.immediates += 1;
        self.instruction.set_op_kind(n, kind);
        self.instruction.set_immediate_u64(n, value);
        Some(())
    }

    fn signed(&mut self, n: u32, kind: OpKind) -> Option<()> {
        let value = self.rng.next() as i8 as i64 as u64;
        self.immediate(n, kind, value)
    }

    fn implicit(&mut self, n: u32, wide: OpKind, narrow: OpKind) -> Option<()> {
        // Both operands of a string instruction have one address size.
        let narrow_already = (0..n).any(|i| {
            matches!(
                self.instruction.op_kind(i),
                OpKind::MemorySegESI | OpKind::MemoryESEDI
            )
        });
        let first = n == 0 || !self.has_string_operand(n);
        let kind = if narrow_already || first && self.rng.percent(10) {
            narrow
        } else {
            wide
        };
        self.instruction.set_op_kind(n, kind);
        Some(())
    }

    fn has_string_operand(&self, before: u32) -> bool {
        (0..before).any(|i| {
            matches!(
                self.instruction.op_kind(i),
                OpKind::MemorySegRSI
                    | OpKind::MemorySegESI
                    | OpKind::MemoryESRDI
                    | OpKind::MemoryESEDI
            )
        })
    }

    fn branch(&mut self, n: u32, reach: u64) -> Option<()> {
        // Never onto the instruction itself, which would loop for ever.
        let ahead = 16 + self.rng.below(reach);
        let to = if self.rng.percent(50) {
            INSTRUCTION_AT + ahead
        } else {
            INSTRUCTION_AT - ahead
        };
        debug_assert!(to > CODE);
        self.instruction.set_op_kind(n, OpKind::NearBranch64);
        self.instruction.set_near_branch64(to);
        Some(())
    }

    /// An address expression: any base, index, scale and displacement. `vector` is the first
    /// vector register of a VSIB index.
    fn memory(&mut self, n: u32, vector: Register) -> Option<()> {
        let rng = &mut *self.rng;
        let instruction = &mut self.instruction;
        instruction.set_op_kind(n, OpKind::Memory);
        if rng.percent(5) && Features::get().fsgsbase {
            instruction.set_segment_prefix(rng.pick(&[Register::FS, Register::GS]));
        }
        let first = if rng.percent(8) {
            Register::EAX
        } else {
            Register::RAX
        };
        let base = first + rng.below(16) as u32;
        let small = rng.percent(60);
        let displacement = if small {
            rng.next() as i8 as i64
        } else {
            rng.below(0x2000_0000) as i64 - 0x1000_0000
        };
        if vector != Register::None {
            let count = if self.info.encoding() == EncodingKind::EVEX {
                32
            } else {
                16
            };
            instruction.set_memory_base(base);
            instruction.set_memory_index(vector + rng.below(count) as u32);
            instruction.set_memory_index_scale(1 << rng.below(4));
            self.displacement(displacement);
            return Some(());
        }
        match rng.below(20) {
            0..10 => {
                instruction.set_memory_base(base);
                self.displacement(displacement);
            }
            10..17 => {
                let index = first + rng.below(16) as u32;
                if index.full_register() == Register::RSP
                    || index.full_register() == base.full_register()
                {
                    return None;
                }
                instruction.set_memory_base(base);
                instruction.set_memory_index(index);
                instruction.set_memory_index_scale(1 << rng.below(4));
                self.displacement(displacement);
            }
            17..19 => {
                instruction.set_segment_prefix(Register::None);
                instruction.set_memory_base(Register::RIP);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(self.target);
            }
            _ => {
                instruction.set_segment_prefix(Register::None);
                instruction.set_memory_displ_size(4);
                instruction.set_memory_displacement64(self.target);
            }
        }
        Some(())
    }

    fn displacement(&mut self, value: i64) {
        self.instruction
            .set_memory_displ_size(if value == 0 { 0 } else { 8 });
        let narrow = self.instruction.memory_base().is_gpr32();
        self.instruction.set_memory_displacement64(if narrow {
            value as u32 as u64
        } else {
            value as u64
        });
        if narrow && value != 0 {
            self.instruction.set_memory_displ_size(4);
        }
    }

    /// Opmasks, zeroing, broadcast, rounding, LOCK and REP.
    fn decorations(&mut self) {
        let (info, rng) = (self.info, &mut *self.rng);
        let instruction = &mut self.instruction;
        let has_memory =
            (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
        let writes_memory = has_memory && instruction.op_kind(0) == OpKind::Memory;
        if info.require_op_mask_register() || info.can_use_op_mask_register() && rng.percent(50) {
            instruction.set_op_mask(Register::K1 + rng.below(7) as u32);
            if info.can_use_zeroing_masking() && !writes_memory && rng.percent(50) {
                instruction.set_zeroing_masking(true);
            }
        }
        if has_memory && info.can_broadcast() && rng.percent(35) {
            instruction.set_is_broadcast(true);
        }
        if !has_memory && info.encoding() == EncodingKind::EVEX && rng.percent(30) {
            if info.can_use_rounding_control() {
                instruction.set_rounding_control(rng.pick(&[
                    RoundingControl::RoundToNearest,
                    RoundingControl::RoundDown,
                    RoundingControl::RoundUp,
                    RoundingControl::RoundTowardZero,
                ]));
            } else if info.can_suppress_all_exceptions() {
                instruction.set_suppress_all_exceptions(true);
            }
        }
        if writes_memory && info.can_use_lock_prefix() && rng.percent(30) {
            instruction.set_has_lock_prefix(true);
        }
        if info.can_use_rep_prefix() && rng.percent(40) {
            instruction.set_has_rep_prefix(true);
        } else if info.can_use_repne_prefix() && rng.percent(40) {
            instruction.set_has_repne_prefix(true);
        }
    }
}
