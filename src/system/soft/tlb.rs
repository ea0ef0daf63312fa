//! The software TLB: per kind of access, a direct-mapped table from page to host address.
//! A hit is one comparison; whatever isn't plain RAM with full rights is never in it.

use crate::addr::{GuestAddr, PAGE_SIZE};

/// Entries in one set; a power of two.
const ENTRIES: usize = 512;

/// A tag that no page has.
const NONE: u64 = u64::MAX;

/// Entries are apart by who accesses and in which address form, so that neither a system call
/// nor STAC flushes anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Set {
    Supervisor,
    /// With RFLAGS.AC set, SMAP lets the supervisor access user pages.
    SupervisorOpen,
    User,
}

const SETS: usize = 8;

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Entry {
    /// The page that may be read through this entry.
    read: u64,
    /// The page that may be written: same or none.
    write: u64,
    /// Added to the guest's address, gives the host's.
    addend: u64,
    physical: u64,
}

const EMPTY: Entry = Entry {
    read: NONE,
    write: NONE,
    addend: 0,
    physical: NONE,
};

/// What goes into the table.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// The page in the form that accesses use: linear, or an offset in a segment.
    pub page: u64,
    pub host: *mut u8,
    pub physical: u64,
    pub write: bool,
    pub global: bool,
    /// Bytes of the page in the guest's page tables.
    pub size: u64,
}

/// What only flushing needs to know of an entry.
#[derive(Clone, Copy)]
struct Origin {
    global: bool,
    /// The size of the guest's page, minus one.
    within: u64,
}

const NO_ORIGIN: Origin = Origin {
    global: false,
    within: PAGE_SIZE - 1,
};

pub struct Tlb {
    entries: Box<[Entry; SETS * ENTRIES]>,
    /// Where the current set starts.
    current: usize,
    origins: Box<[Origin; SETS * ENTRIES]>,
}

fn slot(page: u64) -> usize {
    (page / PAGE_SIZE) as usize % ENTRIES
}

fn first(set: Set, segmented: bool) -> usize {
    (set as usize + if segmented { 4 } else { 0 }) * ENTRIES
}

impl Tlb {
    pub fn new() -> Tlb {
        Tlb {
            entries: Box::new([EMPTY; SETS * ENTRIES]),
            current: 0,
            origins: Box::new([NO_ORIGIN; SETS * ENTRIES]),
        }
    }

    /// Chooses the set that [`Tlb::readable`] and [`Tlb::writable`] look in.
    pub fn select(&mut self, set: Set, segmented: bool) {
        self.current = first(set, segmented);
    }

    /// The host address of `len` readable bytes at `addr`, all in one page.
    #[inline(always)]
    pub fn readable(&self, addr: GuestAddr, len: u64) -> Option<*mut u8> {
        let entry = &self.entries[(self.current + slot(addr.0)) % (SETS * ENTRIES)];
        // Of an access that crosses into the next page, the last byte has another tag.
        let last = addr.0.wrapping_add(len - 1);
        if entry.read == last & !(PAGE_SIZE - 1) {
            Some(addr.0.wrapping_add(entry.addend) as *mut u8)
        } else {
            None
        }
    }

    /// The host address of `len` writable bytes at `addr`, all in one page.
    #[inline(always)]
    pub fn writable(&self, addr: GuestAddr, len: u64) -> Option<*mut u8> {
        let entry = &self.entries[(self.current + slot(addr.0)) % (SETS * ENTRIES)];
        let last = addr.0.wrapping_add(len - 1);
        if entry.write == last & !(PAGE_SIZE - 1) {
            Some(addr.0.wrapping_add(entry.addend) as *mut u8)
        } else {
            None
        }
    }

    pub fn insert(&mut self, set: Set, segmented: bool, mapping: Mapping) {
        let at = first(set, segmented) + slot(mapping.page);
        self.entries[at] = Entry {
            read: mapping.page,
            write: if mapping.write { mapping.page } else { NONE },
            addend: (mapping.host as u64).wrapping_sub(mapping.page),
            physical: mapping.physical,
        };
        self.origins[at] = Origin {
            global: mapping.global,
            within: mapping.size - 1,
        };
    }

    pub fn flush(&mut self) {
        self.entries.fill(EMPTY);
    }

    /// A load of CR3 spares global pages.
    pub fn flush_but_global(&mut self) {
        for (entry, origin) in self.entries.iter_mut().zip(self.origins.iter()) {
            if !origin.global {
                *entry = EMPTY;
            }
        }
    }

    /// Forgets what segments contributed: their bases or limits changed.
    pub fn flush_segmented(&mut self) {
        self.entries[4 * ENTRIES..].fill(EMPTY);
    }

    /// INVLPG: all of the guest's page that holds `linear`, whatever its size. Entries by
    /// segment offset can't be told by linear address, so they all go.
    pub fn flush_page(&mut self, linear: u64) {
        let (entries, _) = self.entries.split_at_mut(4 * ENTRIES);
        for (entry, origin) in entries.iter_mut().zip(self.origins.iter()) {
            if (entry.read ^ linear) & !origin.within == 0 {
                *entry = EMPTY;
            }
        }
        self.flush_segmented();
    }

    /// The physical page holds code from now on: writes to it must be seen.
    pub fn forbid_writes(&mut self, physical: u64) {
        for entry in self.entries.iter_mut() {
            if entry.physical == physical {
                entry.write = NONE;
            }
        }
    }
}

/// Entries of the table of fetched pages; a power of two.
const FETCHED: usize = 256;

/// Where code pages lie in physical memory, for one privilege.
pub struct FetchTlb {
    pages: Box<[(u64, u64); FETCHED]>,
}

impl FetchTlb {
    pub fn new() -> FetchTlb {
        FetchTlb {
            pages: Box::new([(NONE, 0); FETCHED]),
        }
    }

    #[inline]
    pub fn get(&self, page: u64) -> Option<u64> {
        let (known, physical) = self.pages[(page / PAGE_SIZE) as usize % FETCHED];
        (known == page).then_some(physical)
    }

    pub fn insert(&mut self, page: u64, physical: u64) {
        self.pages[(page / PAGE_SIZE) as usize % FETCHED] = (page, physical);
    }

    pub fn flush(&mut self) {
        self.pages.fill((NONE, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(page: u64, write: bool, global: bool) -> Mapping {
        Mapping {
            page,
            host: 0x7000_0000 as *mut u8,
            physical: 0x5000,
            write,
            global,
            size: 0x1000,
        }
    }

    #[test]
    fn an_access_that_crosses_the_page_misses() {
        let mut tlb = Tlb::new();
        tlb.insert(Set::Supervisor, false, mapping(0x1000, true, false));
        tlb.select(Set::Supervisor, false);
        let host = tlb.readable(GuestAddr(0x1ff8), 8).expect("a hit");
        assert_eq!(host as u64, 0x7000_0ff8);
        assert!(tlb.readable(GuestAddr(0x1ff9), 8).is_none());
        assert!(tlb.writable(GuestAddr(0x1ffc), 4).is_some());
        assert!(tlb.readable(GuestAddr(0x2000), 1).is_none());
    }

    #[test]
    fn sets_are_apart_and_global_pages_survive() {
        let mut tlb = Tlb::new();
        tlb.insert(Set::Supervisor, false, mapping(0x1000, false, true));
        tlb.insert(Set::User, false, mapping(0x2000, true, false));
        tlb.select(Set::User, false);
        assert!(tlb.readable(GuestAddr(0x1000), 1).is_none());
        assert!(tlb.writable(GuestAddr(0x2000), 1).is_some());
        tlb.forbid_writes(0x5000);
        assert!(tlb.writable(GuestAddr(0x2000), 1).is_none());
        assert!(tlb.readable(GuestAddr(0x2000), 1).is_some());
        tlb.flush_but_global();
        assert!(tlb.readable(GuestAddr(0x2000), 1).is_none());
        tlb.select(Set::Supervisor, false);
        assert!(tlb.readable(GuestAddr(0x1000), 1).is_some());
        tlb.flush_page(0x1234);
        assert!(tlb.readable(GuestAddr(0x1000), 1).is_none());
    }
}
