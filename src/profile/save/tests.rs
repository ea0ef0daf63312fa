use std::path::{Path, PathBuf};
use std::time::Duration;

use profile_db::Counts;

use super::*;
use crate::decode::Block;
use crate::decode::BlockEnd;
use crate::profile::counters::tests::{block, branch, identity};
use crate::profile::{Bias, BlockId, KnownHot, Outcome, SaveTimes};

struct Home {
    _dir: tempfile::TempDir,
    profiles: PathBuf,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        Home {
            profiles: dir.path().join("profiles"),
            _dir: dir,
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.profiles).unwrap()
    }

    fn run(&self) -> Profile {
        Profile::new(Some(self.store()))
    }

    fn counts(&self, name: u8) -> Counts {
        self.store()
            .load(&identity(name).id)
            .unwrap()
            .unwrap()
            .counts
    }
}

fn map(profile: &mut Profile, name: u8, base: u64) {
    let path = format!("/lib/{name}");
    let range = GuestAddr(base)..GuestAddr(base + 0x1000);
    profile.map_module(range, Path::new(&path), 0x400, identity(name));
}

fn count(profile: &mut Profile, block: &Block, times: u32) -> BlockId {
    let id = profile.block_id(block);
    for _ in 0..times {
        profile.enter(id);
        profile.edge(id, Outcome::Taken);
    }
    id
}

/// `branch`, as it would be decoded at another base: the same bytes.
fn moved(mut block: Block, by: u64) -> Block {
    block.start.0 += by;
    match &mut block.end {
        BlockEnd::Branch { taken, next } => {
            taken.0 += by;
            next.0 += by;
        }
        other => panic!("{other:?}"),
    }
    block
}

#[test]
fn places_are_file_offsets_whatever_the_base() {
    let home = Home::new();
    let looping = branch(0x10_0020, 8, 0x10_0020);
    let mut run = home.run();
    map(&mut run, 1, 0x10_0000);
    count(&mut run, &looping, 100);
    let report = run.save(Durability::Routine);
    assert!(report.errors.is_empty());
    assert_eq!((report.modules, report.skipped), (1, 0));
    assert_eq!(report.records, 3);
    let counts = home.counts(1);
    assert_eq!(
        (counts.blocks[0].offset, counts.blocks[0].count),
        (0x420, 100)
    );
    assert_eq!(counts.edges[0].to, Target::Here(0x420));
    assert_eq!((counts.paths[0].head, counts.paths[0].count), (0x420, 100));

    let mut second = home.run();
    map(&mut second, 1, 0x70_0000);
    let there = moved(looping, 0x60_0000);
    assert_eq!(
        second.known_hot(there.start, &there.bytes),
        Some(KnownHot {
            tier: Tier::Interpreted,
            head: true,
            bias: Bias::Taken
        })
    );
    assert!(second.may_be_known(there.start) && !second.may_be_known(GuestAddr(0x70_0021)));
    assert!(second.known_hot(there.start, &there.bytes).is_some());
    assert_eq!(second.stats().known_hot, 1);
    // Known before it ever runs here.
    let id = second.block_id(&there);
    assert_eq!(second.find(there.start), Some(id));
    assert!(second.usually_taken(id) && second.is_path_head(id));
    second.edge(id, Outcome::Next);
    assert!(!second.usually_taken(id));
    assert_eq!(second.known_hot(there.start, b"other code"), None);
    assert_eq!(second.known_hot(GuestAddr(0x70_0000), &there.bytes), None);
    assert_eq!(second.known_hot(GuestAddr(0x99_0000), &there.bytes), None);
    assert_eq!(second.stats().records_loaded, 1);
}

#[test]
fn a_known_block_that_ran_uncounted_does_not_age() {
    let home = Home::new();
    let looping = branch(0x10_0020, 8, 0x10_0020);
    let other = branch(0x10_0080, 8, 0x10_0080);
    let mut run = home.run();
    map(&mut run, 1, 0x10_0000);
    count(&mut run, &looping, 800);
    count(&mut run, &other, 800);
    run.save(Durability::Routine);

    let mut second = home.run();
    map(&mut second, 1, 0x10_0000);
    assert!(second.known_hot(looping.start, &looping.bytes).is_some());
    count(&mut second, &branch(0x10_0100, 8, 0x10_0100), 100);
    assert_eq!(second.save(Durability::Routine).modules, 1);
    let counts: Vec<_> = home.counts(1).blocks.iter().map(|b| b.count).collect();
    assert_eq!(counts, [800, 700, 100]);
}

#[test]
fn a_run_that_learned_nothing_new_saves_nothing() {
    let home = Home::new();
    let looping = branch(0x10_0020, 8, 0x10_0020);
    for round in 0..3 {
        let mut run = home.run();
        map(&mut run, 1, 0x10_0000);
        map(&mut run, 2, 0x20_0000);
        count(&mut run, &looping, 100);
        // Cold code of a module without a profile.
        count(&mut run, &branch(0x20_0000, 4, 0x20_0010), 3);
        let report = run.save(Durability::Routine);
        assert_eq!(report.modules, u64::from(round == 0), "round {round}");
    }
    assert_eq!(home.store().list().unwrap().len(), 1);
    // What one save left alone counts towards the next.
    let mut run = home.run();
    map(&mut run, 2, 0x20_0000);
    let cold = branch(0x20_0000, 4, 0x20_0010);
    for _ in 0..40 {
        count(&mut run, &cold, 1);
        run.save(Durability::Routine);
    }
    // Saved once it was hot; the eight after that aren't news.
    assert_eq!(home.counts(2).executions(), 32);
    let record = home.store().load(&identity(2).id).unwrap().unwrap().module;
    assert_eq!((record.runs, record.path), (1, b"/lib/2".to_vec()));
}

#[test]
fn code_of_no_module_is_never_saved() {
    let home = Home::new();
    let mut run = home.run();
    count(&mut run, &branch(0x10_0000, 8, 0x10_0000), 5000);
    assert_eq!(run.save(Durability::Routine).modules, 0);
    assert!(!home.profiles.exists());
}

#[test]
fn edges_between_modules_name_both_even_after_an_unmap() {
    let home = Home::new();
    let mut run = home.run();
    map(&mut run, 1, 0x10_0000);
    map(&mut run, 2, 0x20_0000);
    let call = block(
        0x10_0000,
        4,
        BlockEnd::IndirectCall {
            return_to: GuestAddr(0x10_0004),
        },
    );
    let id = count(&mut run, &call, 300);
    for _ in 0..200 {
        run.indirect(id, GuestAddr(0x20_0010));
    }
    for _ in 0..100 {
        run.indirect(id, GuestAddr(0x10_0010));
    }
    // The library goes, something else comes in its place.
    run.unmap(GuestAddr(0x20_0000)..GuestAddr(0x20_1000));
    map(&mut run, 3, 0x20_0000);
    run.indirect(id, GuestAddr(0x20_0010));
    run.indirect(id, GuestAddr(0x55_0000));
    run.save(Durability::Routine);
    let counts = home.counts(1);
    assert_eq!(counts.others, [identity(2).id, identity(3).id]);
    let edges: Vec<_> = counts.edges.iter().map(|e| (e.to, e.count)).collect();
    let there = |module| Target::There {
        module,
        offset: 0x410,
    };
    assert_eq!(
        edges,
        [
            (Target::Here(0x410), 100),
            (there(0), 200),
            (there(1), 1),
            (Target::Elsewhere, 1)
        ]
    );
    assert!(
        counts
            .edges
            .iter()
            .all(|e| e.kind == EdgeKind::IndirectCall)
    );
}

#[test]
fn counts_survive_invalidation_and_unmapping() {
    let home = Home::new();
    let mut run = home.run();
    map(&mut run, 1, 0x10_0000);
    let looping = branch(0x10_0020, 8, 0x10_0020);
    for _ in 0..10 {
        count(&mut run, &looping, 10);
        run.interrupt_path();
        run.invalidate(GuestAddr(0x10_0000)..GuestAddr(0x10_1000));
    }
    run.unmap(GuestAddr(0x10_0000)..GuestAddr(0x10_1000));
    run.save(Durability::Routine);
    let counts = home.counts(1);
    assert_eq!(counts.len(), 3);
    assert_eq!(counts.blocks[0].count, 100);
    assert_eq!(counts.edges[0].count, 100);
    assert_eq!(counts.paths[0].count, 100);
}

#[test]
fn a_forked_child_saves_only_its_own_counts() {
    let home = Home::new();
    let mut run = home.run();
    map(&mut run, 1, 0x10_0000);
    let looping = branch(0x10_0020, 8, 0x10_0020);
    let id = count(&mut run, &looping, 5000);
    run.forget_counts();
    assert_eq!(run.entered(id), 0);
    count(&mut run, &looping, 40);
    run.save(Durability::Routine);
    assert_eq!(home.counts(1).executions(), 40);
}

/// Due at once, and always.
const ALWAYS: SaveTimes = SaveTimes {
    first: Duration::ZERO,
    every: Duration::ZERO,
};

#[test]
fn saves_in_between_lose_no_count_and_count_no_run() {
    let home = Home::new();
    let mut run = home.run();
    run.save_at(ALWAYS);
    map(&mut run, 1, 0x1000);
    let runs = || {
        home.store()
            .load(&identity(1).id)
            .unwrap()
            .map(|all| all.module.runs)
    };
    for _ in 0..3 {
        count(&mut run, &branch(0x1010, 0x1040, 0x1020), 70_000);
        run.save_if_due();
        run.finish_timed_save();
        assert_eq!(runs(), Some(0), "the run isn't over");
    }
    assert_eq!(home.counts(1).blocks[0].count, 210_000);
    // Nothing more was learned, but the run is one now.
    assert_eq!(run.save(Durability::Routine).modules, 1);
    assert_eq!(runs(), Some(1));
    // What is there ages by an eighth when a run is counted.
    assert_eq!(home.counts(1).blocks[0].count, 210_000 / 8 * 7);
    assert_eq!(run.stats().modules_saved, 4);
}

#[test]
fn a_save_in_between_ages_nothing() {
    let home = Home::new();
    let mut first = home.run();
    map(&mut first, 1, 0x1000);
    count(&mut first, &branch(0x1010, 0x1040, 0x1020), 80_000);
    count(&mut first, &branch(0x1050, 0x1080, 0x1060), 80_000);
    first.save(Durability::Routine);

    let mut second = home.run();
    second.save_at(ALWAYS);
    map(&mut second, 1, 0x1000);
    count(&mut second, &branch(0x1010, 0x1040, 0x1020), 70_000);
    second.save_if_due();
    second.finish_timed_save();
    let later = |home: &Home| home.counts(1).blocks[1].count;
    assert_eq!(later(&home), 80_000);
    second.save(Durability::Routine);
    assert_eq!(later(&home), 70_000);
}

#[test]
fn the_rest_of_a_run_uses_what_a_save_in_between_took_over() {
    let home = Home::new();
    let hot = branch(0x1010, 0x1040, 0x1020);
    let mut run = home.run();
    map(&mut run, 1, 0x1000);
    assert_eq!(run.known_hot(hot.start, &hot.bytes), None);
    let mut other = home.run();
    map(&mut other, 1, 0x1000);
    count(&mut other, &hot, 70_000);
    other.save(Durability::Routine);
    // As if the save had found it in an earlier build's profile.
    let report = SaveReport {
        took_over: vec![ModuleIndex(0)],
        ..SaveReport::default()
    };
    assert_eq!(run.known_hot(hot.start, &hot.bytes), None);
    run.count_saved(&report);
    assert!(run.known_hot(hot.start, &hot.bytes).is_some());
}

#[test]
fn calls_loops_and_values_become_records_of_their_modules() {
    let home = Home::new();
    let mut run = home.run();
    map(&mut run, 1, 0x1000);
    map(&mut run, 2, 0x9000);
    let target = GuestAddr(0x9010);
    let return_to = GuestAddr(0x1015);
    let call = run.block_id(&block(0x1010, 5, BlockEnd::Call { target, return_to }));
    let latch = run.block_id(&branch(0x1015, 8, 0x1010));
    let callee = run.block_id(&block(0x9010, 1, BlockEnd::Return { pop: 0 }));
    for _ in 0..5000 {
        for round in 0..4 {
            run.enter(call);
            run.enter(callee);
            run.indirect(callee, return_to);
            run.enter(latch);
            run.edge(
                latch,
                if round < 3 {
                    Outcome::Taken
                } else {
                    Outcome::Next
                },
            );
        }
    }
    run.save(Durability::Routine);
    let counts = home.counts(1);
    assert_eq!(counts.others, [identity(2).id]);
    assert_eq!(
        counts.pairs,
        [PairRecord {
            call: 0x410,
            from: Target::There {
                module: 0,
                offset: 0x410
            },
            count: 20_000
        }]
    );
    // The first time round shows that it is a loop, the last one isn't over.
    assert_eq!(
        counts.values,
        [ValueRecord {
            at: 0x410,
            kind: ValueKind::TripCount,
            value: Observed::Is(4),
            count: 4998
        }]
    );
}

#[test]
fn what_is_not_due_or_not_worth_it_is_not_saved_in_between() {
    let home = Home::new();
    let mut run = home.run();
    run.save_at(SaveTimes::default());
    map(&mut run, 1, 0x1000);
    count(&mut run, &branch(0x1010, 0x1040, 0x1020), 70_000);
    run.save_if_due();
    run.finish_timed_save();
    assert!(!home.profiles.exists(), "not due");
    run.save(Durability::Routine);

    let mut run = home.run();
    run.save_at(ALWAYS);
    map(&mut run, 2, 0x1000);
    count(&mut run, &branch(0x1010, 0x1040, 0x1020), 3);
    run.save_if_due();
    run.finish_timed_save();
    assert_eq!(
        home.store().load(&identity(2).id).unwrap(),
        None,
        "too little"
    );
}

#[test]
fn trouble_in_between_is_told_at_the_end_only() {
    let told = |times: Option<SaveTimes>| {
        let home = Home::new();
        // A folder where the file is to be.
        let stem = identity(1).id.file_stem();
        std::fs::create_dir_all(home.profiles.join(format!("{stem}.profile"))).unwrap();
        let mut run = home.run();
        if let Some(times) = times {
            run.save_at(times);
        }
        map(&mut run, 1, 0x1000);
        for _ in 0..3 {
            count(&mut run, &branch(0x1010, 0x1040, 0x1020), 70_000);
            run.save_if_due();
            run.finish_timed_save();
        }
        run.save(Durability::Routine).errors.len() + run.take_warnings().len()
    };
    assert!(told(None) > 0);
    assert_eq!(told(Some(ALWAYS)), told(None));
}

#[test]
fn a_damaged_profile_is_a_warning_and_the_run_goes_on() {
    let home = Home::new();
    let looping = branch(0x10_0020, 8, 0x10_0020);
    let mut run = home.run();
    map(&mut run, 1, 0x10_0000);
    count(&mut run, &looping, 100);
    run.save(Durability::Routine);
    let file = home.store().list().unwrap().remove(0).unwrap().file;
    std::fs::write(&file, b"garbage").unwrap();

    let mut second = home.run();
    map(&mut second, 1, 0x10_0000);
    assert_eq!(second.known_hot(looping.start, &looping.bytes), None);
    let warnings = second.take_warnings();
    assert!(matches!(warnings[..], [Error::Damaged { .. }]));
    assert_eq!(second.known_hot(looping.start, &looping.bytes), None);
    assert!(second.take_warnings().is_empty());
    count(&mut second, &looping, 100);
    assert!(second.save(Durability::Routine).errors.is_empty());
    assert_eq!(home.counts(1).executions(), 100);
}

#[test]
fn an_unwritable_directory_is_one_error() {
    let home = Home::new();
    let mut run = home.run();
    // The lock can't be taken.
    std::fs::create_dir_all(home.profiles.join("lock")).unwrap();
    for name in [1, 2] {
        let base = 0x10_0000 * u64::from(name);
        map(&mut run, name, base);
        count(&mut run, &branch(base, 8, base), 5000);
    }
    let report = run.save(Durability::Routine);
    assert_eq!((report.modules, report.errors.len()), (0, 1));
    assert!(!report.errors[0].to_string().contains('\n'));
}

#[test]
fn an_unreadable_directory_is_one_warning() {
    let home = Home::new();
    let mut run = home.run();
    // A file where the directory should be, so that no profile can be looked for.
    std::fs::write(&home.profiles, "").unwrap();
    for name in [1, 2, 3] {
        let base = 0x10_0000 * u64::from(name);
        map(&mut run, name, base);
        let looping = branch(base, 8, base);
        count(&mut run, &looping, 5000);
        assert_eq!(run.known_hot(looping.start, &looping.bytes), None);
    }
    let report = run.save(Durability::Routine);
    assert_eq!((run.take_warnings().len(), report.errors.len()), (1, 0));
}

#[test]
fn a_promoted_block_is_known_next_time_however_cold() {
    let home = Home::new();
    let once = branch(0x10_0020, 8, 0x10_0020);
    let mut run = home.run();
    map(&mut run, 1, 0x10_0000);
    let id = count(&mut run, &once, 2);
    run.set_tier(id, Tier::Superblock);
    run.set_tier(id, Tier::Block);
    run.save(Durability::Routine);
    let mut second = home.run();
    map(&mut second, 1, 0x10_0000);
    let known = second.known_hot(once.start, &once.bytes).unwrap();
    assert_eq!(known.tier, Tier::Superblock);
}

/// Prints what saving costs: `cargo test --release --lib -- --ignored what_saving_costs
/// --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_saving_costs() {
    use std::time::Instant;
    fn report(what: &str, since: Instant) {
        println!("{what}: {:.3} ms", since.elapsed().as_secs_f64() * 1e3);
    }
    const BLOCKS: u64 = 20_000;
    let home = Home::new();
    let base = 0x1000_0000;
    let load = |run: &mut Profile, name: u8| {
        let range = GuestAddr(base)..GuestAddr(base + 0x100_0000);
        run.map_module(range, Path::new("/lib/large"), 0, identity(name));
    };
    let blocks: Vec<Block> = (0..BLOCKS)
        .map(|i| {
            // Spread like code: some 12 to 40 bytes each, branching near.
            let at = base + i * 24;
            let mut block = branch(at, 12 + (i % 28) as u32, at - (i * 7 % 64) * 24);
            block.bytes.extend_from_slice(&i.to_le_bytes());
            block
        })
        .collect();
    for round in 0..3 {
        println!("round {round}");
        let mut run = home.run();
        load(&mut run, 1);
        let start = Instant::now();
        let hot = blocks
            .iter()
            .filter(|b| run.known_hot(b.start, &b.bytes).is_some())
            .count();
        report(&format!("ask for {BLOCKS} blocks, {hot} known"), start);
        let start = Instant::now();
        let ids: Vec<BlockId> = blocks.iter().map(|block| run.block_id(block)).collect();
        report("number the blocks", start);
        let start = Instant::now();
        for (i, &id) in ids.iter().enumerate() {
            for j in 0..1 + i % 50 {
                run.enter(id);
                let taken = j % 3 == 0 || i % 2 == 0;
                run.edge(id, if taken { Outcome::Taken } else { Outcome::Next });
            }
        }
        let counted = ids.len() as f64 * 25.5;
        let each = start.elapsed().as_secs_f64() * 1e9 / counted;
        println!("count a block and its branch: {each:.1} ns");
        let start = Instant::now();
        let saved = run.save(Durability::Routine);
        report(
            &format!("save {} records, {} bytes", saved.records, saved.bytes),
            start,
        );
        let start = Instant::now();
        home.store().load(&identity(1).id).unwrap();
        report("load all", start);
        let start = Instant::now();
        home.store().known(&identity(1).id).unwrap();
        report("load the decisions", start);
    }
    // A short run: three modules, of which nothing new is learned.
    for round in 0..3 {
        let mut run = home.run();
        for name in 2..5 {
            let base = 0x10_0000 * u64::from(name);
            map(&mut run, name, base);
            for at in 0..500 {
                count(&mut run, &branch(base + at * 8, 8, base + at * 8), 3);
            }
            let hot = branch(base + 0x800, 8, base + 0x800);
            if run.known_hot(hot.start, &hot.bytes).is_none() {
                count(&mut run, &hot, 50);
            }
        }
        let start = Instant::now();
        let saved = run.save(Durability::Routine);
        report(
            &format!("short run {round}: {} modules saved", saved.modules),
            start,
        );
    }
}
