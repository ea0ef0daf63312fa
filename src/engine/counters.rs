//! Counters at path heads (loop heads, function entries) in translation blocks. A counter
//! counts down in generated code and leaves when it runs out; then a short burst in the
//! interpreter refreshes the profile. A head that runs out too soon is too hot to count: its
//! counter is switched off, so that counting costs little by construction.

use std::arch::x86_64::_rdtsc;
use std::io;

use hashbrown::HashMap;

use crate::addr::GuestAddr;
use crate::codecache::ARENA_LIMIT;

/// Cells lie right above the code arena, so that generated code addresses them absolutely.
const CELLS: u64 = ARENA_LIMIT.0;
const CELL_COUNT: usize = 1 << 18;

/// Executions until a counter runs out for the first time.
const FIRST_PERIOD: i32 = 4096;
const MAX_PERIOD: i32 = 1 << 20;
/// A head that comes around more often than every so many TSC cycles isn't counted: a
/// count costs about two.
const MIN_CYCLES: u64 = 400;
/// TSC cycles between bursts, some 20 ms.
const BURST_INTERVAL: u64 = 50_000_000;
/// Blocks that a burst interprets, about 50 us.
const BURST_BLOCKS: u32 = 800;

struct Head {
    cell: u32,
    period: i32,
    since: u64,
    disabled: bool,
}

/// What to do about a counter that ran out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RanOut {
    /// Switch the counter off.
    pub disable: bool,
    /// Interpret so many blocks.
    pub burst: u32,
}

pub(super) struct Counters {
    heads: HashMap<GuestAddr, Head>,
    used: usize,
    last_burst: u64,
}

impl Counters {
    /// Maps the cells.
    ///
    /// # Errors
    /// The kernel's, when the address range is taken.
    pub(super) fn new() -> io::Result<Counters> {
        // SAFETY: MAP_FIXED_NOREPLACE takes only free address space; it stays for good.
        let at = unsafe {
            libc::mmap(
                CELLS as *mut _,
                CELL_COUNT * 4,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Counters {
            heads: HashMap::new(),
            used: 0,
            last_burst: cycles(),
        })
    }

    /// The cell that counts `head`; `None` when it isn't to be counted.
    pub(super) fn cell(&mut self, head: GuestAddr) -> Option<u32> {
        if let Some(known) = self.heads.get(&head) {
            return (!known.disabled).then_some(known.cell);
        }
        if self.used == CELL_COUNT {
            return None;
        }
        let cell = (CELLS + 4 * self.used as u64) as u32;
        self.used += 1;
        set(cell, FIRST_PERIOD);
        let fresh = Head {
            cell,
            period: FIRST_PERIOD,
            since: cycles(),
            disabled: false,
        };
        self.heads.insert(head, fresh);
        Some(cell)
    }

    /// The counter of `head` ran out.
    pub(super) fn ran_out(&mut self, head: GuestAddr) -> RanOut {
        let now = cycles();
        let Some(state) = self.heads.get_mut(&head) else {
            return RanOut {
                disable: true,
                burst: 0,
            };
        };
        let elapsed = now.saturating_sub(state.since);
        state.disabled = elapsed < state.period as u64 * MIN_CYCLES;
        if !state.disabled {
            state.period = (state.period * 2).min(MAX_PERIOD);
        }
        state.since = now;
        set(state.cell, state.period);
        let due = now.saturating_sub(self.last_burst) >= BURST_INTERVAL;
        if due {
            self.last_burst = now;
        }
        RanOut {
            disable: state.disabled,
            burst: if due { BURST_BLOCKS } else { 0 },
        }
    }

    /// A visit to the dispatcher for another reason: whether a burst is due.
    pub(super) fn burst_due(&mut self) -> Option<u32> {
        let now = cycles();
        (now.saturating_sub(self.last_burst) >= BURST_INTERVAL).then(|| {
            self.last_burst = now;
            BURST_BLOCKS
        })
    }
}

fn set(cell: u32, value: i32) {
    // SAFETY: a cell of our own mapping, aligned; generated code changes it with plain
    // 4-byte accesses, and a lost count does no harm.
    unsafe {
        (*(cell as usize as *const std::sync::atomic::AtomicI32))
            .store(value, std::sync::atomic::Ordering::Relaxed);
    }
}

fn cycles() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it enabled.
    unsafe { _rdtsc() }
}
