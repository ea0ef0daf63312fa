//! What a stub must load, run and store, derived from iced's knowledge of the instruction.
//! Nothing is emitted here.
//!
//! The instruction keeps its registers, with two exceptions. RSP and RBP as named operands
//! move to registers that it doesn't name: RSP is the host's stack, and RBP is the base of an
//! operand in the stack segment, since the segment decides which exception a non-canonical
//! address raises. A memory operand becomes `[base]` with one of two markers in the cache
//! key ([`normalize`]); the real base register is chosen here.

use iced_x86::{
    EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register, RflagsBits, UsedRegister,
};

use super::{Addressing, StubMemory, UnsupportedInstruction, WhyUnsupported};
use crate::guest::{Access, flags};

/// The base of a normalized memory operand; in the stack segment it is RBP.
const PLAIN_BASE: Register = Register::RDX;

/// Registers for renamed operands, and for the stub's own pointers where the instruction
/// names the register that the pointer arrives in. None of those three is here, so pointers
/// can be moved in any order.
const CANDIDATES: [Register; 11] = [
    Register::RCX,
    Register::RAX,
    Register::RBX,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// A guest register (its number) and the bytes of it that are needed in the CPU.
#[derive(Clone, Copy, Default, Debug)]
pub struct VectorUse {
    /// Bytes to load: 0, 16, 32 or 64.
    pub load: usize,
    pub store: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct GprUse {
    /// The guest's register, by number.
    pub guest: usize,
    /// The register that stands for it in the stub (64 bits wide).
    pub host: Register,
    pub load: bool,
    pub store: bool,
}

/// A segment base that the stub adds to an address register, when it addresses as written.
#[derive(Clone, Copy, Debug)]
pub struct SegmentBase {
    pub segment: Register,
    /// The address register that holds the sum.
    pub host: Register,
    /// There is no address register of the guest's: the sum is the base alone.
    pub alone: bool,
}

#[derive(Clone, Debug)]
pub struct Plan {
    /// The instruction as the stub executes it.
    pub instruction: Instruction,
    pub memory: Option<StubMemory>,
    /// Where the memory operand's host pointer must be.
    pub pointer: Option<Register>,
    pub cpu: Register,
    pub vector: Register,
    pub segment_base: Option<SegmentBase>,
    pub vectors: [VectorUse; 32],
    /// k0 to k7: load, store.
    pub masks: [(bool, bool); 8],
    pub gprs: Vec<GprUse>,
    /// RFLAGS bits that the instruction needs to find as the guest left them.
    pub flags_in: u64,
    /// RFLAGS bits that it may change.
    pub flags_out: u64,
    pub mxcsr: bool,
    /// A legacy SSE instruction keeps the upper part of a register that it writes; all
    /// others clear it.
    pub keeps_upper: bool,
}

/// The cache key: the instruction with its memory operand replaced by a marker, unless it
/// must address memory as written.
pub fn normalize(instruction: &Instruction) -> (Instruction, Addressing) {
    let mut key = *instruction;
    key.set_ip(0);
    key.set_next_ip(0);
    if memory_operand_index(instruction).is_none() || instruction.is_vsib() {
        return (key, Addressing::AsWritten);
    }
    let stack = instruction.memory_segment() == Register::SS;
    key.set_memory_base(if stack { Register::RBP } else { PLAIN_BASE });
    key.set_memory_index(Register::None);
    key.set_memory_index_scale(1);
    key.set_memory_displacement64(0);
    key.set_memory_displ_size(0);
    key.set_segment_prefix(Register::None);
    (key, Addressing::Pointer)
}

fn memory_operand_index(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory)
}

/// Plans the stub for a normalized instruction.
pub fn plan(
    key: &Instruction,
    addressing: Addressing,
    factory: &mut InstructionInfoFactory,
) -> Result<Plan, UnsupportedInstruction> {
    let refuse = |why| {
        Err(UnsupportedInstruction {
            code: key.code(),
            why,
        })
    };
    if let Some(why) = refusal(key) {
        return refuse(why);
    }
    let mut instruction = *key;
    if addressing == Addressing::Pointer {
        // The marker must not look like a register that the instruction names.
        instruction.set_memory_base(Register::None);
        instruction.set_memory_displ_size(4);
    }
    let info = factory.info(&instruction);
    let memory = info.used_memory().first().map(|used| StubMemory {
        bytes: match used.access() {
            OpAccess::NoMemAccess => 0,
            _ => used.memory_size().size(),
        },
        access: access_of(used.access()),
        addressing,
    });

    let mut plan = Plan {
        instruction,
        memory,
        pointer: None,
        cpu: Register::None,
        vector: Register::None,
        segment_base: None,
        vectors: [VectorUse::default(); 32],
        masks: [(false, false); 8],
        gprs: Vec::new(),
        flags_in: 0,
        flags_out: 0,
        mxcsr: false,
        keeps_upper: key.encoding() == EncodingKind::Legacy,
    };
    for used in info.used_registers() {
        if used.register().is_tmm() {
            return refuse(WhyUnsupported::TileState);
        }
        plan.note(used);
    }
    plan.rename_stack_registers();
    plan.plan_segment_base(addressing)
        .map_err(|why| UnsupportedInstruction {
            code: key.code(),
            why,
        })?;
    plan.cpu = plan.pointer_register(Register::RDI);
    plan.vector = plan.pointer_register(Register::RSI);
    if addressing == Addressing::Pointer {
        let base = if key.memory_base() == Register::RBP {
            Register::RBP
        } else {
            plan.pointer_register(Register::RDX)
        };
        plan.pointer = Some(base);
        plan.instruction.set_memory_base(base);
        plan.instruction.set_memory_displ_size(0);
    }
    plan.plan_flags_and_mxcsr(key);
    Ok(plan)
}

/// Why no stub can run this instruction, judged without its operands.
fn refusal(instruction: &Instruction) -> Option<WhyUnsupported> {
    if instruction.flow_control() != FlowControl::Next {
        return Some(WhyUnsupported::ControlTransfer);
    }
    if instruction.is_privileged() {
        return Some(WhyUnsupported::Privileged);
    }
    if instruction.is_stack_instruction() {
        return Some(WhyUnsupported::Stack);
    }
    let controls = RflagsBits::DF | RflagsBits::IF | RflagsBits::AC | RflagsBits::UIF;
    if instruction.rflags_modified() & controls != 0 {
        return Some(WhyUnsupported::ControlFlags);
    }
    // Their operand is an address, or lies elsewhere than it says.
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Lea
            | Mnemonic::Bndldx
            | Mnemonic::Bndstx
            | Mnemonic::Xlatb
            | Mnemonic::Bt
            | Mnemonic::Bts
            | Mnemonic::Btr
            | Mnemonic::Btc
    ) {
        return Some(WhyUnsupported::Addressing);
    }
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::Register => {
                let register = instruction.op_register(i);
                if register.is_segment_register() || register.is_cr() || register.is_dr() {
                    return Some(WhyUnsupported::Privileged);
                }
            }
            OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI => return Some(WhyUnsupported::Addressing),
            _ => {}
        }
    }
    None
}

fn access_of(access: OpAccess) -> Access {
    match access {
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess => {
            Access::Read
        }
        OpAccess::Write => Access::Write,
        // What isn't written must come back unchanged through a bounce buffer.
        OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => Access::ReadWrite,
    }
}

fn reads(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Write | OpAccess::NoMemAccess
    )
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

impl Plan {
    fn note(&mut self, used: &UsedRegister) {
        let (register, access) = (used.register(), used.access());
        // What is perhaps not written is stored all the same, so it must be loaded.
        let keeps = reads(access) || access == OpAccess::CondWrite;
        if register.is_vector_register() {
            let entry = &mut self.vectors[register.number()];
            // A legacy instruction may keep part of what it writes.
            if keeps || self.keeps_upper {
                entry.load = entry.load.max(register.size());
            }
            entry.store |= writes(access);
        } else if register.is_k() {
            let entry = &mut self.masks[register.number()];
            entry.0 |= keeps;
            entry.1 |= writes(access);
        } else if register.is_gpr() {
            let guest = register.full_register().number();
            let load = keeps || register.size() < 4;
            let store = writes(access);
            match self.gprs.iter_mut().find(|g| g.guest == guest) {
                Some(entry) => {
                    entry.load |= load;
                    entry.store |= store;
                }
                None => self.gprs.push(GprUse {
                    guest,
                    host: register.full_register(),
                    load,
                    store,
                }),
            }
        }
    }

    /// Where a pointer that arrives in `argument` stays.
    fn pointer_register(&self, argument: Register) -> Register {
        if self.taken(argument) {
            self.free_register()
        } else {
            argument
        }
    }

    /// A register that neither the instruction nor the stub uses yet.
    fn free_register(&self) -> Register {
        CANDIDATES
            .into_iter()
            .find(|r| !self.taken(*r))
            .expect("no instruction names more than five registers")
    }

    fn taken(&self, register: Register) -> bool {
        self.gprs
            .iter()
            .any(|g| g.host == register || g.guest == register.number())
            || self.cpu == register
            || self.vector == register
            || self.segment_base.is_some_and(|s| s.host == register)
    }

    /// A register for the flags on their way in: loaded afterwards or not at all.
    pub fn scratch(&self) -> Register {
        CANDIDATES
            .into_iter()
            .find(|r| !self.is_pointer(*r))
            .expect("three pointers at most")
    }

    /// Two registers for the flags on their way out, when the others are stored already.
    pub fn two_scratch(&self) -> (Register, Register) {
        let mut free = CANDIDATES.into_iter().filter(|r| !self.is_pointer(*r));
        let mut next = || free.next().expect("three pointers at most");
        (next(), next())
    }

    fn is_pointer(&self, register: Register) -> bool {
        register == self.cpu || register == self.vector || Some(register) == self.pointer
    }

    fn rename_stack_registers(&mut self) {
        for i in 0..self.gprs.len() {
            let guest = self.gprs[i].host;
            if !matches!(guest, Register::RSP | Register::RBP) {
                continue;
            }
            // A VSIB base in the stack segment stays in it.
            let vsib_base = self.instruction.is_vsib()
                && self.instruction.memory_segment() == Register::SS
                && self.instruction.memory_base().full_register() == guest;
            let host = if vsib_base {
                Register::RBP
            } else {
                self.free_register()
            };
            self.gprs[i].host = host;
            let instruction = &mut self.instruction;
            for op in 0..instruction.op_count() {
                if instruction.op_kind(op) == OpKind::Register
                    && instruction.op_register(op).is_gpr()
                    && instruction.op_register(op).full_register() == guest
                {
                    let size = instruction.op_register(op).size();
                    instruction.set_op_register(op, resized(host, size));
                }
            }
            let base = instruction.memory_base();
            if base.is_gpr() && base.full_register() == guest {
                instruction.set_memory_base(resized(host, base.size()));
            }
        }
    }

    /// Gathers, scatters and MASKMOV keep their address registers; a segment base is added
    /// to one of them.
    fn plan_segment_base(&mut self, addressing: Addressing) -> Result<(), WhyUnsupported> {
        let segment = self.instruction.segment_prefix();
        if addressing == Addressing::Pointer || !matches!(segment, Register::FS | Register::GS) {
            return Ok(());
        }
        let implicit = (0..self.instruction.op_count())
            .find(|&i| self.instruction.op_kind(i) == OpKind::MemorySegRDI);
        let vsib = self.instruction.is_vsib();
        let base = self.instruction.memory_base();
        let (host, alone) = if implicit.is_some() {
            (Register::RDI, false)
        } else if vsib && base == Register::None {
            (self.free_register(), true)
        } else if vsib && base.is_gpr64() {
            (base, false)
        } else {
            // 32-bit addresses wrap before the base is added: not expressible.
            return Err(WhyUnsupported::Addressing);
        };
        self.segment_base = Some(SegmentBase {
            segment,
            host,
            alone,
        });
        if vsib {
            self.instruction.set_memory_base(host);
        }
        self.instruction.set_segment_prefix(Register::None);
        Ok(())
    }

    fn plan_flags_and_mxcsr(&mut self, key: &Instruction) {
        self.flags_out = rflags_bits(key.rflags_modified());
        self.flags_in = rflags_bits(key.rflags_read());
        if matches!(key.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) {
            // A count that is a multiple of the width and carry still changes OF on some CPUs.
            self.flags_out = flags::ARITHMETIC;
        }
        let has_vectors = self.vectors.iter().any(|v| v.load > 0 || v.store);
        let has_masks = self.masks.iter().any(|m| m.0 || m.1);
        if !has_vectors && !has_masks {
            // A shift by zero, for one, changes no flag: they must be there to be kept.
            self.flags_in |= self.flags_out;
        }
        self.mxcsr = matches!(
            key.mnemonic(),
            Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr | Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr
        ) || uses_mxcsr(key.mnemonic(), has_vectors);
    }
}

fn resized(full: Register, size: usize) -> Register {
    let first = match size {
        1 => return low_byte(full),
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    first + full.number() as u32
}

/// AL to R15L. The numbers of AH to BH lie between those of BL and SPL.
fn low_byte(full: Register) -> Register {
    match full.number() as u32 {
        n @ 0..4 => Register::AL + n,
        n => Register::SPL + (n - 4),
    }
}

fn rflags_bits(iced: u32) -> u64 {
    [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ]
    .into_iter()
    .filter(|(bit, _)| iced & bit != 0)
    .fold(0, |sum, (_, flag)| sum | flag)
}

/// False for integer, logic, move and shuffle instructions: loading MXCSR twice costs more
/// than all else in a stub. What isn't known here is taken for floating point.
fn uses_mxcsr(mnemonic: Mnemonic, has_vectors: bool) -> bool {
    /// Beginnings of mnemonics, without the V of the VEX and EVEX forms. Everything that
    /// begins with P is integer or a permutation.
    const INTEGER: [&str; 25] = [
        "p",
        "mov",
        "and",
        "or",
        "xor",
        "unpck",
        "shuf",
        "blend",
        "insert",
        "extract",
        "extr",
        "broadcast",
        "aes",
        "gf2",
        "align",
        "expand",
        "compress",
        "gather",
        "scatter",
        "perm",
        "test",
        "lddqu",
        "maskmov",
        "dbpsad",
        "sha",
    ];
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    if !has_vectors {
        // A conversion from memory to an integer or MMX register.
        return name.starts_with("cvt");
    }
    !INTEGER.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renamed_registers_keep_their_width() {
        assert_eq!(resized(Register::RSI, 1), Register::SIL);
        assert_eq!(resized(Register::RBX, 1), Register::BL);
        assert_eq!(resized(Register::R9, 1), Register::R9L);
        assert_eq!(resized(Register::R9, 2), Register::R9W);
        assert_eq!(resized(Register::RDI, 4), Register::EDI);
        assert_eq!(resized(Register::R15, 8), Register::R15);
    }

    #[test]
    fn arithmetic_on_floats_needs_mxcsr_and_integers_do_not() {
        for mnemonic in [
            Mnemonic::Paddd,
            Mnemonic::Vpaddd,
            Mnemonic::Movaps,
            Mnemonic::Vpermps,
            Mnemonic::Vandps,
            Mnemonic::Sha256rnds2,
        ] {
            assert!(!uses_mxcsr(mnemonic, true), "{mnemonic:?}");
        }
        for mnemonic in [
            Mnemonic::Addps,
            Mnemonic::Vfmadd231pd,
            Mnemonic::Cvtps2pd,
            Mnemonic::Vfixupimmps,
            Mnemonic::Vrcp14ps,
            Mnemonic::V4fmaddps,
            Mnemonic::Ucomisd,
            Mnemonic::Roundsd,
        ] {
            assert!(uses_mxcsr(mnemonic, true), "{mnemonic:?}");
        }
    }
}
