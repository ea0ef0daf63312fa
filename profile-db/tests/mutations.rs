//! Files that were changed anywhere, with right and wrong checksums: no panic, no hang, and
//! no more memory than the limits allow. `fuzz/` holds the same for cargo-fuzz.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[path = "../fuzz/mutate.rs"]
mod mutate;

use mutate::{Random, forge, mutate, sample};
use profile_db::{Limits, ModuleProfile};

/// What the whole test may use. A file of a few kilobytes may claim sections of 512 times
/// its length and records of ten times that; a hostile length would be gigabytes.
const MEMORY: u64 = 512 << 20;

/// A file takes microseconds, but a busy host may leave this test waiting for seconds.
const TOO_LONG: Duration = Duration::from_secs(120);

/// From here on more memory is an abort of this test program.
fn bound_memory() {
    let old = getrlimit(Resource::As);
    let current = Some(MEMORY);
    setrlimit(Resource::As, Rlimit { current, ..old }).expect("a lower limit");
}

fn run(files: u64) {
    let samples: Vec<Vec<u8>> = (0..6).map(|seed| sample(seed, 10 + seed * 40)).collect();
    let mut read = 0;
    bound_memory();
    for seed in 0..files {
        let mut random = Random(seed);
        let mut bytes = samples[random.below(samples.len())].clone();
        mutate(&mut random, &mut bytes);
        if random.below(4) > 0 {
            forge(&mut bytes);
        }
        let began = Instant::now();
        if let Ok(profile) = ModuleProfile::from_bytes(&bytes) {
            read += 1;
            // What was read can be used: merged, bounded and written.
            if seed % 16 == 0 {
                let mut twice = profile.clone();
                twice.merge(profile);
                let limits = Limits::default();
                let written = twice.clone().into_bytes(&limits);
                assert_eq!(
                    ModuleProfile::from_bytes(&written).unwrap(),
                    twice,
                    "seed {seed}"
                );
            }
        }
        assert!(began.elapsed() < TOO_LONG, "seed {seed} hangs");
    }
    // The mutations reach behind the checksums, and most are noticed.
    assert!(
        read > files / 1000 && read < files,
        "{read} of {files} were read"
    );
}

/// Thirty thousand, or with `TEMPER_TEST_ALL=1` a million, which takes a minute.
#[test]
fn mutated_files_do_no_harm() {
    let all = std::env::var_os("TEMPER_TEST_ALL").is_some();
    run(if all { 1_000_000 } else { 30_000 });
}
