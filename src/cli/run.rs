//! `temper run`: hands the options to the process runner and shows statistics.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use profile_db::Durability;

use super::console;
use super::failure::{Failure, STATUS_OWN};
use super::options::{Developer, DumpStage, MaxTier, ProfileStore, RunOptions, Target};
use super::stats;
use crate::engine::stats::Stats;
use crate::engine::{Dump, Engine, Outcome, PROMOTE_AFTER, Settings, Superblocks, Tier};
use crate::host::{Features, Ignored, environment, probe};
use crate::process::elf::{Executable, LoadError};
use crate::process::exec::{Kept, Relaunch, Resumed};
use crate::process::{self, LoadOptions, Process, ThreadState};
use crate::profile::{Profile, SaveTimes, Store};
use crate::superblock::Steps;

/// Runs a program as the command line asks.
///
/// # Errors
/// What keeps the program from starting, or Temper from going on.
pub fn start((target, options): (Target, RunOptions)) -> Result<i32, Failure> {
    if let Some(path) = &options.stats_json {
        // Known before the program runs, not after hours of it.
        create(path)?;
    }
    check_host()?;
    if matches!(options.profile, ProfileStore::Homeless) {
        eprintln!(
            "temper: warning: there is no home folder to keep profiles in; --profile-dir DIR \
             names one, --no-profile does without"
        );
    }
    let executable = Executable::open(&target.program).map_err(not_loaded)?;
    let console = match (&options.profile, options.stats) {
        (ProfileStore::Dir(_), _) | (_, true) => console::keep(),
        (ProfileStore::Off | ProfileStore::Homeless, false) => None,
    };
    run_program(options, console, None, executable, target.argv)
}

/// Runs what a program under Temper has executed, in the same process.
///
/// # Errors
/// As [`start`].
pub fn resume(resumed: Resumed) -> Result<i32, Failure> {
    let options = RunOptions::from_text(&resumed.options)?;
    run_program(
        options,
        resumed.console,
        Some(resumed.kept),
        resumed.executable,
        resumed.arguments,
    )
}

fn not_loaded(error: LoadError) -> Failure {
    Failure {
        status: error.exit_status(),
        message: error.to_string(),
    }
}

/// Runs the guest to its end and gives its exit status. A guest that dies by a signal
/// takes this process with it, so that the death is passed on as one.
fn run_program(
    options: RunOptions,
    console: Option<OwnedFd>,
    kept: Option<Kept>,
    executable: Executable,
    argv: Vec<OsString>,
) -> Result<i32, Failure> {
    let started = Instant::now();
    let load = LoadOptions {
        huge_pages: options.huge_pages,
        own_descriptor: console,
        relaunch: Relaunch {
            options: options.to_text(),
            options_of_children: options.of_children().to_text(),
        },
        kept,
        ..LoadOptions::default()
    };
    let loaded = Process::load(load, executable, argv, &environment()).map_err(not_loaded)?;
    let mut profile = Profile::new(open_store(&options.profile));
    profile.save_at(match options.developer.save_every {
        Some(milliseconds) => {
            let every = Duration::from_millis(milliseconds);
            SaveTimes {
                first: every,
                every,
            }
        }
        None => SaveTimes::default(),
    });
    let settings = engine_settings(&options);
    let mut engine = Engine::new(settings, loaded.process.decoder(), profile).map_err(|error| {
        Failure::own(format!(
            "executable memory or fixed address ranges can't be had ({error}); \
             `temper doctor` says what this host lacks"
        ))
    })?;
    loaded.process.announce_code(&mut engine.code);
    let closing = Box::new(move |engine: &mut _, process: &_, thread: &_, outcome| {
        match close(&options, started, engine, process, thread, outcome) {
            Ok(status) => status,
            Err(failure) => failure.report(),
        }
    });
    process::run(engine, loaded, closing)
        .map_err(|errno| Failure::own(format!("memory for signals can't be had ({errno})")))
}

/// What remains when the guest has ended, in whichever thread it did.
///
/// # Errors
/// The statistics can't be written.
fn close(
    options: &RunOptions,
    started: Instant,
    engine: &mut Engine<Process>,
    process: &Process,
    thread: &ThreadState,
    outcome: Outcome,
) -> Result<i32, Failure> {
    let console = process.own_descriptor(thread);
    // A limit on the size of files is met by an error, not by a death that isn't the guest's.
    let limited = Ignored::new(libc::SIGXFSZ);
    let is_child = process.is_child(thread);
    let said = save_profile(engine, options);
    for warning in said {
        // A child's standard error is nobody's to write to.
        if is_child {
            tracing::warn!(target: "temper::profile", warning, "not saved");
        } else {
            console::line(console, &format!("temper: warning: {warning}"));
        }
    }
    engine.stats.seconds = started.elapsed().as_secs_f64();
    engine.stats.memory.peak_bytes = probe::peak_memory();
    let counts = process.counts();
    engine.stats.signals.faults = counts.faults;
    engine.stats.signals.protection_faults = counts.protection_faults;
    engine.stats.syscalls.unknown = counts.unknown_calls;
    let reported = if is_child {
        Ok(())
    } else {
        report_stats(options, &engine.stats, console)
    };
    drop(limited);
    process.finish();
    match outcome {
        Outcome::Exit(status) | Outcome::ThreadExit(status) => reported.map(|()| status),
        Outcome::Killed(signo) => thread.die_by(signo),
        Outcome::Aborted => Ok(i32::from(STATUS_OWN)),
    }
}

fn check_host() -> Result<(), Failure> {
    let features = Features::get();
    let missing = match (features.fsgsbase, features.xsave) {
        (true, true) => return Ok(()),
        (false, _) => "the FSGSBASE instructions (Linux 5.9 or newer enables them)",
        (true, false) => "the XSAVE instructions",
    };
    Err(Failure::own(format!(
        "this host lacks {missing}; `temper doctor` says more"
    )))
}

fn open_store(profile: &ProfileStore) -> Option<Store> {
    match profile {
        ProfileStore::Off | ProfileStore::Homeless => None,
        ProfileStore::Dir(dir) => Store::open(dir)
            .inspect_err(|error| eprintln!("temper: warning: {error}; this run keeps no profile"))
            .ok(),
    }
}

fn engine_settings(options: &RunOptions) -> Settings {
    let dumps = |stage| options.dump.contains(&stage);
    Settings {
        max_tier: match options.max_tier {
            MaxTier::Interpreter => Tier::Interpreter,
            MaxTier::Block => Tier::Block,
            MaxTier::Superblock => Tier::Superblock,
        },
        cache_bytes: options.cache_bytes as usize,
        promote_after: match options.developer {
            Developer {
                everything_hot: true,
                ..
            } => 0,
            Developer {
                promote_after: Some(count),
                ..
            } => u16::try_from(count).unwrap_or(u16::MAX),
            Developer {
                promote_after: None,
                ..
            } => PROMOTE_AFTER,
        },
        flush_every: options.developer.flush_every.map_or(0, |every| every.get()),
        stop_after: options.developer.stop_after.unwrap_or(u64::MAX),
        profile: options.profile != ProfileStore::Off,
        reuse: options.reuse,
        timing: options.stats || options.stats_json.is_some(),
        verify: options.verify,
        dump: Dump {
            decode: dumps(DumpStage::Decode),
            blocks: dumps(DumpStage::Blocks),
            fragments: dumps(DumpStage::Fragments),
            superblocks: dumps(DumpStage::Superblocks),
        },
        superblocks: Superblocks {
            forced: options.developer.superblocks_forced,
            stop_after: options.developer.stop_superblocks_after.unwrap_or(u64::MAX),
            rewrite: options.developer.rewrite_superblocks.unwrap_or(u64::MAX),
            steps: options
                .developer
                .superblock_steps
                .map_or(Steps::ALL, |bits| Steps {
                    rename: bits & 1 != 0,
                    rename_vector: bits & 2 != 0,
                    fold: bits & 4 != 0,
                }),
        },
    }
}

/// Saves what was learned; trouble with it never fails the run, and is said in the result.
fn save_profile(engine: &mut Engine<Process>, options: &RunOptions) -> Vec<String> {
    let mut said = Vec::new();
    if let ProfileStore::Dir(_) = &options.profile {
        let started = Instant::now();
        let report = engine.code.profile.save(Durability::Routine);
        engine.stats.profile.save_seconds = started.elapsed().as_secs_f64();
        let warnings = engine.code.profile.take_warnings();
        said.extend(warnings.iter().chain(&report.errors).map(|e| e.to_string()));
        let started = Instant::now();
        let kept = engine.code.keep_code();
        engine.stats.reuse.save_seconds = started.elapsed().as_secs_f64();
        engine.stats.reuse.bytes_saved = kept.bytes;
        // What keeps profiles from being saved was said already.
        if report.errors.is_empty() {
            said.extend(kept.errors.iter().map(|e| e.to_string()));
        }
    }
    let stats = engine.code.profile.stats();
    engine.stats.profile.modules_loaded = stats.modules_loaded;
    engine.stats.profile.records_loaded = stats.records_loaded;
    engine.stats.profile.load_seconds = stats.load_time.as_secs_f64();
    engine.stats.profile.modules_saved = stats.modules_saved;
    engine.stats.profile.records_saved = stats.records_saved;
    said
}

/// Shows what happened as the options ask. For the end of the run, before the exit status
/// or the signal is passed on.
///
/// # Errors
/// The JSON file can't be written.
fn report_stats(
    options: &RunOptions,
    stats: &Stats,
    console: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    if options.stats {
        console::line(console, &stats::render(stats));
    }
    if let Some(path) = &options.stats_json {
        let mut text = serde_json::to_vec_pretty(stats)
            .map_err(|error| Failure::own(format!("statistics can't be made ({error})")))?;
        text.push(b'\n');
        create(path)?
            .write_all(&text)
            .map_err(|error| unwritable(path, &error))?;
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::own(format!(
        "{}: statistics can't be written there ({error}); give another file",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_created_is_named() {
        let failure = create(Path::new("/nonexistent/stats.json")).expect_err("no such folder");
        assert_eq!(failure.status, 125);
        assert!(failure.message.contains("/nonexistent/stats.json"));
    }
}
