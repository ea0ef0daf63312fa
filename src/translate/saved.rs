//! Fragments as they are kept for later runs: many in one piece of bytes, linked to each
//! other, wherever the module that they were made from and the piece itself will lie. An
//! address in it is a *place*: the distance from the module's bias, which is the address
//! where its file's first byte would be mapped.
//!
//! What [`save`] writes, [`Saved::parse`] reads and [`Translator::restore`] turns into a
//! fragment again: an ordinary one, with several parts. Stubs aren't kept but made again. All
//! that is read is checked first, so that bytes which aren't what they claim cost their use
//! and do no harm beyond that; that they are those which were written is the reader's to
//! check, with a checksum.
//!
//! The bytes: eight numbers (see [`COUNTS`]), then tables of records, then the state map and
//! the code. All numbers are 32 bits wide, little-endian.

use std::ops::Range;

use hashbrown::{HashMap, HashSet};

use super::emit::COUNT_DOWN_BYTES;
use super::fragment::{Settings, Translation, Translator, stub_bytes};
use crate::addr::{GuestAddr, HostAddr};
use crate::codecache::{
    Entry, IndirectEntry, LATE_ENTRY_BYTES, MAP_REACH, Movable, Part, Relocation,
};
use crate::decode::MAX_BLOCK_INSTRUCTIONS;

/// Bytes of one record of each table, in the tables' order: entries, exits, counters, parts,
/// relocations; then of one byte of state map and of code.
const RECORDS: [usize; COUNTS] = [16, 8, 8, 20, 4, 1, 1];
/// Tables, each with its number of records in front.
const COUNTS: usize = 7;
/// One more number in front, so that everything after is aligned to 8: zero.
const HEADER: usize = 4 * (COUNTS + 1);

/// How an entry for indirect branches is written: none, a stub, or this plus its offset.
const NO_INDIRECT: u32 = 0;
const INDIRECT_STUB: u32 = 1;
const INDIRECT_CODE: u32 = 2;

/// What a near jump becomes that isn't taken any more.
const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];
const JUMP: u8 = 0xe9;

/// No guest code or data lies below, and none that code kept here addresses lies closer to
/// the map's reach: so a displacement reaches all of it from anywhere in the arena.
const LOWEST: i64 = 0x1_0000;
const HIGHEST: i64 = MAP_REACH.0 as i64 - 0x1_0000;

/// An instruction has at most 15 bytes (Intel SDM volume 2, section 2.3.11).
const MAX_BLOCK: u32 = (MAX_BLOCK_INSTRUCTIONS as u32 + 1) * 15;

/// Writes `fragments`, all made from the module whose bias is `bias`, as one. `reached` says
/// whether indirect branches reach a block. Fragments that can't be kept are left out; `None`
/// if that leaves none. Also says how many blocks there are.
pub fn save(
    fragments: &[Movable],
    bias: u64,
    reached: &dyn Fn(GuestAddr) -> bool,
) -> Option<(Vec<u8>, usize)> {
    let mut tables: [Vec<u8>; COUNTS] = Default::default();
    let mut within: HashMap<GuestAddr, u32> = HashMap::new();
    let mut heads: HashSet<GuestAddr> = HashSet::new();
    let mut placed = Vec::with_capacity(fragments.len());
    let mut at = 0u32;
    for fragment in fragments {
        if !is_keepable(fragment, bias) {
            continue;
        }
        for entry in fragment.entries() {
            within.insert(entry.guest, at + entry.code_at);
        }
        heads.extend(fragment.counters().iter().map(|counter| counter.head));
        placed.push((at, fragment));
        at = (at + fragment.code().len() as u32).next_multiple_of(16);
    }
    let place = |addr: GuestAddr| addr.0.wrapping_sub(bias) as u32;
    for &(at, fragment) in &placed {
        let [entries, exits, counters, parts, relocations, recovery, code] = &mut tables;
        code.resize(at as usize, 0xcc);
        code.extend_from_slice(fragment.code());
        let recovery_at = recovery.len() as u32;
        recovery.extend_from_slice(fragment.recovery());
        for entry in fragment.entries() {
            let indirect = match entry.indirect {
                Some(IndirectEntry::Code(offset)) => INDIRECT_CODE + at + offset,
                Some(IndirectEntry::Stub(_)) => INDIRECT_STUB,
                None if reached(entry.guest) => INDIRECT_STUB,
                None => NO_INDIRECT,
            };
            let lengths = entry.guest_len << 16 | entry.copied;
            put(
                entries,
                &[place(entry.guest), lengths, at + entry.code_at, indirect],
            );
        }
        for (patch_at, target) in fragment.exits() {
            let patch_at = at + patch_at;
            // What leads to a path head stays an exit: a superblock may take its place.
            match within.get(&target).filter(|_| !heads.contains(&target)) {
                Some(&entry) => put_at(code, patch_at, entry.wrapping_sub(patch_at + 4)),
                None => put(exits, &[place(target), patch_at]),
            }
        }
        for counter in fragment.counters() {
            let patch_at = at + counter.patch_at;
            // One that was switched off tells the next run, too, that its head is hot.
            code[patch_at as usize - 1] = JUMP;
            put(counters, &[place(counter.head), patch_at]);
        }
        for part in fragment.parts() {
            let hash = [part.hash as u32, (part.hash >> 32) as u32];
            let at = [at + part.code_at, recovery_at + part.recovery_at];
            put(parts, &[at[0], at[1], place(part.head), hash[0], hash[1]]);
        }
        // As if the whole lay at address 0 and the module had no bias.
        let moved_by = fragment.at().0.wrapping_sub(u64::from(at)) as u32;
        for relocation in fragment.relocations() {
            let relocation = relocation.moved(at);
            let distance = relocation.is_distance();
            let value = read(code, relocation.at()).wrapping_sub(bias as u32);
            let back = if distance { moved_by } else { 0 };
            put_at(code, relocation.at(), value.wrapping_add(back));
            put(relocations, &[relocation.to_bits()]);
        }
    }
    if placed.is_empty() {
        return None;
    }
    let blocks = tables[0].len() / RECORDS[0];
    let mut bytes = Vec::with_capacity(HEADER + tables.iter().map(Vec::len).sum::<usize>());
    put(&mut bytes, &[0]);
    for (table, record) in tables.iter().zip(RECORDS) {
        put(&mut bytes, &[(table.len() / record) as u32]);
    }
    for table in &tables {
        bytes.extend_from_slice(table);
    }
    Some((bytes, blocks))
}

/// Whether all that a fragment names lies where it can be named as a place, and will be
/// reached by 32 bits.
fn is_keepable(fragment: &Movable, bias: u64) -> bool {
    let reachable = |addr: i64| (LOWEST..HIGHEST).contains(&addr);
    let nameable = |addr: GuestAddr| reachable(addr.0 as i64) && addr.0 >= bias;
    let code = fragment.code();
    let end = |at: u32| fragment.at().0 as i64 + i64::from(at) + 4;
    fragment.entries().iter().all(|entry| nameable(entry.guest))
        && fragment.exits().all(|(_, target)| nameable(target))
        && fragment.relocations().iter().all(|relocation| {
            let value = read(code, relocation.at()) as i32;
            if relocation.is_distance() {
                reachable(end(relocation.at()) + i64::from(value))
            } else {
                nameable(GuestAddr(value as u64))
            }
        })
}

fn put(table: &mut Vec<u8>, values: &[u32]) {
    for value in values {
        table.extend_from_slice(&value.to_le_bytes());
    }
}

fn put_at(code: &mut [u8], at: u32, value: u32) {
    code[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
}

/// The number at a place that was checked.
fn read(bytes: &[u8], at: u32) -> u32 {
    let at = at as usize;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Fragments of an earlier run, read but not in use.
#[derive(Clone, Copy)]
pub struct Saved<'b> {
    bytes: &'b [u8],
    /// Where each table ends; it starts where the one before it ends.
    ends: [usize; COUNTS],
}

/// A block of them.
#[derive(Clone, Copy, Debug)]
struct SavedEntry {
    place: u32,
    len: u32,
    copied: u32,
    code_at: u32,
    indirect: u32,
}

impl<'b> Saved<'b> {
    /// Takes the bytes for what [`save`] wrote, if they can be that.
    pub fn parse(bytes: &'b [u8]) -> Option<Saved<'b>> {
        if bytes.len() < HEADER || bytes.len() > i32::MAX as usize {
            return None;
        }
        let mut ends = [0; COUNTS];
        let mut end = HEADER;
        for table in 0..COUNTS {
            let count = read(bytes, 4 * (table as u32 + 1)) as usize;
            end = end.checked_add(count.checked_mul(RECORDS[table])?)?;
            ends[table] = end;
        }
        let saved = Saved { bytes, ends };
        (end == bytes.len() && saved.is_consistent()).then_some(saved)
    }

    fn table(&self, table: usize) -> &'b [u8] {
        let start = table.checked_sub(1).map_or(HEADER, |b| self.ends[b]);
        &self.bytes[start..self.ends[table]]
    }

    fn records(&self, table: usize) -> std::slice::ChunksExact<'b, u8> {
        self.table(table).chunks_exact(RECORDS[table])
    }

    fn entries(&self) -> impl Iterator<Item = SavedEntry> + 'b {
        self.records(0).map(|record| SavedEntry {
            place: read(record, 0),
            len: read(record, 4) >> 16,
            copied: read(record, 4) & 0xffff,
            code_at: read(record, 8),
            indirect: read(record, 12),
        })
    }

    /// Place of the target, offset of the displacement.
    fn exits(&self) -> impl Iterator<Item = (u32, u32)> + 'b {
        self.records(1).map(|r| (read(r, 0), read(r, 4)))
    }

    /// Place of the head, offset of the displacement.
    fn counters(&self) -> impl Iterator<Item = (u32, u32)> + 'b {
        self.records(2).map(|r| (read(r, 0), read(r, 4)))
    }

    fn parts(&self, bias: u64) -> impl Iterator<Item = Part> + 'b {
        self.records(3).map(move |r| Part {
            code_at: read(r, 0),
            recovery_at: read(r, 4),
            head: GuestAddr(bias + u64::from(read(r, 8))),
            hash: u64::from(read(r, 12)) | u64::from(read(r, 16)) << 32,
        })
    }

    fn relocations(&self) -> impl Iterator<Item = Relocation> + 'b {
        self.records(4).map(|r| Relocation::from_bits(read(r, 0)))
    }

    /// Whether every record stays within the code and the map.
    fn is_consistent(&self) -> bool {
        let code = self.table(6);
        let code_len = code.len() as u32;
        let field = |at: u32| at.checked_add(4).is_some_and(|end| end <= code_len);
        // In an aligned word of 8 bytes, as what is patched must be.
        let patchable = |at: u32, bytes: u32| field(at) && at % 8 + bytes <= 8;
        let mut last = 0;
        let mut ascends = |at: u32| at >= std::mem::replace(&mut last, at);
        let entries = self.entries().all(|entry| {
            ascends(entry.code_at)
                && entry.code_at < code_len
                && entry.indirect < INDIRECT_CODE.saturating_add(code_len)
                && entry.copied <= entry.len
                && (1..=MAX_BLOCK).contains(&entry.len)
        });
        let recovery_len = self.table(5).len() as u32;
        let mut expected_part = 0;
        let parts = self.parts(0).enumerate().all(|(index, part)| {
            let right = if index == 0 {
                part.code_at == 0
            } else {
                part.code_at > expected_part
            };
            expected_part = part.code_at;
            right && part.code_at < code_len && part.recovery_at <= recovery_len
        });
        entries
            && parts
            && self.entries().next().is_some()
            && self.records(3).next().is_some()
            && self.exits().all(|(_, at)| patchable(at, 4))
            && self
                .counters()
                .all(|(_, at)| at > 0 && field(at) && (at - 1) % 8 + 5 <= 8)
            && self.relocations().all(|relocation| field(relocation.at()))
    }

    /// The guest code that the blocks were made from.
    pub fn ranges(&self, bias: u64) -> impl Iterator<Item = Range<GuestAddr>> + 'b {
        self.entries().map(move |entry| {
            let start = GuestAddr(bias + u64::from(entry.place));
            start..start.offset(i64::from(entry.len))
        })
    }

    pub fn blocks(&self) -> usize {
        self.records(0).len()
    }

    /// Whether the guest's code is what the blocks were made from: `fetch` gives the code at
    /// an address, of that length, if it can be had; `hash` is that of parts.
    pub fn matches(
        &self,
        bias: u64,
        mut fetch: impl FnMut(GuestAddr, &mut [u8]) -> bool,
        hash: impl Fn(&[u8]) -> u64,
    ) -> bool {
        let mut entries = self.entries().peekable();
        let mut parts = self.parts(bias).peekable();
        let mut copied = Vec::new();
        while let Some(part) = parts.next() {
            let end = parts.peek().map_or(u32::MAX, |next| next.code_at);
            copied.clear();
            // Neighbours are fetched together.
            let mut run: Option<(u64, u32)> = None;
            let mut take = |run: (u64, u32), copied: &mut Vec<u8>| {
                let start = copied.len();
                copied.resize(start + run.1 as usize, 0);
                fetch(GuestAddr(run.0), &mut copied[start..])
            };
            while let Some(entry) = entries.next_if(|entry| entry.code_at < end) {
                let start = bias + u64::from(entry.place);
                run = match run {
                    Some((at, len)) if at + u64::from(len) == start => {
                        Some((at, len + entry.copied))
                    }
                    Some(before) => {
                        if !take(before, &mut copied) {
                            return false;
                        }
                        Some((start, entry.copied))
                    }
                    None => Some((start, entry.copied)),
                };
            }
            if run.is_some_and(|run| !take(run, &mut copied)) || hash(&copied) != part.hash {
                return false;
            }
        }
        true
    }

    /// The most bytes that the fragment takes, code and stubs together.
    pub fn room(&self) -> usize {
        let stub = stub_bytes(GuestAddr(0));
        self.table(6).len()
            + self.records(1).len() * stub
            + self.records(2).len() * (COUNT_DOWN_BYTES as usize + stub)
            + self.blocks() * LATE_ENTRY_BYTES
    }
}

impl Translator {
    /// Makes a fragment of what an earlier run kept. `cell` says which cell counts a path
    /// head, if any; blocks that are `known` already get no entry. `None`: it can't be had
    /// at these addresses, or would have no entry.
    pub fn restore(
        &mut self,
        saved: &Saved,
        bias: u64,
        settings: Settings,
        mut cell: impl FnMut(GuestAddr) -> Option<u32>,
        known: impl Fn(GuestAddr) -> bool,
    ) -> Option<Translation<'_>> {
        let reachable = |addr: i64| (LOWEST..HIGHEST).contains(&addr);
        let guest = |place: u32| {
            let addr = bias + u64::from(place);
            reachable(addr as i64).then_some(GuestAddr(addr))
        };
        let HostAddr(base) = settings.code_base;
        self.restart(GuestAddr(0), settings);
        self.code.raw(saved.table(6));
        for relocation in saved.relocations() {
            let at = relocation.at();
            let kept = read(self.code.bytes(), at);
            let value = if relocation.is_distance() {
                let target = i64::from(kept as i32) + bias as i64;
                if !reachable(target + i64::from(at) + 4) {
                    return None;
                }
                target.wrapping_sub(base as i64) as u32
            } else {
                guest(kept)?.0 as u32
            };
            self.code.patch_u32(at, value);
            self.fragment.relocations.push(relocation);
        }
        for entry in saved.entries() {
            let addr = guest(entry.place)?;
            if known(addr) {
                continue;
            }
            let indirect = match entry.indirect {
                NO_INDIRECT => None,
                INDIRECT_STUB => {
                    self.outlined_entries.push(self.fragment.entries.len());
                    None
                }
                at => Some(IndirectEntry::Code(at - INDIRECT_CODE)),
            };
            self.fragment.entries.push(Entry {
                guest: addr,
                guest_len: entry.len,
                copied: entry.copied,
                code_at: entry.code_at,
                indirect,
            });
        }
        if self.fragment.entries.is_empty() {
            return None;
        }
        for (target, patch_at) in saved.exits() {
            self.exits.push((patch_at, guest(target)?));
        }
        for (head, patch_at) in saved.counters() {
            let head = guest(head)?;
            match cell(head) {
                Some(cell) => self.counters.push((patch_at, head, cell)),
                None => {
                    for (byte, at) in NOP.into_iter().zip(patch_at - 1..) {
                        self.code.patch_u8(at, byte);
                    }
                }
            }
        }
        self.recorder.copy(saved.table(5));
        self.fragment.parts.extend(saved.parts(bias));
        self.fragment.restored = true;
        self.finish();
        Some(Translation {
            fragment: &self.fragment,
            return_sites: &[],
            instructions: 0,
        })
    }
}
