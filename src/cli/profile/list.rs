//! `temper profile list`: a line for each module on record.

use std::cmp::Reverse;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use profile_db::Summary;
use serde::Serialize;

use super::table::{Align, TextTable, ago, name, short};
use super::{modules, open, print, print_json};
use crate::cli::failure::Failure;
use crate::cli::options::ProfileDirArg;

/// The arguments of `temper profile list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Only modules whose path or identity contains this
    #[arg(long, value_name = "NAME")]
    module: Option<String>,

    /// What comes first
    #[arg(long, value_enum, default_value_t = Order::Seen)]
    sort: Order,

    /// Only so many modules
    #[arg(long, value_name = "N")]
    top: Option<usize>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Order {
    /// The last seen
    Seen,
    /// The most executions counted
    Executions,
    Runs,
    Blocks,
    /// The largest profile
    Size,
    Name,
}

#[derive(Serialize)]
struct Listed {
    id: String,
    path: String,
    size: u64,
    runs: u32,
    first_seen: u64,
    last_seen: u64,
    blocks: u64,
    edges: u64,
    paths: u64,
    executions: u64,
    profile: String,
    profile_bytes: u64,
    /// Of the translated code beside it.
    code_bytes: u64,
}

impl Listed {
    fn new(summary: &Summary) -> Listed {
        let (module, totals) = (&summary.module, &summary.totals);
        Listed {
            id: module.id.to_string(),
            path: String::from_utf8_lossy(&module.path).into_owned(),
            size: module.size,
            runs: module.runs,
            first_seen: module.first_seen,
            last_seen: module.last_seen,
            blocks: totals.blocks,
            edges: totals.edges,
            paths: totals.paths,
            executions: totals.executions,
            profile: summary.file.display().to_string(),
            profile_bytes: summary.bytes,
            code_bytes: summary.code_bytes,
        }
    }

    fn file_name(&self) -> &str {
        Path::new(&self.path)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or(&self.path)
    }
}

/// Prints the list.
///
/// # Errors
/// The profile directory can't be read.
pub fn run(args: &ListArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.profile_dir)?;
    let mut listed: Vec<Listed> = modules(&store)?.iter().map(Listed::new).collect();
    if let Some(wanted) = &args.module {
        listed.retain(|l| l.path.contains(wanted) || l.id.contains(wanted));
    }
    match args.sort {
        // They come in this order.
        Order::Seen => {}
        Order::Executions => listed.sort_by_key(|l| Reverse(l.executions)),
        Order::Runs => listed.sort_by_key(|l| Reverse(l.runs)),
        Order::Blocks => listed.sort_by_key(|l| Reverse(l.blocks)),
        Order::Size => listed.sort_by_key(|l| Reverse(l.profile_bytes + l.code_bytes)),
        Order::Name => listed.sort_by(|a, b| a.file_name().cmp(b.file_name())),
    }
    listed.truncate(args.top.unwrap_or(usize::MAX));
    if args.json {
        return print_json(out, &listed);
    }
    if listed.is_empty() {
        let dir = store.dir().display();
        return print(
            out,
            &format!("No profiles in {dir}; `temper run PROGRAM` makes them.\n"),
        );
    }
    print(out, &text(&listed))
}

fn text(listed: &[Listed]) -> String {
    let mut table = TextTable::new(&[
        ("Module", Align::Left),
        ("Runs", Align::Right),
        ("Blocks", Align::Right),
        ("Executions", Align::Right),
        ("Size", Align::Right),
        ("Last seen", Align::Right),
        ("Identity", Align::Right),
    ]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    for module in listed {
        let (_, identity) = module.id.split_once(':').unwrap_or(("", &module.id));
        table.row([
            name(module.file_name()),
            module.runs.to_string(),
            short(module.blocks),
            short(module.executions),
            short(module.profile_bytes + module.code_bytes),
            ago(now.saturating_sub(module.last_seen)),
            // Enough to tell them apart, and `show` takes it.
            identity.chars().take(8).collect(),
        ]);
    }
    table.text()
}
