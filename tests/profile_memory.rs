//! What a profile takes of a run's memory. A binary of its own, because it counts what is
//! allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use profile_db::{Durability, ModuleId, Store};
use temper::addr::GuestAddr;
use temper::decode::{Block, BlockEnd, Decoder, FileCode, MAX_BLOCK_INSTRUCTIONS};
use temper::guest::CpuMode;
use temper::profile::{Identity, Outcome, Profile};

/// Counts the bytes that are allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is the system's allocator's; the counters are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for `alloc`.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BLOCKS: u64 = 100_000;
/// From one block to the next: 24 bytes of code each.
const STEP: u64 = 24;
const BASE: u64 = 0x1000_0000;

/// A load through a register, padding, and a jump: what its block is changed to below.
const CODE: [u8; STEP as usize] = [
    0x8b, 0x04, 0x8f, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xeb, 0x00,
];

/// Ends as in large programs: half of them branches, many calls and returns.
fn end(number: u64, start: GuestAddr) -> BlockEnd {
    let near = |blocks: u64| GuestAddr(BASE + (number + blocks) % BLOCKS * STEP);
    let next = start.offset(STEP as i64);
    match number % 20 {
        0..10 => BlockEnd::Branch {
            taken: near(if number.is_multiple_of(5) {
                BLOCKS - 3
            } else {
                7
            }),
            next,
        },
        10..14 => BlockEnd::Call {
            target: near(901),
            return_to: next,
        },
        14 => BlockEnd::IndirectCall { return_to: next },
        15 => BlockEnd::IndirectJump,
        16 | 17 => BlockEnd::Return { pop: 0 },
        _ => BlockEnd::Jump { target: near(5) },
    }
}

#[test]
fn a_block_takes_at_most_three_hundred_bytes() {
    let home = tempfile::tempdir().expect("a folder");
    let store = Store::open(&home.path().join("profiles")).expect("a store");
    let mut block = Block::default();
    Decoder::new(CpuMode::Bits64)
        .block_into(
            &mut FileCode::new([(BASE, &CODE[..])]),
            GuestAddr(BASE),
            MAX_BLOCK_INSTRUCTIONS,
            &mut block,
        )
        .expect("instructions");
    let before = NOW.load(Ordering::Relaxed);
    let mut profile = Profile::new(Some(store));
    let identity = Identity {
        id: ModuleId::Content([1; 16]),
        size: BLOCKS * STEP,
    };
    let range = GuestAddr(BASE)..GuestAddr(BASE + BLOCKS * STEP);
    profile.map_module(range, Path::new("/lib/large"), 0, identity);
    let mut state = 1u64;
    let mut random = move |bound: u64| {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 33) % bound
    };
    for number in 0..BLOCKS {
        block.start = GuestAddr(BASE + number * STEP);
        block.end = end(number, block.start);
        let id = profile.block_id(&block);
        // Most code is cold, some is hot.
        let times = if number.is_multiple_of(10) { 40 } else { 3 };
        for _ in 0..times {
            profile.enter(id);
            if profile.wants_watching(id) {
                profile.choose_watched(id, &block);
            }
            match block.end {
                BlockEnd::Branch { .. } => {
                    let taken = random(3) == 0;
                    profile.edge(id, if taken { Outcome::Taken } else { Outcome::Next });
                }
                BlockEnd::IndirectCall { .. }
                | BlockEnd::IndirectJump
                | BlockEnd::Return { .. } => {
                    let target = BASE + (number + random(6) * 11) % BLOCKS * STEP;
                    profile.indirect(id, GuestAddr(target));
                }
                _ => {}
            }
        }
    }
    let running = NOW.load(Ordering::Relaxed) - before;
    PEAK.store(NOW.load(Ordering::Relaxed), Ordering::Relaxed);
    assert_eq!(profile.save(Durability::Routine).errors.len(), 0);
    let saving = PEAK.load(Ordering::Relaxed) - before;
    println!(
        "bytes a block: {} while running, {} at the height of a save",
        running as u64 / BLOCKS,
        saving as u64 / BLOCKS
    );
    assert!(running as u64 <= 300 * BLOCKS, "{running}");
}
