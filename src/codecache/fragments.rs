//! Fragments, exits and links as plain records.

use std::io;
use std::ops::Range;

use hashbrown::HashMap;

use super::arena::{Arena, Space};
use super::indirect_map::IndirectMap;
use super::movable::Movable;
use super::superblocks::Superblock;
use crate::addr::{GuestAddr, HostAddr, pages};
use crate::host::DualMapCopy;

/// No exit: the end of a list.
const NONE: u32 = u32::MAX;

/// Names a live fragment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentId(u32);

/// Where indirect branches enter a block: code that reloads r11 first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndirectEntry {
    /// Offset within the fragment's code.
    Code(u32),
    /// Offset within the fragment's stubs.
    Stub(u32),
}

/// A patchable jump out of a fragment, as the translator made it.
#[derive(Clone, Copy, Debug)]
pub struct NewExit {
    pub target: GuestAddr,
    /// Offset of the jump's 32-bit displacement within the fragment's code.
    pub patch_at: u32,
    /// Offset of the stub within the fragment's stubs.
    pub stub_at: u32,
    /// Leads to the target's fragment even if a superblock starts there.
    pub lower: bool,
}

/// A jump at a path head to a stub that counts down, and leaves when its cell is zero.
#[derive(Clone, Debug)]
pub struct Counter {
    pub head: GuestAddr,
    /// Offset, within the fragment's code, of the displacement of the jump to its stub.
    pub patch_at: u32,
    /// Offset of its stub within the fragment's stubs.
    pub stub_at: u32,
    /// The part of the stub in which guest RCX is in the first spill slot, and from where
    /// on it is there again.
    pub spilled: Range<u32>,
    pub out_at: u32,
}

/// One guest block in a fragment.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub guest: GuestAddr,
    /// Guest bytes that this block was made from.
    pub guest_len: u32,
    /// Of those, the first so many decide what the code does: the rest is an instruction for
    /// the interpreter.
    pub copied: u32,
    /// Offset of the block's code within the fragment's code.
    pub code_at: u32,
    /// The entry for indirect branches, where there is one.
    pub indirect: Option<IndirectEntry>,
}

/// A field of 32 bits in a fragment's code that isn't the same wherever the guest code and
/// the fragment lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation(u32);

impl Relocation {
    /// The field at this offset holds a guest address.
    pub fn address(at: u32) -> Relocation {
        Relocation(at << 1)
    }

    /// The field at this offset holds the distance from its place to a guest address.
    pub fn distance(at: u32) -> Relocation {
        Relocation(at << 1 | 1)
    }

    pub fn at(self) -> u32 {
        self.0 >> 1
    }

    pub fn is_distance(self) -> bool {
        self.0 & 1 != 0
    }

    /// The same field in code of which this is part, from `by` on.
    pub fn moved(self, by: u32) -> Relocation {
        Relocation(self.0 + (by << 1))
    }

    pub fn to_bits(self) -> u32 {
        self.0
    }

    pub fn from_bits(bits: u32) -> Relocation {
        Relocation(bits)
    }
}

/// What was a fragment of its own when it was translated.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Offset in the fragment's code, up to the next part's.
    pub code_at: u32,
    /// Offset of its points in the fragment's state map.
    pub recovery_at: u32,
    /// The guest address that those are relative to.
    pub head: GuestAddr,
    /// Of the guest code that its blocks were made from, [`Entry::copied`] bytes of each.
    pub hash: u64,
}

/// What the translator hands over.
#[derive(Debug, Default)]
pub struct NewFragment {
    pub code: Vec<u8>,
    pub stubs: Vec<u8>,
    pub exits: Vec<NewExit>,
    pub entries: Vec<Entry>,
    pub counters: Vec<Counter>,
    /// The translator's state map, kept with the fragment.
    pub recovery: Vec<u8>,
    /// At least one, in ascending order.
    pub parts: Vec<Part>,
    /// What else than stubs and exits depends on places.
    pub relocations: Vec<Relocation>,
    /// Relocations and exits are all that does.
    pub movable: bool,
    /// An earlier run made it.
    pub restored: bool,
    /// It is a superblock, and has no entries.
    pub superblock: Option<Superblock>,
}

impl NewFragment {
    /// Makes room for another one.
    pub fn clear(&mut self) {
        self.code.clear();
        self.stubs.clear();
        self.exits.clear();
        self.entries.clear();
        self.counters.clear();
        self.recovery.clear();
        self.parts.clear();
        self.relocations.clear();
        self.movable = false;
        self.restored = false;
        self.superblock = None;
    }
}

/// An exit of a live fragment; a fragment's exits are neighbours. All exits to one address
/// form a doubly-linked list through `previous` and `next`.
#[derive(Clone, Copy, Debug)]
struct Exit {
    target: GuestAddr,
    /// Offsets in the arena.
    patch_at: u32,
    stub_at: u32,
    previous: u32,
    next: u32,
    linked: bool,
    /// Leads to the target's fragment though a superblock starts there.
    lower: bool,
}

#[derive(Debug)]
pub(super) struct Fragment {
    pub(super) generation: usize,
    pub(super) code: Range<usize>,
    pub(super) stubs: Range<usize>,
    pub(super) entries: Box<[Entry]>,
    /// Numbers in the cache's exits.
    exits: Range<u32>,
    pub(super) counters: Box<[Counter]>,
    pub(super) recovery: Box<[u8]>,
    pub(super) parts: Box<[Part]>,
    pub(super) relocations: Box<[Relocation]>,
    movable: bool,
    pub(super) restored: bool,
    pub(super) superblock: Option<Box<Superblock>>,
}

/// Where a host address lies in the cache.
#[derive(Debug)]
pub enum Location<'a> {
    /// In a fragment's code: the guest address where it (or its part) starts, the offset from
    /// there, and the translator's state map.
    Code {
        start: GuestAddr,
        offset: usize,
        recovery: &'a [u8],
    },
    /// In the code of the superblock that starts at `head`.
    Superblock { id: FragmentId, offset: usize },
    /// In the stub of an exit to this guest address: the guest state is exact.
    ExitStub { target: GuestAddr },
    /// In a counter's stub: the guest is at this path head, its RCX perhaps in the first
    /// spill slot.
    CounterStub { head: GuestAddr, spilled: bool },
    /// In the out-of-line entry for indirect branches to this address: r11 is in its slot.
    IndirectStub { target: GuestAddr },
}

/// See the module documentation of [`super`].
#[derive(Debug)]
pub struct CodeCache {
    pub(super) arena: Arena,
    pub map: IndirectMap,
    pub(super) fragments: Vec<Option<Fragment>>,
    free_fragments: Vec<u32>,
    exits: Vec<Exit>,
    /// Ranges of `exits` that are free, by length.
    free_exits: HashMap<u32, Vec<u32>>,
    pub(super) index: HashMap<GuestAddr, (FragmentId, u32)>,
    /// Superblocks by their heads, and whether control goes there.
    pub(super) superblocks: HashMap<GuestAddr, (FragmentId, bool)>,
    /// The first of all exits to an address, linked or waiting for it.
    exits_to: HashMap<GuestAddr, u32>,
    by_page: HashMap<GuestAddr, Vec<FragmentId>>,
    /// Fragments of each generation by ascending code offset.
    by_offset: HashMap<usize, Vec<(usize, FragmentId)>>,
    /// Indirect entries made after their block, by generation: arena offset, guest address.
    late_entries: HashMap<usize, Vec<(usize, GuestAddr)>>,
    pub stats: CacheStats,
}

/// Bytes of an indirect entry: `mov %gs:slot,%r11` and a near jump.
pub const LATE_ENTRY_BYTES: usize = 14;

/// Running totals.
#[derive(Debug, Default, Clone, Copy)]
pub struct CacheStats {
    pub fragments: u64,
    pub blocks: u64,
    pub code_bytes: u64,
    pub stub_bytes: u64,
    pub links: u64,
    pub generations_retired: u64,
    pub flushes: u64,
    pub invalidated: u64,
}

impl CodeCache {
    /// A cache of `bytes` (clamped to what the arena allows).
    ///
    /// # Errors
    /// The kernel's, when the arena or the map can't be had.
    pub fn new(bytes: usize, miss: HostAddr) -> io::Result<CodeCache> {
        Ok(CodeCache {
            arena: Arena::new(bytes)?,
            map: IndirectMap::new(miss)?,
            fragments: Vec::new(),
            free_fragments: Vec::new(),
            exits: Vec::new(),
            free_exits: HashMap::new(),
            index: HashMap::new(),
            superblocks: HashMap::new(),
            exits_to: HashMap::new(),
            by_page: HashMap::new(),
            by_offset: HashMap::new(),
            late_entries: HashMap::new(),
            stats: CacheStats::default(),
        })
    }

    /// Where generated code for `addr` starts: a superblock's, if one starts there.
    pub fn lookup(&self, addr: GuestAddr) -> Option<HostAddr> {
        if !self.superblocks.is_empty()
            && let Some(&(id, true)) = self.superblocks.get(&addr)
        {
            return Some(self.arena.exec_addr(self.fragment(id).code.start));
        }
        self.lookup_fragment(addr)
    }

    /// Where the fragment's code for `addr` starts, whatever superblocks there are.
    pub(super) fn lookup_fragment(&self, addr: GuestAddr) -> Option<HostAddr> {
        let &(id, at) = self.index.get(&addr)?;
        Some(
            self.arena
                .exec_addr(self.fragment(id).code.start + at as usize),
        )
    }

    pub fn contains(&self, addr: GuestAddr) -> bool {
        self.index.contains_key(&addr)
    }

    pub(super) fn fragment(&self, id: FragmentId) -> &Fragment {
        self.fragments[id.0 as usize]
            .as_ref()
            .expect("a live fragment")
    }

    /// Whether [`CodeCache::reserve`] of so many bytes would retire a generation.
    pub fn is_full_for(&self, bytes: usize) -> bool {
        !self.arena.fits(bytes.min(self.arena.max_fragment()))
    }

    /// Lets generated code run, or makes every thread that runs it fault.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_executable(&self, executable: bool) -> io::Result<()> {
        self.arena.set_executable(executable)
    }

    /// Space for a fragment of at most `bytes` (code and stubs), retiring the oldest
    /// generation when the current one is full. The space stands until the next call.
    pub fn reserve(&mut self, bytes: usize) -> Space {
        let bytes = bytes.min(self.arena.max_fragment());
        if !self.arena.fits(bytes) {
            let generation = self.arena.advance();
            self.retire(generation);
        }
        self.arena.space()
    }

    /// The most bytes, code and stubs together, that a fragment may have.
    pub fn max_fragment(&self) -> usize {
        self.arena.max_fragment()
    }

    pub fn exec_addr(&self, offset: usize) -> HostAddr {
        self.arena.exec_addr(offset)
    }

    /// Numbers for `count` exits.
    fn new_exits(&mut self, count: u32) -> Range<u32> {
        if let Some(start) = self.free_exits.get_mut(&count).and_then(Vec::pop) {
            return start..start + count;
        }
        let start = self.exits.len() as u32;
        let unused = Exit {
            target: GuestAddr(0),
            patch_at: 0,
            stub_at: 0,
            previous: NONE,
            next: NONE,
            linked: false,
            lower: false,
        };
        self.exits.resize((start + count) as usize, unused);
        start..start + count
    }

    fn add_exit(&mut self, number: u32, exit: Exit) {
        let first = self.exits_to.entry(exit.target).or_insert(NONE);
        self.exits[number as usize] = Exit {
            next: *first,
            ..exit
        };
        if *first != NONE {
            self.exits[*first as usize].previous = number;
        }
        *first = number;
    }

    fn remove_exit(&mut self, number: u32) {
        let Exit {
            target,
            previous,
            next,
            ..
        } = self.exits[number as usize];
        if next != NONE {
            self.exits[next as usize].previous = previous;
        }
        if previous != NONE {
            self.exits[previous as usize].next = next;
        } else if next != NONE {
            self.exits_to.insert(target, next);
        } else {
            self.exits_to.remove(&target);
        }
    }

    /// Installs a fragment in the space it was generated for. With `link`, direct exits and
    /// indirect branches from and to it stay in generated code from now on.
    pub fn install(&mut self, space: Space, new: &NewFragment, link: bool) -> FragmentId {
        let now = self.arena.space();
        assert!(space.code_at == now.code_at && space.stubs_end == now.stubs_end);
        let code = now.code_at..now.code_at + new.code.len();
        let stubs = now.stubs_end - new.stubs.len()..now.stubs_end;
        self.arena.install(&new.code, &new.stubs);
        self.stats.fragments += 1;
        self.stats.blocks += new.entries.len() as u64;
        self.stats.code_bytes += new.code.len() as u64;
        self.stats.stub_bytes += new.stubs.len() as u64;

        let id = match self.free_fragments.pop() {
            Some(id) => FragmentId(id),
            None => {
                self.fragments.push(None);
                FragmentId(self.fragments.len() as u32 - 1)
            }
        };
        let exits = self.new_exits(new.exits.len() as u32);
        for (exit, number) in new.exits.iter().zip(exits.clone()) {
            self.add_exit(
                number,
                Exit {
                    target: exit.target,
                    patch_at: code.start as u32 + exit.patch_at,
                    stub_at: stubs.start as u32 + exit.stub_at,
                    previous: NONE,
                    next: NONE,
                    linked: false,
                    lower: exit.lower,
                },
            );
        }
        for range in new.superblock.iter().flat_map(|new| &new.sources) {
            for page in pages(range.clone()) {
                let list = self.by_page.entry(page).or_default();
                if list.last() != Some(&id) {
                    list.push(id);
                }
            }
        }
        let mut last_page = None;
        self.index.reserve(new.entries.len());
        if link && new.restored {
            let reached = new.entries.iter().filter(|entry| entry.indirect.is_some());
            self.map.prepare_all(reached.map(|entry| entry.guest));
        }
        for entry in &new.entries {
            let old = self.index.insert(entry.guest, (id, entry.code_at));
            debug_assert!(old.is_none(), "{} is translated twice", entry.guest);
            let end = entry.guest.offset(i64::from(entry.guest_len.max(1)));
            for page in pages(entry.guest..end) {
                if last_page.replace(page) == Some(page) {
                    continue;
                }
                let list = self.by_page.entry(page).or_default();
                if list.last() != Some(&id) {
                    list.push(id);
                }
            }
            if let Some(indirect) = entry.indirect.filter(|_| link) {
                let at = match indirect {
                    IndirectEntry::Code(at) => code.start + at as usize,
                    IndirectEntry::Stub(at) => stubs.start + at as usize,
                };
                self.map.set(entry.guest, self.arena.exec_addr(at));
            }
        }
        self.by_offset
            .entry(now.generation)
            .or_default()
            .push((code.start, id));
        self.fragments[id.0 as usize] = Some(Fragment {
            generation: now.generation,
            code,
            stubs,
            entries: new.entries.as_slice().into(),
            exits: exits.clone(),
            counters: new.counters.as_slice().into(),
            recovery: new.recovery.as_slice().into(),
            parts: new.parts.as_slice().into(),
            relocations: new.relocations.as_slice().into(),
            movable: new.movable,
            restored: new.restored,
            superblock: new.superblock.clone().map(Box::new),
        });
        if link {
            for entry in &new.entries {
                self.link_all_to(entry.guest);
            }
            for number in exits {
                if !self.exits[number as usize].linked
                    && let Some(host) = self.destination(number)
                {
                    self.link(number, host);
                }
            }
        }
        id
    }

    fn link(&mut self, number: u32, host: HostAddr) {
        let exit = &mut self.exits[number as usize];
        if !exit.linked {
            exit.linked = true;
            self.stats.links += 1;
        }
        let at = exit.patch_at as usize;
        let next = self.arena.exec_addr(at + 4);
        self.arena.patch_rel32(at, rel32(next, host));
    }

    /// Where an exit leads.
    fn destination(&self, number: u32) -> Option<HostAddr> {
        let exit = &self.exits[number as usize];
        if exit.lower {
            self.lookup_fragment(exit.target)
        } else {
            self.lookup(exit.target)
        }
    }

    /// Lets all exits to `target` lead to what is there now.
    pub(super) fn link_all_to(&mut self, target: GuestAddr) {
        let mut number = self.exits_to.get(&target).copied().unwrap_or(NONE);
        if number == NONE || !self.contains(target) {
            return;
        }
        while number != NONE {
            if let Some(host) = self.destination(number) {
                self.link(number, host);
            }
            number = self.exits[number as usize].next;
        }
    }

    pub(super) fn unlink_all_to(&mut self, target: GuestAddr) {
        let mut number = self.exits_to.get(&target).copied().unwrap_or(NONE);
        while number != NONE {
            let exit = &mut self.exits[number as usize];
            if exit.linked {
                exit.linked = false;
                let at = exit.patch_at as usize;
                let next = self.arena.exec_addr(at + 4);
                let stub = self.arena.exec_addr(exit.stub_at as usize);
                self.arena.patch_rel32(at, rel32(next, stub));
            }
            number = self.exits[number as usize].next;
        }
    }

    /// Makes indirect branches to the translated block at `addr` go to its fragment, where
    /// the translator made no entry for them. `entry` generates the code that reloads r11
    /// and jumps on: it gets the host address where it will run and the one to go to.
    pub fn add_indirect_entry(
        &mut self,
        addr: GuestAddr,
        entry: impl FnOnce(HostAddr, HostAddr) -> Vec<u8>,
    ) {
        if self.map.get(addr).is_some() || !self.contains(addr) {
            return;
        }
        let space = self.reserve(LATE_ENTRY_BYTES);
        // Making room may have retired the block itself.
        let Some(target) = self.lookup(addr) else {
            return;
        };
        let at = space.stubs_end - LATE_ENTRY_BYTES;
        let host = self.arena.exec_addr(at);
        let code = entry(host, target);
        assert_eq!(code.len(), LATE_ENTRY_BYTES);
        self.arena.install(&[], &code);
        self.late_entries
            .entry(space.generation)
            .or_default()
            .push((at, addr));
        self.map.set(addr, host);
    }

    /// Drops a fragment: nothing reaches it any more, and it reaches nothing.
    fn remove(&mut self, id: FragmentId) {
        let Some(fragment) = self.fragments[id.0 as usize].take() else {
            return;
        };
        if let Some(superblock) = &fragment.superblock {
            self.superblock_removed(id, superblock);
        }
        for range in fragment.superblock.iter().flat_map(|own| &own.sources) {
            for page in pages(range.clone()) {
                self.forget_page(page, id);
            }
        }
        for entry in &fragment.entries {
            self.index.remove(&entry.guest);
            self.map.clear(entry.guest);
            self.unlink_all_to(entry.guest);
            let end = entry.guest.offset(i64::from(entry.guest_len.max(1)));
            for page in pages(entry.guest..end) {
                self.forget_page(page, id);
            }
            // Its way back is gone.
            if let Some(&(above, _)) = self.superblocks.get(&entry.guest) {
                self.discard(above);
            }
        }
        for number in fragment.exits.clone() {
            self.remove_exit(number);
        }
        let count = fragment.exits.len() as u32;
        if count > 0 {
            self.free_exits
                .entry(count)
                .or_default()
                .push(fragment.exits.start);
        }
        self.free_fragments.push(id.0);
        self.stats.invalidated += 1;
    }

    fn forget_page(&mut self, page: GuestAddr, id: FragmentId) {
        if let Some(list) = self.by_page.get_mut(&page) {
            list.retain(|&other| other != id);
            if list.is_empty() {
                self.by_page.remove(&page);
            }
        }
    }

    fn retire(&mut self, generation: usize) {
        for (_, addr) in self.late_entries.remove(&generation).unwrap_or_default() {
            self.map.clear(addr);
        }
        let doomed = self.by_offset.remove(&generation).unwrap_or_default();
        if doomed.is_empty() {
            return;
        }
        self.stats.generations_retired += 1;
        for (_, id) in doomed {
            let live = self.fragments[id.0 as usize].as_ref();
            if live.is_some_and(|fragment| fragment.generation == generation) {
                self.remove(id);
            }
        }
    }

    /// The fragments made from code in `range`, each once.
    fn made_from(&self, range: Range<GuestAddr>) -> Vec<FragmentId> {
        let mut found: Vec<FragmentId> = Vec::new();
        let span = (range.end.0.saturating_sub(range.start.0)) / crate::addr::PAGE_SIZE;
        if span > self.by_page.len() as u64 {
            let first = range.start.page();
            for (page, ids) in &self.by_page {
                if *page >= first && *page < range.end {
                    found.extend(ids);
                }
            }
        } else {
            for page in pages(range) {
                found.extend(self.by_page.get(&page).into_iter().flatten());
            }
        }
        found.sort_unstable_by_key(|id| id.0);
        found.dedup();
        found
    }

    /// Whether any fragment was made from code in `range`.
    pub fn holds_any_of(&self, range: Range<GuestAddr>) -> bool {
        !self.made_from(range).is_empty()
    }

    /// Drops every fragment made from code in `range`.
    pub fn invalidate(&mut self, range: Range<GuestAddr>) {
        for id in self.made_from(range) {
            self.discard(id);
        }
    }

    /// Drops a fragment, if it is still there, before its generation retires.
    fn discard(&mut self, id: FragmentId) {
        let Some(fragment) = &self.fragments[id.0 as usize] else {
            return;
        };
        if let Some(list) = self.by_offset.get_mut(&fragment.generation) {
            list.retain(|&(_, other)| other != id);
        }
        self.remove(id);
    }

    /// Drops everything.
    pub fn flush(&mut self) {
        let all: Vec<usize> = self
            .by_offset
            .keys()
            .chain(self.late_entries.keys())
            .copied()
            .collect();
        for generation in all {
            self.retire(generation);
        }
        self.stats.flushes += 1;
        self.arena.clear();
    }

    /// Offsets of the displacements of a fragment's exits, and where they lead.
    pub(super) fn exits_of<'c>(
        &'c self,
        fragment: &'c Fragment,
    ) -> impl Iterator<Item = (u32, GuestAddr)> + 'c {
        fragment.exits.clone().map(move |number| {
            let exit = &self.exits[number as usize];
            (exit.patch_at - fragment.code.start as u32, exit.target)
        })
    }

    /// The live fragments that can be kept for later runs.
    pub fn movable(&self) -> impl Iterator<Item = Movable<'_>> {
        let live = self.fragments.iter().flatten();
        live.filter(|fragment| fragment.movable)
            .map(|fragment| Movable::new(self, fragment))
    }

    /// Where in the cache `pc` lies; `None` outside live fragments.
    pub fn locate(&self, pc: HostAddr) -> Option<Location<'_>> {
        let offset = self.arena.offset_of(pc)?;
        let generation = offset / self.arena.generation_bytes();
        if let Some(late) = self.late_entries.get(&generation) {
            // Descending offsets; each entry ends where the one before it starts, or earlier.
            let index = late.partition_point(|&(at, _)| at > offset);
            if let Some(&(at, target)) = late.get(index)
                && offset < at + LATE_ENTRY_BYTES
            {
                return Some(Location::IndirectStub { target });
            }
        }
        let list = self.by_offset.get(&generation)?;
        let after = list.partition_point(|&(start, _)| start <= offset);
        if let Some(&(_, id)) = after.checked_sub(1).and_then(|i| list.get(i)) {
            let fragment = self.fragment(id);
            if fragment.code.contains(&offset) {
                if fragment.superblock.is_some() {
                    return Some(Location::Superblock {
                        id,
                        offset: offset - fragment.code.start,
                    });
                }
                let offset = offset - fragment.code.start;
                let after = (fragment.parts).partition_point(|p| p.code_at as usize <= offset);
                let part = fragment.parts.get(after.checked_sub(1)?)?;
                // Points count from their part's start: those of the next are none of this.
                let end = (fragment.parts.get(after))
                    .map_or(fragment.recovery.len(), |next| next.recovery_at as usize);
                return Some(Location::Code {
                    start: part.head,
                    offset: offset - part.code_at as usize,
                    recovery: fragment.recovery.get(part.recovery_at as usize..end)?,
                });
            }
        }
        // Stubs descend as code ascends, so the order of fragments is reversed.
        let index = list.partition_point(|&(_, id)| self.fragment(id).stubs.start > offset);
        let &(_, id) = list.get(index)?;
        let fragment = self.fragment(id);
        if !fragment.stubs.contains(&offset) {
            return None;
        }
        let exits = fragment.exits.clone().map(|number| {
            let exit = &self.exits[number as usize];
            let location = Location::ExitStub {
                target: exit.target,
            };
            (exit.stub_at as usize, location)
        });
        let indirect = fragment
            .entries
            .iter()
            .filter_map(|entry| match entry.indirect {
                Some(IndirectEntry::Stub(at)) => Some((
                    fragment.stubs.start + at as usize,
                    Location::IndirectStub {
                        target: entry.guest,
                    },
                )),
                Some(IndirectEntry::Code(_)) | None => None,
            });
        let counters = fragment.counters.iter().map(|counter| {
            let at = fragment.stubs.start + counter.stub_at as usize;
            let within = offset.wrapping_sub(at) as u32;
            let spilled = counter.spilled.contains(&within) || within >= counter.out_at;
            let head = counter.head;
            (at, Location::CounterStub { head, spilled })
        });
        let candidates = exits
            .chain(indirect)
            .chain(counters)
            .filter(|(at, _)| *at <= offset);
        candidates
            .max_by_key(|(at, _)| *at)
            .map(|(_, location)| location)
    }

    /// Bytes that code and stubs fill, in all generations: now, and at most so far.
    pub fn used_and_peak_bytes(&self) -> (usize, usize) {
        (self.arena.used(), self.arena.peak())
    }

    /// The arena's contents for a forked child: the arena itself would be shared with it.
    ///
    /// # Errors
    /// The kernel's: no memory.
    pub fn copy(&self) -> io::Result<DualMapCopy> {
        self.arena.copy()
    }

    /// From now on the code is in `copy`, which was made of this cache.
    ///
    /// # Errors
    /// The kernel's; the code may be gone then.
    pub fn show(&mut self, copy: DualMapCopy) -> io::Result<()> {
        self.arena.show(copy)
    }

    /// The generated code of the fragment that starts at `addr`, for people to read.
    pub fn code_of(&self, addr: GuestAddr) -> Option<(HostAddr, Vec<u8>)> {
        let &(id, _) = self.index.get(&addr)?;
        let code = self.fragment(id).code.clone();
        let start = self.arena.exec_addr(code.start);
        // SAFETY: a live fragment's bytes in our own executable view, readable.
        let bytes = unsafe { std::slice::from_raw_parts(start.0 as *const u8, code.len()) };
        Some((start, bytes.to_vec()))
    }
}

pub(super) fn rel32(next: HostAddr, target: HostAddr) -> i32 {
    i32::try_from(target.0 as i64 - next.0 as i64).expect("within the arena")
}
