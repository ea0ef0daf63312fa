use std::io::Write;

use super::sections::decisions;
use super::*;
use crate::record::{BlockRecord, EdgeKind, EdgeRecord, Likeness, Target, Tier};
use crate::sample::{Rng, profile};

type Parsed = (ModuleRecord, Totals, Vec<Decision>, Counts, Trials);

fn parse(bytes: &[u8]) -> Result<Parsed, Refusal> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let from_file = ProfileFile::open(Source::File(&file), bytes.len() as u64)?.all()?;
    let from_bytes = ProfileFile::open(Source::Bytes(bytes), bytes.len() as u64)?.all()?;
    assert_eq!(from_file, from_bytes);
    Ok(from_file)
}

impl ProfileFile<'_> {
    fn all(&self) -> Result<Parsed, Refusal> {
        let (module, totals) = self.module()?;
        let decisions = self.decisions()?;
        Ok((module, totals, decisions, self.counts()?, self.trials()?))
    }
}

/// Recomputes the checksums, as somebody would who forges a file.
fn forge(bytes: &mut [u8]) {
    let count = usize::from(u16_at(bytes, 18)).min(MAX_SECTIONS);
    for index in 0..count {
        let at = HEADER_LEN + index * ENTRY_LEN;
        if bytes.len() < at + ENTRY_LEN {
            return;
        }
        let from = u64_at(bytes, at + 8) as usize;
        let len = u32_at(bytes, at + 16) as usize;
        if let Some(stored) = from.checked_add(len).and_then(|to| bytes.get(from..to)) {
            let crc = crc32fast::hash(stored);
            bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let crc = header_crc(bytes, count);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_profile_comes_back_as_it_was() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        // Small ones stay plain, large ones are packed and longer than the first read.
        let size = if seed % 10 == 0 { 4000 } else { 30 };
        let written = profile(&mut rng, size);
        let bytes = encode(written.clone(), &Limits::default());
        let (module, totals, decisions, counts, trials) = match parse(&bytes) {
            Ok(parsed) => parsed,
            Err(Refusal::Damage(damage)) => panic!("seed {seed}: {damage}"),
            Err(_) => panic!("seed {seed}"),
        };
        assert_eq!(
            (module, &counts, &trials),
            (written.module, &written.counts, &written.trials),
            "seed {seed}"
        );
        assert_eq!(totals, Totals::new(&counts, &trials));
        assert_eq!(totals.executions, counts.executions());
        assert_eq!(totals.paths, counts.paths.len() as u64);
        let hot = |b: &&BlockRecord| b.count >= 32 || b.tier > Tier::Interpreted;
        let expected: Vec<_> = counts.blocks.iter().filter(hot).map(|b| b.offset).collect();
        let offsets: Vec<_> = decisions.iter().map(|d| d.offset).collect();
        assert_eq!(offsets, expected, "seed {seed}");
    }
}

#[test]
fn a_decision_says_which_way_the_branch_goes_and_whether_paths_start_there() {
    let block = |offset, head| BlockRecord {
        offset,
        hash: offset,
        len: 4,
        tier: Tier::Block,
        head,
        likeness: Likeness::default(),
        count: 10,
    };
    let edge = |from, kind, count| EdgeRecord {
        from,
        kind,
        to: Target::Here(0),
        count,
    };
    let mut counts = Counts {
        blocks: vec![
            block(8, true),
            block(16, false),
            block(24, false),
            block(32, false),
        ],
        edges: vec![
            edge(4, EdgeKind::Taken, 100),
            edge(8, EdgeKind::Taken, 2),
            edge(8, EdgeKind::Next, 9),
            edge(16, EdgeKind::Taken, 4),
            edge(24, EdgeKind::Return, 4),
            edge(33, EdgeKind::Taken, 4),
        ],
        ..Counts::default()
    };
    counts.normalize();
    let made: Vec<_> = decisions(&counts, &Limits::default())
        .iter()
        .map(|d| (d.offset, d.head, d.bias))
        .collect();
    assert_eq!(
        made,
        [
            (8, true, Bias::Next),
            (16, false, Bias::Taken),
            (24, false, Bias::Unknown),
            (32, false, Bias::Unknown)
        ]
    );
}

#[test]
fn the_hottest_decisions_are_kept() {
    let mut rng = Rng(1);
    let written = profile(&mut rng, 500);
    let limits = Limits {
        decisions: 3,
        ..Limits::default()
    };
    let mut counts: Vec<_> = written
        .counts
        .blocks
        .iter()
        .filter(|b| b.count >= 32 || b.tier > Tier::Interpreted)
        .map(|b| b.count)
        .collect();
    counts.sort();
    let least = counts[counts.len() - 3];
    let kept = decisions(&written.counts, &limits);
    assert_eq!(kept.len(), 3);
    for decision in kept {
        let block = written
            .counts
            .blocks
            .iter()
            .find(|b| (b.offset, b.hash) == (decision.offset, decision.hash));
        assert!(block.unwrap().count >= least);
    }
}

#[test]
fn a_file_cut_short_anywhere_is_damaged() {
    for size in [12, 400] {
        let bytes = encode(profile(&mut Rng(7), size), &Limits::default());
        for len in 0..bytes.len() {
            assert!(
                matches!(parse(&bytes[..len]), Err(Refusal::Damage(_))),
                "length {len} of {}",
                bytes.len()
            );
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(
            parse(&longer),
            Err(Refusal::Damage(Damage::Length))
        ));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for size in [12, 120] {
        let bytes = encode(profile(&mut Rng(3), size), &Limits::default());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(parse(&flipped), Err(Refusal::Damage(_))),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn forged_files_are_refused_or_harmless() {
    // Right checksums over wrong content: whatever is handed out must be canonical.
    for seed in 0..20_000 {
        let mut rng = Rng(seed);
        let size = if seed % 50 == 0 { 600 } else { 10 };
        let mut bytes = encode(profile(&mut rng, size), &Limits::default());
        for _ in 0..1 + rng.below(3) {
            let at = match rng.below(2) {
                0 => rng.below(128.min(bytes.len() as u64)),
                _ => rng.below(bytes.len() as u64),
            } as usize;
            bytes[at] = match rng.below(3) {
                0 => bytes[at] ^ (1 << rng.below(8)),
                1 => 0xff - rng.below(6) as u8,
                _ => rng.next() as u8,
            };
        }
        forge(&mut bytes);
        if let Ok((module, _, _, counts, trials)) = parse(&bytes) {
            assert!(module.id.is_valid() && counts.is_canonical(), "seed {seed}");
            assert!(trials.is_canonical(), "seed {seed}");
            let profile = ModuleProfile {
                module,
                counts,
                trials,
            };
            let _ = encode(profile, &Limits::default());
        }
    }
}

#[test]
fn a_newer_version_says_so_and_a_flipped_version_bit_does_not() {
    let bytes = encode(profile(&mut Rng(5), 5), &Limits::default());
    let mut newer = bytes.clone();
    newer[8] = FORMAT_VERSION as u8 + 1;
    assert!(matches!(
        parse(&newer),
        Err(Refusal::Damage(Damage::Checksum))
    ));
    newer[12..18].copy_from_slice(&[3, 0, 1, 0, 4, 0]);
    forge(&mut newer);
    assert!(matches!(parse(&newer), Err(Refusal::Newer([3, 1, 4]))));

    let mut newer_section = bytes.clone();
    newer_section[HEADER_LEN + 2] = 9;
    forge(&mut newer_section);
    assert!(matches!(parse(&newer_section), Err(Refusal::Newer(_))));

    let mut older = bytes;
    older[8] = 0;
    forge(&mut older);
    assert!(matches!(
        parse(&older),
        Err(Refusal::Damage(Damage::Header))
    ));
}

#[test]
fn sections_of_unknown_kinds_are_skipped() {
    let written = profile(&mut Rng(5), 5);
    let bytes = encode(written.clone(), &Limits::default());
    let mut entry = [0u8; ENTRY_LEN];
    entry[0..2].copy_from_slice(&77u16.to_le_bytes());
    entry[2..4].copy_from_slice(&5u16.to_le_bytes());
    entry[8..16].copy_from_slice(&((bytes.len() + ENTRY_LEN) as u64).to_le_bytes());
    entry[16..20].copy_from_slice(&4u32.to_le_bytes());
    let table_end = HEADER_LEN + 4 * ENTRY_LEN;
    let mut longer = [
        &bytes[..table_end],
        &entry[..],
        &bytes[table_end..],
        b"news",
    ]
    .concat();
    longer[18] = 5;
    for index in 0..4 {
        let at = HEADER_LEN + index * ENTRY_LEN + 8;
        let offset = u64_at(&longer, at) + ENTRY_LEN as u64;
        longer[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    }
    forge(&mut longer);
    let Ok((module, .., counts, trials)) = parse(&longer) else {
        panic!("the new section isn't skipped");
    };
    let ModuleProfile {
        module: written_module,
        counts: written_counts,
        trials: written_trials,
    } = written;
    assert_eq!(
        (module, counts, trials),
        (written_module, written_counts, written_trials)
    );
}

#[test]
fn a_packed_section_cannot_claim_a_huge_size() {
    let mut bytes = encode(profile(&mut Rng(9), 2000), &Limits::default());
    let at = HEADER_LEN + 2 * ENTRY_LEN;
    assert_eq!(u32_at(&bytes, at + 4), ZSTD);
    bytes[at + 20..at + 24].copy_from_slice(&(MAX_SECTION_LEN as u32).to_le_bytes());
    forge(&mut bytes);
    assert!(matches!(parse(&bytes), Err(Refusal::Damage(_))));
}

#[test]
fn files_of_version_1_are_read_and_written_anew() {
    // Written by the version of this crate that had format 1, from the same numbers.
    let files: [(&[u8], [usize; 3], u64); 2] = [
        (
            include_bytes!("data/version-1-12.profile"),
            [7, 11, 0],
            1_263_231_441_827,
        ),
        (
            include_bytes!("data/version-1-120.profile"),
            [107, 111, 23],
            18_446_744_073_709_551_615,
        ),
    ];
    for (bytes, lens, executions) in files {
        assert_eq!(u32_at(bytes, 8), 1);
        let (module, totals, decisions, counts, trials) = parse(bytes).unwrap();
        assert_eq!(module.path, b"/usr/lib/libsample.so");
        assert_eq!((module.runs, module.ancestor.clone()), (1, None));
        assert!(counts.is_canonical() && trials.is_empty());
        let found = [
            &counts.blocks.len(),
            &counts.edges.len(),
            &counts.paths.len(),
        ];
        assert_eq!(found.map(|len| *len), lens);
        assert_eq!(
            (counts.executions(), totals.executions),
            (executions, executions)
        );
        assert_eq!(totals, Totals::new(&counts, &trials));
        assert!(decisions.len() <= counts.blocks.len());
        assert!(counts.blocks.iter().all(|block| !block.likeness.is_known()));

        let profile = ModuleProfile::from_bytes(bytes).unwrap();
        let anew = profile.clone().into_bytes(&Limits::default());
        assert_eq!(u32_at(&anew, 8), FORMAT_VERSION);
        assert_eq!(ModuleProfile::from_bytes(&anew).unwrap(), profile);
    }
}

#[test]
fn files_of_version_1_are_read_without_trust_too() {
    let bytes = include_bytes!("data/version-1-120.profile");
    for seed in 0..3000 {
        let mut rng = Rng(seed);
        let mut bytes = bytes.to_vec();
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] = rng.next() as u8;
        forge(&mut bytes);
        if let Ok((.., counts, _)) = parse(&bytes) {
            assert!(counts.is_canonical(), "seed {seed}");
        }
    }
}

#[test]
fn a_file_stays_within_its_limit_and_keeps_the_hottest() {
    let written = profile(&mut Rng(4), 6000);
    let whole = encode(written.clone(), &Limits::default());
    let limits = Limits {
        file_bytes: whole.len() / 3,
        ..Limits::default()
    };
    let bytes = encode(written.clone(), &limits);
    assert!(bytes.len() <= limits.file_bytes && bytes.len() > limits.file_bytes / 2);
    let kept = ModuleProfile::from_bytes(&bytes).unwrap();
    let least = kept.counts.blocks.iter().map(|b| b.count).min().unwrap();
    let more = written.counts.blocks.iter().filter(|b| b.count > least);
    assert!(more.count() <= kept.counts.blocks.len());
    let nothing = Limits {
        file_bytes: 0,
        ..limits
    };
    let bytes = encode(written, &nothing);
    assert!(ModuleProfile::from_bytes(&bytes).unwrap().counts.is_empty());
}

#[test]
fn numbers_at_their_longest_fit_into_a_section() {
    let limits = Limits::default();
    // What each record takes with every number above 32 bits: a byte and eight for each.
    let longest = limits.blocks * (9 + 9 + 5 + 1 + 1 + 5 + 3 + 9)
        + limits.edges * (9 + 1 + 1 + 5 + 9 + 9)
        + limits.paths * (9 + 5 + 1 + 9)
        + limits.pairs * (9 + 1 + 5 + 9 + 9)
        + limits.values * (9 + 1 + 1 + 9 + 9);
    assert!(longest < MAX_SECTION_LEN, "{longest}");
}
