//! Instructions that only prepare others: copies, address arithmetic, extensions. Their
//! results are kept as values, and computed where something needs them in a register.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::form::{Class, has_high_byte, substitutable};
use super::frame::Frame;
use super::operand::{is_vector_move, low_half};
use super::rewrite::{RBP, RSP, Rewriter};
use super::slots::exact_slot;
use crate::region::{FlagsOf, FlagsOperation, Refusal, Sum, Value};

const RAX: u8 = 0;

impl Rewriter<'_> {
    /// True when nothing is to be emitted for this instruction (any more).
    ///
    /// # Errors
    /// The region can't be rebuilt.
    pub(super) fn fold(
        &mut self,
        instruction: &Instruction,
        frame: &Frame,
    ) -> Result<bool, Refusal> {
        if instruction.op_count() == 0 {
            return if instruction.code() == Code::Cdqe {
                self.extend(RAX, Value::register(RAX), true)
            } else {
                Ok(false)
            };
        }
        if instruction.op0_kind() != OpKind::Register || has_high_byte(instruction) {
            return Ok(false);
        }
        let to = instruction.op0_register();
        if to.is_xmm() && is_vector_move(instruction) {
            return self.fold_vector_load(instruction, frame);
        }
        if !(to.is_gpr64() || to.is_gpr32()) || [RSP, RBP].contains(&number(to)) {
            return Ok(false);
        }
        let is_32 = to.is_gpr32();
        let to = number(to);
        match instruction.mnemonic() {
            Mnemonic::Mov => match self.source(instruction, 1, frame)? {
                Some(value) => {
                    let value = if is_32 { low_half(value) } else { value };
                    self.define(to, value, None)
                }
                None => Ok(false),
            },
            Mnemonic::Movsxd if !is_32 => match self.source(instruction, 1, frame)? {
                Some(value) => self.extend(to, value, false),
                None => Ok(false),
            },
            Mnemonic::Lea => {
                let plain = instruction.memory_base() != Register::RIP
                    && instruction.segment_prefix() == Register::None
                    && !instruction.memory_base().is_gpr32()
                    && !instruction.memory_index().is_gpr32();
                if !plain {
                    return Ok(false);
                }
                match self.address(instruction)? {
                    Some(sum) => self.define(to, Value::Sum(Sum { is_32, ..sum }), None),
                    None => Ok(false),
                }
            }
            Mnemonic::Add | Mnemonic::Sub | Mnemonic::Shl
                if instruction.op_count() == 2
                    && !instruction.has_lock_prefix()
                    && self.plan.folds_flags =>
            {
                self.fold_arithmetic(instruction, to, is_32, frame)
            }
            _ => Ok(false),
        }
    }

    /// The value of a source operand; `None` when it has to be read.
    fn source(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        frame: &Frame,
    ) -> Result<Option<Value>, Refusal> {
        match instruction.op_kind(operand) {
            OpKind::Register if instruction.op_register(operand).is_gpr() => Ok(Some(
                self.state.value(number(instruction.op_register(operand))),
            )),
            OpKind::Register => Ok(None),
            OpKind::Memory => {
                let info = self.factory.info(instruction).clone();
                let found = frame
                    .access(instruction)
                    .zip(substitutable(instruction, &info));
                let Some((access, form)) = found else {
                    return Ok(None);
                };
                if form.class != Class::General || access.bytes < 4 {
                    return Ok(None);
                }
                let Some((index, slot)) = exact_slot(&self.plan.slots, access, Class::General)
                else {
                    return Ok(None);
                };
                self.require_slot(index, frame)?;
                let value = Value::register(slot.register);
                Ok(Some(if access.bytes == 4 {
                    low_half(value)
                } else {
                    value
                }))
            }
            _ => Ok(i32::try_from(instruction.immediate(operand) as i64)
                .ok()
                .map(|value| Value::Sum(Sum::constant(value, false)))),
        }
    }

    /// `to` becomes the sign extension of a value's low half.
    fn extend(&mut self, to: u8, value: Value, own: bool) -> Result<bool, Refusal> {
        let value = if own { self.state.value(to) } else { value };
        match value.as_register32() {
            Some(of) => self.define(to, Value::SignExtended(of), None),
            None => Ok(false),
        }
    }

    fn fold_arithmetic(
        &mut self,
        instruction: &Instruction,
        to: u8,
        is_32: bool,
        frame: &Frame,
    ) -> Result<bool, Refusal> {
        // What is in its register already is changed there.
        if self.state.general[usize::from(to)].is_none() {
            return Ok(false);
        }
        let Some(left) = self.summand(self.state.value(to), is_32)? else {
            return Ok(false);
        };
        let (operation, right, sum) = match instruction.mnemonic() {
            Mnemonic::Shl => {
                if instruction.op1_kind() == OpKind::Register {
                    return Ok(false);
                }
                let count = instruction.immediate(1);
                if !(1..=3).contains(&count) {
                    return Ok(false);
                }
                let right = Sum::constant(count as i32, is_32);
                (FlagsOperation::ShiftLeft, right, left.times(1 << count))
            }
            mnemonic => {
                let Some(right) = self.source(instruction, 1, frame)? else {
                    return Ok(false);
                };
                let Some(right) = self.summand(right, is_32)? else {
                    return Ok(false);
                };
                if mnemonic == Mnemonic::Sub {
                    if right.base.is_some() || right.index.is_some() {
                        return Ok(false);
                    }
                    let Some(negative) = right.displacement.checked_neg() else {
                        return Ok(false);
                    };
                    let sum = left.plus(Sum::constant(negative, is_32));
                    (FlagsOperation::Sub, right, sum)
                } else {
                    (FlagsOperation::Add, right, left.plus(right))
                }
            }
        };
        let Some(sum) = sum else {
            return Ok(false);
        };
        let flags = FlagsOf {
            operation,
            left: Value::Sum(left),
            right: Value::Sum(right),
            is_32,
        };
        self.define(to, Value::Sum(sum), Some(flags))
    }

    /// A value as part of a sum of this width.
    fn summand(&mut self, value: Value, is_32: bool) -> Result<Option<Sum>, Refusal> {
        Ok(match value {
            Value::Sum(sum) if is_32 => Some(Sum { is_32, ..sum }),
            Value::Sum(sum) => (!sum.is_32).then_some(sum),
            Value::SignExtended(of) if is_32 => Some(Sum {
                base: Some(of),
                is_32,
                ..Sum::default()
            }),
            Value::SignExtended(of) => Some(Sum {
                base: Some(self.extended(of)?),
                ..Sum::default()
            }),
        })
    }

    fn fold_vector_load(
        &mut self,
        instruction: &Instruction,
        frame: &Frame,
    ) -> Result<bool, Refusal> {
        let to = instruction.op0_register().number() as u8;
        if instruction.op1_kind() != OpKind::Memory {
            return Ok(false);
        }
        let info = self.factory.info(instruction).clone();
        let found = frame
            .access(instruction)
            .zip(substitutable(instruction, &info))
            .filter(|(_, form)| form.class == Class::Vector)
            .and_then(|(access, _)| exact_slot(&self.plan.slots, access, Class::Vector));
        let Some((index, slot)) = found else {
            return Ok(false);
        };
        self.require_slot(index, frame)?;
        self.state.vectors[usize::from(to)] = Some(slot.register);
        Ok(true)
    }
}

fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}
