use super::*;
use crate::record::{EdgeKind, Likeness, ModuleId, Tier};
use crate::sample::{Rng, counts};

fn merged(mut a: Counts, b: Counts) -> Counts {
    a.merge(b);
    a
}

#[test]
fn merged_counts_are_canonical_and_add_up() {
    for seed in 0..100 {
        let mut rng = Rng(seed);
        let (a, b) = (counts(&mut rng, 30), counts(&mut rng, 30));
        let sum = a.executions().saturating_add(b.executions());
        let all = merged(a, b);
        assert!(all.is_canonical(), "seed {seed}");
        assert_eq!(all.executions(), sum, "seed {seed}");
    }
}

#[test]
fn counts_saturate() {
    let block = |count| Counts {
        blocks: vec![BlockRecord {
            offset: 16,
            hash: 1,
            len: 4,
            tier: Tier::Block,
            head: false,
            likeness: Likeness::default(),
            count,
        }],
        ..Counts::default()
    };
    let sum = merged(block(u64::MAX - 1), block(7));
    assert_eq!(sum.blocks.len(), 1);
    assert_eq!(sum.blocks[0].count, u64::MAX);
}

#[test]
fn two_contents_at_one_offset_stay_apart() {
    let block = |hash| BlockRecord {
        offset: 16,
        hash,
        len: 4,
        tier: Tier::Interpreted,
        head: false,
        likeness: Likeness::default(),
        count: 3,
    };
    let mut counts = Counts {
        blocks: vec![block(2), block(1), block(2)],
        ..Counts::default()
    };
    counts.normalize();
    let kept: Vec<_> = counts.blocks.iter().map(|b| (b.hash, b.count)).collect();
    assert_eq!(kept, [(1, 3), (2, 6)]);
}

#[test]
fn other_modules_are_renumbered_when_lists_meet() {
    let to_other = |id: u8| {
        let mut counts = Counts {
            others: vec![ModuleId::Content([9; 16]), ModuleId::Content([id; 16])],
            edges: vec![EdgeRecord {
                from: 1,
                kind: EdgeKind::Return,
                to: Target::There {
                    module: 1,
                    offset: 5,
                },
                count: 1,
            }],
            ..Counts::default()
        };
        counts.normalize();
        counts
    };
    let all = merged(merged(to_other(7), to_other(3)), to_other(7));
    // The unused module is gone, the others are sorted.
    assert_eq!(
        all.others,
        [ModuleId::Content([3; 16]), ModuleId::Content([7; 16])]
    );
    let kept: Vec<_> = all.edges.iter().map(|e| (e.to, e.count)).collect();
    let there = |module| Target::There { module, offset: 5 };
    assert_eq!(kept, [(there(0), 1), (there(1), 2)]);
}

#[test]
fn what_is_not_seen_again_halves_in_five_runs() {
    let block = |offset, count| BlockRecord {
        offset,
        hash: 0,
        len: 1,
        tier: Tier::Interpreted,
        head: false,
        likeness: Likeness::default(),
        count,
    };
    let mut counts = Counts {
        blocks: vec![block(0, 1000), block(16, 1000), block(24, u64::MAX)],
        ..Counts::default()
    };
    for round in 0..5 {
        counts.age(&[4, 16, 20], round);
    }
    let kept: Vec<_> = counts.blocks.iter().map(|b| b.count).collect();
    assert!((500..=520).contains(&kept[0]), "{kept:?}");
    assert_eq!(kept[1], 1000);
    assert!(kept[2] > u64::MAX / 2 && kept[2] < u64::MAX / 32 * 17);
}

#[test]
fn small_counts_fade_as_fast_as_large_ones_on_average() {
    let mut counts = Counts {
        blocks: (0..8000)
            .map(|i| BlockRecord {
                offset: i * 7,
                hash: 0,
                len: 1,
                tier: Tier::Interpreted,
                head: false,
                likeness: Likeness::default(),
                count: 1 + i % 3,
            })
            .collect(),
        ..Counts::default()
    };
    let before = counts.executions();
    for round in 0..5 {
        counts.age(&[], round);
    }
    let left = counts.executions() as f64 / before as f64;
    assert!((0.48..0.54).contains(&left), "{left}");
    for round in 5..200 {
        counts.age(&[], round);
    }
    assert!(counts.is_empty(), "{} left", counts.len());
}

#[test]
fn bounds_drop_the_least_executed_first() {
    for seed in 0..100 {
        let mut rng = Rng(seed);
        let full = counts(&mut rng, 60);
        let limits = Limits {
            blocks: 10,
            edges: 12,
            paths: 0,
            ..Limits::default()
        };
        let mut bounded = full.clone();
        bounded.bound(&limits);
        assert!(bounded.is_canonical(), "seed {seed}");
        assert_eq!(bounded.blocks.len(), 10.min(full.blocks.len()));
        assert!(bounded.edges.len() <= 12 && bounded.paths.is_empty());
        let least_kept = bounded.blocks.iter().map(|b| b.count).min();
        let dropped = full.blocks.iter().filter(|b| !bounded.blocks.contains(b));
        let most_dropped = dropped.map(|b| b.count).max();
        assert!(most_dropped <= least_kept, "seed {seed}");
    }
}

#[test]
fn an_indirect_branch_keeps_its_hottest_targets_and_the_sum() {
    let mut counts = Counts {
        edges: (0..100)
            .map(|i| EdgeRecord {
                from: 0,
                kind: EdgeKind::IndirectJump,
                to: Target::Here(i * 4),
                count: i + 1,
            })
            .collect(),
        ..Counts::default()
    };
    counts.bound(&Limits {
        targets: 4,
        ..Limits::default()
    });
    assert!(counts.is_canonical());
    let local: Vec<_> = counts
        .edges
        .iter()
        .filter(|edge| edge.to != Target::Elsewhere)
        .map(|edge| edge.count)
        .collect();
    assert_eq!(local, [97, 98, 99, 100]);
    assert_eq!(counts.edges.iter().map(|e| e.count).sum::<u64>(), 5050);
    let before = counts.clone();
    counts.bound(&Limits {
        targets: 4,
        ..Limits::default()
    });
    assert_eq!(counts, before);
}

#[test]
fn the_later_sighting_of_a_module_says_where_it_is() {
    let record = |path: &str, seen| ModuleRecord {
        id: ModuleId::Content([1; 16]),
        path: path.into(),
        size: 10,
        first_seen: seen,
        last_seen: seen,
        runs: 1,
        ancestor: None,
    };
    let (mut a, mut b) = (record("/new", 9), record("/old", 5));
    a.merge(record("/old", 5));
    b.merge(record("/new", 9));
    assert_eq!(a, b);
    assert_eq!(
        (a.path.as_slice(), a.first_seen, a.runs),
        (&b"/new"[..], 5, 2)
    );
}

#[test]
fn a_site_keeps_its_usual_values_and_callers() {
    let mut counts = Counts {
        pairs: (0..20)
            .map(|i| PairRecord {
                call: 8,
                from: Target::Here(i),
                count: i + 1,
            })
            .collect(),
        values: (0..20)
            .map(|i| ValueRecord {
                at: 8,
                kind: ValueKind::Divisor,
                value: Observed::Is(i),
                count: i + 1,
            })
            .collect(),
        ..Counts::default()
    };
    counts.bound(&Limits {
        targets: 2,
        values_each: 3,
        ..Limits::default()
    });
    assert!(counts.is_canonical());
    let callers: Vec<_> = counts.pairs.iter().map(|p| (p.from, p.count)).collect();
    let here = Target::Here;
    assert_eq!(
        callers,
        [(here(18), 19), (here(19), 20), (Target::Elsewhere, 171)]
    );
    let values: Vec<_> = counts.values.iter().map(|v| (v.value, v.count)).collect();
    let is = Observed::Is;
    assert_eq!(
        values,
        [
            (is(17), 18),
            (is(18), 19),
            (is(19), 20),
            (Observed::Other, 153)
        ]
    );
}
