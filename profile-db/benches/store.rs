//! What loading and saving cost: a module with 200,000 edges is to load in 30 ms and to
//! save in 60 ms.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
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
        b.iter(|| store.load(&id).expect("whole").expect("there"));
    });
    group.bench_function("load decisions", |b| {
        b.iter(|| store.known(&id).expect("whole").expect("there"));
    });
    group.bench_function("encode", |b| {
        b.iter_batched(
            || whole.clone(),
            |whole| whole.into_bytes(&Limits::default()),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("save into an empty directory", |b| {
        b.iter_batched(
            || (tempfile::tempdir().expect("a folder"), whole.clone()),
            |(home, whole)| {
                let store = Store::open(home.path()).expect("a store");
                let written = store.absorb(whole, Durability::Routine);
                (home, written.expect("a save"))
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("merge a run and save", |b| {
        b.iter_batched(
            || RunProfile {
                profile: whole.clone(),
                spared: Vec::new(),
            },
            |run| {
                store
                    .merge(run, &mut NoCode, Durability::Routine)
                    .expect("a save")
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);
