//! Single accesses to guest RAM by host address: one instruction each, since devices and
//! other CPUs use the same memory, and a compiled access might be split or repeated.

use std::arch::asm;

use crate::guest::Width;

/// Reads a zero-extended scalar.
///
/// # Safety
/// `host` points to `width` bytes of guest RAM.
#[inline(always)]
pub unsafe fn load(host: *mut u8, width: Width) -> u64 {
    let value: u64;
    // SAFETY: by contract; reads only.
    unsafe {
        match width {
            Width::B1 => asm!("movzx {v:e}, byte ptr [{p}]", p = in(reg) host, v = out(reg) value,
                options(nostack, readonly, preserves_flags)),
            Width::B2 => asm!("movzx {v:e}, word ptr [{p}]", p = in(reg) host, v = out(reg) value,
                options(nostack, readonly, preserves_flags)),
            Width::B4 => asm!("mov {v:e}, dword ptr [{p}]", p = in(reg) host, v = out(reg) value,
                options(nostack, readonly, preserves_flags)),
            Width::B8 => asm!("mov {v}, qword ptr [{p}]", p = in(reg) host, v = out(reg) value,
                options(nostack, readonly, preserves_flags)),
        }
    }
    value
}

/// Writes the low `width` bytes of `value`.
///
/// # Safety
/// `host` points to `width` bytes of guest RAM.
#[inline(always)]
pub unsafe fn store(host: *mut u8, width: Width, value: u64) {
    // SAFETY: by contract.
    unsafe {
        match width {
            Width::B1 => asm!("mov byte ptr [{p}], {v}", p = in(reg) host,
                v = in(reg_byte) value as u8, options(nostack, preserves_flags)),
            Width::B2 => asm!("mov word ptr [{p}], {v:x}", p = in(reg) host, v = in(reg) value,
                options(nostack, preserves_flags)),
            Width::B4 => asm!("mov dword ptr [{p}], {v:e}", p = in(reg) host, v = in(reg) value,
                options(nostack, preserves_flags)),
            Width::B8 => asm!("mov qword ptr [{p}], {v}", p = in(reg) host, v = in(reg) value,
                options(nostack, preserves_flags)),
        }
    }
}
