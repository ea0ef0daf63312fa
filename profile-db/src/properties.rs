//! What must hold of merging and ageing whatever the records are.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::record::*;
use crate::trial::*;

/// Mostly small, and at the top of the range.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1..100u64, 2 => 1..1u64 << 40, 1 => u64::MAX - 3..=u64::MAX]
}

fn place() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..40u64, 1 => any::<u64>()]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        4 => place().prop_map(Target::Here),
        2 => (0..3u32, 0..4u64).prop_map(|(module, offset)| Target::There { module, offset }),
        1 => Just(Target::Elsewhere),
    ]
}

fn kind() -> impl Strategy<Value = EdgeKind> {
    prop::sample::select(vec![
        EdgeKind::Taken,
        EdgeKind::Next,
        EdgeKind::Jump,
        EdgeKind::Call,
        EdgeKind::IndirectJump,
        EdgeKind::IndirectCall,
        EdgeKind::Return,
    ])
}

fn block() -> impl Strategy<Value = BlockRecord> {
    let tiers = prop::sample::select(vec![Tier::Interpreted, Tier::Block, Tier::Superblock]);
    (place(), 0..3u64, tiers, any::<bool>(), 0..3u32, count()).prop_map(
        |(offset, hash, tier, head, opcodes, count)| BlockRecord {
            offset,
            hash,
            len: 4 + hash as u32,
            tier,
            head,
            likeness: Likeness { opcodes, shape: 1 },
            count,
        },
    )
}

fn value() -> impl Strategy<Value = ValueRecord> {
    let kinds = vec![ValueKind::Divisor, ValueKind::TripCount, ValueKind::Stride];
    let observed = prop_oneof![(0..4u64).prop_map(Observed::Is), Just(Observed::Other)];
    (place(), prop::sample::select(kinds), observed, count()).prop_map(
        |(at, kind, value, count)| ValueRecord {
            at,
            kind,
            value,
            count,
        },
    )
}

prop_compose! {
    /// Canonical counts.
    fn counts()(
        names in [0..6u8, 0..6u8, 0..6u8],
        blocks in vec(block(), 0..30),
        edges in vec((place(), kind(), target(), count()), 0..40),
        paths in vec((place(), 0..=u32::MAX, 1..=MAX_PATH_OUTCOMES, count()), 0..20),
        pairs in vec((place(), target(), count()), 0..20),
        values in vec(value(), 0..20),
    ) -> Counts {
        let path = |(head, outcomes, len, count)| PathRecord {
            head,
            outcomes: (u64::from(outcomes) & ((1u64 << len) - 1)) as u32,
            len,
            count,
        };
        let edge = |(from, kind, to, count)| EdgeRecord { from, kind, to, count };
        let pair = |(call, from, count)| PairRecord { call, from, count };
        let mut counts = Counts {
            others: names.map(|name| ModuleId::Content([name; 16])).to_vec(),
            blocks,
            edges: edges.into_iter().map(edge).collect(),
            paths: paths.into_iter().map(path).collect(),
            pairs: pairs.into_iter().map(pair).collect(),
            values,
        };
        counts.normalize();
        counts
    }
}

prop_compose! {
    fn trials()(
        patches in [0..3u16, 0..3u16],
        trials in vec((0..2u32, 0..4u64, 0..3usize, -50..50i32, 0..5u32, 0..3u64), 0..12),
    ) -> Trials {
        let verdicts = [Verdict::Undecided, Verdict::Rejected, Verdict::Kept];
        let mut some = Trials {
            machines: patches
                .map(|patch| Machine { cpu: "some CPU".into(), temper: [1, 0, patch] })
                .to_vec(),
            trials: trials
                .into_iter()
                .map(|(machine, head, verdict, gain, slices, seen)| TrialRecord {
                    machine,
                    head,
                    region: 0,
                    variant: Variant::Relaid,
                    verdict: verdicts[verdict],
                    gain,
                    slices,
                    seen,
                })
                .collect(),
        };
        some.merge(Trials::default());
        some
    }
}

fn merged<T>(mut a: T, b: T, merge: impl Fn(&mut T, T)) -> T {
    merge(&mut a, b);
    a
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merging_counts_is_commutative_and_associative(a in counts(), b in counts(), c in counts()) {
        let merge = |a: &Counts, b: &Counts| merged(a.clone(), b.clone(), Counts::merge);
        prop_assert_eq!(merge(&a, &b), merge(&b, &a));
        prop_assert_eq!(merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c)));
        prop_assert!(merge(&a, &b).is_canonical());
    }

    #[test]
    fn merging_trials_is_commutative_associative_and_idempotent(
        a in trials(), b in trials(), c in trials()
    ) {
        let merge = |a: &Trials, b: &Trials| merged(a.clone(), b.clone(), Trials::merge);
        prop_assert_eq!(merge(&a, &b), merge(&b, &a));
        prop_assert_eq!(merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c)));
        prop_assert_eq!(merge(&a, &a), a.clone());
        prop_assert!(merge(&a, &b).is_canonical());
    }

    #[test]
    fn no_count_is_lost_by_merging_or_grows_beyond_the_sum(a in counts(), b in counts()) {
        let all = merged(a.clone(), b.clone(), Counts::merge);
        for block in &all.blocks {
            let of = |counts: &Counts| {
                let at = |b: &&BlockRecord| (b.offset, b.hash) == (block.offset, block.hash);
                counts.blocks.iter().find(at).map_or(0, |block| block.count)
            };
            prop_assert_eq!(block.count, of(&a).saturating_add(of(&b)));
        }
        let edges = |counts: &Counts| counts.edges.iter().map(|e| u128::from(e.count)).sum::<u128>();
        prop_assert!(edges(&all) <= edges(&a) + edges(&b));
        prop_assert!(all.len() <= a.len() + b.len());
    }

    #[test]
    fn ageing_takes_an_eighth_of_what_is_not_spared(a in counts(), round in any::<u32>()) {
        let spared: Vec<u64> = a.blocks.iter().map(|b| b.offset).step_by(2).collect();
        let mut aged = a.clone();
        aged.age(&spared, round);
        prop_assert!(aged.is_canonical());
        for block in &a.blocks {
            let at = |b: &&BlockRecord| (b.offset, b.hash) == (block.offset, block.hash);
            let left = aged.blocks.iter().find(at).map_or(0, |block| block.count);
            if spared.contains(&block.offset) {
                prop_assert_eq!(left, block.count);
            } else {
                let exact = block.count as f64 * 7.0 / 8.0;
                prop_assert!((left as f64 - exact).abs() <= 1.0 + exact / 1e12, "{block:?} {left}");
            }
        }
    }

    #[test]
    fn bounding_twice_is_bounding_once(a in counts()) {
        let limits = crate::Limits {
            blocks: 5,
            edges: 9,
            paths: 3,
            pairs: 4,
            values: 6,
            targets: 2,
            values_each: 2,
            ..crate::Limits::default()
        };
        let mut once = a;
        once.bound(&limits);
        prop_assert!(once.is_canonical());
        let mut twice = once.clone();
        twice.bound(&limits);
        prop_assert_eq!(once, twice);
    }
}
