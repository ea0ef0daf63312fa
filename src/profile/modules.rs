//! Which module lies where: guest address ranges to module and file offset. The process
//! tells it of executable file mappings; the profile asks it for each new block and, at
//! save time, for each branch target.

use std::ops::Range;
use std::path::{Path, PathBuf};

use hashbrown::HashMap;
use profile_db::ModuleId;

use super::identity::Identity;
use crate::addr::GuestAddr;

/// A module of this run, a small dense number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ModuleIndex(pub u32);

impl ModuleIndex {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A module that is or was mapped in this run.
#[derive(Debug)]
pub(super) struct Module {
    pub identity: Identity,
    pub path: PathBuf,
}

#[derive(Clone, Debug)]
struct Mapping {
    start: GuestAddr,
    end: GuestAddr,
    /// File offset of `start`.
    offset: u64,
    module: ModuleIndex,
}

/// See the module documentation. A module keeps its index when it is unmapped and mapped
/// again.
#[derive(Default, Debug)]
pub struct ModuleMap {
    /// Sorted, without overlaps.
    mappings: Vec<Mapping>,
    modules: Vec<Module>,
    by_id: HashMap<ModuleId, ModuleIndex>,
}

impl ModuleMap {
    pub fn new() -> ModuleMap {
        ModuleMap::default()
    }

    /// Says that `range` now maps the file at `path` from `file_offset` on, in place of
    /// whatever was there.
    pub fn add_mapping(
        &mut self,
        range: Range<GuestAddr>,
        path: &Path,
        file_offset: u64,
        identity: Identity,
    ) -> ModuleIndex {
        let module = match self.by_id.get(&identity.id) {
            Some(&module) => module,
            None => {
                let module = ModuleIndex(self.modules.len() as u32);
                self.by_id.insert(identity.id.clone(), module);
                self.modules.push(Module {
                    identity,
                    path: path.into(),
                });
                module
            }
        };
        self.remove(range.clone());
        if range.start < range.end {
            let at = self.mappings.partition_point(|m| m.start < range.start);
            let mapping = Mapping {
                start: range.start,
                end: range.end,
                offset: file_offset,
                module,
            };
            self.mappings.insert(at, mapping);
        }
        module
    }

    /// Says that `range` maps no module any more; mappings across its ends are cut.
    pub fn remove(&mut self, range: Range<GuestAddr>) {
        let first = self.mappings.partition_point(|m| m.end <= range.start);
        let last = self.mappings.partition_point(|m| m.start < range.end);
        if first >= last || range.start >= range.end {
            return;
        }
        let mut kept = Vec::with_capacity(2);
        let before = &self.mappings[first];
        if before.start < range.start {
            kept.push(Mapping {
                end: range.start,
                ..before.clone()
            });
        }
        let after = &self.mappings[last - 1];
        if range.end < after.end {
            kept.push(Mapping {
                start: range.end,
                offset: after.offset + (range.end.0 - after.start.0),
                ..after.clone()
            });
        }
        self.mappings.splice(first..last, kept);
    }

    /// The module at `addr`, and the file offset that is mapped there.
    pub fn locate(&self, addr: GuestAddr) -> Option<(ModuleIndex, u64)> {
        let after = self.mappings.partition_point(|m| m.start <= addr);
        let mapping = self.mappings[..after].last().filter(|m| addr < m.end)?;
        let offset = mapping.offset.checked_add(addr.0 - mapping.start.0)?;
        Some((mapping.module, offset))
    }

    /// True when some of `range` maps a module.
    pub fn overlaps(&self, range: &Range<GuestAddr>) -> bool {
        let first = self.mappings.partition_point(|m| m.end <= range.start);
        self.mappings
            .get(first)
            .is_some_and(|m| m.start < range.end)
    }

    /// The identity of a module.
    /// Where an offset in a module's file is mapped, if it is.
    pub fn address(&self, module: ModuleIndex, offset: u64) -> Option<GuestAddr> {
        self.mappings.iter().find_map(|mapping| {
            let within = offset.checked_sub(mapping.offset)?;
            let is_there = mapping.module == module && within < mapping.end.0 - mapping.start.0;
            is_there.then(|| GuestAddr(mapping.start.0 + within))
        })
    }

    /// The module of this run with that identity.
    pub fn find(&self, id: &ModuleId) -> Option<ModuleIndex> {
        self.by_id.get(id).copied()
    }

    pub fn id(&self, module: ModuleIndex) -> &ModuleId {
        &self.modules[module.index()].identity.id
    }

    /// Where a module's file was when it was first mapped.
    pub fn path(&self, module: ModuleIndex) -> &Path {
        &self.modules[module.index()].path
    }

    pub(super) fn modules(&self) -> &[Module] {
        &self.modules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: u8) -> Identity {
        Identity {
            id: ModuleId::Content([name; 16]),
            size: 1,
        }
    }

    fn at(start: u64, end: u64) -> Range<GuestAddr> {
        GuestAddr(start)..GuestAddr(end)
    }

    #[test]
    fn addresses_become_file_offsets() {
        let mut map = ModuleMap::new();
        let a = map.add_mapping(at(0x5000, 0x8000), Path::new("/a"), 0x1000, identity(1));
        let b = map.add_mapping(at(0x1000, 0x2000), Path::new("/b"), 0, identity(2));
        assert_eq!(map.locate(GuestAddr(0x5010)), Some((a, 0x1010)));
        assert_eq!(map.locate(GuestAddr(0x7fff)), Some((a, 0x3fff)));
        assert_eq!(map.locate(GuestAddr(0x8000)), None);
        assert_eq!(map.locate(GuestAddr(0x4fff)), None);
        assert_eq!(map.locate(GuestAddr(0x1000)), Some((b, 0)));
        assert_eq!(map.path(b), Path::new("/b"));
    }

    #[test]
    fn removing_cuts_and_mapping_over_replaces() {
        let mut map = ModuleMap::new();
        let a = map.add_mapping(at(0x1000, 0x9000), Path::new("/a"), 0, identity(1));
        map.remove(at(0x3000, 0x4000));
        assert_eq!(map.locate(GuestAddr(0x2fff)), Some((a, 0x1fff)));
        assert_eq!(map.locate(GuestAddr(0x3000)), None);
        assert_eq!(map.locate(GuestAddr(0x4000)), Some((a, 0x3000)));
        let b = map.add_mapping(at(0x2000, 0x5000), Path::new("/b"), 0x100, identity(2));
        assert_eq!(map.locate(GuestAddr(0x1fff)), Some((a, 0xfff)));
        assert_eq!(map.locate(GuestAddr(0x3000)), Some((b, 0x1100)));
        assert_eq!(map.locate(GuestAddr(0x5000)), Some((a, 0x4000)));
        assert!(map.overlaps(&at(0, 0x1001)) && !map.overlaps(&at(0x9000, 0xa000)));
        map.remove(at(0, u64::MAX));
        assert!(!map.overlaps(&at(0, u64::MAX)));
        // A module mapped again keeps its index.
        let again = map.add_mapping(at(0x1000, 0x2000), Path::new("/a"), 0, identity(1));
        assert_eq!(again, a);
    }

    #[test]
    fn the_map_agrees_with_a_table_of_pages() {
        for seed in 0..200u64 {
            let mut state = seed * 2 + 1;
            let mut random = |bound: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(99);
                (state >> 33) % bound
            };
            let mut map = ModuleMap::new();
            let mut table = [None; 32];
            for _ in 0..40 {
                let start = random(32);
                let end = start + random(33 - start);
                if random(3) == 0 {
                    map.remove(at(start, end));
                    table[start as usize..end as usize].fill(None);
                } else {
                    let (name, offset) = (random(4) as u8, random(1000));
                    let range = at(start, end);
                    let module = map.add_mapping(range, Path::new("/m"), offset, identity(name));
                    for page in start..end {
                        table[page as usize] = Some((module, offset + page - start));
                    }
                }
                for (page, expected) in table.iter().enumerate() {
                    let found = map.locate(GuestAddr(page as u64));
                    assert_eq!(found, *expected, "seed {seed}");
                }
            }
        }
    }
}
