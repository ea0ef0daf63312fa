//! From a hardware fault to a [`GuestTrap`]. Code that may fault is known by its address:
//! either an entry of the fix-up table (the accessor's single instructions) or anything
//! inside a stub arena. The signal handler asks [`fix_up`] where to resume, puts the packed
//! description into RAX and the fault address into RDX, and returns there.
//!
//! Everything up to `trap_from_fault` runs in a signal handler, possibly with the guest's
//! fs base: no thread-local storage, no allocation, no locks.

use std::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::GuestAddr;
use crate::guest::{GuestTrap, MemoryFault};

// The section must exist even in a binary that links no accessor. Its one entry here refers
// to itself, an address that nothing executes. Retained, since the linker sees no reference.
global_asm!(
    ".pushsection temper_fixups, \"aR\", @progbits",
    "2: .long 0, 2b - .",
    ".popsection",
);

/// One instruction that may fault and where to resume after it did, each relative to the
/// field's own address (so that a position-independent image needs no relocations).
#[repr(C)]
struct FixUp {
    fault: i32,
    resume: i32,
}

unsafe extern "C" {
    static __start_temper_fixups: FixUp;
    static __stop_temper_fixups: FixUp;
}

/// Bytes of one stub arena; all have the same size, so that a start address describes one.
pub(super) const ARENA_BYTES: usize = 1 << 20;

/// Start addresses of the executable views of all stub arenas, 0 where free. A fixed array
/// because the signal handler reads it at any moment.
static ARENAS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// Announces a stub arena; false when there are too many.
pub(super) fn register_arena(start: u64) -> bool {
    ARENAS.iter().any(|slot| {
        slot.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    })
}

/// Forgets a stub arena before it is unmapped.
pub(super) fn forget_arena(start: u64) {
    for slot in &ARENAS {
        if slot
            .compare_exchange(start, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            return;
        }
    }
}

/// Where execution resumes after a fault at `host_pc`, with RAX holding [`pack_fault`]'s
/// value and RDX the fault address; `None` when the address isn't ours.
pub fn fix_up(host_pc: u64) -> Option<u64> {
    let mut entry = &raw const __start_temper_fixups;
    let stop = &raw const __stop_temper_fixups;
    while entry < stop {
        // SAFETY: the linker bounds the section, an array of `FixUp` that nobody writes.
        let FixUp { fault, resume } = unsafe { entry.read() };
        let at = entry as u64;
        if at.wrapping_add_signed(i64::from(fault)) == host_pc {
            return Some((at + 4).wrapping_add_signed(i64::from(resume)));
        }
        // SAFETY: at most one past the section's end.
        entry = unsafe { entry.add(1) };
    }
    let inside = |slot: &AtomicU64| {
        let start = slot.load(Ordering::Relaxed);
        start != 0 && host_pc.wrapping_sub(start) < ARENA_BYTES as u64
    };
    ARENAS.iter().any(inside).then(super::stub::landing_address)
}

/// A fault in one register: signal, trap number (REG_TRAPNO), the low half of the error code
/// (REG_ERR) and si_code. Never zero, since signals begin at 1.
pub fn pack_fault(signal: i32, si_code: i32, trap_number: u64, error_code: u64) -> u64 {
    (signal as u64 & 0xff)
        | (trap_number & 0xff) << 8
        | (error_code & 0xffff) << 16
        | u64::from(si_code as u32) << 32
}

/// The trap that a packed fault stands for.
#[cold]
pub fn trap_from_fault(packed: u64, addr: u64) -> GuestTrap {
    trap_from_signal(
        packed as u8 as i32,
        (packed >> 32) as i32,
        packed >> 8 & 0xff,
        packed >> 16 & 0xffff,
        addr,
    )
}

/// The trap that a synchronous signal stands for; trap number and error code are those of
/// the signal frame (Linux arch/x86/include/asm/trapnr.h).
pub fn trap_from_signal(
    signal: i32,
    si_code: i32,
    trap_number: u64,
    error_code: u64,
    addr: u64,
) -> GuestTrap {
    match (signal, trap_number) {
        (libc::SIGFPE, 16) => GuestTrap::X87FloatingPoint,
        (libc::SIGFPE, 19) => GuestTrap::SimdFloatingPoint,
        (libc::SIGFPE, _) => GuestTrap::DivideError,
        (libc::SIGILL, _) => GuestTrap::InvalidOpcode,
        (libc::SIGTRAP, 3) => GuestTrap::Breakpoint,
        (libc::SIGTRAP, _) => GuestTrap::Debug,
        (libc::SIGBUS, 17) => GuestTrap::AlignmentCheck,
        (libc::SIGSEGV, 4) => GuestTrap::Overflow,
        (libc::SIGSEGV, 5) => GuestTrap::BoundRange,
        _ => GuestTrap::Memory(MemoryFault {
            // The CPU reports an address for page faults alone.
            addr: GuestAddr(if trap_number == 14 { addr } else { 0 }),
            error_code: error_code as u32,
            trap_number: trap_number as u8,
            signal: signal as u8,
            si_code,
        }),
    }
}

/// For signal handlers: if the fault lies in this module's code, arranges that returning
/// from the handler resumes at the fix-up, and says true.
///
/// # Safety
/// `info` and `context` are what the kernel passed to an SA_SIGINFO handler for `signal`.
pub unsafe fn resume_at_fix_up(
    signal: i32,
    info: *const libc::siginfo_t,
    context: *mut libc::ucontext_t,
) -> bool {
    // SAFETY: by contract; the frame belongs to the handler until it returns.
    let (info, gregs) = unsafe { (&*info, &mut (*context).uc_mcontext.gregs) };
    let Some(resume) = fix_up(gregs[libc::REG_RIP as usize] as u64) else {
        return false;
    };
    let trap_number = gregs[libc::REG_TRAPNO as usize] as u64;
    let error_code = gregs[libc::REG_ERR as usize] as u64;
    gregs[libc::REG_RAX as usize] =
        pack_fault(signal, info.si_code, trap_number, error_code) as i64;
    // SAFETY: synchronous signals carry an address.
    gregs[libc::REG_RDX as usize] = unsafe { info.si_addr() } as i64;
    gregs[libc::REG_RIP as usize] = resume as i64;
    true
}

/// Handles the synchronous signals with fix-ups alone, for tests and tools that have no
/// engine. A fault elsewhere kills the process as it would have.
pub fn install_test_handler() {
    extern "C" fn handler(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: the kernel's own arguments.
        if !unsafe { resume_at_fix_up(signal, info, context.cast()) } {
            // SAFETY: async-signal-safe; the instruction faults again and kills the process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    // SAFETY: an all-zero sigaction is valid, and the handler above is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_fault_says_what_the_signal_said() {
        let packed = pack_fault(libc::SIGSEGV, -6, 14, 0x8007);
        assert_ne!(packed, 0);
        assert_eq!(
            trap_from_fault(packed, 0x1234),
            GuestTrap::Memory(MemoryFault {
                addr: GuestAddr(0x1234),
                error_code: 0x8007,
                trap_number: 14,
                signal: libc::SIGSEGV as u8,
                si_code: -6,
            })
        );
        let fpe = |trap| trap_from_fault(pack_fault(libc::SIGFPE, 1, trap, 0), 0);
        assert_eq!(fpe(0), GuestTrap::DivideError);
        assert_eq!(fpe(16), GuestTrap::X87FloatingPoint);
        assert_eq!(fpe(19), GuestTrap::SimdFloatingPoint);
    }

    #[test]
    fn an_address_of_other_code_has_no_fix_up() {
        assert_eq!(fix_up(install_test_handler as *const () as u64), None);
        assert_eq!(fix_up(0), None);
    }
}
