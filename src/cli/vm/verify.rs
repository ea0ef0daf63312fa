//! `temper vm verify`.

use std::io::Write;
use std::thread;

use clap::Args;

use super::options::{ClockChoice, EngineArgs, EngineChoice, ImageArgs, machine_failure};
use crate::cli::failure::Failure;
use crate::system::control::Stop;
use crate::system::verify::Pair;

/// The arguments of `temper vm verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Compare at every N device accesses
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,

    /// Stop after N device accesses
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,

    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,

    #[command(flatten)]
    image: ImageArgs,
}

/// Runs an image on both engines.
///
/// # Errors
/// One of them can't run it.
pub fn run(args: VerifyArgs) -> Result<i32, Failure> {
    let image = args.image.load()?;
    let engine = EngineArgs {
        engine: EngineChoice::Software,
        timeout: None,
        clock: ClockChoice::Counted,
        trace: Vec::new(),
        gdb: None,
        stats: false,
    };
    let settings = engine.settings(args.image.memory)?;
    let failed = |error| machine_failure(&args.image.image, &error);
    let mut pair = Pair::new(settings, &image).map_err(failed)?;
    if let Some(seconds) = args.timeout {
        let controls = pair.controls();
        thread::spawn(move || {
            thread::sleep(std::time::Duration::from_secs(seconds.into()));
            controls
                .iter()
                .for_each(|control| control.stop(Stop::Timeout));
        });
    }
    let verdict = pair.compare(args.interval, args.limit).map_err(failed)?;
    let _ = std::io::stdout().write_all(&pair.output());
    let counts = format!(
        "{} comparisons over {} device accesses",
        verdict.comparisons, verdict.accesses
    );
    if verdict.differences.is_empty() {
        eprintln!("temper: both engines agree in {counts}");
        return Ok(0);
    }
    eprintln!("temper: the engines differ after {counts}:");
    for difference in &verdict.differences {
        eprintln!("  {difference}");
    }
    Ok(1)
}
