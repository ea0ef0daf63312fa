//! The blocks that the interpreter knows, by guest address.

use std::ops::Range;

use hashbrown::HashMap;

use crate::addr::{GuestAddr, PAGE_SIZE, pages};
use crate::guest::GuestMemory;
use crate::interp::PredecodedBlock;
use crate::profile::BlockId;

/// A block as the interpreter runs it, with what was seen of it.
pub(super) struct KnownBlock<M: GuestMemory> {
    pub start: GuestAddr,
    pub len: u32,
    /// Kept where the block will be interpreted again.
    pub predecoded: Option<Box<PredecodedBlock<M>>>,
    /// Its counters in the profile.
    pub id: BlockId,
    pub executions: u32,
    /// Its first instruction is the interpreter's own, or it changes too often.
    pub untranslatable: bool,
}

/// Names a block until the next invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(u32);

const RECENT: usize = 1024;

/// All known blocks.
pub(super) struct Blocks<M: GuestMemory> {
    slots: Vec<Option<KnownBlock<M>>>,
    free: Vec<u32>,
    by_start: HashMap<GuestAddr, u32>,
    by_page: HashMap<GuestAddr, Vec<u32>>,
    /// Direct-mapped memory of recent lookups: start address, slot.
    recent: Box<[(GuestAddr, u32); RECENT]>,
}

fn recent_index(start: GuestAddr) -> usize {
    (start.0 ^ start.0 >> 10) as usize % RECENT
}

const NOWHERE: GuestAddr = GuestAddr(u64::MAX);

impl<M: GuestMemory> Blocks<M> {
    pub(super) fn new() -> Blocks<M> {
        Blocks {
            slots: Vec::new(),
            free: Vec::new(),
            by_start: HashMap::new(),
            by_page: HashMap::new(),
            recent: Box::new([(NOWHERE, 0); RECENT]),
        }
    }

    #[inline]
    pub(super) fn find(&mut self, start: GuestAddr) -> Option<Slot> {
        let recent = &mut self.recent[recent_index(start)];
        if recent.0 == start {
            return Some(Slot(recent.1));
        }
        let &slot = self.by_start.get(&start)?;
        *recent = (start, slot);
        Some(Slot(slot))
    }

    pub(super) fn get(&self, start: GuestAddr) -> Option<&KnownBlock<M>> {
        let &slot = self.by_start.get(&start)?;
        self.slots[slot as usize].as_ref()
    }

    #[inline]
    pub(super) fn at(&mut self, slot: Slot) -> &mut KnownBlock<M> {
        self.slots[slot.0 as usize].as_mut().expect("a known block")
    }

    pub(super) fn insert(&mut self, block: KnownBlock<M>) -> Slot {
        let (start, len) = (block.start, block.len);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(block);
                slot
            }
            None => {
                self.slots.push(Some(block));
                self.slots.len() as u32 - 1
            }
        };
        self.by_start.insert(start, slot);
        for page in pages(start..start.offset(i64::from(len.max(1)))) {
            self.by_page.entry(page).or_default().push(slot);
        }
        Slot(slot)
    }

    /// Forgets one block, as when it has been translated.
    pub(super) fn remove(&mut self, start: GuestAddr) {
        let Some(slot) = self.by_start.remove(&start) else {
            return;
        };
        let Some(block) = self.slots[slot as usize].take() else {
            return;
        };
        self.free.push(slot);
        for page in pages(start..start.offset(i64::from(block.len.max(1)))) {
            if let Some(list) = self.by_page.get_mut(&page)
                && let Some(at) = list.iter().position(|&listed| listed == slot)
            {
                list.swap_remove(at);
            }
        }
        let recent = &mut self.recent[recent_index(start)];
        if recent.0 == start {
            *recent = (NOWHERE, 0);
        }
    }

    /// Forgets the blocks that touch a page of `range`.
    pub(super) fn invalidate(&mut self, range: Range<GuestAddr>) {
        let count = range.end.0.saturating_sub(range.start.page().0) / PAGE_SIZE;
        let touched: Vec<GuestAddr> = if count > self.by_page.len() as u64 {
            let first = range.start.page();
            let inside = |page: &&GuestAddr| **page >= first && **page < range.end;
            self.by_page.keys().filter(inside).copied().collect()
        } else {
            pages(range).collect()
        };
        let mut any = false;
        for page in touched {
            for slot in self.by_page.remove(&page).unwrap_or_default() {
                // A block that spans two pages is listed under both.
                let Some(block) = self.slots[slot as usize].take() else {
                    continue;
                };
                any = true;
                self.by_start.remove(&block.start);
                self.free.push(slot);
                let end = block.start.offset(i64::from(block.len.max(1)));
                for other in pages(block.start..end) {
                    if other != page
                        && let Some(list) = self.by_page.get_mut(&other)
                    {
                        list.retain(|&listed| listed != slot);
                    }
                }
            }
        }
        if any {
            self.recent.fill((NOWHERE, 0));
        }
    }
}
