//! A guest that is a whole machine: privileged code on virtual hardware. Two engines run it:
//! the software engine ([`soft`]) and KVM. Both are a [`Vcpu`], speak the same [`VcpuState`],
//! reach devices through one [`Bus`] and run on the same [`GuestRam`], so a guest can move
//! from one to the other at any instruction boundary.
//!
//! Knows nothing of processes, system calls or signals of the guest's.

pub mod board;
pub mod boot;
pub mod clock;
pub mod control;
pub mod debugger;
pub mod devices;
pub mod engine;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod snapshot;
pub mod soft;
pub mod state;
pub mod terminal;
pub mod vcpu;
pub mod verify;

pub use board::Board;
pub use memory::{CodeWatch, GuestRam};
pub use state::{PendingEvent, Segment, SegmentRegister, TableRegister, VcpuState, XsaveArea};
pub use vcpu::{Bus, Kick, Kicker, Vcpu, VcpuError, VcpuExit};
