// Profile files, and ways to spoil them. For the fuzz target and for tests/mutations.rs.

use profile_db::{
    BlockRecord, Counts, EdgeKind, EdgeRecord, Likeness, Limits, Machine, ModuleId, ModuleProfile,
    ModuleRecord, Observed, PairRecord, PathRecord, Target, Tier, TrialRecord, Trials, ValueKind,
    ValueRecord, Variant, Verdict,
};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A file with all kinds of records.
pub fn sample(seed: u64, size: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut counts = Counts {
        others: vec![ModuleId::Content([1; 16]), ModuleId::BuildId(vec![2; 20])],
        ..Counts::default()
    };
    for at in 0..size {
        let offset = at * 20;
        let count = 1 + random.next() % (1 << random.below(40));
        counts.blocks.push(BlockRecord {
            offset,
            hash: random.next(),
            len: 20,
            tier: Tier::Block,
            head: at % 3 == 0,
            likeness: Likeness {
                opcodes: random.next() as u32,
                shape: 3,
            },
            count,
        });
        counts.edges.push(EdgeRecord {
            from: offset,
            kind: EdgeKind::Taken,
            to: Target::Here(random.next() % (size * 20)),
            count,
        });
        counts.edges.push(EdgeRecord {
            from: offset,
            kind: EdgeKind::Return,
            to: Target::There {
                module: (at % 2) as u32,
                offset: at,
            },
            count,
        });
        counts.paths.push(PathRecord {
            head: offset,
            outcomes: 5,
            len: 3,
            count,
        });
        counts.pairs.push(PairRecord {
            call: offset,
            from: Target::Here(at),
            count,
        });
        counts.values.push(ValueRecord {
            at: offset,
            kind: ValueKind::Stride,
            value: Observed::Is(random.next() % 64),
            count,
        });
    }
    let trial = |head| TrialRecord {
        machine: 0,
        head,
        region: 1,
        variant: Variant::Lifted,
        verdict: Verdict::Kept,
        gain: 120,
        slices: 30,
        seen: 5,
    };
    let profile = ModuleProfile {
        module: ModuleRecord {
            id: ModuleId::Content([9; 16]),
            path: b"/usr/bin/sample".to_vec(),
            size: 100,
            first_seen: 1,
            last_seen: 2,
            runs: 3,
            ancestor: Some(ModuleId::Content([8; 16])),
        },
        counts,
        trials: Trials {
            machines: vec![Machine {
                cpu: "GenuineIntel-6-8f-8".into(),
                temper: [0, 1, 0],
            }],
            trials: (0..size / 10 + 1).map(trial).collect(),
        },
    };
    profile.into_bytes(&Limits::default())
}

/// Changes a file in one to eight places.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..1 + random.below(8) {
        if bytes.is_empty() {
            return;
        }
        // Headers are small and matter most.
        let reach = if random.below(3) == 0 {
            160
        } else {
            usize::MAX
        };
        let at = random.below(bytes.len().min(reach));
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = 0xff - random.below(6) as u8,
            3 => bytes[at] = random.below(4) as u8,
            4 => bytes.truncate(at),
            5 => bytes.insert(at, random.next() as u8),
            6 => {
                let part = bytes[at..bytes.len().min(at + 1 + random.below(40))].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            _ => {
                bytes.remove(at);
            }
        }
    }
}

/// Makes the checksums right again, as somebody would who forges a file; and the lengths,
/// often, so that the change isn't noticed by them alone.
pub fn forge(bytes: &mut [u8]) {
    const HEADER: usize = 24;
    const ENTRY: usize = 32;
    if bytes.len() < HEADER {
        return;
    }
    let count = usize::from(u16::from_le_bytes([bytes[18], bytes[19]])).min(32);
    let table = HEADER + count * ENTRY;
    if bytes.len() < table {
        return;
    }
    let mut end = table;
    for index in 0..count {
        let at = HEADER + index * ENTRY;
        let stored = u32::from_le_bytes(bytes[at + 16..at + 20].try_into().expect("four"));
        let stored = match index + 1 == count {
            true => bytes.len() - end,
            false => (stored as usize).min(bytes.len() - end),
        };
        if bytes[at + 4] == 0 {
            let plain = stored as u32;
            bytes[at + 20..at + 24].copy_from_slice(&plain.to_le_bytes());
        }
        bytes[at + 8..at + 16].copy_from_slice(&(end as u64).to_le_bytes());
        bytes[at + 16..at + 20].copy_from_slice(&(stored as u32).to_le_bytes());
        let crc = crc32fast::hash(&bytes[end..end + stored]);
        bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
        end += stored;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..20]);
    hasher.update(&bytes[HEADER..table]);
    let crc = hasher.finalize();
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
}
