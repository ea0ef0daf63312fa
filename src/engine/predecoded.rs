//! Predecoded blocks that the interpreter keeps, by the block's number in the profile. Most
//! blocks run once or are translated at their second execution, so few are kept.

use crate::guest::GuestMemory;
use crate::interp::PredecodedBlock;
use crate::profile::BlockId;

/// See the module documentation.
pub(super) struct Predecoded<M: GuestMemory> {
    blocks: Vec<Option<Box<PredecodedBlock<M>>>>,
}

impl<M: GuestMemory> Predecoded<M> {
    pub(super) fn new() -> Predecoded<M> {
        Predecoded { blocks: Vec::new() }
    }

    #[inline]
    pub(super) fn get(&self, id: BlockId) -> Option<&PredecodedBlock<M>> {
        self.blocks.get(id.0 as usize)?.as_deref()
    }

    pub(super) fn keep(&mut self, id: BlockId, block: PredecodedBlock<M>) -> &PredecodedBlock<M> {
        let place = id.0 as usize;
        if self.blocks.len() <= place {
            self.blocks.resize_with(place + 1, || None);
        }
        self.blocks[place].insert(Box::new(block))
    }

    pub(super) fn forget(&mut self, id: BlockId) {
        if let Some(kept) = self.blocks.get_mut(id.0 as usize) {
            *kept = None;
        }
    }
}
