//! Random profiles for tests, from printed seeds.

use crate::record::*;
use crate::trial::*;

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Mostly small, now and then at the top of the range.
    pub fn count(&mut self) -> u64 {
        match self.below(20) {
            0 => u64::MAX - self.below(3),
            1..5 => 1 + self.below(1 << 40),
            _ => 1 + self.below(100),
        }
    }
}

/// Canonical counts with up to `size` records of each kind.
pub fn counts(rng: &mut Rng, size: u64) -> Counts {
    const KINDS: [EdgeKind; 7] = [
        EdgeKind::Taken,
        EdgeKind::Next,
        EdgeKind::Jump,
        EdgeKind::Call,
        EdgeKind::IndirectJump,
        EdgeKind::IndirectCall,
        EdgeKind::Return,
    ];
    let others = (0..1 + rng.below(4))
        .map(|_| match rng.below(2) {
            0 => ModuleId::Content([rng.below(5) as u8; 16]),
            _ => ModuleId::BuildId(vec![rng.below(5) as u8; 20]),
        })
        .collect::<Vec<_>>();
    let mut counts = Counts::default();
    for _ in 0..rng.below(size + 1) {
        // A block's length follows from its content.
        let hash = rng.below(4);
        counts.blocks.push(BlockRecord {
            offset: rng.below(size * 2),
            hash,
            len: hash as u32 * 7 + 1,
            tier: [Tier::Interpreted, Tier::Block, Tier::Superblock][rng.below(3) as usize],
            head: rng.below(2) == 0,
            likeness: Likeness {
                opcodes: hash as u32 % 3,
                shape: 5,
            },
            count: rng.count(),
        });
    }
    for _ in 0..rng.below(size + 1) {
        counts.edges.push(EdgeRecord {
            from: rng.below(size),
            kind: KINDS[rng.below(7) as usize],
            to: match rng.below(8) {
                0 => Target::Elsewhere,
                1 | 2 => Target::There {
                    module: rng.below(others.len() as u64) as u32,
                    offset: rng.below(6),
                },
                3 => Target::Here(rng.next()),
                _ => Target::Here(rng.below(9)),
            },
            count: rng.count(),
        });
    }
    for _ in 0..rng.below(size + 1) {
        let len = 1 + rng.below(u64::from(MAX_PATH_OUTCOMES)) as u8;
        counts.paths.push(PathRecord {
            head: rng.below(size),
            outcomes: (rng.next() & ((1u64 << len) - 1)) as u32,
            len,
            count: rng.count(),
        });
    }
    for _ in 0..rng.below(size / 4 + 1) {
        counts.pairs.push(PairRecord {
            call: rng.below(size),
            from: match rng.below(3) {
                0 => Target::There {
                    module: rng.below(others.len() as u64) as u32,
                    offset: rng.below(6),
                },
                1 => Target::Elsewhere,
                _ => Target::Here(rng.below(size)),
            },
            count: rng.count(),
        });
        let kinds = [ValueKind::Divisor, ValueKind::TripCount, ValueKind::Stride];
        counts.values.push(ValueRecord {
            at: rng.below(size),
            kind: kinds[rng.below(3) as usize],
            value: match rng.below(4) {
                0 => Observed::Other,
                _ => Observed::Is(rng.below(5)),
            },
            count: rng.count(),
        });
    }
    counts.others = others;
    counts.normalize();
    counts
}

/// Canonical trials, up to `size` of them.
pub fn trials(rng: &mut Rng, size: u64) -> Trials {
    let machines = ["GenuineIntel-6-8f-8", "AuthenticAMD-19-11-1"].map(|cpu| Machine {
        cpu: cpu.into(),
        temper: [0, 1, rng.below(3) as u16],
    });
    let mut some = Trials {
        machines: machines.to_vec(),
        trials: Vec::new(),
    };
    for _ in 0..rng.below(size + 1) {
        some.trials.push(TrialRecord {
            machine: rng.below(2) as u32,
            head: rng.below(50),
            region: rng.below(3),
            variant: [Variant::Relaid, Variant::Lifted][rng.below(2) as usize],
            verdict: [Verdict::Undecided, Verdict::Rejected, Verdict::Kept][rng.below(3) as usize],
            gain: rng.below(400) as i32 - 200,
            slices: rng.below(100) as u32,
            seen: 1000 + rng.below(4),
        });
    }
    some.merge(Trials::default());
    some
}

/// A profile of one run.
pub fn profile(rng: &mut Rng, size: u64) -> ModuleProfile {
    ModuleProfile {
        module: ModuleRecord {
            id: ModuleId::BuildId(vec![0xab; 20]),
            path: b"/usr/lib/libsample.so".to_vec(),
            size: 123_456,
            first_seen: 1_000 + rng.below(10),
            last_seen: 2_000 + rng.below(10),
            runs: 1,
            ancestor: None,
        },
        counts: counts(rng, size),
        trials: trials(rng, size / 8),
    }
}
