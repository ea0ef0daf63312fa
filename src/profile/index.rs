//! Live blocks by address: a short sorted list for each guest page. So one structure finds
//! a block, tells the blocks in a range, and goes through all of them in order of
//! addresses; a hash table and a tree side by side took three times the memory.

use std::cell::Cell;
use std::ops::Range;

use hashbrown::HashMap;

use super::live::BlockId;
use crate::addr::{GuestAddr, PAGE_SIZE};

/// Recent answers, direct-mapped: the interpreter asks for the same few blocks.
const RECENT: usize = 1024;
const NOWHERE: GuestAddr = GuestAddr(u64::MAX);

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The block's start within its page.
    offset: u16,
    id: BlockId,
}

/// See the module documentation.
pub(super) struct BlockIndex {
    /// By page; no list is empty.
    pages: HashMap<GuestAddr, Vec<Slot>>,
    recent: Box<[Cell<(GuestAddr, BlockId)>; RECENT]>,
}

fn recent_place(start: GuestAddr) -> usize {
    (start.0 ^ start.0 >> 10) as usize % RECENT
}

fn offset(start: GuestAddr) -> u16 {
    (start.0 % PAGE_SIZE) as u16
}

impl BlockIndex {
    pub fn new() -> BlockIndex {
        BlockIndex {
            pages: HashMap::new(),
            recent: Box::new([const { Cell::new((NOWHERE, BlockId(0))) }; RECENT]),
        }
    }

    /// The block that starts at `start`.
    #[inline]
    pub fn find(&self, start: GuestAddr) -> Option<BlockId> {
        let recent = &self.recent[recent_place(start)];
        let (known, id) = recent.get();
        if known == start {
            return Some(id);
        }
        let slots = self.pages.get(&start.page())?;
        let at = slots
            .binary_search_by_key(&offset(start), |slot| slot.offset)
            .ok()?;
        recent.set((start, slots[at].id));
        Some(slots[at].id)
    }

    /// Adds a block; none starts there yet.
    pub fn insert(&mut self, start: GuestAddr, id: BlockId) {
        let slots = self.pages.entry(start.page()).or_default();
        let at = slots.partition_point(|slot| slot.offset < offset(start));
        debug_assert!(slots.get(at).is_none_or(|slot| slot.offset > offset(start)));
        let slot = Slot {
            offset: offset(start),
            id,
        };
        slots.insert(at, slot);
    }

    /// Removes the block that starts at `start`.
    pub fn remove(&mut self, start: GuestAddr) {
        self.recent[recent_place(start)].set((NOWHERE, BlockId(0)));
        let Some(slots) = self.pages.get_mut(&start.page()) else {
            return;
        };
        slots.retain(|slot| slot.offset != offset(start));
        if slots.is_empty() {
            self.pages.remove(&start.page());
        }
    }

    /// The blocks that start in `range`, by address.
    pub fn starting_in(&self, range: Range<GuestAddr>) -> Vec<(GuestAddr, BlockId)> {
        let mut found: Vec<_> = self
            .pages_in(&range)
            .into_iter()
            .flat_map(|page| self.of_page(page))
            .filter(|(start, _)| range.contains(start))
            .collect();
        found.sort_unstable_by_key(|(start, _)| *start);
        found
    }

    /// The pages in which blocks start, by address.
    pub fn pages(&self) -> Vec<GuestAddr> {
        let mut pages: Vec<GuestAddr> = self.pages.keys().copied().collect();
        pages.sort_unstable();
        pages
    }

    /// The blocks that start in a page, by address.
    pub fn of_page(&self, page: GuestAddr) -> impl Iterator<Item = (GuestAddr, BlockId)> + '_ {
        let slots = self.pages.get(&page).map_or(&[][..], Vec::as_slice);
        slots
            .iter()
            .map(move |slot| (page.offset(i64::from(slot.offset)), slot.id))
    }

    /// Those pages of `range` in which blocks start.
    fn pages_in(&self, range: &Range<GuestAddr>) -> Vec<GuestAddr> {
        let first = range.start.page();
        let inside = |page: &GuestAddr| *page >= first && *page < range.end;
        let count = range.end.0.saturating_sub(first.0) / PAGE_SIZE;
        if count > self.pages.len() as u64 {
            self.pages.keys().copied().filter(inside).collect()
        } else {
            crate::addr::pages(range.clone())
                .filter(|page| self.pages.contains_key(page))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_index_agrees_with_a_sorted_map() {
        let mut state = 7u64;
        let mut random = |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % bound
        };
        let mut index = BlockIndex::new();
        let mut expected = BTreeMap::new();
        for round in 0..20_000u32 {
            let start = GuestAddr(0x40_0000 + random(0x9000));
            match (random(4), expected.contains_key(&start)) {
                (0, true) => {
                    index.remove(start);
                    expected.remove(&start);
                }
                (_, false) => {
                    index.insert(start, BlockId(round));
                    expected.insert(start, BlockId(round));
                }
                (_, true) => {}
            }
            assert_eq!(index.find(start), expected.get(&start).copied());
            if round % 256 == 0 {
                let from = GuestAddr(0x40_0000 + random(0x9000));
                let range = from..from.offset(random(0x4000) as i64);
                let found = index.starting_in(range.clone());
                let wanted: Vec<_> = expected.range(range).map(|(a, b)| (*a, *b)).collect();
                assert_eq!(found, wanted);
            }
        }
        let all: Vec<_> = index
            .pages()
            .into_iter()
            .flat_map(|page| index.of_page(page).collect::<Vec<_>>())
            .collect();
        assert!(all.into_iter().eq(expected));
    }
}
