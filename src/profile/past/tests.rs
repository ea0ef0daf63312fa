use std::path::Path;

use profile_db::{Durability, Store, Variant, Verdict};

use super::*;
use crate::decode::BlockEnd;
use crate::profile::Outcome;
use crate::profile::counters::tests::{block, branch, identity};

fn run(home: &Path, base: u64) -> Profile {
    let mut run = Profile::new(Some(Store::open(&home.join("profiles")).unwrap()));
    for (name, base) in [(1, base), (2, base + 0x100_0000)] {
        let range = GuestAddr(base)..GuestAddr(base + 0x1000);
        run.map_module(range, Path::new("/lib/x"), 0x400, identity(name));
    }
    run
}

#[test]
fn a_superblock_finds_what_earlier_runs_counted_wherever_it_lies() {
    let home = tempfile::tempdir().unwrap();
    let machine = Machine::this("this");
    let mut first = run(home.path(), 0x10_0000);
    let head = branch(0x10_0010, 8, 0x10_0010);
    let ends = block(0x10_0018, 4, BlockEnd::IndirectJump);
    let (head_id, ends_id) = (first.block_id(&head), first.block_id(&ends));
    for round in 0..3000 {
        for outcome in [Outcome::Taken, Outcome::Taken, Outcome::Next] {
            first.enter(head_id);
            first.edge(head_id, outcome);
        }
        first.enter(ends_id);
        let to = if round % 10 == 0 {
            0x110_0040
        } else {
            0x10_0100
        };
        first.indirect(ends_id, GuestAddr(to));
    }
    let trial = TrialRecord {
        machine: 9,
        head: 9,
        region: 77,
        variant: Variant::Relaid,
        verdict: Verdict::Kept,
        gain: 123,
        slices: 40,
        seen: 5,
    };
    assert!(first.record_trial(&machine, head.start, trial.clone()));
    assert!(!first.record_trial(&machine, GuestAddr(1), trial));
    assert_eq!(first.save(Durability::Routine).errors.len(), 0);

    let mut second = run(home.path(), 0x70_0000);
    let past = second.past(GuestAddr(0x70_0010), &head.bytes).unwrap();
    assert_eq!((past.block().count, past.block().head), (9000, true));
    assert_eq!(past.outcomes(), (6000, 3000));
    let paths = past.paths().iter().map(|path| (path.outcomes, path.len));
    assert_eq!(paths.collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    let trips = past.values(0, ValueKind::TripCount);
    assert_eq!(trips.len(), 1);
    assert_eq!(trips[0].value, profile_db::Observed::Is(3));
    let trials = past.trials(&machine);
    assert_eq!((trials.len(), trials[0].gain), (1, 123));
    assert!(past.trials(&Machine::this("other")).is_empty());
    let past = second.past(GuestAddr(0x70_0018), &ends.bytes).unwrap();
    assert_eq!(
        past.targets(),
        [
            (Some(GuestAddr(0x70_0100)), 2700),
            (Some(GuestAddr(0x170_0040)), 300)
        ]
    );
    // Other code in the same place has no past, nor has code of no module.
    assert!(second.past(GuestAddr(0x70_0010), b"other").is_none());
    assert!(second.past(GuestAddr(0x10), &head.bytes).is_none());
}

#[test]
fn a_trial_alone_is_worth_saving() {
    let home = tempfile::tempdir().unwrap();
    let mut first = run(home.path(), 0x10_0000);
    let head = branch(0x10_0010, 8, 0x10_0010);
    for _ in 0..2 {
        let id = first.block_id(&head);
        first.enter(id);
    }
    let machine = Machine::this("this");
    let trial = TrialRecord {
        machine: 0,
        head: 0,
        region: 1,
        variant: Variant::Lifted,
        verdict: Verdict::Rejected,
        gain: -20,
        slices: 12,
        seen: 1,
    };
    first.record_trial(&machine, head.start, trial);
    assert_eq!(first.save(Durability::Routine).modules, 1);
    let store = Store::open(&home.path().join("profiles")).unwrap();
    let kept = store.load(&identity(1).id).unwrap().unwrap().trials;
    assert_eq!(kept.at(&machine, 0x410)[0].verdict, Verdict::Rejected);
}
