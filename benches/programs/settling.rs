//! How soon a run spends its time in generated code, cold and with what earlier runs kept:
//! the CPU time until, in a window of some 10 ms, nine of ten samples of user time lie there.
//! By sampling with perf(1), where it may be used; what runs from then on is what runs in
//! the end, as far as the program itself doesn't change what it does.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::measure::Runner;
use crate::statistics::median;
use crate::suite::Workload;

/// Samples a second of CPU time, and in a window.
const RATE: usize = 4000;
const WINDOW: usize = 40;
/// Of user time in generated code.
const SHARE: f64 = 0.9;

/// One program.
#[derive(Debug, Serialize)]
pub struct Settling {
    pub name: String,
    /// Seconds of CPU time, the medians of some runs.
    pub cold: f64,
    pub kept: f64,
}

/// Measures a program: `before_cold` makes the next run of `cold` one without a profile.
///
/// # Errors
/// perf can't be used, or the program fails.
pub fn settling(
    workload: &Workload,
    cold: &Runner,
    kept: &Runner,
    runs: usize,
    before_cold: impl Fn(),
) -> Result<Settling, String> {
    // The first run keeps, the second adds what the first only interpreted.
    for _ in 0..2 {
        seconds(workload, kept)?;
    }
    let (mut of_cold, mut of_kept) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        before_cold();
        of_cold.push(seconds(workload, cold)?);
        of_kept.push(seconds(workload, kept)?);
    }
    Ok(Settling {
        name: workload.name.clone(),
        cold: median(&of_cold).unwrap_or(f64::NAN),
        kept: median(&of_kept).unwrap_or(f64::NAN),
    })
}

fn seconds(workload: &Workload, runner: &Runner) -> Result<f64, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let data = folder.path().join("samples");
    let perf = Path::new("/usr/bin/perf");
    let rate = RATE.to_string();
    let words = ["record", "-q", "-e", "cpu-clock:u", "-F", &rate, "-o"];
    let prefix = [perf]
        .into_iter()
        .chain(words.iter().map(Path::new))
        .chain([data.as_path(), Path::new("--")])
        .chain(runner.prefix.iter().map(|word| word.as_path()));
    Runner::new(&runner.name, prefix).measure(workload, crate::LIMIT)?;
    let script = Command::new(perf)
        .args(["script", "-F", "ip,dso", "-i"])
        .arg(&data)
        .stderr(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&script.stdout);
    let generated: Vec<bool> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.contains("memfd:temper-code"))
        .collect();
    let settled = generated
        .windows(WINDOW)
        .position(|window| {
            let inside = window.iter().filter(|inside| **inside).count();
            inside as f64 >= SHARE * WINDOW as f64
        })
        .ok_or("it never settles")?;
    Ok(settled as f64 / RATE as f64)
}
