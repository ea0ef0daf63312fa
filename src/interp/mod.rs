//! Tier 0, the interpreter. A [`decode::Block`](crate::decode::Block) is predecoded once into
//! an array of operations, each with its handler's address and its operands in the handler's
//! own terms; running a block calls one handler after the other. Generic over the guest's
//! memory, so that the same handlers serve a process, an MMU and a write buffer.
//!
//! The integer instructions are done here, their arithmetic and flags by the host's own ALU
//! ([`host_alu`]); everything else runs as the real instruction through the stubs of
//! [`native`](crate::native). Flags are never lazy: `cpu.rflags` is exact between any two
//! instructions. An instruction that traps leaves the state as before it (string
//! instructions: as after the last whole iteration) and `cpu.rip` at it.
//!
//! Does not decode, count, keep blocks or decide when to stop: that is the engine's.

mod alignment;
mod alu;
mod bits;
mod condition;
mod control;
mod data;
mod exchange;
mod far;
mod host_alu;
mod machine;
mod muldiv;
mod op;
mod operands;
mod predecode;
mod run;
mod scalar;
mod segments;
mod shifts;
mod stack;
mod strings;
mod stubbed;
mod system;
#[cfg(test)]
mod tests;

pub use machine::Machine;
pub use predecode::{Handling, handling};
pub use run::{PredecodedBlock, step_one};
