//! `temper run`: hands the options to the process runner and shows statistics.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::failure::Failure;
use super::options::RunOptions;
use super::stats;
use crate::engine::stats::Stats;

/// Runs the guest to its end and gives its exit status. A guest that dies by a signal
/// takes this process with it, so that the death is passed on as one.
///
/// # Errors
/// What keeps the program from starting, or Temper from going on.
pub fn run_program(options: RunOptions) -> Result<i32, Failure> {
    if let Some(path) = &options.stats_json {
        // Known before the program runs, not after hours of it.
        create(path)?;
    }
    Err(Failure::own("not integrated"))
}

/// Shows what happened as the options ask. For the end of the run, before the exit status
/// or the signal is passed on.
///
/// # Errors
/// The JSON file can't be written.
pub fn report_stats(options: &RunOptions, stats: &Stats) -> Result<(), Failure> {
    if options.stats {
        eprintln!("{}", stats::render(stats));
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
