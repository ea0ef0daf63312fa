//! Whole programs: native, under Temper from a cold start, under Temper with its profile,
//! and under other systems where they are installed. Each round runs every variant once,
//! next to a native run; what is compared are those pairs, so that a host which slows
//! down for a minute slows both sides of a pair.
//!
//! `cargo bench --bench programs -- --filter lua --runs 9`; `--help` shows the rest.

mod legacy;
mod measure;
#[path = "../../tests/support/servers.rs"]
mod place;
mod report;
mod sessions;
mod settling;
mod statistics;
mod suite;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use legacy::Legacy;
use measure::Runner;
use report::{Results, Row, Variant};
use suite::{Suite, Workload};

/// Measures whole programs under Temper
#[derive(Parser, Debug)]
struct Options {
    /// Only rows whose name, or whose set of old builds, holds one of these
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,

    /// Pairs of runs
    #[arg(long, default_value_t = 7, value_name = "N")]
    runs: usize,

    /// Two pairs only: to see that all works, not to measure
    #[arg(long)]
    quick: bool,

    /// Also run valgrind, qemu-x86_64 and drrun where they are installed; slow
    #[arg(long)]
    peers: bool,

    /// The temper to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_temper"), value_name = "FILE")]
    temper: PathBuf,

    /// Where the results go
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/programs.json"),
          value_name = "FILE")]
    json: PathBuf,

    /// Show the rows and measure nothing
    #[arg(long)]
    list: bool,

    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|text| name.contains(text))
    }

    fn pairs(&self) -> usize {
        if self.quick { 2 } else { self.runs.max(1) }
    }

    /// Start-ups are short and jittery: more of them.
    fn startup_pairs(&self) -> usize {
        self.pairs() * 3
    }
}

const NATIVE_LIMIT: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match bench(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("programs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<(), Box<dyn Error>> {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    if options.list {
        println!("programs, startup and profiling rows: see workloads/suite.json");
    }
    let suite = Suite::load(&scratch.join("workloads"))?;
    let mut legacy = Legacy::load(&suite.cache)?;
    let selected = |list: &[Workload]| -> Vec<Workload> {
        list.iter()
            .filter(|workload| options.wants(&workload.name))
            .cloned()
            .collect()
    };
    let (programs, startups) = (selected(&suite.programs), selected(&suite.startups));
    if options.list {
        for workload in programs.iter().chain(&startups) {
            println!("{}: {}", workload.name, workload.command.join(" "));
        }
        for step in &suite.sessions {
            println!("{}: {}", step.name, step.command.join(" "));
        }
        for workload in legacy.rows.iter().map(|row| &row.workload) {
            println!("{}: {}", workload.name, workload.command.join(" "));
        }
        println!("redis, pgbench, nginx: a server under load");
        return Ok(());
    }
    let mut results = Results {
        cpu: host_line("/proc/cpuinfo", "model name"),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        runs: options.pairs(),
        ..Results::default()
    };
    for workload in &programs {
        results
            .programs
            .extend(compare(workload, options, options.pairs())?);
    }
    for row in std::mem::take(&mut legacy.rows) {
        let workload = &row.workload;
        // A row of a set may be chosen by the set's name.
        if options.wants(&workload.name) || options.wants(&workload.group) {
            legacy.build(&row)?;
            let compared = compare(workload, options, options.pairs())?;
            results.legacy.extend(compared);
        }
    }
    for workload in &startups {
        results
            .startups
            .extend(compare(workload, options, options.startup_pairs())?);
    }
    for name in suite.profiling.iter().filter(|name| options.wants(name)) {
        if let Some(workload) = programs.iter().find(|workload| workload.name == *name) {
            results.profiling.extend(profiling_cost(workload, options)?);
        }
    }
    for name in suite.settling.iter().filter(|name| options.wants(name)) {
        let listed = programs.iter().chain(&startups);
        if let Some(workload) = listed.clone().find(|workload| workload.name == *name) {
            match settle(workload, options) {
                Ok(row) => results.settling.push(row),
                Err(error) => eprintln!("skipped: settling of {name}: {error}"),
            }
        }
    }
    if options.wants("interpreter") {
        results.interpreter_speed = interpreter_speed(&suite.interpreter, &options.temper);
    }
    for step in &suite.sessions {
        if options.wants(&step.name) && there(&step.name, &step.command[0]) {
            let pairs = options.pairs();
            let figure = sessions::step(step, &options.temper, pairs);
            results.sessions.push(figure);
        }
    }
    results.sessions.extend(sessions::servers(
        |name| options.wants(name),
        &options.temper,
        options.pairs(),
        options.quick,
    ));
    results.print();
    results.write(&options.json)?;
    println!("\nall samples: {}", options.json.display());
    Ok(())
}

/// The variants of one program. `None` when the program isn't installed.
fn compare(
    workload: &Workload,
    options: &Options,
    pairs: usize,
) -> Result<Option<Row>, Box<dyn Error>> {
    if !installed(workload) {
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let (fresh, kept) = (folder.path().join("fresh"), folder.path().join("kept"));
    let with_profile = |name, profiles: &Path| {
        Runner::temper(
            name,
            &options.temper,
            &[Path::new("--profile-dir"), profiles],
        )
    };
    let cold = with_profile("Temper cold", &fresh);
    let learned = with_profile("Temper with profile", &kept);
    let mut runners = vec![cold, learned];
    for (index, more) in workload.also.iter().enumerate() {
        let profiles = folder.path().join(index.to_string());
        let words = more.iter().map(Path::new);
        let words: Vec<&Path> = words
            .chain([Path::new("--profile-dir"), &profiles])
            .collect();
        runners.push(Runner::temper(&more.join(" "), &options.temper, &words));
    }
    if options.peers {
        runners.extend(peers());
    }
    rounds(workload, &Runner::native(), runners, pairs, |runner| {
        if runner.name == "Temper cold" {
            let _ = fs::remove_dir_all(&fresh);
        }
    })
    .map(Some)
}

/// How soon a program's time is spent in generated code.
fn settle(workload: &Workload, options: &Options) -> Result<settling::Settling, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (fresh, kept) = (folder.path().join("fresh"), folder.path().join("kept"));
    let with = |name, profiles: &Path| {
        let words = [Path::new("--profile-dir"), profiles];
        Runner::temper(name, &options.temper, &words)
    };
    let runs = options.pairs().min(5);
    let (cold, learned) = (with("cold", &fresh), with("kept", &kept));
    settling::settling(workload, &cold, &learned, runs, || {
        let _ = fs::remove_dir_all(&fresh);
    })
}

/// Temper with its profile against Temper without any, both with the same tiers.
fn profiling_cost(workload: &Workload, options: &Options) -> Result<Option<Row>, Box<dyn Error>> {
    if !installed(workload) {
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let kept = folder.path().join("kept");
    let without = Runner::temper(
        "--no-profile",
        &options.temper,
        &[Path::new("--no-profile")],
    );
    let with = Runner::temper(
        "default",
        &options.temper,
        &[Path::new("--profile-dir"), &kept],
    );
    let mut row = rounds(workload, &without, vec![with], options.pairs(), |_| {})?;
    row.group = "profiling".into();
    Ok(Some(row))
}

/// Runs every variant `pairs` times next to a run of `base`. The first run of each isn't
/// measured: it checks that the output is the same, and leaves a profile.
fn rounds(
    workload: &Workload,
    base: &Runner,
    runners: Vec<Runner>,
    pairs: usize,
    before: impl Fn(&Runner),
) -> Result<Row, Box<dyn Error>> {
    eprint!("{}: ", workload.name);
    let expected = base
        .digest(workload, NATIVE_LIMIT)
        .map_err(|error| format!("{} fails under {}: {error}", workload.name, base.name))?;
    let mut variants: Vec<Variant> = runners.into_iter().map(Variant::new).collect();
    for variant in &mut variants {
        before(&variant.runner);
        variant.failure = match variant.runner.digest(workload, LIMIT) {
            Ok(digest) if digest == expected => None,
            Ok(_) => Some("wrong output".into()),
            Err(error) => Some(error),
        };
    }
    let mut native = Vec::new();
    for round in 0..pairs {
        eprint!("{} ", round + 1);
        native.push(base.measure(workload, NATIVE_LIMIT)?);
        // In turn from another start, so that no variant always follows the native run.
        let count = variants.len();
        for index in 0..count {
            let variant = &mut variants[(index + round) % count];
            if variant.failure.is_some() {
                continue;
            }
            before(&variant.runner);
            match variant.runner.measure(workload, LIMIT) {
                Ok(sample) => variant.samples.push(sample),
                Err(error) => variant.failure = Some(error),
            }
        }
    }
    eprintln!();
    for variant in &mut variants {
        variant.conclude(&native);
    }
    Ok(Row {
        name: workload.name.clone(),
        group: workload.group.clone(),
        native,
        variants,
    })
}

/// Other systems that run the same programs.
fn peers() -> Vec<Runner> {
    let known: [(&str, &[&str]); 3] = [
        ("valgrind", &["--tool=none", "-q"]),
        ("qemu-x86_64", &[]),
        ("drrun", &["--"]),
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    known
        .into_iter()
        .filter_map(|(name, options)| {
            let program = std::env::split_paths(&path)
                .map(|folder| folder.join(name))
                .find(|program| program.is_file())?;
            let words = [program]
                .into_iter()
                .chain(options.iter().map(PathBuf::from));
            Some(Runner::new(name, words))
        })
        .collect()
}

fn interpreter_speed(workload: &Workload, temper: &Path) -> Option<f64> {
    let folder = tempfile::tempdir().ok()?;
    let stats = folder.path().join("stats.json");
    let options = ["--no-profile", "--max-tier", "interpreter", "--stats-json"].map(Path::new);
    let options: Vec<&Path> = options.into_iter().chain([stats.as_path()]).collect();
    let runner = Runner::temper("interpreter", temper, &options);
    if let Err(error) = runner.measure(workload, LIMIT) {
        eprintln!("interpreter: {error}");
        return None;
    }
    let stats: serde_json::Value = serde_json::from_slice(&fs::read(stats).ok()?).ok()?;
    let number = |pointer| stats.pointer(pointer).and_then(serde_json::Value::as_f64);
    Some(number("/interpreter/instructions")? / number("/interpreter/seconds")?)
}

fn installed(workload: &Workload) -> bool {
    there(&workload.name, &workload.command[0])
}

fn there(row: &str, program: &str) -> bool {
    let there = Path::new(program).is_file();
    if !there {
        eprintln!("skipped: {row}: {program} is not installed");
    }
    there
}

fn host_line(path: &str, key: &str) -> String {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown CPU".into())
}
