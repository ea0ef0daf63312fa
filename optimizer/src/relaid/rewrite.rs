//! Rewrites one instruction after the other: frame slots become registers, values that were
//! folded go into operands, stores to unknown places are guarded.

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess, OpKind, Register,
};

use super::emit::{Code64, Label, gpr, gpr_sized, gpr32, xmm};
use super::form::{
    Class, has_high_byte, overwrites_flags, reads, stored_bytes, stores_anywhere, substitutable,
    writes,
};
use super::frame::{Frame, has_memory_operand};
use super::operand::{
    is_vector_move, low_half, operand, set_address, takes_any_general, takes_any_vector,
};
use super::slots::{Effect, Plan, Slot, effect, exact_slot};
use super::state::State;
use crate::region::{
    FlagsOf, FlagsOperation, PendingStore, Refusal, RegionInput, StatePoint, Sum, Value,
};

pub(super) const RCX: u8 = 1;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;

/// Code out of line that leaves: what is pending is computed there.
pub(super) struct Cold {
    pub label: Label,
    pub target: u64,
    pub lower: bool,
    pub state: State,
}

pub(super) struct Rewriter<'a> {
    pub region: &'a RegionInput,
    pub plan: &'a Plan,
    pub code: Code64,
    pub state: State,
    /// The guest instruction that is being rewritten.
    pub at: u64,
    pub cold: Vec<Cold>,
    /// Temporaries that the instruction under construction uses.
    pub pinned: Vec<u8>,
    pub factory: InstructionInfoFactory,
    pub guards: u32,
    /// A bit for each temporary that was needed.
    pub used: u16,
}

impl Rewriter<'_> {
    /// Notes the guest's state for the next host instruction.
    pub fn note(&mut self) {
        let point = self.state.point(self.at);
        self.code.state(point);
    }

    pub fn emit(&mut self, instruction: &Instruction) -> Result<(), Refusal> {
        self.note();
        self.code.emit(instruction)
    }

    fn copy_register(&mut self, code: Code, to: Register, from: Register) -> Result<(), Refusal> {
        self.note();
        self.code.registers(code, to, from)
    }

    /// Computes a value into a host register.
    pub fn compute(&mut self, value: Value, to: u8) -> Result<(), Refusal> {
        self.note();
        match value {
            Value::SignExtended(from) => {
                self.code
                    .registers(Code::Movsxd_r64_rm32, gpr(to), gpr32(from))
            }
            Value::Sum(Sum {
                base: Some(from),
                index: None,
                displacement: 0,
                is_32,
            }) => {
                if is_32 {
                    self.code
                        .registers(Code::Mov_r32_rm32, gpr32(to), gpr32(from))
                } else {
                    self.code.registers(Code::Mov_r64_rm64, gpr(to), gpr(from))
                }
            }
            Value::Sum(Sum {
                base: None,
                index: None,
                displacement,
                is_32,
            }) => {
                if is_32 || displacement >= 0 {
                    self.code.constant(to, displacement as u32);
                    Ok(())
                } else {
                    let at = self.at;
                    let load = Instruction::with2(Code::Mov_rm64_imm32, gpr(to), displacement)
                        .map_err(|_| Refusal::Encoding { at })?;
                    self.code.emit(&load)
                }
            }
            Value::Sum(sum) => {
                let (code, to) = if sum.is_32 {
                    (Code::Lea_r32_m, gpr32(to))
                } else {
                    (Code::Lea_r64_m, gpr(to))
                };
                self.code.load(code, to, operand(sum))
            }
        }
    }

    /// Brings a pending value into its guest register.
    pub fn materialize(&mut self, register: u8) -> Result<(), Refusal> {
        if let Some(value) = self.state.general[usize::from(register)] {
            let known = match value {
                Value::SignExtended(of) => self.state.extension(of),
                Value::Sum(_) => None,
            };
            self.compute(known.map_or(value, Value::register), register)?;
            self.state.general[usize::from(register)] = None;
            self.state.changed(register);
        }
        Ok(())
    }

    pub fn materialize_vector(&mut self, register: u8) -> Result<(), Refusal> {
        if let Some(from) = self.state.vectors[usize::from(register)] {
            self.copy_register(Code::Movaps_xmm_xmmm128, xmm(register), xmm(from))?;
            self.state.vectors[usize::from(register)] = None;
        }
        Ok(())
    }

    /// Makes the pending flags the CPU's. `spare`: registers that may be overwritten besides
    /// temporaries.
    pub fn materialize_flags(&mut self, spare: &[u8]) -> Result<(), Refusal> {
        let Some(flags) = self.state.flags else {
            return Ok(());
        };
        let left = self.scratch(spare)?;
        self.compute(flags.left, left)?;
        self.pinned.push(left);
        let sized = |register| {
            if flags.is_32 {
                gpr32(register)
            } else {
                gpr(register)
            }
        };
        let at = self.at;
        let refused = |_| Refusal::Encoding { at };
        let operation = match (flags.operation, flags.right) {
            (
                FlagsOperation::ShiftLeft,
                Value::Sum(Sum {
                    displacement: count,
                    ..
                }),
            ) => {
                let code = if flags.is_32 {
                    Code::Shl_rm32_imm8
                } else {
                    Code::Shl_rm64_imm8
                };
                Instruction::with2(code, sized(left), count).map_err(refused)?
            }
            (operation, right) => {
                let right = match right.as_register() {
                    Some(register) => register,
                    None => {
                        let register = self.scratch(spare)?;
                        self.compute(right, register)?;
                        register
                    }
                };
                let code = match (operation, flags.is_32) {
                    (FlagsOperation::Sub, true) => Code::Sub_r32_rm32,
                    (FlagsOperation::Sub, false) => Code::Sub_r64_rm64,
                    (_, true) => Code::Add_r32_rm32,
                    (_, false) => Code::Add_r64_rm64,
                };
                Instruction::with2(code, sized(left), sized(right)).map_err(refused)?
            }
        };
        self.emit(&operation)?;
        self.state.flags = None;
        self.pinned.retain(|&register| register != left);
        Ok(())
    }

    fn scratch(&mut self, spare: &[u8]) -> Result<u8, Refusal> {
        let found = spare
            .iter()
            .copied()
            .find(|&register| !self.state.reads(register) && !self.pinned.contains(&register));
        match found {
            Some(register) => Ok(register),
            None => self.temporary(),
        }
    }

    /// A temporary register that nothing needs any more.
    pub fn temporary(&mut self) -> Result<u8, Refusal> {
        for _ in 0..16 {
            let state = &self.state;
            let pinned = &self.pinned;
            let usable = |register: u8| !state.reads(register) && !pinned.contains(&register);
            let unused = self
                .state
                .temporaries
                .iter()
                .filter(|temporary| usable(temporary.register))
                .min_by_key(|temporary| temporary.extended.is_some())
                .map(|temporary| temporary.register);
            if let Some(register) = unused {
                self.used |= 1 << register;
                self.state.changed(register);
                return Ok(register);
            }
            // Whatever needs one is computed now.
            let holder = (0..16u8).find(|&guest| {
                let value = self.state.general[usize::from(guest)];
                value.is_some_and(|value| {
                    self.plan
                        .temporaries
                        .iter()
                        .any(|&temporary| value.reads(temporary))
                })
            });
            match holder {
                Some(guest) => self.materialize(guest)?,
                None => return Err(Refusal::Registers),
            }
        }
        Err(Refusal::Registers)
    }

    /// A host register with the sign extension of another's low half.
    pub fn extended(&mut self, of: u8) -> Result<u8, Refusal> {
        if let Some(register) = self.state.extension(of) {
            self.pinned.push(register);
            return Ok(register);
        }
        let register = self.temporary()?;
        self.compute(Value::SignExtended(of), register)?;
        for temporary in &mut self.state.temporaries {
            if temporary.register == register {
                temporary.extended = Some(of);
            }
        }
        self.pinned.push(register);
        Ok(register)
    }

    /// Host register `register` is about to be overwritten: what needs its value is computed
    /// first. `keeps_flags`: the flags' operands, too.
    pub fn before_write(&mut self, register: u8, keeps_flags: bool) -> Result<(), Refusal> {
        for guest in 0..16u8 {
            if guest != register
                && self.state.general[usize::from(guest)].is_some_and(|value| value.reads(register))
            {
                self.materialize(guest)?;
            }
        }
        if keeps_flags && self.state.flags_read(register) {
            self.materialize_flags(&[])?;
        }
        Ok(())
    }

    pub fn before_vector_write(&mut self, register: u8) -> Result<(), Refusal> {
        for guest in 0..16u8 {
            if self.state.vectors[usize::from(guest)] == Some(register) {
                self.materialize_vector(guest)?;
            }
        }
        Ok(())
    }

    /// Makes RCX usable for a check; the guest's value stays where `state` says.
    pub fn free_rcx(&mut self) -> Result<(), Refusal> {
        if self.plan.rcx_is_free || self.state.general[usize::from(RCX)].is_some() {
            return Ok(());
        }
        let to = self.temporary()?;
        self.copy_register(Code::Mov_r64_rm64, gpr(to), gpr(RCX))?;
        self.state.moved(RCX, to);
        self.state.general[usize::from(RCX)] = Some(Value::register(to));
        self.state.changed(RCX);
        Ok(())
    }

    /// Loads a slot's register from memory.
    pub fn load_slot(&mut self, index: usize, address: MemoryOperand) -> Result<(), Refusal> {
        let slot = self.plan.slots[index];
        self.note();
        match slot.class {
            Class::General => {
                let (code, to) = match slot.bytes {
                    1 => (Code::Movzx_r32_rm8, gpr32(slot.register)),
                    2 => (Code::Movzx_r32_rm16, gpr32(slot.register)),
                    4 => (Code::Mov_r32_rm32, gpr32(slot.register)),
                    _ => (Code::Mov_r64_rm64, gpr(slot.register)),
                };
                self.code.load(code, to, address)?;
                self.state.changed(slot.register);
            }
            Class::Vector => {
                let code = if slot.bytes == 4 {
                    Code::Movss_xmm_xmmm32
                } else {
                    Code::Movsd_xmm_xmmm64
                };
                self.code.load(code, xmm(slot.register), address)?;
            }
        }
        self.state.loaded |= 1 << index;
        Ok(())
    }

    fn before_slot_write(&mut self, slot: Slot, keeps_flags: bool) -> Result<(), Refusal> {
        match slot.class {
            Class::General => self.before_write(slot.register, keeps_flags),
            Class::Vector => self.before_vector_write(slot.register),
        }
    }

    /// Makes sure that a slot that is about to be read is in its register.
    pub fn require_slot(&mut self, index: usize, frame: &Frame) -> Result<(), Refusal> {
        if self.state.loaded & 1 << index != 0 {
            return Ok(());
        }
        self.before_slot_write(self.plan.slots[index], true)?;
        let address = self.slot_address(index, frame)?;
        self.load_slot(index, address)
    }

    /// Rewrites one instruction that isn't a transfer.
    ///
    /// # Errors
    /// The region can't be rebuilt.
    pub fn instruction(&mut self, instruction: &Instruction, frame: &Frame) -> Result<(), Refusal> {
        self.at = instruction.ip();
        self.pinned.clear();
        if self.region.steps.fold && self.fold(instruction, frame)? {
            return Ok(());
        }
        self.pinned.clear();
        self.copy(instruction, frame)
    }

    fn copy(&mut self, instruction: &Instruction, frame: &Frame) -> Result<(), Refusal> {
        let info = self.factory.info(instruction).clone();
        let effect = effect(&self.plan.slots, frame, instruction, &info);
        let access = match instruction.mnemonic() {
            Mnemonic::Lea => None,
            _ => frame.access(instruction),
        };
        let form = substitutable(instruction, &info).filter(|_| !has_high_byte(instruction));
        let exact = access
            .zip(form)
            .and_then(|(access, form)| exact_slot(&self.plan.slots, access, form.class));
        if let (Some((index, slot)), Some(form)) = (exact, form) {
            if form.reads {
                self.require_slot(index, frame)?;
            }
            if form.writes {
                let is_move = match slot.class {
                    Class::General => instruction.mnemonic() == Mnemonic::Mov,
                    Class::Vector => is_vector_move(instruction),
                };
                if is_move && !form.reads {
                    return self.store_to_slot(instruction, index, frame);
                }
                return self.change_slot(instruction, index, form.operand, frame);
            }
            let mut out = *instruction;
            self.put_slot(&mut out, form.operand, slot);
            if slot.class == Class::Vector && is_vector_move(instruction) {
                // The register's upper part is zero, as after a load.
                let to = instruction.op0_register().number() as u8;
                self.copy_register(Code::Movaps_xmm_xmmm128, xmm(to), xmm(slot.register))?;
                self.state.vectors[usize::from(to)] = None;
                return Ok(());
            }
            self.finish(out, frame)?;
            return self.overwritten(instruction, effect, frame);
        }
        // A narrower read of the same place.
        if let (Some(access), Some(form)) = (access, form)
            && form.class == Class::General
            && !form.writes
            && let Some(index) = self.plan.slots.iter().position(|slot| {
                slot.class == Class::General && slot.at == access.at && slot.bytes > access.bytes
            })
            && self.state.loaded & 1 << index != 0
        {
            let mut out = *instruction;
            let register = gpr_sized(self.plan.slots[index].register, access.bytes);
            out.set_op_kind(form.operand, OpKind::Register);
            out.set_op_register(form.operand, register);
            self.finish(out, frame)?;
            return self.overwritten(instruction, effect, frame);
        }
        self.finish(*instruction, frame)?;
        self.overwritten(instruction, effect, frame)
    }

    /// Slots whose memory an instruction has changed behind their registers' backs.
    fn overwritten(
        &mut self,
        instruction: &Instruction,
        effect: Effect,
        frame: &Frame,
    ) -> Result<(), Refusal> {
        self.state.loaded &= !effect.unloads;
        for index in 0..self.plan.slots.len() {
            if effect.reloads & 1 << index != 0 {
                // The instruction is done.
                self.at = instruction.next_ip();
                self.before_slot_write(self.plan.slots[index], true)?;
                let mut after = frame.clone();
                after.step(instruction, false);
                let address = self.slot_address(index, &after)?;
                self.load_slot(index, address)?;
            }
        }
        Ok(())
    }

    /// Where a slot is relative to RSP.
    fn slot_displacement(&self, index: usize, frame: &Frame) -> Result<i32, Refusal> {
        let rsp = frame.rsp().ok_or(Refusal::StackPointer { at: self.at })?;
        Ok(self.plan.slots[index].at - rsp)
    }

    fn slot_address(&self, index: usize, frame: &Frame) -> Result<MemoryOperand, Refusal> {
        let displacement = self.slot_displacement(index, frame)?;
        Ok(MemoryOperand::with_base_displ(
            Register::RSP,
            i64::from(displacement),
        ))
    }

    fn put_slot(&self, out: &mut Instruction, operand: u32, slot: Slot) {
        let register = match slot.class {
            Class::General => gpr_sized(slot.register, slot.bytes),
            Class::Vector => xmm(slot.register),
        };
        out.set_op_kind(operand, OpKind::Register);
        out.set_op_register(operand, register);
    }

    /// `mov` to a slot: to its register and to memory.
    fn store_to_slot(
        &mut self,
        instruction: &Instruction,
        index: usize,
        frame: &Frame,
    ) -> Result<(), Refusal> {
        let slot = self.plan.slots[index];
        let address = self.slot_address(index, frame)?;
        let refused = |_| Refusal::Encoding {
            at: instruction.ip(),
        };
        if slot.class == Class::Vector {
            self.before_vector_write(slot.register)?;
            let from = instruction.op1_register().number() as u8;
            let from = self.state.vectors[usize::from(from)].unwrap_or(from);
            // Only the low part, and zero above.
            self.note();
            if slot.bytes == 8 {
                self.code
                    .registers(Code::Movq_xmm_xmmm64, xmm(slot.register), xmm(from))?;
                self.note();
                self.code
                    .store(Code::Movsd_xmmm64_xmm, address, xmm(slot.register))?;
            } else {
                let insert = Instruction::with3(
                    Code::Insertps_xmm_xmmm32_imm8,
                    xmm(slot.register),
                    xmm(from),
                    0x0e,
                )
                .map_err(refused)?;
                self.code.emit(&insert)?;
                self.note();
                self.code
                    .store(Code::Movss_xmmm32_xmm, address, xmm(slot.register))?;
            }
            self.state.loaded |= 1 << index;
            return Ok(());
        }
        let store_code = match slot.bytes {
            1 => Code::Mov_rm8_r8,
            2 => Code::Mov_rm16_r16,
            4 => Code::Mov_rm32_r32,
            _ => Code::Mov_rm64_r64,
        };
        if instruction.op1_kind() != OpKind::Register {
            self.before_write(slot.register, true)?;
            // The register is memory's copy only: until the store, nothing has happened.
            let value = instruction.immediate(1) as i32;
            let out = if slot.bytes == 8 {
                Instruction::with2(Code::Mov_rm64_imm32, gpr(slot.register), value)
            } else {
                Instruction::with2(Code::Mov_r32_imm32, gpr32(slot.register), value)
            }
            .map_err(refused)?;
            self.emit(&out)?;
            self.state.changed(slot.register);
            self.note();
            self.code
                .store(store_code, address, gpr_sized(slot.register, slot.bytes))?;
            self.state.loaded |= 1 << index;
            return Ok(());
        }
        let from = instruction.op1_register().full_register().number() as u8;
        let wide = slot.bytes == 8;
        if slot.bytes < 4 {
            self.materialize(from)?;
        }
        // What the source is in terms of the slot's register once that holds it.
        let after = match self.state.value(from) {
            _ if wide => Some(Value::register(slot.register)),
            Value::Sum(Sum { is_32: true, .. }) => Some(low_half(Value::register(slot.register))),
            Value::SignExtended(_) => Some(Value::SignExtended(slot.register)),
            Value::Sum(_) => None,
        };
        let reads_slot = self.state.value(from).reads(slot.register);
        if reads_slot && after.is_none() {
            self.materialize(from)?;
        }
        for guest in (0..16u8).filter(|&guest| guest != from) {
            let value = self.state.general[usize::from(guest)];
            if value.is_some_and(|value| value.reads(slot.register)) {
                self.materialize(guest)?;
            }
        }
        if self.state.flags_read(slot.register) {
            self.materialize_flags(&[])?;
        }
        let value = self.state.value(from);
        let stored = if wide { value } else { low_half(value) };
        let is_there = if wide {
            value.as_register()
        } else {
            value.as_register32()
        };
        if is_there != Some(slot.register) {
            self.compute(stored, slot.register)?;
            self.state.changed(slot.register);
            if value.reads(slot.register) {
                self.state.general[usize::from(from)] = after;
            }
        }
        self.note();
        self.code
            .store(store_code, address, gpr_sized(slot.register, slot.bytes))?;
        self.state.loaded |= 1 << index;
        Ok(())
    }

    /// An operation on a slot: on its register, which is then stored.
    fn change_slot(
        &mut self,
        instruction: &Instruction,
        index: usize,
        operand: u32,
        frame: &Frame,
    ) -> Result<(), Refusal> {
        let slot = self.plan.slots[index];
        let address = self.slot_address(index, frame)?;
        self.before_slot_write(slot, !overwrites_flags(instruction))?;
        let mut out = *instruction;
        self.put_slot(&mut out, operand, slot);
        self.finish(out, frame)?;
        self.state.changed(slot.register);
        let point = StatePoint {
            store: Some(PendingStore {
                instruction: instruction.ip(),
                displacement: self.slot_displacement(index, frame)?,
                register: slot.register,
                is_vector: slot.class == Class::Vector,
                bytes: slot.bytes as u8,
            }),
            ..self.state.point(instruction.next_ip())
        };
        self.code.state(point);
        let (code, from) = match (slot.class, slot.bytes) {
            (Class::Vector, 4) => (Code::Movss_xmmm32_xmm, xmm(slot.register)),
            (Class::Vector, _) => (Code::Movsd_xmmm64_xmm, xmm(slot.register)),
            (Class::General, 1) => (Code::Mov_rm8_r8, gpr_sized(slot.register, 1)),
            (Class::General, 2) => (Code::Mov_rm16_r16, gpr_sized(slot.register, 2)),
            (Class::General, 4) => (Code::Mov_rm32_r32, gpr32(slot.register)),
            (Class::General, _) => (Code::Mov_rm64_r64, gpr(slot.register)),
        };
        self.code.store(code, address, from)?;
        self.state.loaded |= 1 << index;
        Ok(())
    }

    /// Emits `out`, which does what `original` does but for a slot in the place of its memory
    /// operand.
    fn finish(&mut self, mut out: Instruction, frame: &Frame) -> Result<(), Refusal> {
        let info = self.factory.info(&out).clone();
        let guard = stored_bytes(&out, &info).is_some()
            && self.plan.guard.is_some()
            && stores_anywhere(frame, &out, &info, self.region.stack);
        if guard {
            self.free_rcx()?;
        }
        let memory = has_memory_operand(&out);
        if memory {
            self.rewrite_address(&mut out)?;
            if guard {
                // The address may have taken RCX's place.
                self.free_rcx()?;
                self.rewrite_address(&mut out)?;
            }
            for register in [out.memory_base(), out.memory_index()] {
                if register.is_gpr64() {
                    self.pinned.push(register.number() as u8);
                }
            }
        }
        if guard {
            self.guard(&out)?;
        }
        let touches_flags = out.rflags_modified() != 0;
        let overwrites = overwrites_flags(&out);
        if self.state.flags.is_some() && (out.rflags_read() != 0 || touches_flags && !overwrites) {
            self.materialize_flags(&[])?;
        }
        // Temporaries that are operands from here on aren't known to be in use.
        let overwrites_operand = info.used_registers().iter().any(|used| {
            let full = used.register().full_register();
            full.is_gpr64() && writes(used.access()) && self.state.flags_read(full.number() as u8)
        });
        if overwrites_operand && !overwrites {
            self.materialize_flags(&[])?;
        }
        self.substitute(&mut out)?;
        for used in info.used_registers() {
            let full = used.register().full_register();
            if full.is_gpr64() && writes(used.access()) {
                self.before_write(full.number() as u8, !overwrites)?;
            }
        }
        self.emit(&out)?;
        for used in info.used_registers() {
            let register = used.register();
            let full = register.full_register();
            if !writes(used.access()) {
                continue;
            }
            if full.is_gpr64() {
                self.state.general[full.number()] = None;
                self.state.changed(full.number() as u8);
            } else if register.is_xmm() && register.number() < 16 {
                self.state.vectors[register.number()] = None;
            }
        }
        if touches_flags {
            self.state.flags = None;
        }
        Ok(())
    }

    /// Puts what is pending into the register operands that only read it; computes the rest
    /// of what the instruction reads.
    fn substitute(&mut self, out: &mut Instruction) -> Result<(), Refusal> {
        let info = self.factory.info(out).clone();
        let high = has_high_byte(out);
        for n in 0..out.op_count() {
            if out.op_kind(n) != OpKind::Register || info.op_access(n) != OpAccess::Read {
                continue;
            }
            let register = out.op_register(n);
            let kind = out.op_code().op_kind(n);
            if register.is_gpr() && !high && takes_any_general(kind) {
                let number = register.full_register().number();
                let bytes = register.size() as u32;
                let value = self.state.general[number];
                let host = if bytes == 8 {
                    value.and_then(|value| value.as_register())
                } else {
                    value.and_then(|value| value.as_register32())
                };
                if let Some(host) = host {
                    out.set_op_register(n, gpr_sized(host, bytes));
                }
            } else if register.is_xmm()
                && register.number() < 16
                && takes_any_vector(kind)
                && let Some(from) = self.state.vectors[register.number()]
            {
                out.set_op_register(n, xmm(from));
            }
        }
        // Whatever it still reads of what is pending, it reads in some other way.
        let info = self.factory.info(out).clone();
        for used in info.used_registers() {
            let register = used.register();
            let full = register.full_register();
            let partial = writes(used.access()) && register.size() < 4;
            if !reads(used.access()) && !partial {
                continue;
            }
            if full.is_gpr64() {
                self.materialize(full.number() as u8)?;
            } else if register.is_vector_register() && register.number() < 16 {
                self.materialize_vector(register.number() as u8)?;
            }
        }
        Ok(())
    }

    /// Folds what is pending into the memory operand.
    fn rewrite_address(&mut self, out: &mut Instruction) -> Result<(), Refusal> {
        let is_gpr = |register: Register| register.is_gpr64();
        let (base, index) = (out.memory_base(), out.memory_index());
        let pending = |state: &State, register: Register| {
            is_gpr(register) && state.general[register.number()].is_some()
        };
        if !pending(&self.state, base) && !pending(&self.state, index) {
            return Ok(());
        }
        match self.address(out)? {
            Some(sum) => set_address(out, sum),
            None => {
                for register in [base, index] {
                    if is_gpr(register) {
                        self.materialize(register.number() as u8)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The address of a memory operand over host registers, if it has a form.
    pub fn address(&mut self, of: &Instruction) -> Result<Option<Sum>, Refusal> {
        let Ok(displacement) = i32::try_from(of.memory_displacement64() as i64) else {
            return Ok(None);
        };
        let mut sum = Some(Sum::constant(displacement, false));
        let parts = [
            (of.memory_base(), 1),
            (of.memory_index(), of.memory_index_scale() as u8),
        ];
        for (register, scale) in parts {
            if register == Register::None {
                continue;
            }
            if !register.is_gpr64() {
                return Ok(None);
            }
            let part = match self.state.value(register.number() as u8) {
                Value::Sum(part) if !part.is_32 => part,
                Value::Sum(_) => return Ok(None),
                Value::SignExtended(from) => {
                    let extended = self.extended(from)?;
                    Sum {
                        base: Some(extended),
                        ..Sum::default()
                    }
                }
            };
            sum = sum.and_then(|sum| sum.plus(part.times(scale)?));
        }
        Ok(sum)
    }

    /// Leaves before a store that would change a slot behind its register's back.
    fn guard(&mut self, store: &Instruction) -> Result<(), Refusal> {
        if store.segment_prefix() == Register::FS || store.is_ip_rel_memory_operand() {
            return Err(Refusal::Instruction { at: self.at });
        }
        let base = gpr(self.plan.guard_base);
        let mut lea = *store;
        lea.set_segment_prefix(Register::None);
        let displacement = store.memory_displacement64() as i64;
        self.note();
        if store.memory_index() == Register::None && store.memory_base() != Register::None {
            let from = MemoryOperand::with_base_index_scale_displ_size(
                store.memory_base(),
                base,
                1,
                displacement,
                1,
            );
            self.code.load(Code::Lea_r64_m, gpr(RCX), from)?;
        } else {
            let from = MemoryOperand::new(
                store.memory_base(),
                store.memory_index(),
                store.memory_index_scale(),
                displacement,
                store.memory_displ_size(),
                false,
                Register::None,
            );
            self.code.load(Code::Lea_r64_m, gpr(RCX), from)?;
            let sum = MemoryOperand::with_base_index(gpr(RCX), base);
            self.code.load(Code::Lea_r64_m, gpr(RCX), sum)?;
        }
        let at = self.at;
        let shift = Instruction::with3(
            Code::VEX_Shrx_r64_rm64_r64,
            gpr(RCX),
            gpr(RCX),
            gpr(self.plan.guard_shift),
        )
        .map_err(|_| Refusal::Encoding { at })?;
        self.code.emit(&shift)?;
        let label = self.code.label();
        self.cold.push(Cold {
            label,
            target: self.at,
            lower: true,
            state: self.state.clone(),
        });
        let point = self.state.point(self.at);
        self.code.branch_if_rcx_zero(label, point);
        self.guards += 1;
        Ok(())
    }

    /// Pends a value instead of computing it. False when it needs what it would replace.
    pub fn define(
        &mut self,
        register: u8,
        value: Value,
        flags: Option<FlagsOf>,
    ) -> Result<bool, Refusal> {
        if value.as_register() == Some(register) && flags.is_none() {
            self.state.general[usize::from(register)] = None;
            return Ok(true);
        }
        let reads_own = |flags: FlagsOf| flags.left.reads(register) || flags.right.reads(register);
        if value.reads(register) || flags.is_some_and(reads_own) {
            return Ok(false);
        }
        self.before_write(register, flags.is_none())?;
        self.state.general[usize::from(register)] = Some(value);
        if flags.is_some() {
            self.state.flags = flags;
        }
        Ok(true)
    }
}
