//! Accesses to guest memory that survive faults. Each is one instruction (single-copy atomic
//! where x86 is), with an entry in the fix-up table: after a fault the signal handler resumes
//! behind it with RAX nonzero, see [`super::fault`]. A compiled Rust access would not do: the
//! compiler may split, repeat or drop it, and nobody could tell its faults apart.
//!
//! Nothing here checks addresses. That a guest can't reach Temper's own memory is the
//! business of whoever keeps the guest's memory map.

use std::arch::asm;

use super::fault::trap_from_fault;
use crate::guest::GuestTrap;

/// Enters "the instruction at local label 2 resumes at local label 3" into the table.
macro_rules! fix_up_2_to_3 {
    () => {
        ".pushsection temper_fixups, \"aR\", @progbits
         .long 2b - ., 3b - .
         .popsection"
    };
}

fn outcome<T>(value: T, fault: u64, fault_addr: u64) -> Result<T, GuestTrap> {
    if fault == 0 {
        Ok(value)
    } else {
        Err(trap_from_fault(fault, fault_addr))
    }
}

macro_rules! loads {
    ($($name:ident: $instruction:literal;)*) => {$(
        /// Reads a zero-extended scalar at `addr`.
        ///
        /// # Safety
        /// What lies at `addr` is the guest's, or unmapped.
        #[inline(always)]
        pub unsafe fn $name(addr: u64) -> Result<u64, GuestTrap> {
            let (value, fault, fault_addr): (u64, u64, u64);
            // SAFETY: reads the guest's memory only; a fault resumes at label 3.
            unsafe {
                asm!(
                    "xor eax, eax",
                    concat!("2: ", $instruction),
                    "3:",
                    fix_up_2_to_3!(),
                    addr = in(reg) addr,
                    value = out(reg) value,
                    out("rax") fault,
                    out("rdx") fault_addr,
                    options(nostack, readonly),
                );
            }
            outcome(value, fault, fault_addr)
        }
    )*};
}

loads! {
    load_1: "movzx {value:e}, byte ptr [{addr}]";
    load_2: "movzx {value:e}, word ptr [{addr}]";
    load_4: "mov {value:e}, dword ptr [{addr}]";
    load_8: "mov {value}, qword ptr [{addr}]";
}

macro_rules! stores {
    ($($name:ident: $class:ident, $type:ty, $instruction:literal;)*) => {$(
        /// Writes a scalar at `addr`.
        ///
        /// # Safety
        /// What lies at `addr` is the guest's, or unmapped.
        #[inline(always)]
        pub unsafe fn $name(addr: u64, value: $type) -> Result<(), GuestTrap> {
            let (fault, fault_addr): (u64, u64);
            // SAFETY: writes the guest's memory only; a fault resumes at label 3.
            unsafe {
                asm!(
                    "xor eax, eax",
                    concat!("2: ", $instruction),
                    "3:",
                    fix_up_2_to_3!(),
                    addr = in(reg) addr,
                    value = in($class) value,
                    out("rax") fault,
                    out("rdx") fault_addr,
                    options(nostack),
                );
            }
            outcome((), fault, fault_addr)
        }
    )*};
}

stores! {
    store_1: reg_byte, u8, "mov byte ptr [{addr}], {value}";
    store_2: reg, u16, "mov word ptr [{addr}], {value:x}";
    store_4: reg, u32, "mov dword ptr [{addr}], {value:e}";
    store_8: reg, u64, "mov qword ptr [{addr}], {value}";
}

macro_rules! compare_exchanges {
    ($($name:ident: $class:ident, $type:ty, $accumulator:tt, $instruction:literal;)*) => {$(
        /// LOCK CMPXCHG; what memory held.
        ///
        /// # Safety
        /// What lies at `addr` is the guest's, or unmapped.
        pub unsafe fn $name(addr: u64, expected: $type, new: $type) -> Result<$type, GuestTrap> {
            let (fault, fault_addr): (u64, u64);
            let mut held = expected;
            // SAFETY: changes the guest's memory only. RAX is the comparison's own, so a
            // fault's description moves to another register at label 3.
            unsafe {
                asm!(
                    "xor {fault:e}, {fault:e}",
                    concat!("2: ", $instruction),
                    "jmp 4f",
                    "3: mov {fault}, rax",
                    "4:",
                    fix_up_2_to_3!(),
                    addr = in(reg) addr,
                    new = in($class) new,
                    fault = out(reg) fault,
                    inout($accumulator) held,
                    out("rdx") fault_addr,
                    options(nostack),
                );
            }
            outcome(held, fault, fault_addr)
        }
    )*};
}

compare_exchanges! {
    compare_exchange_1: reg_byte, u8, "al", "lock cmpxchg byte ptr [{addr}], {new}";
    compare_exchange_2: reg, u16, "ax", "lock cmpxchg word ptr [{addr}], {new:x}";
    compare_exchange_4: reg, u32, "eax", "lock cmpxchg dword ptr [{addr}], {new:e}";
    compare_exchange_8: reg, u64, "rax", "lock cmpxchg qword ptr [{addr}], {new}";
}

/// LOCK CMPXCHG16B; what memory held.
///
/// # Safety
/// What lies at `addr` is the guest's, or unmapped.
pub unsafe fn compare_exchange_16(addr: u64, expected: u128, new: u128) -> Result<u128, GuestTrap> {
    let mut low = expected as u64;
    let mut high = (expected >> 64) as u64;
    let fault: u64;
    // SAFETY: as for the narrower ones. RBX is reserved by the compiler, hence exchanged in
    // and back; the fix-up passes the same restoring exchange.
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "xor r8d, r8d",
            "2: lock cmpxchg16b xmmword ptr [{addr}]",
            "jmp 4f",
            "3: mov r8, rax",
            "4: xchg {new_low}, rbx",
            fix_up_2_to_3!(),
            addr = in(reg) addr,
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            out("r8") fault,
            options(nostack),
        );
    }
    outcome(u128::from(high) << 64 | u128::from(low), fault, high)
}

/// Copies `len` bytes; on a fault an unknown number has been copied, in ascending order.
///
/// # Safety
/// One side is Temper's own valid memory of `len` bytes, the other is the guest's or
/// unmapped; they don't overlap.
pub unsafe fn copy(to: u64, from: u64, len: usize) -> Result<(), GuestTrap> {
    let (fault, fault_addr): (u64, u64);
    // SAFETY: by contract; the direction flag is clear in Rust code.
    unsafe {
        asm!(
            "xor eax, eax",
            "2: rep movsb",
            "3:",
            fix_up_2_to_3!(),
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rcx") len => _,
            out("rax") fault,
            out("rdx") fault_addr,
            options(nostack),
        );
    }
    outcome((), fault, fault_addr)
}

/// Finds out whether the byte at `addr` can be written, without changing it.
///
/// # Safety
/// What lies at `addr` is the guest's, or unmapped.
pub unsafe fn probe_write(addr: u64) -> Result<(), GuestTrap> {
    // Locked: another thread may be writing this byte.
    // SAFETY: adds nothing to one byte of the guest's; a fault resumes at label 3.
    let (fault, fault_addr): (u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "xor eax, eax",
            "2: lock or byte ptr [{addr}], 0",
            "3:",
            fix_up_2_to_3!(),
            addr = in(reg) addr,
            out("rax") fault,
            out("rdx") fault_addr,
            options(nostack),
        );
    }
    outcome((), fault, fault_addr)
}
