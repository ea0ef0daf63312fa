//! `temper profile merge` and `temper profile import`: profiles from elsewhere become part of
//! the profile directory.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use profile_db::{Durability, ModuleProfile, Store};
use serde::Serialize;

use super::dump::DumpFile;
use super::select::{file_name, from_file};
use super::table::{Align, TextTable, name, short};
use super::{open, print, print_json};
use crate::cli::failure::Failure;
use crate::cli::options::ProfileDirArg;

/// The arguments of `temper profile merge`.
#[derive(Args, Debug)]
#[command(after_help = "\
Counts are added, and nothing is aged: it doesn't matter in which order profiles are merged.")]
pub struct MergeArgs {
    /// Profile files, and folders of them
    #[arg(required = true, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `temper profile import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// Dumps made by `temper profile dump --json`; - is standard input
    #[arg(required = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    files: Vec<PathBuf>,

    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Merged {
    path: String,
    id: String,
    records: usize,
    bytes: usize,
}

/// Merges files and folders.
///
/// # Errors
/// Something can't be read or written; the rest is merged all the same.
pub fn merge(args: &MergeArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.profile_dir)?;
    let mut files = Vec::new();
    let mut failures = Vec::new();
    for path in &args.paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        match profiles_in(path) {
            Ok(found) => files.extend(found),
            Err(failure) => failures.push(failure),
        }
    }
    let read = files.iter().map(|path| {
        from_file(path).unwrap_or_else(|| {
            let shown = path.display();
            Err(Failure::own(format!(
                "{shown}: is no profile, or can't be read"
            )))
        })
    });
    absorb(&store, read, failures, args.json, out)
}

/// Merges dumps.
///
/// # Errors
/// As [`merge`].
pub fn import(args: &ImportArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.profile_dir)?;
    let read = args.files.iter().map(|path| {
        let shown = path.display().to_string();
        let text = if path == Path::new("-") {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.map_err(|error| Failure::own(format!("can't read {shown} ({error})")))?;
        DumpFile::parse(&text, &shown)
    });
    absorb(&store, read, Vec::new(), args.json, out)
}

fn profiles_in(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(dir)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .map_err(|error| Failure::own(format!("can't read {} ({error})", dir.display())))?;
    let paths = entries.into_iter().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "profile")
        })
        .collect();
    found.sort();
    Ok(found)
}

fn absorb(
    store: &Store,
    read: impl Iterator<Item = Result<Vec<ModuleProfile>, Failure>>,
    mut failures: Vec<Failure>,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut merged = Vec::new();
    for profiles in read {
        let profiles = match profiles {
            Ok(profiles) => profiles,
            Err(failure) => {
                failures.push(failure);
                continue;
            }
        };
        for profile in profiles {
            let (id, path) = (profile.module.id.to_string(), profile.module.path.clone());
            match store.absorb(profile, Durability::Synced) {
                Ok(written) => merged.push(Merged {
                    path: String::from_utf8_lossy(&path).into_owned(),
                    id,
                    records: written.records,
                    bytes: written.bytes,
                }),
                Err(error) => failures.push(Failure::own(error.to_string())),
            }
        }
    }
    if json {
        print_json(out, &merged)?;
    } else {
        let mut table = TextTable::new(&[
            ("Merged into", Align::Left),
            ("Records", Align::Right),
            ("Size", Align::Right),
            ("Identity", Align::Left),
        ]);
        for module in &merged {
            table.row([
                name(&file_name(module.path.as_bytes())),
                short(module.records as u64),
                short(module.bytes as u64),
                module
                    .id
                    .split(':')
                    .nth(1)
                    .unwrap_or_default()
                    .chars()
                    .take(12)
                    .collect(),
            ]);
        }
        print(out, &table.text())?;
    }
    all_or(failures)
}

/// The last failure, after those before it were reported.
pub(super) fn all_or(mut failures: Vec<Failure>) -> Result<(), Failure> {
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        failure.report();
    }
    Err(last)
}
