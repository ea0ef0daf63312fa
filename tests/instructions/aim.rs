//! Makes a random state meet a random instruction: address registers that add up to the
//! target, counts that end, operands for which more than the first check of an instruction
//! is exercised. Without it almost every case would be the same page fault.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use temper::guest::{Gpr, flags};
use temper::host::XsaveLayout;

use crate::machine::{Case, INSTRUCTION_AT, WRITABLE, WRITABLE_BYTES};
use crate::shape::Shape;
use crate::values::{self, Rng};

/// A case for `shape` on a random state.
pub fn case(shape: Shape, memory: &crate::machine::Memory, rng: &mut Rng) -> Case {
    let mut case = Case {
        instruction: shape.instruction,
        bytes: shape.bytes,
        state: values::state(rng),
        memory: Box::new(*memory),
    };
    for operand in 0..case.instruction.op_count() {
        match case.instruction.op_kind(operand) {
            OpKind::Memory => case.aim_operand(shape.target, rng),
            OpKind::MemorySegRDI | OpKind::MemorySegEDI => {
                let base = case.segment_base();
                case.set(Gpr::Rdi, shape.target.wrapping_sub(base));
            }
            OpKind::MemorySegRSI
            | OpKind::MemorySegESI
            | OpKind::MemoryESRDI
            | OpKind::MemoryESEDI => case.aim_string(rng),
            _ => {}
        }
    }
    case.aim_by_mnemonic(shape.target, rng);
    case
}

/// Where control may go: far from the instruction, on INT3s.
fn code_address(rng: &mut Rng) -> u64 {
    INSTRUCTION_AT + 0x100 + rng.below(0x600)
}

fn data_address(rng: &mut Rng) -> u64 {
    WRITABLE + 0x400 + rng.below(WRITABLE_BYTES as u64 - 0x800)
}

impl Case {
    fn set(&mut self, gpr: Gpr, value: u64) {
        self.state.cpu.set(gpr, value);
    }

    /// Sets a register operand's whole register.
    fn set_register(&mut self, register: Register, value: u64) {
        if register.is_gpr() {
            self.state.cpu.gpr[register.full_register().number()] = value;
        }
    }

    fn gpr(&self, register: Register) -> u64 {
        let value = self.state.cpu.gpr[register.full_register().number()];
        if register.size() == 4 {
            value & 0xffff_ffff
        } else {
            value
        }
    }

    fn segment_base(&self) -> u64 {
        match self.instruction.segment_prefix() {
            Register::FS => self.state.cpu.fs_base,
            Register::GS => self.state.cpu.gs_base,
            _ => 0,
        }
    }

    /// Writes `bytes` into the case's memory, as far as they lie inside.
    fn patch(&mut self, addr: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let offset = addr.wrapping_add(i as u64).wrapping_sub(WRITABLE);
            if let Some(place) = self.memory.get_mut(offset as usize) {
                *place = byte;
            }
        }
    }

    fn aim_operand(&mut self, target: u64, rng: &mut Rng) {
        let instruction: Instruction = self.instruction;
        let base = instruction.memory_base();
        if !base.is_gpr() {
            return;
        }
        let mut wanted = target
            .wrapping_sub(self.segment_base())
            .wrapping_sub(instruction.memory_displacement64());
        let index = instruction.memory_index();
        if index.is_vector_register() {
            self.aim_indices(index, instruction.is_vsib64(), rng);
        } else if index != Register::None {
            let scaled = self
                .gpr(index)
                .wrapping_mul(u64::from(instruction.memory_index_scale()));
            wanted = wanted.wrapping_sub(scaled);
        }
        if base.size() == 4 {
            wanted = wanted & 0xffff_ffff | rng.next() << 32;
        }
        self.set_register(base, wanted);
    }

    /// Small indices for a gather or scatter, but now and then wild ones.
    fn aim_indices(&mut self, index: Register, wide: bool, rng: &mut Rng) {
        if rng.percent(10) {
            return;
        }
        let mut value = [0; 64];
        for lane in value.chunks_exact_mut(if wide { 8 } else { 4 }) {
            let small = rng.below(100) as i64 - 50;
            lane.copy_from_slice(&small.to_le_bytes()[..lane.len()]);
        }
        self.state.vector.set_register(index.number(), &value);
    }

    fn aim_string(&mut self, rng: &mut Rng) {
        let (from, to) = (data_address(rng), data_address(rng));
        self.set(Gpr::Rsi, from);
        self.set(Gpr::Rdi, to);
        if rng.percent(4) {
            // Runs out of writable memory on the way.
            self.set(Gpr::Rdi, WRITABLE + WRITABLE_BYTES as u64 - rng.below(32));
        }
        self.set(Gpr::Rcx, rng.below(24));
        if rng.percent(60) {
            // Equal elements, so that comparisons go on for a while.
            let fill = [rng.next() as u8; 80];
            let len = 8 + rng.below(72) as usize;
            self.patch(from.wrapping_sub(40), &fill);
            self.patch(to.wrapping_sub(40), &fill[..len]);
            self.set(Gpr::Rax, u64::from(fill[0]) * 0x0101_0101_0101_0101);
        }
    }

    fn aim_by_mnemonic(&mut self, target: u64, rng: &mut Rng) {
        let instruction: Instruction = self.instruction;
        let stack = self.state.cpu.get(Gpr::Rsp);
        match instruction.flow_control() {
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                let to = code_address(rng);
                self.patch(target, &to.to_le_bytes());
                if instruction.op0_kind() == OpKind::Register {
                    self.set_register(instruction.op0_register(), to);
                }
            }
            FlowControl::Return => {
                let to = code_address(rng);
                self.patch(stack, &to.to_le_bytes());
            }
            _ => {}
        }
        match instruction.mnemonic() {
            Mnemonic::Div | Mnemonic::Idiv if rng.percent(75) => {
                let high = if rng.percent(70) { 0 } else { u64::MAX };
                self.set(Gpr::Rdx, high);
                self.set(Gpr::Rax, rng.integer() >> rng.below(40));
            }
            Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b if rng.percent(60) => {
                let offset = target.wrapping_sub(WRITABLE) as usize;
                let held = |at: usize| {
                    self.memory
                        .get(at..at.wrapping_add(8))
                        .map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
                };
                let low = held(offset);
                let high = if instruction.mnemonic() == Mnemonic::Cmpxchg8b {
                    low >> 32
                } else {
                    held(offset.wrapping_add(8))
                };
                self.set(Gpr::Rax, low);
                self.set(Gpr::Rdx, high);
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if instruction.op1_kind() == OpKind::Register
                    && instruction.op1_register() != instruction.memory_base()
                    && instruction.op1_register() != instruction.memory_index()
                    && rng.percent(85) =>
            {
                let bit = rng.below(2000) as i64 - 1000;
                self.set_register(instruction.op1_register(), bit as u64);
            }
            Mnemonic::Xlatb => {
                let table = target.wrapping_sub(self.state.cpu.get(Gpr::Rax) & 0xff);
                self.set(Gpr::Rbx, table);
            }
            Mnemonic::Clzero | Mnemonic::Monitorx | Mnemonic::Umonitor => {
                self.set(Gpr::Rax, data_address(rng));
                self.set(Gpr::Rcx, 0);
            }
            Mnemonic::Leave => self.set(Gpr::Rbp, data_address(rng) & !7),
            Mnemonic::Enter => self.set(Gpr::Rbp, data_address(rng) & !7),
            Mnemonic::Popf | Mnemonic::Popfq => {
                let mut value = rng.next();
                if !rng.percent(5) {
                    value &= !flags::TF;
                }
                // With alignment checks on, the bare CPU's own next step may fault.
                self.patch(stack, &(value & !flags::AC).to_le_bytes());
            }
            Mnemonic::Loop
            | Mnemonic::Loope
            | Mnemonic::Loopne
            | Mnemonic::Jrcxz
            | Mnemonic::Jecxz => {
                let count = rng.below(3) | u64::from(rng.percent(30)) << 32;
                self.set(Gpr::Rcx, count);
            }
            Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestrm
            | Mnemonic::Vpcmpestri
            | Mnemonic::Vpcmpestrm
                if rng.percent(80) =>
            {
                self.set(Gpr::Rax, rng.below(20).wrapping_sub(2));
                self.set(Gpr::Rdx, rng.below(20).wrapping_sub(2));
            }
            Mnemonic::Xgetbv => self.set(Gpr::Rcx, rng.pick(&[0, 0, 0, 1, 7])),
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr if rng.percent(85) => {
                let value = values::mxcsr(rng);
                self.patch(target, &value.to_le_bytes());
            }
            Mnemonic::Wrfsbase | Mnemonic::Wrgsbase if rng.percent(85) => {
                let value = rng.next() >> 17;
                self.set_register(instruction.op0_register(), value);
            }
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 | Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
                let area = saved_area(rng);
                self.patch(target, &area);
                self.aim_component_mask(rng);
            }
            Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64 => {
                // The header's first word is read and kept in part.
                self.patch(target.wrapping_add(512), &[0; 64]);
                self.aim_component_mask(rng);
            }
            _ => {}
        }
    }

    fn aim_component_mask(&mut self, rng: &mut Rng) {
        let base = self.instruction.memory_base();
        let index = self.instruction.memory_index();
        if [base, index]
            .iter()
            .any(|r| matches!(r.full_register(), Register::RAX | Register::RDX))
        {
            return;
        }
        self.set(Gpr::Rax, rng.pick(&[0xe7, 7, 6, 2, 1, 3, 0xe6, 0xff]));
        self.set(Gpr::Rdx, 0);
    }
}

/// An area that FXRSTOR and XRSTOR accept.
fn saved_area(rng: &mut Rng) -> Vec<u8> {
    let state = values::state(rng);
    let mut area = state.vector.area.to_vec();
    let layout = XsaveLayout::get();
    let present = (layout.vector_mask | 1) & (rng.next() | rng.next());
    area[512..520].copy_from_slice(&present.to_le_bytes());
    area[520..576].fill(0);
    area
}
