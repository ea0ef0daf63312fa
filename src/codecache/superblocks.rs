//! Superblocks over fragments: while one is selected, everything that leads to its head goes
//! there instead. The fragment stays, as the way back.

use std::ops::Range;

use super::fragments::{CodeCache, Fragment, FragmentId, rel32};
use crate::addr::GuestAddr;

/// What makes a fragment a superblock.
#[derive(Clone, Debug)]
pub struct Superblock {
    pub head: GuestAddr,
    /// The guest code that it was made from.
    pub sources: Vec<Range<GuestAddr>>,
    /// Counts passes of the head.
    pub detour: Option<Detour>,
}

/// A jump that counts while it is on.
#[derive(Clone, Copy, Debug)]
pub struct Detour {
    /// Offset of the jump's displacement within the code.
    pub at: u32,
    /// Offset of where it leads within the code.
    pub to: u32,
}

impl CodeCache {
    /// Lets control that goes to `head` go to its superblock, or not. Does nothing where
    /// there is none.
    pub fn select_superblock(&mut self, head: GuestAddr, on: bool) {
        if let Some((_, selected)) = self.superblocks.get_mut(&head) {
            *selected = on;
            self.head_changed(head);
        }
    }

    /// Whether there is a superblock at `head`, and control goes there.
    pub fn superblock_at(&self, head: GuestAddr) -> Option<bool> {
        self.superblocks.get(&head).map(|&(_, selected)| selected)
    }

    /// Drops the superblock at `head`. Its code stays until its generation retires: threads
    /// may be in it.
    pub fn drop_superblock(&mut self, head: GuestAddr) {
        self.select_superblock(head, false);
    }

    /// Takes note of an installed superblock, which isn't selected yet. One that was there
    /// before is dropped.
    pub fn add_superblock(&mut self, head: GuestAddr, id: FragmentId) {
        self.superblocks.insert(head, (id, false));
        self.head_changed(head);
    }

    /// Drops every superblock; fragments take over.
    pub fn deselect_superblocks(&mut self) {
        let heads: Vec<GuestAddr> = self.superblocks.keys().copied().collect();
        for head in heads {
            self.select_superblock(head, false);
        }
    }

    pub(super) fn superblock_removed(&mut self, id: FragmentId, superblock: &Superblock) {
        let head = superblock.head;
        if self
            .superblocks
            .get(&head)
            .is_some_and(|&(own, _)| own == id)
        {
            self.superblocks.remove(&head);
            self.head_changed(head);
        }
    }

    fn head_changed(&mut self, head: GuestAddr) {
        self.link_all_to(head);
        // The next indirect branch finds the way anew.
        self.map.clear(head);
    }

    /// Turns the counter at `head` on or off: in the superblock, or in the fragment.
    pub fn set_counter(&mut self, head: GuestAddr, in_superblock: bool, on: bool) {
        let place = if in_superblock {
            self.superblocks.get(&head).and_then(|&(id, _)| {
                let fragment = self.fragment(id);
                let detour = fragment.superblock.as_ref()?.detour?;
                let start = fragment.code.start;
                Some((start + detour.at as usize, start + detour.to as usize))
            })
        } else {
            self.index.get(&head).and_then(|&(id, _)| {
                let fragment = self.fragment(id);
                let counter = fragment.counters.iter().find(|own| own.head == head)?;
                Some((
                    fragment.code.start + counter.patch_at as usize,
                    fragment.stubs.start + counter.stub_at as usize,
                ))
            })
        };
        let Some((at, to)) = place else { return };
        if on {
            let distance = rel32(self.arena.exec_addr(at + 4), self.arena.exec_addr(to));
            self.arena.patch_jump(at - 1, distance);
        } else {
            self.arena.patch_jump_away(at - 1);
        }
    }

    /// Whether the fragment at `head` has a counter there.
    pub fn has_counter(&self, head: GuestAddr) -> bool {
        self.index.get(&head).is_some_and(|&(id, _)| {
            let counters =
                |fragment: &Fragment| fragment.counters.iter().any(|own| own.head == head);
            counters(self.fragment(id))
        })
    }
}
