//! What the database asks of whoever can decode instructions.

use crate::record::Likeness;

/// Reads a module's code for the database, which doesn't know what instructions are. All
/// places are offsets in the module's file.
pub trait Code {
    /// What the block at `offset` looks like; `None` when the bytes there can't be read or
    /// don't have this [`content_hash`](crate::content_hash).
    fn likeness(&mut self, offset: u64, len: u32, hash: u64) -> Option<Likeness>;

    /// The blocks that the code has, as far as that can be told without running it, sorted
    /// by offset; none when it can't be read.
    fn blocks(&mut self) -> Vec<CodeBlock>;
}

/// The code of a module whose file isn't at hand.
pub struct NoCode;

impl Code for NoCode {
    fn likeness(&mut self, _: u64, _: u32, _: u64) -> Option<Likeness> {
        None
    }

    fn blocks(&mut self) -> Vec<CodeBlock> {
        Vec::new()
    }
}

/// A block of a module's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeBlock {
    pub offset: u64,
    pub len: u32,
    /// [`content_hash`](crate::content_hash) of its bytes.
    pub hash: u64,
    pub likeness: Likeness,
    pub exit: Exit,
}

/// Where control goes at the end of a block, as far as its bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    Jump(u64),
    Branch {
        taken: u64,
        next: u64,
    },
    Call {
        target: u64,
        return_to: u64,
    },
    IndirectCall {
        return_to: u64,
    },
    IndirectJump,
    Return,
    /// Straight on: a split block, a system call.
    Next(u64),
    /// Into the unknown, or an instruction that stops.
    End,
}
