//! The guest's memory map as plain data: disjoint page ranges with what the guest believes
//! of each. Knows nothing of the host's mappings.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ops::Range;
use std::sync::Arc;

use crate::addr::GuestAddr;

/// Access rights as the guest asked for them: PROT_READ, PROT_WRITE, PROT_EXEC.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Prot(u8);

impl Prot {
    pub const NONE: Prot = Prot(0);
    pub const READ: Prot = Prot(libc::PROT_READ as u8);
    pub const READ_WRITE: Prot = Prot((libc::PROT_READ | libc::PROT_WRITE) as u8);
    pub const READ_EXEC: Prot = Prot((libc::PROT_READ | libc::PROT_EXEC) as u8);

    /// Takes the three access bits of a `prot` argument.
    pub const fn from_bits(prot: u64) -> Prot {
        Prot(prot as u8 & 7)
    }

    pub const fn readable(self) -> bool {
        self.0 & libc::PROT_READ as u8 != 0
    }

    pub const fn writable(self) -> bool {
        self.0 & libc::PROT_WRITE as u8 != 0
    }

    pub const fn executable(self) -> bool {
        self.0 & libc::PROT_EXEC as u8 != 0
    }

    pub const fn with_exec(self) -> Prot {
        Prot(self.0 | libc::PROT_EXEC as u8)
    }

    /// What the host mapping gets: guest code is read, never executed in place.
    pub const fn host(self) -> u64 {
        let mut bits = self.0 & !(libc::PROT_EXEC as u8);
        if self.executable() {
            bits |= libc::PROT_READ as u8;
        }
        bits as u64
    }
}

/// One file (or shared memory object), however it was opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileKey {
    /// st_dev, or one of the `DEV_` values for objects without a file.
    pub dev: u64,
    pub inode: u64,
}

impl FileKey {
    /// The device of anonymous shared memory; the inode is a running number.
    pub const DEV_ANONYMOUS: u64 = u64::MAX;
    /// The device of System V shared memory; the inode is the segment's id.
    pub const DEV_SYSV: u64 = u64::MAX - 1;
}

/// What a mapping's bytes come from, when not from private anonymous memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backing {
    pub key: FileKey,
    /// The offset in the file of the mapping's first byte.
    pub offset: u64,
    /// Known for executable mappings of files: what modules are named by.
    pub path: Option<Arc<CString>>,
}

/// What a mapping is to the guest beyond plain memory; decides its name in maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Plain,
    Heap,
    Stack,
    Vdso,
}

/// What the guest believes of one range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    pub prot: Prot,
    pub shared: bool,
    /// MAP_GROWSDOWN: the kernel extends the mapping downwards on faults.
    pub grows_down: bool,
    pub role: Role,
    pub backing: Option<Backing>,
}

impl Attributes {
    /// Private anonymous memory.
    pub fn anonymous(prot: Prot) -> Attributes {
        Attributes {
            prot,
            shared: false,
            grows_down: false,
            role: Role::Plain,
            backing: None,
        }
    }

    /// The attributes of what lies `delta` bytes into the mapping.
    fn at(&self, delta: u64) -> Attributes {
        let mut attributes = self.clone();
        if let Some(backing) = &mut attributes.backing {
            backing.offset = backing.offset.wrapping_add(delta);
        }
        attributes
    }
}

/// A range and its attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vma {
    pub range: Range<GuestAddr>,
    pub attributes: Attributes,
}

impl Vma {
    pub fn bytes(&self) -> u64 {
        self.range.end.0 - self.range.start.0
    }

    /// The part inside `range`, if any.
    pub fn clipped(&self, range: &Range<GuestAddr>) -> Option<Vma> {
        let both = intersection(&self.range, range)?;
        Some(Vma {
            attributes: self.attributes.at(both.start.0 - self.range.start.0),
            range: both,
        })
    }
}

/// What two ranges share; `None` when that is nothing.
pub fn intersection(a: &Range<GuestAddr>, b: &Range<GuestAddr>) -> Option<Range<GuestAddr>> {
    let start = a.start.max(b.start);
    let end = a.end.min(b.end);
    (start < end).then_some(start..end)
}

/// Disjoint ranges in order; neighbours that continue each other are one entry.
#[derive(Default, Debug)]
pub struct VmaMap {
    by_start: BTreeMap<GuestAddr, (GuestAddr, Attributes)>,
    generation: u64,
}

impl VmaMap {
    /// Changes whenever the map does (for callers that cache a lookup).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Every entry, in address order.
    pub fn iter(&self) -> impl Iterator<Item = Vma> + '_ {
        self.iter_ref().map(|(range, attributes)| Vma {
            range,
            attributes: attributes.clone(),
        })
    }

    /// As [`VmaMap::iter`], without copies.
    pub fn iter_ref(&self) -> impl Iterator<Item = (Range<GuestAddr>, &Attributes)> {
        self.by_start
            .iter()
            .map(|(start, (end, attributes))| (*start..*end, attributes))
    }

    /// The whole entry that holds `addr`.
    pub fn find(&self, addr: GuestAddr) -> Option<Vma> {
        let (range, attributes) = self.peek(addr)?;
        Some(Vma {
            range,
            attributes: attributes.clone(),
        })
    }

    /// As [`VmaMap::find`], without a copy.
    pub fn peek(&self, addr: GuestAddr) -> Option<(Range<GuestAddr>, &Attributes)> {
        let (start, (end, attributes)) = self.by_start.range(..=addr).next_back()?;
        (addr < *end).then_some((*start..*end, attributes))
    }

    /// The parts of entries inside `range`, in order, clipped to it.
    pub fn within(&self, range: Range<GuestAddr>) -> Vec<Vma> {
        if range.start >= range.end {
            return Vec::new();
        }
        let first = self
            .by_start
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(start, _)| *start);
        self.by_start
            .range(first..range.end)
            .filter_map(|(start, (end, attributes))| {
                let both = intersection(&(*start..*end), &range)?;
                Some(Vma {
                    attributes: attributes.at(both.start.0 - start.0),
                    range: both,
                })
            })
            .collect()
    }

    /// How far from `range.start` on the range is mapped without a hole (at most its end).
    pub fn mapped_up_to(&self, range: Range<GuestAddr>) -> GuestAddr {
        let mut at = range.start;
        while at < range.end {
            match self.peek(at) {
                Some((entry, _)) => at = entry.end,
                None => return at,
            }
        }
        range.end
    }

    /// True when every byte of `range` is mapped.
    pub fn covers(&self, range: Range<GuestAddr>) -> bool {
        self.mapped_up_to(range.clone()) >= range.end
    }

    /// The holes inside `range`, in order.
    pub fn gaps(&self, range: Range<GuestAddr>) -> Vec<Range<GuestAddr>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for vma in self.within(range.clone()) {
            if at < vma.range.start {
                gaps.push(at..vma.range.start);
            }
            at = vma.range.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The highest hole of `bytes` bytes, aligned to `align` (a power of two), inside `within`.
    pub fn highest_gap(
        &self,
        within: Range<GuestAddr>,
        bytes: u64,
        align: u64,
    ) -> Option<GuestAddr> {
        self.gaps(within).into_iter().rev().find_map(|gap| {
            let start = gap.end.0.checked_sub(bytes)? & !(align - 1);
            (start >= gap.start.0).then_some(GuestAddr(start))
        })
    }

    /// Maps `range`, replacing what was there.
    pub fn insert(&mut self, range: Range<GuestAddr>, attributes: Attributes) {
        if range.start >= range.end {
            return;
        }
        self.remove(range.clone());
        self.by_start.insert(range.start, (range.end, attributes));
        self.merge_at(range.end);
        self.merge_at(range.start);
    }

    /// Unmaps `range`; returns what was there, clipped.
    pub fn remove(&mut self, range: Range<GuestAddr>) -> Vec<Vma> {
        if range.start >= range.end {
            return Vec::new();
        }
        self.generation += 1;
        self.split_at(range.start);
        self.split_at(range.end);
        let starts: Vec<_> = self
            .by_start
            .range(range)
            .map(|(start, _)| *start)
            .collect();
        starts
            .into_iter()
            .filter_map(|start| {
                let (end, attributes) = self.by_start.remove(&start)?;
                Some(Vma {
                    range: start..end,
                    attributes,
                })
            })
            .collect()
    }

    /// Applies `change` to every entry (clipped) inside `range`.
    pub fn change(&mut self, range: Range<GuestAddr>, change: impl Fn(&mut Attributes)) {
        for mut vma in self.remove(range) {
            change(&mut vma.attributes);
            self.insert(vma.range, vma.attributes);
        }
    }

    fn split_at(&mut self, addr: GuestAddr) {
        let Some(Vma { range, attributes }) = self.find(addr) else {
            return;
        };
        if range.start == addr {
            return;
        }
        let upper = attributes.at(addr.0 - range.start.0);
        self.by_start.insert(range.start, (addr, attributes));
        self.by_start.insert(addr, (range.end, upper));
    }

    /// Joins the entries that meet at `addr` when the upper continues the lower.
    fn merge_at(&mut self, addr: GuestAddr) {
        let Some((upper_end, upper)) = self.by_start.get(&addr).cloned() else {
            return;
        };
        let Some((start, (end, lower))) = self.by_start.range_mut(..addr).next_back() else {
            return;
        };
        // Stacks that grow are single mappings to the kernel, however they touch.
        if *end != addr || lower.grows_down || lower.at(addr.0 - start.0) != upper {
            return;
        }
        *end = upper_end;
        self.by_start.remove(&addr);
    }
}
