//! stress-ng's stressors with their own verification: threads, signals, memory, futexes,
//! children, contexts. Each does a fixed number of rounds; natively and under Temper it must
//! do them all and find nothing wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::fixture;
use crate::place::Place;
use crate::support::{self, End, Outcome};

const PROGRAM: &str = "stress-ng";
const LIMIT: Duration = Duration::from_secs(150);
/// Seconds after which stress-ng itself gives up.
const TIMEOUT: &str = "120";

/// A class: stressors, each with its rounds.
type Class = (&'static str, &'static [(&'static str, u32)]);

const CLASSES: &[Class] = &[
    (
        "threads",
        &[
            ("pthread", 20),
            ("mutex", 100),
            ("dekker", 200),
            ("peterson", 200),
            ("atomic", 20),
        ],
    ),
    ("clones", &[("clone", 4)]),
    (
        "futexes",
        &[("futex", 500), ("sem-sysv", 500), ("membarrier", 20)],
    ),
    (
        "signals",
        &[
            ("kill", 500),
            ("sigq", 500),
            ("sigrt", 100),
            ("sigsuspend", 200),
            ("sigpending", 500),
            ("sigfd", 500),
            ("sigpipe", 50),
            ("sigchld", 100),
            ("signest", 200),
        ],
    ),
    (
        "faults",
        &[
            ("sigsegv", 200),
            ("sigfpe", 200),
            ("sigtrap", 200),
            ("sigabrt", 20),
            ("stack", 1),
        ],
    ),
    (
        "timers",
        &[("timer", 500), ("itimer", 100), ("alarm", 2), ("clock", 50)],
    ),
    (
        "memory",
        &[
            ("vm", 20),
            ("mmap", 1),
            ("mremap", 1),
            ("mprotect", 50),
            ("brk", 500),
            ("madvise", 1),
            ("shm", 2),
        ],
    ),
    ("code", &[("icache", 100), ("branch", 50), ("goto", 50)]),
    (
        "children",
        &[
            ("fork", 60),
            ("vfork", 60),
            ("wait", 100),
            ("zombie", 40),
            ("daemon", 10),
            ("pidfd", 10),
        ],
    ),
    (
        "waiting",
        &[
            ("epoll", 100),
            ("eventfd", 200),
            ("pipe", 500),
            ("aio", 50),
            ("nanosleep", 20),
        ],
    ),
    ("seccomp", &[("seccomp", 10)]),
    (
        "contexts",
        &[("context", 200), ("longjmp", 2000), ("switch", 1000)],
    ),
];

pub fn trials() -> Vec<Trial> {
    CLASSES
        .iter()
        .map(|class| Trial::test(format!("stress-ng: {}", class.0), || check(class)))
        .collect()
}

fn check(class: &Class) -> Result<(), Failed> {
    let (name, stressors) = class;
    if let Err(why) = fixture::installed(PROGRAM) {
        eprintln!("skipped: {name}: {why}");
        return Ok(());
    }
    let temper = support::temper();
    let native = run(stressors, None)?;
    let under = run(stressors, Some(Path::new(temper.get_program())))?;
    if native.outcome.end == under.outcome.end && native.unfinished == under.unfinished {
        Ok(())
    } else {
        Err(format!(
            "natively, unfinished {:?}: {:?}\nunder Temper, unfinished {:?}: {:?}",
            native.unfinished, native.outcome, under.unfinished, under.outcome
        )
        .into())
    }
}

struct Run {
    outcome: Outcome,
    /// Stressors that did fewer rounds than asked for. Some do a few more.
    unfinished: Vec<String>,
}

fn run(stressors: &[(&str, u32)], temper: Option<&Path>) -> Result<Run, Failed> {
    let place = Place::new(temper)?;
    let mut command = place.command("/usr/bin/stress-ng");
    for (name, rounds) in stressors {
        command.args([format!("--{name}"), "1".into()]);
        command.args([format!("--{name}-ops"), rounds.to_string()]);
    }
    command.args([
        "--vm-bytes",
        "1M",
        "--mmap-bytes",
        "1M",
        "--mremap-bytes",
        "512K",
    ]);
    command.args([
        "--verify",
        "--metrics",
        "--timeout",
        TIMEOUT,
        "--temp-path",
        ".",
    ]);
    let outcome = support::run(command, b"", LIMIT)?;
    if outcome.end == End::TimedOut {
        return Err(format!("{stressors:?}: {outcome:?}").into());
    }
    place.wait_until_empty(LIMIT)?;
    let done = rounds(&outcome);
    let unfinished = stressors.iter().filter(|(name, wanted)| {
        let done = done.get(*name).copied().unwrap_or(0);
        done < u64::from(*wanted)
    });
    Ok(Run {
        unfinished: unfinished.map(|(name, _)| (*name).to_owned()).collect(),
        outcome,
    })
}

/// From the table of metrics: `stress-ng: metrc: [PID] NAME ROUNDS ...`.
fn rounds(outcome: &Outcome) -> BTreeMap<String, u64> {
    let shown = String::from_utf8_lossy(&outcome.stderr).into_owned()
        + &String::from_utf8_lossy(&outcome.stdout);
    let mut all = BTreeMap::new();
    for line in shown.lines().filter(|line| line.contains(" metrc: ")) {
        let mut words = line
            .split_once("] ")
            .map_or("", |parts| parts.1)
            .split_whitespace();
        let (Some(name), Some(rounds)) = (words.next(), words.next()) else {
            continue;
        };
        // Figures of its own that a stressor adds come later, under the same name.
        if let Ok(rounds) = rounds.parse() {
            all.entry(name.to_owned()).or_insert(rounds);
        }
    }
    all
}
