//! Instructions that a plain stub would get wrong: those on whole register files, and those
//! on state that isn't live in the CPU while Rust code runs.

use iced_x86::{Instruction, Mnemonic, Register};

use crate::guest::{Access, CpuState, GuestTrap, VectorState};
use crate::host::{Features, XsaveLayout};

/// What Rust does in an instruction's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InRust {
    /// VZEROUPPER.
    ZeroUpper,
    /// VZEROALL.
    ZeroAll,
    /// RDFSBASE, RDGSBASE: the register's number and width.
    ReadBase { gs: bool, to: usize, wide: bool },
    /// WRFSBASE, WRGSBASE.
    WriteBase { gs: bool, from: usize, wide: bool },
    /// RDSSPD and RDSSPQ do nothing without shadow stacks, which guests don't get even where
    /// Temper itself has one.
    Nothing,
}

pub fn in_rust(instruction: &Instruction) -> Option<InRust> {
    let register = instruction.op0_register();
    let (number, wide) = (register.full_register().number(), register.size() == 8);
    Some(match instruction.mnemonic() {
        Mnemonic::Vzeroupper => InRust::ZeroUpper,
        Mnemonic::Vzeroall => InRust::ZeroAll,
        Mnemonic::Rdsspd | Mnemonic::Rdsspq => InRust::Nothing,
        mnemonic @ (Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) => InRust::ReadBase {
            gs: mnemonic == Mnemonic::Rdgsbase,
            to: number,
            wide,
        },
        mnemonic @ (Mnemonic::Wrfsbase | Mnemonic::Wrgsbase) => InRust::WriteBase {
            gs: mnemonic == Mnemonic::Wrgsbase,
            from: number,
            wide,
        },
        _ => return None,
    })
}

impl InRust {
    pub fn run(self, cpu: &mut CpuState, vector: &mut VectorState) -> Result<(), GuestTrap> {
        match self {
            InRust::Nothing => Ok(()),
            InRust::ZeroUpper => zero_vectors(vector, 16),
            InRust::ZeroAll => zero_vectors(vector, 0),
            InRust::ReadBase { gs, to, wide } => {
                fsgsbase_enabled()?;
                let base = if gs { cpu.gs_base } else { cpu.fs_base };
                cpu.gpr[to] = if wide { base } else { base & 0xffff_ffff };
                Ok(())
            }
            InRust::WriteBase { gs, from, wide } => {
                fsgsbase_enabled()?;
                let value = cpu.gpr[from];
                let base = if wide { value } else { value & 0xffff_ffff };
                if !is_canonical(base) {
                    return Err(GuestTrap::GeneralProtection);
                }
                if gs {
                    cpu.gs_base = base;
                } else {
                    cpu.fs_base = base;
                }
                Ok(())
            }
        }
    }
}

/// Clears bytes `keep..` of registers 0 to 15.
fn zero_vectors(vector: &mut VectorState, keep: usize) -> Result<(), GuestTrap> {
    if !Features::get().avx {
        return Err(GuestTrap::InvalidOpcode);
    }
    for index in 0..16 {
        for (at, bytes) in XsaveLayout::get().register_parts(index) {
            if bytes.start >= keep {
                vector.area[at..at + bytes.len()].fill(0);
            }
        }
    }
    Ok(())
}

fn fsgsbase_enabled() -> Result<(), GuestTrap> {
    if Features::get().fsgsbase {
        Ok(())
    } else {
        Err(GuestTrap::InvalidOpcode)
    }
}

/// True if bits 47 to 63 agree. (A CPU with 57-bit addresses accepts more; a Linux process
/// gets such addresses only when it asks for them.)
fn is_canonical(addr: u64) -> bool {
    (addr as i64) << 16 >> 16 == addr as i64
}

/// Instructions that read or write which components are in use: the whole vector state must
/// be in the CPU around them. With the bytes of memory that they may touch, and how.
pub fn whole_state(instruction: &Instruction) -> Option<Option<(usize, Access)>> {
    let area = XsaveLayout::get().area_bytes;
    // What isn't asked for stays as it was, so saves count as reading.
    Some(match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => Some((512, Access::ReadWrite)),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => Some((512, Access::Read)),
        Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64 => Some((area, Access::ReadWrite)),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => Some((area, Access::Read)),
        Mnemonic::Xgetbv => None,
        _ => return None,
    })
}

/// Marks components that are all zero as initial, so that an XSAVE of the guest's reports
/// them so, as it would natively. (The CPU may report more as in use, never less.)
pub fn mark_initial(vector: &mut VectorState) {
    const XSTATE_BV: usize = 512;
    let layout = XsaveLayout::get();
    let zero = |range: std::ops::Range<usize>| vector.area[range].iter().all(|&b| b == 0);
    let mut used = layout.vector_mask;
    if zero(160..160 + 256) {
        used &= !2;
    }
    for component in &layout.components {
        if zero(component.offset..component.offset + component.bytes) {
            used &= !component.bit;
        }
    }
    vector.area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&used.to_le_bytes());
}

/// The base register of a whole-state stub's memory operand, by its normalized marker.
pub fn base_register(instruction: &Instruction) -> Register {
    match instruction.memory_base() {
        Register::RBP => Register::RBP,
        _ => Register::RBX,
    }
}
