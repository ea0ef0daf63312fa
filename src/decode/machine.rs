//! Blocks of a whole machine's code: any privilege, any segment, with units that the guest
//! may have disabled. What concerns the machine's system state ends a block, so that the
//! rest of it can be run without knowing any. A block lies within one page, since the next
//! page may be anywhere in physical memory; an instruction across the boundary is a block
//! of its own.

use iced_x86::{CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::block::{BlockEnd, InterpretReason, classify, is_far};
use crate::addr::{GuestAddr, PAGE_SIZE};

/// The units whose instructions the guest's control registers allow without an exception.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Units {
    pub x87: bool,
    pub sse: bool,
    pub avx: bool,
    pub avx512: bool,
}

impl Units {
    pub const ALL: Units = Units {
        x87: true,
        sse: true,
        avx: true,
        avx512: true,
    };
}

/// What decoding must know of the machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineCode {
    pub units: Units,
    /// Added to an instruction's offset, it gives the place in its page: the code segment's
    /// base.
    pub code_base: u64,
}

impl MachineCode {
    fn page(&self, at: GuestAddr) -> u64 {
        at.0.wrapping_add(self.code_base) / PAGE_SIZE
    }

    /// Whether an instruction from `at` up to `next` lies in two pages.
    pub(super) fn crosses_page(&self, at: GuestAddr, next: GuestAddr) -> bool {
        self.page(at) != self.page(next.offset(-1))
    }

    /// Whether `next` isn't in the page that a block from `start` lies in.
    pub(super) fn at_page_end(&self, start: GuestAddr, next: GuestAddr) -> bool {
        self.page(start) != self.page(next)
    }

    /// How `instruction` ends a block; `None` when it doesn't.
    pub(super) fn classify(
        &self,
        instruction: &Instruction,
        at: GuestAddr,
        next: GuestAddr,
    ) -> Option<BlockEnd> {
        let leave = |why| Some(BlockEnd::InterpretOne { at, why });
        let enabled = match unit(instruction) {
            Unit::Integer => true,
            Unit::X87 => self.units.x87,
            Unit::Sse => self.units.sse,
            Unit::Avx => self.units.avx,
            Unit::Avx512 => self.units.avx512,
        };
        if !enabled {
            return leave(InterpretReason::UnitDisabled);
        }
        match instruction.flow_control() {
            FlowControl::Next if is_system(instruction) => leave(InterpretReason::System),
            FlowControl::Next => None,
            FlowControl::IndirectBranch if !is_far(instruction) => Some(BlockEnd::IndirectJump),
            FlowControl::IndirectCall if !is_far(instruction) => {
                Some(BlockEnd::IndirectCall { return_to: next })
            }
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                leave(InterpretReason::FarTransfer)
            }
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Return
            | FlowControl::Call
            | FlowControl::Interrupt
            | FlowControl::XbeginXabortXend
            | FlowControl::Exception => match classify(instruction, at, next) {
                Some(BlockEnd::Syscall { .. }) => leave(InterpretReason::System),
                other => other,
            },
        }
    }
}

enum Unit {
    Integer,
    X87,
    Sse,
    Avx,
    Avx512,
}

/// The unit that an instruction needs.
fn unit(instruction: &Instruction) -> Unit {
    let any = |test: fn(Register) -> bool| {
        (0..instruction.op_count())
            .any(|i| instruction.op_kind(i) == OpKind::Register && test(instruction.op_register(i)))
    };
    match instruction.encoding() {
        EncodingKind::VEX | EncodingKind::XOP => {
            let without_operands = matches!(
                instruction.mnemonic(),
                Mnemonic::Vzeroupper | Mnemonic::Vzeroall | Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr
            );
            if any(Register::is_k) {
                Unit::Avx512
            } else if without_operands || any(Register::is_vector_register) {
                Unit::Avx
            } else {
                Unit::Integer
            }
        }
        EncodingKind::Legacy | EncodingKind::D3NOW => {
            let mxcsr = matches!(
                instruction.mnemonic(),
                Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr
            );
            if mxcsr || any(Register::is_xmm) {
                Unit::Sse
            } else if any(Register::is_mm) || is_x87(instruction) {
                Unit::X87
            } else {
                Unit::Integer
            }
        }
        // EVEX and whatever came later.
        _ => Unit::Avx512,
    }
}

fn is_x87(instruction: &Instruction) -> bool {
    let named = matches!(
        instruction.mnemonic(),
        Mnemonic::Fisttp | Mnemonic::Wait | Mnemonic::Emms | Mnemonic::Femms
    );
    let of_x87 = |feature: &CpuidFeature| {
        matches!(
            feature,
            CpuidFeature::FPU
                | CpuidFeature::FPU287
                | CpuidFeature::FPU287XL_ONLY
                | CpuidFeature::FPU387
                | CpuidFeature::FPU387SL_ONLY
        )
    };
    named || instruction.cpuid_features().iter().any(of_x87)
}

/// Instructions that read or write system state, or whose effect depends on privilege.
fn is_system(instruction: &Instruction) -> bool {
    let segment_operand = || {
        (0..instruction.op_count()).any(|i| {
            instruction.op_kind(i) == OpKind::Register
                && instruction.op_register(i).is_segment_register()
        })
    };
    instruction.is_privileged()
        || instruction.is_save_restore_instruction()
        || match instruction.mnemonic() {
            Mnemonic::Mov => {
                segment_operand()
                    || (0..instruction.op_count()).any(|i| {
                        let register = instruction.op_register(i);
                        register.is_cr() || register.is_dr() || register.is_tr()
                    })
            }
            Mnemonic::Push | Mnemonic::Pop => segment_operand(),
            Mnemonic::Popf
            | Mnemonic::Popfd
            | Mnemonic::Popfq
            | Mnemonic::Cpuid
            | Mnemonic::Rdtsc
            | Mnemonic::Rdtscp
            | Mnemonic::Rdpid
            | Mnemonic::Rdpmc
            | Mnemonic::Xgetbv
            | Mnemonic::Rdfsbase
            | Mnemonic::Rdgsbase
            | Mnemonic::Wrfsbase
            | Mnemonic::Wrgsbase
            | Mnemonic::Sgdt
            | Mnemonic::Sidt
            | Mnemonic::Sldt
            | Mnemonic::Str
            | Mnemonic::Smsw
            | Mnemonic::Lar
            | Mnemonic::Lsl
            | Mnemonic::Verr
            | Mnemonic::Verw
            | Mnemonic::Lds
            | Mnemonic::Les
            | Mnemonic::Lfs
            | Mnemonic::Lgs
            | Mnemonic::Lss
            | Mnemonic::Into
            | Mnemonic::Bound
            | Mnemonic::Insb
            | Mnemonic::Insw
            | Mnemonic::Insd
            | Mnemonic::Outsb
            | Mnemonic::Outsw
            | Mnemonic::Outsd
            | Mnemonic::Monitor
            | Mnemonic::Mwait
            | Mnemonic::Monitorx
            | Mnemonic::Mwaitx
            | Mnemonic::Clzero
            | Mnemonic::Rdpkru
            | Mnemonic::Wrpkru
            | Mnemonic::Maskmovq
            | Mnemonic::Maskmovdqu
            | Mnemonic::Vmaskmovdqu
            | Mnemonic::Umonitor
            | Mnemonic::Umwait
            | Mnemonic::Tpause
            | Mnemonic::Enqcmd
            | Mnemonic::Movdir64b
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq => true,
            // Gathers address memory themselves.
            _ => instruction.is_vsib(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn end_of(bits: u32, bytes: &[u8], units: Units) -> Option<BlockEnd> {
        let mut decoder = Decoder::with_ip(bits, bytes, 0x1000, DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert!(!instruction.is_invalid());
        let machine = MachineCode {
            units,
            code_base: 0,
        };
        let next = GuestAddr(instruction.next_ip());
        machine.classify(&instruction, GuestAddr(0x1000), next)
    }

    fn leaves(bits: u32, bytes: &[u8], reason: InterpretReason) {
        let end = end_of(bits, bytes, Units::ALL);
        let why = match end {
            Some(BlockEnd::InterpretOne { why, .. }) => Some(why),
            _ => None,
        };
        assert_eq!(why, Some(reason), "{bytes:x?}");
    }

    #[test]
    fn system_instructions_leave_the_block_and_gs_accesses_do_not() {
        leaves(64, &[0x0f, 0x22, 0xd8], InterpretReason::System); // mov cr3, rax
        leaves(64, &[0x8e, 0xd8], InterpretReason::System); // mov ds, eax
        leaves(64, &[0x0f, 0x05], InterpretReason::System); // syscall
        leaves(64, &[0x48, 0xcf], InterpretReason::FarTransfer); // iretq
        leaves(32, &[0x1f], InterpretReason::System); // pop ds
        leaves(16, &[0xe4, 0x60], InterpretReason::System); // in al, 60h
        leaves(64, &[0xf4], InterpretReason::System); // hlt
        leaves(64, &[0x0f, 0xae, 0x00], InterpretReason::System); // fxsave [rax]
        let gs = [0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0]; // mov rax, gs:[0]
        assert_eq!(end_of(64, &gs, Units::ALL), None);
        assert_eq!(end_of(64, &[0x9c], Units::ALL), None); // pushfq
        let call = [0x65, 0xff, 0x14, 0x25, 0, 0, 0, 0]; // call gs:[0]
        assert!(matches!(
            end_of(64, &call, Units::ALL),
            Some(BlockEnd::IndirectCall { .. })
        ));
    }

    #[test]
    fn a_disabled_unit_leaves_its_instructions_and_no_others() {
        let none = Units {
            x87: false,
            sse: false,
            avx: false,
            avx512: false,
        };
        let disabled = |bytes: &[u8]| {
            let why = InterpretReason::UnitDisabled;
            let at = GuestAddr(0x1000);
            end_of(64, bytes, none) == Some(BlockEnd::InterpretOne { at, why })
        };
        assert!(disabled(&[0xd9, 0xc0])); // fld st0
        assert!(disabled(&[0xdd, 0x08])); // fisttp [rax]
        assert!(disabled(&[0x0f, 0x28, 0xc1])); // movaps
        assert!(disabled(&[0x0f, 0xef, 0xc0])); // pxor mm0, mm0
        assert!(disabled(&[0xc5, 0xf8, 0x77])); // vzeroupper
        assert!(disabled(&[0xc5, 0xf4, 0x58, 0xc2])); // vaddps ymm
        assert!(!disabled(&[0xc4, 0xe2, 0x78, 0xf2, 0xc1])); // andn
        assert!(!disabled(&[0xf3, 0x0f, 0xb8, 0xc1])); // popcnt
        assert!(!disabled(&[0x0f, 0xae, 0xf0])); // mfence
        assert!(!disabled(&[0x48, 0x89, 0xc8])); // mov
    }

    #[test]
    fn an_instruction_knows_whether_it_crosses_its_segments_page() {
        let machine = MachineCode {
            units: Units::ALL,
            code_base: 0x7c00,
        };
        assert!(machine.crosses_page(GuestAddr(0x3ff), GuestAddr(0x402)));
        assert!(!machine.crosses_page(GuestAddr(0x3fd), GuestAddr(0x400)));
        assert!(machine.at_page_end(GuestAddr(0), GuestAddr(0x400)));
    }
}
