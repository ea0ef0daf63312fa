//! Random programs, natively and with superblocks wherever one can be made.
//!
//! TEMPER_TEST_SEEDS=FROM-TO runs the programs of these seeds, all builds of them.

mod generator;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::{End, Outcome, run, temper};

const LIMIT: Duration = Duration::from_secs(60);

const BUILDS: &[&[&str]] = &[
    &["-O0"],
    &["-O1"],
    &["-O1", "-fno-omit-frame-pointer"],
    &["-O2"],
    &["-O0", "-no-pie", "-static", "-fomit-frame-pointer"],
];

/// Rewriting steps, as TEMPER_SUPERBLOCK_STEPS has them.
const STEPS: &[&str] = &["7", "1", "2", "4"];

fn compile(dir: &Path, seed: u64, flags: &[&str]) -> Option<std::path::PathBuf> {
    let source = dir.join(format!("{seed}.c"));
    fs::write(&source, generator::program(seed)).expect("written");
    let to = dir.join(format!("{seed}{}", flags.concat()));
    let built = Command::new("gcc")
        .args(flags)
        .args(["-w", "-fno-strict-aliasing", "-fno-stack-protector", "-o"])
        .arg(&to)
        .arg(&source)
        .output()
        .ok()?;
    assert!(
        built.status.success(),
        "seed {seed}: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    Some(to)
}

fn under_temper(program: &Path, steps: &str) -> Outcome {
    // Superblocks need counts, which a run without a profile doesn't take.
    let profile = program.with_extension("profile");
    let mut command = temper();
    command
        .env("TEMPER_PROFILE_DIR", &profile)
        .env("TEMPER_FORCE_SUPERBLOCKS", "1")
        .env("TEMPER_SUPERBLOCK_STEPS", steps)
        .args(["run", "--"])
        .arg(program);
    let outcome = run(command, b"", LIMIT).expect("temper runs");
    let _ = fs::remove_dir_all(profile);
    outcome
}

/// Compares a program's builds; what differs is in the answer.
fn compare(dir: &Path, seed: u64, builds: &[&[&str]], steps: &[&str]) -> Vec<String> {
    let mut different = Vec::new();
    for flags in builds {
        let Some(program) = compile(dir, seed, flags) else {
            println!("skipped: there is no gcc");
            return different;
        };
        let native = run(Command::new(&program), b"", LIMIT).expect("runs");
        if native.end == End::TimedOut {
            continue;
        }
        for steps in steps {
            let ours = under_temper(&program, steps);
            if ours != native {
                different.push(format!(
                    "seed {seed}, {flags:?}, steps {steps}: {ours:?}\nnatively {native:?}"
                ));
            }
        }
        let _ = fs::remove_file(program);
    }
    different
}

#[test]
fn random_programs() {
    let asked = std::env::var("TEMPER_TEST_SEEDS").ok();
    let (from, to) = match &asked {
        Some(text) => {
            let (from, to) = text.split_once('-').expect("TEMPER_TEST_SEEDS=FROM-TO");
            let number = |text: &str| text.parse::<u64>().expect("a number");
            (number(from), number(to))
        }
        None => (0, 10),
    };
    let dir = tempfile::tempdir().expect("a folder");
    let next = AtomicU64::new(from);
    let different: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut different = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= to {
                    return different;
                }
                // Two builds and one set of steps a seed, unless more is asked for.
                let n = seed as usize;
                let found = if asked.is_some() {
                    compare(dir.path(), seed, BUILDS, STEPS)
                } else {
                    let build = [BUILDS[0], BUILDS[1 + n % (BUILDS.len() - 1)]];
                    compare(dir.path(), seed, &build, &[STEPS[0], STEPS[1 + n % 3]])
                };
                for text in &found {
                    println!("{text}");
                }
                different.extend(found);
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a worker"))
            .collect()
    });
    assert!(different.is_empty(), "{} differ", different.len());
}
