//! Which bytes of physical memory predecoded blocks were made from. Stores ask before they
//! write; a hit is reported to the engine, which forgets those blocks first.

use hashbrown::HashMap;

use crate::addr::PAGE_SIZE;

/// Bytes that one bit of a page's mask stands for.
const GRANULE: u64 = PAGE_SIZE / 64;

#[derive(Default)]
struct Page {
    /// Granules that hold code.
    mask: u64,
    /// Blocks in this page: number, first byte in the page, the byte behind the last.
    blocks: Vec<(u32, u16, u16)>,
}

/// The code in physical memory, by page.
#[derive(Default)]
pub struct CodePages {
    pages: HashMap<u64, Page>,
}

fn granules(start: u64, end: u64) -> u64 {
    let first = start / GRANULE;
    let last = (end.max(start + 1) - 1) / GRANULE;
    (u64::MAX >> (63 - (last - first))) << first
}

impl CodePages {
    /// Block `number` was made from bytes `start..end` (within the page) of the page at
    /// physical address `page`. True: the page held no code before.
    pub fn add(&mut self, page: u64, number: u32, start: u64, end: u64) -> bool {
        let entry = self.pages.entry(page).or_default();
        let fresh = entry.blocks.is_empty();
        entry.mask |= granules(start, end);
        entry.blocks.push((number, start as u16, end as u16));
        fresh
    }

    /// Whether `len` bytes at physical address `addr`, in one page, are code.
    pub fn holds(&self, addr: u64, len: u64) -> bool {
        let Some(page) = self.pages.get(&(addr & !(PAGE_SIZE - 1))) else {
            return false;
        };
        let start = addr % PAGE_SIZE;
        if page.mask & granules(start, start + len) == 0 {
            return false;
        }
        let hit = |&(_, from, to): &(u32, u16, u16)| {
            u64::from(from) < start + len && start < u64::from(to)
        };
        page.blocks.iter().any(hit)
    }

    /// The blocks with a byte in `addr..addr + len`, which lies in one page.
    pub fn blocks(&self, addr: u64, len: u64) -> Vec<u32> {
        let Some(page) = self.pages.get(&(addr & !(PAGE_SIZE - 1))) else {
            return Vec::new();
        };
        let start = addr % PAGE_SIZE;
        let hit = |&&(_, from, to): &&(u32, u16, u16)| {
            u64::from(from) < start + len && start < u64::from(to)
        };
        page.blocks
            .iter()
            .filter(hit)
            .map(|block| block.0)
            .collect()
    }

    /// Block `number` is no more. True: its page holds no code any longer.
    pub fn remove(&mut self, page: u64, number: u32) -> bool {
        let Some(entry) = self.pages.get_mut(&page) else {
            return false;
        };
        entry.blocks.retain(|block| block.0 != number);
        entry.mask = 0;
        for &(_, start, end) in &entry.blocks {
            entry.mask |= granules(u64::from(start), u64::from(end));
        }
        let empty = entry.blocks.is_empty();
        if empty {
            self.pages.remove(&page);
        }
        empty
    }

    /// Forgets everything; the pages that held code.
    pub fn clear(&mut self) -> Vec<u64> {
        self.pages.drain().map(|(page, _)| page).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_that_a_block_was_made_from_are_code() {
        let mut code = CodePages::default();
        assert!(code.add(0x3000, 7, 0x100, 0x120));
        assert!(!code.add(0x3000, 8, 0xff8, 0x1000));
        assert!(code.holds(0x311f, 1));
        assert!(!code.holds(0x3120, 8));
        assert!(code.holds(0x30f9, 8));
        assert!(!code.holds(0x30f8, 8));
        assert!(!code.holds(0x4100, 8));
        assert_eq!(code.blocks(0x3ffc, 4), [8]);
        assert!(!code.remove(0x3000, 7));
        assert!(!code.holds(0x311f, 1));
        assert!(code.remove(0x3000, 8));
        assert!(!code.holds(0x3ffc, 4));
    }
}
