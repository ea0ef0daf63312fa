//! What loading and saving cost: a module with 200,000 edges is to load in 30 ms and to
//! save in 60 ms. Measured is the processor's time, so that a busy host may look on.

use std::time::Duration;

use criterion::{Bencher, Criterion, criterion_group, criterion_main};
use profile_db::{
    BlockRecord, Counts, Durability, EdgeKind, EdgeRecord, Likeness, Limits, ModuleId,
    ModuleProfile, ModuleRecord, NoCode, PathRecord, RunProfile, Store, Target, Tier, Trials,
};

const EDGES: u64 = 200_000;

/// As a large program's: three edges to two blocks, a path to ten.
fn profile() -> ModuleProfile {
    let mut state = 1u64;
    let mut random = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % bound
    };
    let mut counts = Counts::default();
    let mut offset = 0x1000;
    while (counts.edges.len() as u64) < EDGES {
        offset += 4 + random(40);
        let magnitude = random(20);
        let count = 1 + random(1 << magnitude);
        counts.blocks.push(BlockRecord {
            offset,
            hash: random(u64::MAX),
            len: 4 + random(30) as u32,
            tier: if count > 50 {
                Tier::Block
            } else {
                Tier::Interpreted
            },
            head: random(8) == 0,
            likeness: Likeness {
                opcodes: 1 + random(1 << 31) as u32,
                shape: 1 + random(500) as u16,
            },
            count,
        });
        let mut edge = |kind, to| {
            counts.edges.push(EdgeRecord {
                from: offset,
                kind,
                to: Target::Here(to),
                count,
            });
        };
        edge(EdgeKind::Next, offset + 12);
        if random(2) == 0 {
            edge(EdgeKind::Taken, offset + random(4000));
        }
        if random(7) == 0 {
            counts.paths.push(PathRecord {
                head: offset,
                outcomes: random(16) as u32,
                len: 4,
                count,
            });
        }
    }
    counts.normalize();
    ModuleProfile {
        module: ModuleRecord {
            id: ModuleId::Content([1; 16]),
            path: b"/usr/bin/large".to_vec(),
            size: 1 << 24,
            first_seen: 1,
            last_seen: 2,
            runs: 1,
            ancestor: None,
        },
        counts,
        trials: Trials::default(),
    }
}

/// How long this thread has had a processor (Linux's proc(5), schedstat).
fn processor_time() -> Duration {
    // Only then has the kernel added what passed since the last switch.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

fn measure<I, O>(bencher: &mut Bencher, mut setup: impl FnMut() -> I, mut run: impl FnMut(I) -> O) {
    bencher.iter_custom(|times| {
        let mut sum = Duration::ZERO;
        for _ in 0..times {
            let input = setup();
            let began = processor_time();
            let output = run(input);
            sum += processor_time() - began;
            drop(output);
        }
        sum
    });
}

fn store(c: &mut Criterion) {
    let home = tempfile::tempdir().expect("a folder");
    let store = Store::open(home.path()).expect("a store");
    let whole = profile();
    let id = whole.module.id.clone();
    store
        .absorb(whole.clone(), Durability::Routine)
        .expect("a save");
    let mut group = c.benchmark_group("200k edges");
    group.sample_size(20);
    group.bench_function("load", |b| {
        measure(
            b,
            || (),
            |()| store.load(&id).expect("whole").expect("there"),
        );
    });
    group.bench_function("load decisions", |b| {
        measure(
            b,
            || (),
            |()| store.known(&id).expect("whole").expect("there"),
        );
    });
    group.bench_function("encode", |b| {
        let encode = |whole: ModuleProfile| whole.into_bytes(&Limits::default());
        measure(b, || whole.clone(), encode);
    });
    group.bench_function("save into an empty directory", |b| {
        let save = |(home, whole): (tempfile::TempDir, ModuleProfile)| {
            let store = Store::open(home.path()).expect("a store");
            let written = store.absorb(whole, Durability::Routine);
            (home, written.expect("a save"))
        };
        let setup = || (tempfile::tempdir().expect("a folder"), whole.clone());
        measure(b, setup, save);
    });
    group.bench_function("merge a run and save", |b| {
        let setup = || RunProfile {
            profile: whole.clone(),
            spared: Vec::new(),
        };
        let save = |run| store.merge(run, &mut NoCode, Durability::Routine);
        measure(b, setup, |run| save(run).expect("a save"));
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);
