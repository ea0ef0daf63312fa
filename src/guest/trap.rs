//! Guest faults as values. An instruction that faults leaves the state as before it
//! (string instructions: as after the last whole iteration) and returns one of these.
//! Turning a trap into a signal or an exception frame is the surroundings' business.

use crate::addr::GuestAddr;

/// A memory access that the host or the guest's page tables refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryFault {
    /// The faulting address (CR2; 0 where the CPU reports none, as for non-canonical ones).
    pub addr: GuestAddr,
    /// The page-fault error code (Intel SDM volume 3, section 4.7).
    pub error_code: u32,
    /// The trap number: 14 for a page fault, 13 for a non-canonical access, 12 for one by rsp/rbp.
    pub trap_number: u8,
    /// In process mode, the host's signal number (SIGSEGV or SIGBUS) and its si_code.
    pub signal: u8,
    pub si_code: i32,
}

/// Why an instruction did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestTrap {
    DivideError,
    /// Single step (RFLAGS.TF), reported after the instruction, or INT1.
    Debug,
    /// INT3; the saved RIP is after the instruction.
    Breakpoint,
    /// INTO; the saved RIP is after the instruction.
    Overflow,
    BoundRange,
    InvalidOpcode,
    GeneralProtection,
    X87FloatingPoint,
    SimdFloatingPoint,
    AlignmentCheck,
    /// INT n, other than the above; the saved RIP is at the instruction.
    SoftwareInterrupt(u8),
    Memory(MemoryFault),
    /// Temper can't execute this instruction yet. Never silent: the run ends with an error that names it.
    Unsupported,
}
