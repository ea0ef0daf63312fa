//! CPython's own tests of threads, children, multiprocessing, asyncio and ctypes, as Debian
//! packages them: each test must end under Temper as it does natively.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::fixture;
use crate::place::Place;
use crate::support::{self, Outcome};

const LIMIT: Duration = Duration::from_secs(240);

/// A module of the package `test`, and which of its tests: patterns of
/// guests/cpython_tests.py.
type Selection = (&'static str, &'static [&'static str]);

/// What is left out takes seconds, most of them in sleeps, or asks for what a machine may
/// lack.
const SELECTIONS: &[Selection] = &[
    (
        "test_threading",
        &[
            "!*timeout*",
            "!test_4_daemon_threads",
            "!test_join_nondaemon_on_shutdown",
        ],
    ),
    ("test_thread", &[]),
    ("test_fork1", &["!ForkTest.test_wait"]),
    (
        "test_ctypes",
        &[
            "test_callbacks.*",
            "test_errno.*",
            "test_as_parameter.*",
            "test_cfuncs.*",
            "test_functions.*",
            "test_libc.*",
            "test_loading.*",
            "test_pointers.*",
            "test_random_things.*",
            "test_win32.*",
        ],
    ),
    (
        "test_subprocess",
        &[
            "POSIXProcessTestCase.*",
            "!test_*_dead",
            "!test_pass_fds",
            "!*timeout*",
            "!test_communicate_repeated_call*",
            "!test_swap_*",
            "!test_close_fds*",
        ],
    ),
    (
        "test_multiprocessing_fork",
        &[
            "WithProcessesTestProcess.test_*process",
            "WithProcessesTestQueue.test_[fgq]*",
            "WithProcessesTestPool.test_[ai]*",
            "WithProcessesTestPipe*",
            "WithProcessesTestConnection.*",
            "WithProcessesTestLock.*",
            "WithProcessesTestSharedMemory.*",
            "WithManagerTestQueue.test_[fg]*",
            "WithThreadsTestPool.test_[am]*",
            "!*timeout*",
            "!*leaks*",
        ],
    ),
    (
        "test_multiprocessing_spawn",
        &[
            "WithProcessesTestProcess.test_process",
            "WithProcessesTestPipe*",
        ],
    ),
    (
        "test_asyncio.test_subprocess",
        &[
            "SubprocessThreadedWatcherTests.test_*",
            "SubprocessPidfdWatcherTests.test_*",
            "!test_kill_issue43884",
            "!test_read_stdout_after*",
            "!test_stdin_broken_pipe",
        ],
    ),
    (
        "test_asyncio.test_events",
        &["EPollEventLoopTests.*", "!*ssl*", "!*cancel*"],
    ),
    ("test_asyncio.test_unix_events", &[]),
    ("test_asyncio.test_threads", &[]),
];

pub fn trials() -> Vec<Trial> {
    SELECTIONS
        .iter()
        .map(|selection| Trial::test(format!("CPython's {}", selection.0), || check(selection)))
        .collect()
}

fn check(selection: &Selection) -> Result<(), Failed> {
    if let Err(why) = installed() {
        eprintln!("skipped: {}: {why}", selection.0);
        return Ok(());
    }
    let temper = support::temper();
    let native = run(selection, None)?;
    let under = run(selection, Some(Path::new(temper.get_program())))?;
    if !native.lines.contains("end") {
        return Err(format!("its native run fails: {:?}", native.outcome).into());
    }
    if native.lines == under.lines {
        return Ok(());
    }
    let apart = |one: &Run, other: &Run| -> Vec<String> {
        one.lines.difference(&other.lines).cloned().collect()
    };
    Err(format!(
        "natively only: {:#?}\nunder Temper only: {:#?}\nunder Temper: {:?}",
        apart(&native, &under),
        apart(&under, &native),
        under.outcome
    )
    .into())
}

fn installed() -> Result<(), String> {
    fixture::installed("python3")?;
    let packages = fs::read_dir("/usr/lib").map_err(|error| error.to_string())?;
    packages
        .flatten()
        .any(|folder| folder.path().join("test/test_threading.py").is_file())
        .then_some(())
        .ok_or_else(|| "CPython's tests are not installed; .ci/setup installs them".to_owned())
}

struct Run {
    outcome: Outcome,
    /// How each test ended.
    lines: BTreeSet<String>,
}

fn run(selection: &Selection, temper: Option<&Path>) -> Result<Run, Failed> {
    let place = Place::new(temper)?;
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/guests/cpython_tests.py");
    let results = place.path().join("results");
    let mut command = place.command("/usr/bin/python3");
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONHASHSEED", "0")
        .env("TMPDIR", place.path())
        .arg(script)
        .arg(&results)
        .arg(selection.0)
        .args(selection.1);
    let outcome = support::run(command, b"", LIMIT)?;
    let lines = fs::read_to_string(&results).unwrap_or_default();
    Ok(Run {
        outcome,
        lines: lines.lines().map(str::to_owned).collect(),
    })
}
