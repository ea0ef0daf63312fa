//! The ways in which each program is run, and the comparison with its native run.

use std::ffi::OsString;
use std::fmt::Write as _;

use libtest_mimic::Failed;

use crate::case::{Case, Run, Weight};
use crate::fixture::Tree;
use crate::support::End;

/// One way of running a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// From a cold start, then with the profile and the code that the first run saved, then
    /// with what the second run added.
    Twice,
    /// In the interpreter alone.
    Interpreter,
    /// Everything translated at its first execution.
    Hot,
    /// A superblock wherever one can be made, without trials.
    Superblocks,
    /// The code cache bounded to 1 MiB.
    SmallCache,
    /// The code cache emptied at every so many entries.
    Flush,
    /// Every block in both tiers, compared.
    Verify,
}

pub const ALL: &[Mode] = &[
    Mode::Twice,
    Mode::Interpreter,
    Mode::Hot,
    Mode::Superblocks,
    Mode::SmallCache,
    Mode::Flush,
    Mode::Verify,
];

/// What is cheap enough for lockstep, which takes microseconds a block.
const VERIFIED: &[&str] = &[
    "expr 12345 * 6789",
    "seq -f %.3g 1 0.25 9",
    "sha256sum text",
    "uniq -c numbers",
    "tsort numbers",
    "sed -n 10,20p text",
    "mawk -f script.awk table.csv",
    "gzip -n1 binary",
    "c/arguments.c",
    "c/auxv.c",
    "c/coroutines.c",
    "c/cpu_modes.c",
    "c/fault_registers.c",
    "c/fault_strings.c",
    "c/float_exceptions.c",
    "c/smc_patch.c",
    "c/trap_flag.c",
    "c/vector_state.c",
];

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Twice => "twice",
            Mode::Interpreter => "interpreter",
            Mode::Hot => "hot",
            Mode::Superblocks => "superblocks",
            Mode::SmallCache => "small-cache",
            Mode::Flush => "flush",
            Mode::Verify => "verify",
        }
    }

    pub fn affords(self, case: &Case) -> bool {
        match self {
            Mode::Twice | Mode::SmallCache | Mode::Hot | Mode::Superblocks => true,
            // What a killed child was changing stays half changed; emptying the cache at every
            // turn, a child is rarely doing anything else.
            Mode::Flush => case.name != "c/vfork_killed.c",
            Mode::Interpreter => case.weight == Weight::Light,
            Mode::Verify => VERIFIED.contains(&case.name.as_str()),
        }
    }
}

/// Runs the case in this mode and compares.
pub fn check(case: &Case, mode: Mode) -> Result<(), Failed> {
    if let Err(why) = case.program() {
        eprintln!("skipped: {}: {why}", case.name);
        return Ok(());
    }
    let native = case.native()?;
    if native.outcome.end == End::TimedOut {
        return Err("its native run takes too long".into());
    }
    let profile = tempfile::tempdir()?;
    let mut options: Vec<OsString> = vec!["--profile-dir".into(), profile.path().into()];
    let mut more = |words: &[&str]| options.extend(words.iter().map(OsString::from));
    let mut variables = Vec::new();
    match mode {
        Mode::Twice => {}
        Mode::Interpreter => more(&["--max-tier", "interpreter"]),
        Mode::Hot => variables.push(("TEMPER_HOT", "1")),
        Mode::Superblocks => variables.push(("TEMPER_FORCE_SUPERBLOCKS", "1")),
        Mode::SmallCache => more(&["--cache-size", "1"]),
        Mode::Flush => variables.push((
            "TEMPER_FLUSH_EVERY",
            // A cache that never holds what a loop needs makes a run take minutes: what C++
            // needs to throw an exception is more than 200 entries.
            match case.weight {
                Weight::Light => "500",
                Weight::Heavy => "2000",
            },
        )),
        Mode::Verify => more(&["--verify"]),
    }
    let run = case.under_temper(&options, &variables)?;
    compare(native, &run, "")?;
    let again: &[&str] = match mode {
        Mode::Twice => &[" in the second run", " in the third run"],
        // With code that an earlier run kept, which is evicted like any other.
        Mode::SmallCache | Mode::Flush => &[" in the second run"],
        Mode::Interpreter | Mode::Hot | Mode::Superblocks | Mode::Verify => &[],
    };
    for when in again {
        let again = case.under_temper(&options, &variables)?;
        compare(native, &again, when)?;
    }
    Ok(())
}

fn compare(native: &Run, run: &Run, when: &str) -> Result<(), Failed> {
    if native == run {
        return Ok(());
    }
    let mut text = format!("differs from its native run{when}\n");
    if native.outcome != run.outcome {
        let _ = write!(
            text,
            "natively: {:?}\nunder Temper: {:?}\n",
            native.outcome, run.outcome
        );
        let _ = write!(
            text,
            "{}{}",
            first_line_apart("stdout", &native.outcome.stdout, &run.outcome.stdout),
            first_line_apart("stderr", &native.outcome.stderr, &run.outcome.stderr)
        );
    }
    let _ = write!(text, "{}", difference(&native.files, &run.files));
    Err(text.into())
}

/// The first line in which two outputs differ, if they do.
fn first_line_apart(what: &str, native: &[u8], run: &[u8]) -> String {
    let lines = |bytes: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(bytes)
            .lines()
            .map(str::to_owned)
            .collect()
    };
    let (native, run) = (lines(native), lines(run));
    let longest = native.len().max(run.len());
    match (0..longest).find(|&at| native.get(at) != run.get(at)) {
        None => String::new(),
        Some(at) => {
            let line = |list: &[String]| match list.get(at) {
                Some(line) => format!("{:?}", line.chars().take(200).collect::<String>()),
                None => "(no more lines)".into(),
            };
            format!(
                "{what} differs first in line {}: {} natively, {} under Temper\n",
                at + 1,
                line(&native),
                line(&run)
            )
        }
    }
}

fn difference(native: &Tree, run: &Tree) -> String {
    let mut text = String::new();
    for (name, contents) in native {
        let _ = match run.get(name) {
            None => writeln!(text, "{} is missing", name.display()),
            Some(other) if other != contents => {
                let at = contents.iter().zip(other).position(|(a, b)| a != b);
                writeln!(
                    text,
                    "{} differs: {} bytes natively, {} here, first at byte {:?}",
                    name.display(),
                    contents.len(),
                    other.len(),
                    at
                )
            }
            Some(_) => Ok(()),
        };
    }
    for name in run.keys().filter(|name| !native.contains_key(*name)) {
        let _ = writeln!(text, "{} is too much", name.display());
    }
    text
}
