//! Segment selectors in ring 3. In process mode the guest's selectors are the host thread's
//! own: Linux gives every 64-bit process the same flat segments.

use std::arch::asm;

use iced_x86::Register;

use crate::guest::{GuestMemory, GuestTrap};

use super::machine::{Machine, Step};

/// The number of a segment register as encoded: ES, CS, SS, DS, FS, GS.
pub(super) fn index(register: Register) -> Option<u64> {
    register
        .is_segment_register()
        .then(|| register as u64 - Register::ES as u64)
}

/// The selector that segment register `index` holds.
pub(super) fn selector(index: u8) -> u16 {
    let value: u32;
    macro_rules! read {
        ($text:literal) => {
            // SAFETY: reading a selector has no effect.
            unsafe { asm!($text, out(reg) value, options(nomem, nostack, preserves_flags)) }
        };
    }
    match index {
        0 => read!("mov {0:e}, es"),
        1 => read!("mov {0:e}, cs"),
        2 => read!("mov {0:e}, ss"),
        3 => read!("mov {0:e}, ds"),
        4 => read!("mov {0:e}, fs"),
        _ => read!("mov {0:e}, gs"),
    }
    value as u16
}

/// Loads segment register `index` with `value`. ES and DS take what the flat user segments
/// allow; a null FS or GS clears its base; all else is refused as by an empty GDT entry.
pub(super) fn load<M: GuestMemory>(m: &mut Machine<'_, M>, index: u8, value: u16) -> Step {
    const STACK: u8 = 2;
    const FS: u8 = 4;
    const GS: u8 = 5;
    let null = value < 4;
    match index {
        FS if null => m.cpu.fs_base = 0,
        GS if null => m.cpu.gs_base = 0,
        STACK if value == selector(STACK) => {}
        0 | 3 if null || value == selector(STACK) => {
            // SAFETY: a null or the flat data selector; 64-bit code uses neither segment's
            // base or limit.
            unsafe {
                if index == 0 {
                    asm!("mov es, {0:e}", in(reg) u32::from(value), options(nomem, nostack, preserves_flags));
                } else {
                    asm!("mov ds, {0:e}", in(reg) u32::from(value), options(nomem, nostack, preserves_flags));
                }
            }
        }
        FS | GS if value == selector(STACK) => return Err(m.stop(GuestTrap::Unsupported)),
        _ => return Err(m.stop(GuestTrap::GeneralProtection)),
    }
    Ok(())
}
