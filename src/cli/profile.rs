//! `temper profile`: what earlier runs learned, for people and, with `--json`, for
//! programs and other tools. Reads the profile directory and the programs' files; runs
//! nothing.

mod code;
mod diff;
mod dump;
mod export;
mod image;
mod list;
mod listing;
mod merge;
mod report;
mod select;
mod show;
mod table;
mod upkeep;
mod view;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use profile_db::{Store, Summary};

use super::failure::Failure;
use super::options::ProfileDirArg;

/// The arguments of `temper profile`.
#[derive(Args, Debug)]
pub struct ProfileArgs {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Subcommand, Debug)]
enum ProfileCommand {
    /// List the programs and libraries that have a profile
    List(list::ListArgs),
    /// Show where a program spends its time
    Show(show::ShowArgs),
    /// Print everything on record about a program
    Dump(dump::DumpArgs),
    /// Merge profiles from elsewhere into the profile folder
    Merge(merge::MergeArgs),
    /// Compare two runs or builds: what got hotter, colder, is new or gone
    Diff(diff::DiffArgs),
    /// Write a profile for another tool
    Export(export::ExportArgs),
    /// Merge dumps into the profile folder
    Import(merge::ImportArgs),
    /// Check that every profile can be read
    Verify(upkeep::VerifyArgs),
    /// Drop profiles that aren't worth keeping
    Prune(upkeep::PruneArgs),
}

/// Runs the command and prints its result on standard output.
///
/// # Errors
/// The profile directory can't be read, or has no such profile.
pub fn run(args: &ProfileArgs) -> Result<(), Failure> {
    execute(args, &mut io::stdout().lock())
}

fn execute(args: &ProfileArgs, out: &mut impl Write) -> Result<(), Failure> {
    match &args.command {
        ProfileCommand::List(args) => list::run(args, out),
        ProfileCommand::Show(args) => show::run(args, out),
        ProfileCommand::Dump(args) => dump::run(args, out),
        ProfileCommand::Merge(args) => merge::merge(args, out),
        ProfileCommand::Diff(args) => diff::run(args, out),
        ProfileCommand::Export(args) => export::run(args, out),
        ProfileCommand::Import(args) => merge::import(args, out),
        ProfileCommand::Verify(args) => upkeep::verify(args, out),
        ProfileCommand::Prune(args) => upkeep::prune(args, out),
    }
}

fn open(dir: &ProfileDirArg) -> Result<Store, Failure> {
    let dir = dir.resolve().ok_or_else(|| {
        Failure::usage("there is no home folder to look for profiles in; use --profile-dir DIR")
    })?;
    Store::open(&dir).map_err(|error| Failure::own(error.to_string()))
}

/// The modules on record, the last seen first. Files that can't be used are reported and
/// left out.
fn modules(store: &Store) -> Result<Vec<Summary>, Failure> {
    let found = store
        .list()
        .map_err(|error| Failure::own(error.to_string()))?;
    let mut modules = Vec::new();
    for module in found {
        match module {
            Ok(module) => modules.push(module),
            Err(error) => eprintln!("temper: {error}"),
        }
    }
    modules.sort_by(|a, b| {
        (b.module.last_seen, &a.module.path).cmp(&(a.module.last_seen, &b.module.path))
    });
    Ok(modules)
}

/// Writes to standard output; a reader that has gone is no failure.
fn print(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::own(format!("can't write the output ({error})")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn print_json(out: &mut impl Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::own(format!("the output can't be made ({error})")))?;
    print(out, &(text + "\n"))
}
