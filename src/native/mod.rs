//! The real CPU as a subroutine: single accesses to guest memory that turn faults into
//! [`GuestTrap`](crate::guest::GuestTrap) values, and one-instruction stubs that run an
//! instruction on a guest state at rest. Upstream: the interpreter. Downstream: the signal
//! handler of whoever owns the process, which asks [`fix_up`] where a faulting access goes on.
//! Does not decode, choose or order instructions, and knows no memory map.

mod access;
mod fault;
mod identity;
mod stub;

pub use fault::{
    fix_up, install_test_handler, pack_fault, resume_at_fix_up, trap_from_fault, trap_from_signal,
};
pub use identity::IdentityMemory;
pub use stub::{Addressing, StubCache, StubId, StubMemory, UnsupportedInstruction, WhyUnsupported};
