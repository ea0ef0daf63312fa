//! A Linux process as the guest's surroundings.

pub mod address_space;
mod auxv;
mod deferred;
pub mod elf;
mod memory;
mod procfs;
pub mod signals;
mod stack;
mod vdso;
