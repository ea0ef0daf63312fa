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
/// All heads together are counted at most once in so many TSC cycles: a count costs some
/// ten. A head beyond that isn't counted any more.
const MIN_CYCLES: u64 = 1500;
/// A head with a pass in at most so many TSC cycles may be worth a superblock.
const HOT_CYCLES: u64 = 50_000;
/// Executions until a counter runs out where everything is hot at once.
const FORCED_PERIOD: i32 = 20;
/// TSC cycles between bursts, at least (some 20 ms) and at most.
const BURST_INTERVAL: u64 = 50_000_000;
const MAX_BURST_INTERVAL: u64 = 100 * BURST_INTERVAL;
/// After a burst, so many times its own duration pass before the next.
const BURST_SHARE: u64 = 250;
/// Blocks that a burst interprets, about 50 us.
const BURST_BLOCKS: u32 = 800;

struct Head {
    cell: u32,
    period: i32,
    since: u64,
    /// Counts per TSC cycle when it last ran out; 0 before.
    rate: f32,
    disabled: bool,
}

/// What to do about a counter that ran out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct RanOut {
    /// Switch the counter off.
    pub disable: bool,
    /// Interpret so many blocks.
    pub burst: u32,
    /// It may well be what the program spends its time on.
    pub hot: bool,
    /// Counts per TSC cycle.
    pub rate: f32,
}

pub(super) struct Counters {
    heads: HashMap<GuestAddr, Head>,
    used: usize,
    /// Everything is hot at once.
    forced: bool,
    /// Counts per TSC cycle of all heads that are counted.
    rate: f32,
    burst_started: u64,
    next_burst: u64,
}

impl Counters {
    /// Maps the cells.
    ///
    /// # Errors
    /// The kernel's, when the address range is taken.
    pub(super) fn new(forced: bool) -> io::Result<Counters> {
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
            forced,
            rate: 0.0,
            burst_started: 0,
            next_burst: cycles() + BURST_INTERVAL,
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
        let period = if self.forced {
            FORCED_PERIOD
        } else {
            FIRST_PERIOD
        };
        set(cell, period);
        let fresh = Head {
            cell,
            period,
            since: cycles(),
            rate: 0.0,
            disabled: false,
        };
        self.heads.insert(head, fresh);
        Some(cell)
    }

    /// The cell of a head that has one.
    pub(super) fn known_cell(&self, head: GuestAddr) -> Option<u32> {
        self.heads.get(&head).map(|known| known.cell)
    }

    /// The counter of `head` runs out after so many passes.
    pub(super) fn set_passes(&mut self, head: GuestAddr, passes: u32) {
        if let Some(known) = self.heads.get(&head) {
            set(known.cell, passes as i32);
        }
    }

    /// The counter of `head` ran out.
    pub(super) fn ran_out(&mut self, head: GuestAddr) -> RanOut {
        let now = cycles();
        let Some(state) = self.heads.get_mut(&head) else {
            return RanOut {
                disable: true,
                burst: 0,
                hot: false,
                rate: 0.0,
            };
        };
        let elapsed = now.saturating_sub(state.since).max(1);
        let others = self.rate - state.rate;
        let rate = state.period as f32 / elapsed as f32;
        let hot = elapsed / HOT_CYCLES < state.period as u64;
        state.disabled = !self.forced && (others + rate) * MIN_CYCLES as f32 > 1.0;
        state.rate = if state.disabled { 0.0 } else { rate };
        self.rate = others + state.rate;
        if !state.disabled {
            state.period = (state.period * 2).min(MAX_PERIOD);
        }
        state.since = now;
        set(state.cell, state.period);
        let disable = state.disabled;
        RanOut {
            disable,
            burst: self.burst_due(now),
            hot: hot || self.forced,
            rate,
        }
    }

    /// A visit to the dispatcher for another reason: how many blocks are to be interpreted.
    pub(super) fn visited(&mut self) -> u32 {
        self.burst_due(cycles())
    }

    fn burst_due(&mut self, now: u64) -> u32 {
        if now < self.next_burst {
            return 0;
        }
        self.burst_started = now;
        self.next_burst = now + MAX_BURST_INTERVAL;
        BURST_BLOCKS
    }

    /// The burst is over; the next comes when this one has cost little.
    pub(super) fn burst_over(&mut self) {
        let now = cycles();
        let pause = BURST_SHARE * now.saturating_sub(self.burst_started);
        self.next_burst = now + pause.clamp(BURST_INTERVAL, MAX_BURST_INTERVAL);
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
