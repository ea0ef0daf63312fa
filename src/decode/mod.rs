//! Bytes to instructions to blocks. Guest code is read through [`GuestMemory::fetch`], so
//! the same decoder serves a process and a machine, in 16-, 32- and 64-bit mode. A block is
//! straight-line code with one way in at its top; [`BlockEnd`] says how control leaves it.
//! Does not keep blocks, count, or translate.

mod block;
mod file;
mod machine;

pub use block::{Block, BlockEnd, CodeAlias, Decoder, InterpretReason, MAX_BLOCK_INSTRUCTIONS};
pub use file::FileCode;
pub use machine::{MachineCode, Units};
