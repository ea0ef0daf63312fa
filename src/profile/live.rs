//! What is kept of each live block: 40 bytes, because a run of a large program meets
//! hundreds of thousands.

use profile_db::{Bias, Tier};

use super::paths::PathStep;
use crate::addr::GuestAddr;
use crate::decode::{Block, BlockEnd};

/// A live block of this run. Valid until the block is invalidated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockId(pub u32);

impl BlockId {
    #[inline]
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a block ends, as far as edges go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum EndKind {
    Jump,
    Branch,
    Call,
    IndirectJump,
    IndirectCall,
    Return,
    Syscall,
    InterpretOne,
    Next,
    /// A direct transfer to farther away than 2 GiB, which can't be kept here.
    Far,
}

/// No site yet.
pub(super) const NO_SITE: u32 = u32::MAX;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct LiveBlock {
    pub start: GuestAddr,
    /// Of its bytes.
    pub hash: u64,
    /// Counted since the last save.
    pub entered: u32,
    /// Of a conditional branch: how often it was taken. Of an indirect one: its site.
    taken_or_site: u32,
    pub next: u32,
    /// From the block's end to where a jump, call, taken branch or system call goes on.
    to: i32,
    pub len: u16,
    /// Executions in the interpreter, for the promotion policy.
    pub visits: u16,
    pub end: EndKind,
    pub tier: Tier,
    /// What earlier runs say of its branch.
    pub bias: Bias,
    marks: u8,
}

const HEAD: u8 = 1;
const KNOWN: u8 = 2;
const UNTRANSLATABLE: u8 = 4;
const LOOP: u8 = 8;
const CHOSEN: u8 = 16;
const WATCHED: u8 = 32;

impl LiveBlock {
    pub fn new(block: &Block, hash: u64) -> LiveBlock {
        let end_addr = block.start.offset(i64::from(block.len));
        let reach =
            |target: GuestAddr| i32::try_from(target.0.wrapping_sub(end_addr.0) as i64).ok();
        let (end, to) = match block.end {
            BlockEnd::Jump { target } => (EndKind::Jump, reach(target)),
            BlockEnd::Branch { taken, .. } => (EndKind::Branch, reach(taken)),
            BlockEnd::Call { target, .. } => (EndKind::Call, reach(target)),
            BlockEnd::IndirectJump => (EndKind::IndirectJump, Some(0)),
            BlockEnd::IndirectCall { .. } => (EndKind::IndirectCall, Some(0)),
            BlockEnd::Return { pop } => (EndKind::Return, Some(i32::from(pop))),
            BlockEnd::Syscall { next, .. } => (EndKind::Syscall, reach(next)),
            BlockEnd::InterpretOne { .. } => (EndKind::InterpretOne, Some(0)),
            BlockEnd::Next { at } => (EndKind::Next, reach(at)),
        };
        LiveBlock {
            start: block.start,
            hash,
            entered: 0,
            taken_or_site: if has_site(end) { NO_SITE } else { 0 },
            next: 0,
            to: to.unwrap_or(0),
            len: u16::try_from(block.len).unwrap_or(u16::MAX),
            visits: 0,
            end: if to.is_some() { end } else { EndKind::Far },
            tier: Tier::Interpreted,
            bias: Bias::Unknown,
            marks: 0,
        }
    }

    /// True when this is what was kept of a block that decodes like `other`.
    pub fn is_like(&self, other: &LiveBlock) -> bool {
        (self.hash, self.len, self.end, self.to) == (other.hash, other.len, other.end, other.to)
    }

    /// Where a direct transfer goes; for a branch, when taken.
    pub fn target(&self) -> GuestAddr {
        self.after().offset(i64::from(self.to))
    }

    /// The address after the block's last byte.
    pub fn after(&self) -> GuestAddr {
        self.start.offset(i64::from(self.len))
    }

    /// How often the conditional branch that ends the block was taken.
    pub fn taken(&self) -> u32 {
        if has_site(self.end) {
            0
        } else {
            self.taken_or_site
        }
    }

    #[inline]
    pub fn count_taken(&mut self) {
        debug_assert!(!has_site(self.end));
        self.taken_or_site = self.taken_or_site.saturating_add(1);
    }

    /// The number of the indirect branch's site; [`NO_SITE`] if it has none (yet).
    #[inline]
    pub fn site(&self) -> u32 {
        if has_site(self.end) {
            self.taken_or_site
        } else {
            NO_SITE
        }
    }

    pub fn is_indirect(&self) -> bool {
        has_site(self.end)
    }

    pub fn set_site(&mut self, site: u32) {
        debug_assert!(has_site(self.end));
        self.taken_or_site = site;
    }

    /// Takes out what was counted: entered, taken, next. A site stays.
    pub fn take_counts(&mut self) -> (u32, u32, u32) {
        let taken = self.taken();
        if !has_site(self.end) {
            self.taken_or_site = 0;
        }
        let entered = std::mem::take(&mut self.entered);
        (entered, taken, std::mem::take(&mut self.next))
    }

    /// Its direct transfer, if it has one, leads to its own start or before.
    #[inline]
    pub fn is_backward(&self) -> bool {
        self.to < 0 && self.target() <= self.start
    }

    #[inline]
    pub fn path_step(&self) -> PathStep {
        let backward = self.is_backward();
        match self.end {
            EndKind::Branch => PathStep::Branch { backward },
            EndKind::Jump if backward => PathStep::EndsBeforeHead,
            EndKind::Call | EndKind::IndirectCall => PathStep::EndsBeforeHead,
            EndKind::IndirectJump | EndKind::Return | EndKind::InterpretOne | EndKind::Far => {
                PathStep::Ends
            }
            EndKind::Jump | EndKind::Syscall | EndKind::Next => PathStep::Through,
        }
    }

    fn mark(&mut self, mark: u8, set: bool) {
        if set {
            self.marks |= mark;
        }
    }

    /// Backward branches or calls lead to it, in this run or in earlier ones.
    #[inline]
    pub fn is_head(&self) -> bool {
        self.marks & HEAD != 0
    }

    #[inline]
    pub fn mark_head(&mut self, set: bool) {
        self.mark(HEAD, set);
    }

    /// A loop's head: a backward jump or branch led to it in this run.
    #[inline]
    pub fn is_loop(&self) -> bool {
        self.marks & LOOP != 0
    }

    #[inline]
    pub fn mark_loop(&mut self, set: bool) {
        self.mark(LOOP, set);
    }

    /// It was decided what to watch in it.
    #[inline]
    pub fn is_chosen(&self) -> bool {
        self.marks & CHOSEN != 0
    }

    /// Instructions in it are watched.
    #[inline]
    pub fn is_watched(&self) -> bool {
        self.marks & WATCHED != 0
    }

    pub fn mark_chosen(&mut self, watched: bool) {
        self.mark(CHOSEN, true);
        self.mark(WATCHED, watched);
    }

    /// Earlier runs knew it as hot.
    pub fn is_known(&self) -> bool {
        self.marks & KNOWN != 0
    }

    pub fn mark_known(&mut self, set: bool) {
        self.mark(KNOWN, set);
    }

    /// Its first instruction is the interpreter's own, or the translator refused it.
    pub fn is_untranslatable(&self) -> bool {
        self.marks & UNTRANSLATABLE != 0
    }

    pub fn mark_untranslatable(&mut self) {
        self.mark(UNTRANSLATABLE, true);
    }
}

/// Whether the block ends in an indirect branch, whose targets are counted in a site.
fn has_site(end: EndKind) -> bool {
    matches!(
        end,
        EndKind::IndirectJump | EndKind::IndirectCall | EndKind::Return
    )
}

/// Blocks by number. Grows by pieces: a vector that doubles would copy all of it and leave
/// up to half of its memory unused.
#[derive(Default, Debug)]
pub(super) struct LiveBlocks {
    pieces: Vec<Vec<LiveBlock>>,
}

const PIECE: usize = 512;

impl LiveBlocks {
    /// Adds a block, with the next number.
    pub fn push(&mut self, block: LiveBlock) -> BlockId {
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let before = (self.pieces.len() - 1) * PIECE;
        let piece = self.pieces.last_mut().expect("a piece with room");
        piece.push(block);
        BlockId((before + piece.len() - 1) as u32)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut LiveBlock> {
        self.pieces.iter_mut().flatten()
    }
}

impl std::ops::Index<BlockId> for LiveBlocks {
    type Output = LiveBlock;

    #[inline]
    fn index(&self, id: BlockId) -> &LiveBlock {
        &self.pieces[id.index() / PIECE][id.index() % PIECE]
    }
}

impl std::ops::IndexMut<BlockId> for LiveBlocks {
    #[inline]
    fn index_mut(&mut self, id: BlockId) -> &mut LiveBlock {
        &mut self.pieces[id.index() / PIECE][id.index() % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_block_takes_forty_bytes() {
        assert_eq!(size_of::<LiveBlock>(), 40);
    }
}
