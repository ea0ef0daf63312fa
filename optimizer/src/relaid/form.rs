//! What instructions do, as far as rewriting them goes.

use iced_x86::{
    Instruction, InstructionInfo, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, Register,
    RflagsBits,
};

use super::frame::{Frame, has_memory_operand};

/// OF, SF, ZF, AF, CF and PF.
pub(super) const STATUS_FLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Instructions with effects that aren't followed here.
const STAYS_ALONE: &[Mnemonic] = &[
    Mnemonic::Clflush,
    Mnemonic::Clflushopt,
    Mnemonic::Clwb,
    Mnemonic::Clzero,
    Mnemonic::Cpuid,
    Mnemonic::Enter,
    Mnemonic::Fnsave,
    Mnemonic::Fnstenv,
    Mnemonic::Fxrstor,
    Mnemonic::Fxrstor64,
    Mnemonic::Fxsave,
    Mnemonic::Fxsave64,
    Mnemonic::Frstor,
    Mnemonic::Fldenv,
    Mnemonic::Incsspd,
    Mnemonic::Incsspq,
    Mnemonic::INVALID,
    Mnemonic::Loop,
    Mnemonic::Loope,
    Mnemonic::Loopne,
    Mnemonic::Maskmovdqu,
    Mnemonic::Maskmovq,
    Mnemonic::Monitor,
    Mnemonic::Monitorx,
    Mnemonic::Mwait,
    Mnemonic::Mwaitx,
    Mnemonic::Popfq,
    Mnemonic::Pushfq,
    Mnemonic::Rdfsbase,
    Mnemonic::Rdgsbase,
    Mnemonic::Rdpid,
    Mnemonic::Rdpru,
    Mnemonic::Rdsspd,
    Mnemonic::Rdsspq,
    Mnemonic::Rdtsc,
    Mnemonic::Rdtscp,
    Mnemonic::Serialize,
    Mnemonic::Syscall,
    Mnemonic::Sysenter,
    Mnemonic::Tpause,
    Mnemonic::Ud0,
    Mnemonic::Ud1,
    Mnemonic::Ud2,
    Mnemonic::Umonitor,
    Mnemonic::Umwait,
    Mnemonic::Vmaskmovdqu,
    Mnemonic::Wrfsbase,
    Mnemonic::Wrgsbase,
    Mnemonic::Xabort,
    Mnemonic::Xbegin,
    Mnemonic::Xend,
    Mnemonic::Xgetbv,
    Mnemonic::Xlatb,
    Mnemonic::Xrstor,
    Mnemonic::Xrstor64,
    Mnemonic::Xsave,
    Mnemonic::Xsave64,
    Mnemonic::Xsavec,
    Mnemonic::Xsavec64,
    Mnemonic::Xsaveopt,
    Mnemonic::Xsaveopt64,
    Mnemonic::Xtest,
];

/// Whether an instruction may be part of a region. What ends a block (jumps, calls, returns)
/// is up to who forms the region.
pub fn is_relayable(instruction: &Instruction) -> bool {
    if instruction.is_privileged()
        || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
        || instruction.is_string_instruction()
        || instruction.is_save_restore_instruction()
        || instruction.segment_prefix() == Register::GS
    {
        return false;
    }
    if STAYS_ALONE.contains(&instruction.mnemonic()) {
        return false;
    }
    if has_memory_operand(instruction) {
        let base = instruction.memory_base();
        let index = instruction.memory_index();
        let known_base = base == Register::None || base == Register::RIP || base.is_gpr64();
        let known_index = index == Register::None || index.is_gpr64();
        if !known_base
            || !known_index
            || instruction.memory_size().size() == 0
                && instruction.mnemonic() != Mnemonic::Lea
                && instruction.mnemonic() != Mnemonic::Nop
        {
            return false;
        }
    }
    // A bit offset in a register addresses memory beyond the operand.
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
    {
        return false;
    }
    // What moves the stack pointer in other ways than by constants is seen when it is
    // followed; 16-bit pushes only make it odd.
    !matches!(
        instruction.mnemonic(),
        Mnemonic::Push | Mnemonic::Pop if instruction.stack_pointer_increment().abs() != 8
    )
}

/// Bytes that the explicit memory operand stores; `None` when it isn't written.
pub(super) fn stored_bytes(instruction: &Instruction, info: &InstructionInfo) -> Option<u32> {
    (0..instruction.op_count())
        .filter(|&n| instruction.op_kind(n) == OpKind::Memory)
        .any(|n| writes(info.op_access(n)))
        .then(|| instruction.memory_size().size() as u32)
}

pub(super) fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

pub(super) fn reads(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Read
            | OpAccess::CondRead
            | OpAccess::ReadWrite
            | OpAccess::ReadCondWrite
            | OpAccess::CondWrite
    )
}

/// Whether the operand addresses static data.
pub(super) fn static_target(instruction: &Instruction) -> Option<u64> {
    let base = instruction.memory_base();
    (has_memory_operand(instruction)
        && instruction.segment_prefix() == Register::None
        && instruction.memory_index() == Register::None
        && (base == Register::RIP || base == Register::None))
        .then(|| instruction.memory_displacement64())
}

/// Bits of an address that tell one piece of a stack from another.
pub(super) const STACK_SHIFT: u32 = 20;

/// Whether an instruction stores to a place that may be any part of the stack that the
/// region renames.
pub(super) fn stores_anywhere(
    frame: &Frame,
    instruction: &Instruction,
    info: &InstructionInfo,
    stack: u64,
) -> bool {
    if stored_bytes(instruction, info).is_none() || frame.place(instruction).is_some() {
        return false;
    }
    match static_target(instruction) {
        // The frames of a region are small, but may reach into the next piece.
        Some(target) => (target >> STACK_SHIFT).abs_diff(stack >> STACK_SHIFT) <= 1,
        None => true,
    }
}

/// The kind of register that could stand in for the memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    General,
    Vector,
}

/// How an instruction uses a memory operand that a register could stand in for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Substitutable {
    pub operand: u32,
    pub class: Class,
    pub reads: bool,
    pub writes: bool,
}

/// `None` when only memory will do.
pub(super) fn substitutable(
    instruction: &Instruction,
    info: &InstructionInfo,
) -> Option<Substitutable> {
    if instruction.has_lock_prefix()
        || instruction.has_xacquire_prefix()
        || instruction.has_xrelease_prefix()
        || instruction.mnemonic() == Mnemonic::Xchg
        || instruction.mnemonic() == Mnemonic::Xadd
        || instruction.mnemonic() == Mnemonic::Cmpxchg
    {
        return None;
    }
    let operand =
        (0..instruction.op_count()).find(|&n| instruction.op_kind(n) == OpKind::Memory)?;
    let bytes = instruction.memory_size().size();
    let class = match instruction.op_code().op_kind(operand) {
        OpCodeOperandKind::r8_or_mem if bytes == 1 => Class::General,
        OpCodeOperandKind::r16_or_mem if bytes == 2 => Class::General,
        OpCodeOperandKind::r32_or_mem if bytes == 4 => Class::General,
        OpCodeOperandKind::r64_or_mem if bytes == 8 => Class::General,
        OpCodeOperandKind::xmm_or_mem if bytes == 4 || bytes == 8 => Class::Vector,
        _ => return None,
    };
    // A bit offset in a register addresses memory beyond the operand; a lane is chosen of
    // registers only.
    if instruction.mnemonic() == Mnemonic::Bt && instruction.op1_kind() == OpKind::Register
        || instruction.mnemonic() == Mnemonic::Insertps
    {
        return None;
    }
    let access = info.op_access(operand);
    if !matches!(
        access,
        OpAccess::Read | OpAccess::Write | OpAccess::ReadWrite
    ) {
        return None;
    }
    Some(Substitutable {
        operand,
        class,
        reads: reads(access),
        writes: writes(access),
    })
}

/// Whether an operand is the old second byte of a register, which excludes new registers.
pub(super) fn has_high_byte(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|n| {
        instruction.op_kind(n) == OpKind::Register
            && matches!(
                instruction.op_register(n),
                Register::AH | Register::BH | Register::CH | Register::DH
            )
    })
}

/// Whether every status flag is overwritten, whatever the operands.
pub(super) fn overwrites_flags(instruction: &Instruction) -> bool {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sar, Shl, Shld, Shr, Shrd};
    let by_count = matches!(
        instruction.mnemonic(),
        Rcl | Rcr | Rol | Ror | Sar | Shl | Shld | Shr | Shrd
    );
    !by_count && instruction.rflags_modified() & STATUS_FLAGS == STATUS_FLAGS
}
