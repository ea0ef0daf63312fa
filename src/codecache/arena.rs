//! The arena behind the cache: one dual mapping below 2 GiB, cut into generations. Within
//! a generation hot code grows upward from the bottom and exit stubs, which run once each,
//! grow downward from the top, so that stubs don't dilute the instruction cache.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::HostAddr;
use crate::host::{DualMap, DualMapCopy};

/// Where the executable view starts. Below 2 GiB, so that guest code there can be reached
/// by 32-bit displacements in both directions.
pub const ARENA_BASE: HostAddr = HostAddr(0x7000_0000);
/// Where the arena's reserved range ends: the cache is at most 128 MiB.
pub const ARENA_LIMIT: HostAddr = HostAddr(0x7800_0000);

const GENERATIONS: usize = 4;

/// Room for one fragment: code from `code_at` upward, stubs ending at `stubs_end`.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub generation: usize,
    /// Offset in the arena of the first free code byte.
    pub code_at: usize,
    /// Offset in the arena of the end of the free stub space.
    pub stubs_end: usize,
}

#[derive(Debug)]
pub(super) struct Arena {
    map: DualMap,
    generation_bytes: usize,
    current: usize,
    code_at: usize,
    stubs_end: usize,
    /// Bytes filled in each generation, and the most that all together ever were.
    used: [usize; GENERATIONS],
    peak: usize,
}

impl Arena {
    pub(super) fn new(bytes: usize) -> io::Result<Arena> {
        let limit = (ARENA_LIMIT.0 - ARENA_BASE.0) as usize;
        let bytes = bytes.clamp(256 << 10, limit);
        let generation_bytes = (bytes / GENERATIONS) & !4095;
        let map = DualMap::new(generation_bytes * GENERATIONS, Some(ARENA_BASE))?;
        Ok(Arena {
            map,
            generation_bytes,
            current: 0,
            code_at: 0,
            stubs_end: generation_bytes,
            used: [0; GENERATIONS],
            peak: 0,
        })
    }

    pub(super) fn space(&self) -> Space {
        Space {
            generation: self.current,
            code_at: self.code_at,
            stubs_end: self.stubs_end,
        }
    }

    /// Whether `bytes` of code and stubs together fit into the current generation.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        // One instruction's worth of slack keeps prefetching out of the stubs.
        self.stubs_end - self.code_at >= bytes + 64
    }

    /// The most that a fragment may take, code and stubs together.
    pub(super) fn max_fragment(&self) -> usize {
        self.generation_bytes / 2
    }

    /// Moves to the next generation and returns its number: its old contents must be
    /// unlinked before anything is written.
    pub(super) fn advance(&mut self) -> usize {
        self.current = (self.current + 1) % GENERATIONS;
        self.reset_current();
        self.current
    }

    /// Starts over with an empty first generation; all contents must be unlinked.
    pub(super) fn clear(&mut self) {
        self.current = 0;
        self.used = [0; GENERATIONS];
        self.reset_current();
    }

    fn reset_current(&mut self) {
        self.code_at = self.current * self.generation_bytes;
        self.stubs_end = self.code_at + self.generation_bytes;
        self.used[self.current] = 0;
    }

    pub(super) fn install(&mut self, code: &[u8], stubs: &[u8]) {
        assert!(self.fits(code.len() + stubs.len()));
        self.map.write_at(self.code_at, code);
        self.map.write_at(self.stubs_end - stubs.len(), stubs);
        // Entries are aligned so that hot loops don't start at a line's end.
        self.code_at = (self.code_at + code.len())
            .next_multiple_of(16)
            .min(self.stubs_end);
        self.stubs_end -= stubs.len();
        self.used[self.current] = self.generation_bytes - (self.stubs_end - self.code_at);
        self.peak = self.peak.max(self.used());
    }

    /// Lets generated code run, or makes every thread that runs it fault.
    pub(super) fn set_executable(&self, executable: bool) -> io::Result<()> {
        let last = self.used.iter().rposition(|&bytes| bytes > 0);
        let end = last.map_or(0, |last| (last + 1) * self.generation_bytes);
        self.map.set_executable(0..end, executable)
    }

    /// Bytes filled in all generations. What is dropped before its generation retires
    /// leaves its place filled.
    pub(super) fn used(&self) -> usize {
        self.used.iter().sum()
    }

    /// The most that [`Arena::used`] ever was.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }

    pub(super) fn generation_bytes(&self) -> usize {
        self.generation_bytes
    }

    /// All code and stubs, for a forked child.
    pub(super) fn copy(&self) -> io::Result<DualMapCopy> {
        let whole = |generation: usize| {
            let start = generation * self.generation_bytes;
            start..start + self.generation_bytes
        };
        let mut used: Vec<Range<usize>> = (0..GENERATIONS)
            .filter(|&generation| generation != self.current && self.used[generation] > 0)
            .map(whole)
            .collect();
        let current = whole(self.current);
        used.extend([current.start..self.code_at, self.stubs_end..current.end]);
        self.map.copy(&used)
    }

    /// From now on all code is in `copy`.
    pub(super) fn show(&mut self, copy: DualMapCopy) -> io::Result<()> {
        self.map.show(copy)
    }

    /// What is there, whether or not it may be executed at the moment.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.map.len());
        // SAFETY: within the writable view, which is initialized memory of the arena's own;
        // patching takes the arena mutably.
        unsafe { std::slice::from_raw_parts(self.map.write_ptr(range.start), range.len()) }
    }

    pub(super) fn exec_addr(&self, offset: usize) -> HostAddr {
        self.map.exec_addr(offset)
    }

    pub(super) fn offset_of(&self, addr: HostAddr) -> Option<usize> {
        self.map.offset_of(addr)
    }

    /// Stores a branch displacement that generated code may be executing right now.
    pub(super) fn patch_rel32(&mut self, at: usize, value: i32) {
        self.patch(at, 4, u64::from(value as u32));
    }

    /// Makes the near jump at `at` a NOP (Intel SDM volume 2, NOP).
    pub(super) fn patch_jump_away(&mut self, at: usize) {
        self.patch(at, 5, u64::from_le_bytes([0x0f, 0x1f, 0x44, 0, 0, 0, 0, 0]));
    }

    /// Makes the five bytes at `at` a near jump again.
    pub(super) fn patch_jump(&mut self, at: usize, rel32: i32) {
        self.patch(at, 5, 0xe9 | u64::from(rel32 as u32) << 8);
    }

    /// The bytes lie within an aligned 8-byte word, so every CPU sees the old or the new
    /// value, never a mixture (Intel SDM volume 3, section 9.1.1; AMD APM volume 2, 7.3.2).
    fn patch(&mut self, at: usize, bytes: usize, value: u64) {
        assert!(at % 8 + bytes <= 8 && at + bytes <= self.map.len());
        let shift = (at & 7) * 8;
        // SAFETY: within the mapping, 8-byte aligned; only the cache's owner patches.
        let word = unsafe { &*self.map.write_ptr(at & !7).cast::<AtomicU64>() };
        let mask = (u64::MAX >> (64 - bytes * 8)) << shift;
        let new = (word.load(Ordering::Relaxed) & !mask) | (value << shift);
        word.store(new, Ordering::Release);
    }
}
