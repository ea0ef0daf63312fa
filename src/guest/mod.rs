//! The guest's machine as plain data and traits: registers, vector state, traps, memory,
//! and what an engine asks of its surroundings. Everything above speaks these types;
//! nothing here runs code.

mod context;
mod cpu;
mod env;
mod memory;
mod trap;
mod vector;

pub use context::{
    ExitKind, FAR_TARGETS, FarTarget, FaultRecord, HostRoutine, SYNCHRONOUS, ThreadContext,
    far_index, offsets, pending, presence,
};
pub use cpu::{CpuMode, CpuState, Gpr, flags};
pub use env::{CallsInFlight, CodeControl, EnvAction, GuestEnv, HostCall, Watched};
pub use memory::{Access, GuestMemory, Width, segment_and_offset, segmented};
pub use trap::{GuestTrap, MemoryFault};
pub use vector::VectorState;
