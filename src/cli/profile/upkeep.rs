//! `temper profile verify` and `temper profile prune`: the state of the profile directory.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use profile_db::{Dropped, Keep, Summary, Why};
use serde::Serialize;

use super::select::{file_name, own};
use super::table::{Align, TextTable, name, short};
use super::view::path_of;
use super::{image, open, print, print_json};
use crate::cli::failure::Failure;
use crate::cli::options::ProfileDirArg;

/// The arguments of `temper profile verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `temper profile prune`.
#[derive(Args, Debug)]
#[command(after_help = "\
Without options only leftovers go: damaged profiles that were set aside, and what killed \
writers left. Temper itself keeps the folder below 512 MiB.")]
pub struct PruneArgs {
    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Drop what was seen longest ago until the rest is no larger
    #[arg(long, value_name = "MIB")]
    max_size: Option<u64>,

    /// Drop modules that weren't seen for so many days
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u64>,

    /// Drop modules whose file is gone or another build
    #[arg(long)]
    gone: bool,

    /// Drop modules whose path or identity contains this
    #[arg(long, value_name = "NAME")]
    module: Option<String>,

    /// Only say what would go
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Checked {
    profile: String,
    path: Option<String>,
    records: u64,
    /// What is wrong; none when the profile is whole.
    problem: Option<String>,
}

/// Reads every profile whole.
///
/// # Errors
/// The profile directory can't be read, or a profile can't be used.
pub fn verify(args: &VerifyArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.profile_dir)?;
    let checked: Vec<Checked> = store
        .verify()
        .map_err(own)?
        .into_iter()
        .map(|(file, result)| Checked {
            profile: file.display().to_string(),
            path: result
                .as_ref()
                .ok()
                .map(|profile| String::from_utf8_lossy(&profile.module.path).into_owned()),
            records: result.as_ref().map_or(0, |profile| {
                (profile.counts.len() + profile.trials.trials.len()) as u64
            }),
            problem: result.err().map(|error| error.to_string()),
        })
        .collect();
    let profiles = checked.len();
    let code = store.verify_code().map_err(own)?;
    let files = code.len();
    let checked: Vec<Checked> = checked
        .into_iter()
        .chain(code.into_iter().map(|(file, result)| Checked {
            profile: file.display().to_string(),
            path: None,
            records: *result.as_ref().unwrap_or(&0),
            problem: result.err().map(|error| error.to_string()),
        }))
        .collect();
    let count_bad = |checked: &[Checked]| checked.iter().filter(|c| c.problem.is_some()).count();
    let (of_profiles, of_code) = checked.split_at(profiles);
    let bad = count_bad(&checked);
    if args.json {
        print_json(out, &checked)?;
    } else {
        let sum = |checked: &[Checked]| checked.iter().map(|c| c.records).sum::<u64>();
        let mut text = String::new();
        for problem in checked.iter().filter_map(|c| c.problem.as_ref()) {
            text.push_str(&format!("{problem}\n"));
        }
        text.push_str(&format!(
            "{} of {} profiles are whole, {} records\n",
            profiles - count_bad(of_profiles),
            profiles,
            short(sum(of_profiles))
        ));
        if files > 0 {
            text.push_str(&format!(
                "{} of {} files of translated code are whole, {} blocks\n",
                files - count_bad(of_code),
                files,
                short(sum(of_code))
            ));
        }
        print(out, &text)?;
    }
    if bad > 0 {
        return Err(Failure::own(format!(
            "{bad} files can't be used; the next run sets damaged ones aside and starts anew"
        )));
    }
    Ok(())
}

#[derive(Serialize)]
struct Pruned {
    profile: String,
    path: Option<String>,
    bytes: u64,
    why: &'static str,
}

impl Pruned {
    fn new(dropped: &Dropped) -> Pruned {
        let path = dropped.module.as_ref();
        Pruned {
            profile: dropped.file.display().to_string(),
            path: path.map(|path| String::from_utf8_lossy(path).into_owned()),
            bytes: dropped.bytes,
            why: match dropped.why {
                Why::Full => "beyond the size",
                Why::Old => "not seen for long",
                Why::Unwanted => "chosen",
                Why::Leftover => "a leftover",
            },
        }
    }
}

/// Drops profiles and leftovers.
///
/// # Errors
/// The profile directory can't be read or written.
pub fn prune(args: &PruneArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.profile_dir)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.as_ref().map_or(0, Duration::as_secs);
    let stays = |known: &Summary| {
        let is_named = args.module.as_ref().is_some_and(|wanted| {
            file_name(&known.module.path).contains(wanted)
                || known.module.id.to_string().contains(wanted)
        });
        let file = image::identify(path_of(&known.module.path));
        !(is_named || args.gone && file.ok().is_none_or(|id| id != known.module.id))
    };
    let dropped = store.prune(&Keep {
        bytes: args
            .max_size
            .map_or(u64::MAX, |mib| mib.saturating_mul(1 << 20)),
        seen_since: args
            .older_than
            .map_or(0, |days| now.saturating_sub(days.saturating_mul(86_400))),
        chosen: &stays,
        dry_run: args.dry_run,
    });
    let pruned: Vec<Pruned> = dropped.map_err(own)?.iter().map(Pruned::new).collect();
    if args.json {
        return print_json(out, &pruned);
    }
    if pruned.is_empty() {
        return print(out, "Nothing to drop.\n");
    }
    let title = if args.dry_run {
        "Would drop"
    } else {
        "Dropped"
    };
    let mut table = TextTable::new(&[
        (title, Align::Left),
        ("Size", Align::Right),
        ("Why", Align::Left),
        ("Profile", Align::Left),
    ]);
    for gone in &pruned {
        let module = gone.path.as_ref().map(|path| file_name(path.as_bytes()));
        table.row([
            name(&module.unwrap_or_else(|| "-".into())),
            short(gone.bytes),
            gone.why.into(),
            name(&file_name(gone.profile.as_bytes())),
        ]);
    }
    print(out, &table.text())
}
