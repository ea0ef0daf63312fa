//! The command line: arguments, commands, and all words that people read. Each command is
//! one file. Failures are one line on standard error, `temper: ...`, that says what to do
//! next; `temper run` prints nothing else of its own unless asked.

pub mod failure;
pub mod options;

mod console;
mod doctor;
mod explain;
mod lookup;
mod pages;
mod profile;
mod run;
mod stats;
mod vm;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

pub use failure::Failure;

use crate::process::exec::Resumed;

/// Runs x86-64 programs and learns their hot paths
#[derive(Parser, Debug)]
#[command(name = "temper", version, arg_required_else_help = true)]
#[command(after_help = "\
Exit status: the program's own with `run`; 2 for a wrong command line, 125 when Temper \
itself fails, 126 when the program can't be executed, 127 when it isn't found.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a program; its output and exit status are its own
    #[command(after_help = "\
Environment for finding faults in Temper itself: TEMPER_FLUSH_EVERY=N empties the code \
cache at every Nth entry, TEMPER_HOT=1 makes all code hot at once, \
TEMPER_PROMOTE_AFTER=N sets when code gets hot, TEMPER_STOP_AFTER=N stops translating after N \
fragments, TEMPER_FORCE_SUPERBLOCKS=1 keeps superblocks without trials, TEMPER_LOG=FILTER (such as temper::translate=debug) logs to standard error.")]
    Run(options::RunArgs),
    /// Show what earlier runs learned
    Profile(profile::ProfileArgs),
    /// Show one piece of a program's code as Temper sees it
    Explain(explain::ExplainArgs),
    /// Run a whole machine: a kernel or a bare-metal image
    Vm(vm::VmArgs),
    /// Say what this host can do, and what that means
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, or write all manual pages into a folder
    Man {
        #[arg(value_hint = clap::ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// The program `temper`, up to its exit status.
pub fn main() -> i32 {
    fail_as_one();
    crate::host::keep_c_heap_off_the_break();
    log_if_asked();
    match Resumed::read(std::env::args_os()) {
        Some(resumed) => run::resume(resumed).unwrap_or_else(|failure| failure.report()),
        None => run_command(std::env::args_os()),
    }
}

/// TEMPER_LOG=FILTER (as `temper::translate=debug`) logs to standard error.
fn log_if_asked() {
    if let Some(filter) = std::env::var_os("TEMPER_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter.to_string_lossy().as_ref())
            .with_writer(std::io::stderr)
            .init();
    }
}

/// A panic is Temper's own failure, with the status that says so. Nothing is unwound: the
/// guest's frames may lie between.
fn fail_as_one() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        eprintln!(
            "temper: this is a fault in Temper itself; report it with the lines above, and try \
             --max-tier interpreter to get by"
        );
        std::process::exit(i32::from(failure::STATUS_OWN));
    }));
}

fn run_command(args: impl IntoIterator<Item = OsString>) -> i32 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    let result = match cli.command {
        Command::Run(args) => args.into_options().and_then(run::start),
        Command::Profile(args) => profile::run(&args).map(|()| 0),
        Command::Explain(args) => explain::run(&args).map(|()| 0),
        Command::Vm(args) => vm::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions { shell } => pages::completions(&mut Cli::command(), shell),
        Command::Man { dir } => pages::manual(Cli::command(), dir.as_deref()),
    };
    result.unwrap_or_else(|failure| failure.report())
}

/// Help and version go to standard output as they are; an error becomes one line.
fn usage_error(error: &clap::Error) -> i32 {
    if !error.use_stderr() {
        print!("{}", error.render());
        return 0;
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{}", error.render());
        return i32::from(failure::STATUS_USAGE);
    }
    let text = error.render().to_string();
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    Failure::usage(format!("{said}; `temper --help` shows what there is")).report()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_the_program_are_the_programs() {
        let cli = Cli::try_parse_from(["temper", "run", "--stats", "ls", "--stats-json", "x"])
            .expect("parses");
        let Command::Run(args) = cli.command else {
            panic!("not run");
        };
        assert!(args.stats && args.stats_json.is_none());
        assert_eq!(args.command, ["ls", "--stats-json", "x"]);
    }

    #[test]
    fn two_dashes_end_tempers_options() {
        let cli = Cli::try_parse_from(["temper", "run", "--", "--odd", "--", ""]).expect("parses");
        let Command::Run(args) = cli.command else {
            panic!("not run");
        };
        assert_eq!(args.command, ["--odd", "--", ""]);
    }
}
