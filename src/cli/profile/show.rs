//! `temper profile show`: a module's functions by weight, and its hottest edges, paths and
//! indirect branches.

use std::io::Write;
use std::path::Path;

use clap::{Args, ValueEnum};
use profile_db::{ModuleId, ModuleProfile, Store, Summary};

use super::report::{Filter, Report};
use super::table::{Align, TextTable, clean, name, percent, short};
use super::{image, modules, open, print, print_json};
use crate::cli::failure::Failure;
use crate::cli::lookup;
use crate::cli::options::ProfileDirArg;

/// The arguments of `temper profile show`.
#[derive(Args, Debug)]
#[command(after_help = "\
A function's weight is the bytes of code executed in it, which follows its instructions \
closely. A path is shown by the outcomes of its branches: T taken, - not taken.")]
pub struct ShowArgs {
    /// A program or library, or the name or identity of one that has a profile
    #[arg(value_hint = clap::ValueHint::FilePath)]
    program: String,

    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Show the modules with this in their name that PROGRAM's code leads to, instead of
    /// PROGRAM's own
    #[arg(long, value_name = "NAME")]
    module: Option<String>,

    /// Only functions with this in their name
    #[arg(long, value_name = "NAME")]
    function: Option<String>,

    /// What comes first among the functions
    #[arg(long, value_enum, default_value_t = Order::Weight)]
    sort: Order,

    /// The length of each list
    #[arg(long, value_name = "N", default_value_t = 15)]
    top: usize,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Order {
    /// The most bytes of code executed
    Weight,
    /// The most executions of its blocks
    Executions,
    /// The most blocks seen
    Blocks,
    Name,
    Address,
}

/// Prints the reports.
///
/// # Errors
/// There is no such profile, or it can't be read.
pub fn run(args: &ShowArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.profile_dir)?;
    let known = modules(&store)?;
    let program = load(&store, find(&args.program, &known)?)?;
    let chosen = match &args.module {
        None => vec![program],
        Some(wanted) => related(&store, &known, program, wanted)?,
    };
    let filter = Filter {
        function: args.function.as_deref(),
        order: args.sort,
        top: args.top,
    };
    let reports: Vec<Report> = chosen
        .iter()
        .map(|profile| Report::new(profile, &known, &filter))
        .collect();
    if args.json {
        return print_json(out, &serde_json::json!({ "modules": reports }));
    }
    let texts: Vec<String> = reports.iter().map(text).collect();
    print(out, &texts.join("\n"))
}

fn load(store: &Store, id: &ModuleId) -> Result<ModuleProfile, Failure> {
    match store.load(id) {
        Ok(Some(profile)) => Ok(profile),
        Ok(None) => Err(Failure::own(format!("the profile of {id} is gone"))),
        Err(error) => Err(Failure::own(error.to_string())),
    }
}

/// The name of a module's file.
pub(super) fn file_name(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let name = Path::new(path.as_ref()).file_name();
    name.map_or_else(|| path.to_string(), |name| name.to_string_lossy().into())
}

/// The module that `wanted` means: a file by its content, else a name or an identity on
/// record, of several the last seen.
fn find<'k>(wanted: &str, known: &'k [Summary]) -> Result<&'k ModuleId, Failure> {
    let file = lookup::program(wanted.as_ref()).ok().or_else(|| {
        // Libraries needn't be executable.
        let path = Path::new(wanted);
        path.is_file().then(|| path.to_path_buf())
    });
    let identity = file.as_deref().and_then(|path| image::identify(path).ok());
    if let Some(identity) = &identity
        && let Some(found) = known.iter().find(|k| k.module.id == *identity)
    {
        return Ok(&found.module.id);
    }
    let by_name = known
        .iter()
        .find(|k| file_name(&k.module.path) == file_name(wanted.as_bytes()));
    let hex = wanted.rsplit(':').next().unwrap_or(wanted);
    let by_identity = known
        .iter()
        .find(|k| hex.len() >= 4 && k.module.id.file_stem()[1..].starts_with(hex));
    match (identity, by_name, by_identity) {
        (None, Some(found), _) if !wanted.contains('/') => Ok(&found.module.id),
        (_, _, Some(found)) => Ok(&found.module.id),
        (Some(_), Some(other), _) => Err(Failure::own(format!(
            "{wanted}: has no profile; there is one of another build, `temper profile show {}`",
            &other.module.id.file_stem()[1..13]
        ))),
        (Some(_), None, None) => Err(Failure::own(format!(
            "{wanted}: has no profile yet; `temper run {wanted}` makes one"
        ))),
        (None, _, None) => Err(Failure::own(format!(
            "{wanted}: is neither a file nor a module with a profile; `temper profile list` \
             shows those"
        ))),
    }
}

/// The modules with `wanted` in their name among `program`'s own and those that its edges
/// lead to.
fn related(
    store: &Store,
    known: &[Summary],
    program: ModuleProfile,
    wanted: &str,
) -> Result<Vec<ModuleProfile>, Failure> {
    let mut ids = vec![program.module.id.clone()];
    ids.extend(program.counts.others.iter().cloned());
    let chosen = known.iter().filter(|k| {
        ids.contains(&k.module.id)
            && (file_name(&k.module.path).contains(wanted)
                || k.module.id.to_string().contains(wanted))
    });
    let profiles = chosen
        .map(|k| load(store, &k.module.id))
        .collect::<Result<Vec<_>, _>>()?;
    if profiles.is_empty() {
        return Err(Failure::own(format!(
            "{} leads to no module `{wanted}` that has a profile; `temper profile list` shows \
             those",
            file_name(&program.module.path)
        )));
    }
    Ok(profiles)
}

fn text(report: &Report) -> String {
    use Align::{Left, Right};
    let mut text = format!(
        "{}\n{}, {} run{}, {} blocks, {} edges, {} paths, {} executions counted\n",
        clean(&report.path),
        report.id,
        report.runs,
        if report.runs == 1 { "" } else { "s" },
        short(report.blocks),
        short(report.edges),
        short(report.paths),
        short(report.executions),
    );
    if !report.file_matches {
        text.push_str("The file there is gone or another build, so places are file offsets.\n");
    }
    let mut section = |title: &str, table: TextTable, shown: usize, all: usize| {
        if shown == 0 {
            return;
        }
        let more = if shown < all {
            format!(" ({shown} of {all})")
        } else {
            String::new()
        };
        text.push_str(&format!("\n{title}{more}\n{}", table.text()));
    };

    let list = &report.functions;
    let mut table = TextTable::new(&[
        ("Weight", Right),
        ("Executions", Right),
        ("Blocks", Right),
        ("Address", Right),
        ("Function", Left),
    ]);
    for function in &list.shown {
        table.row([
            percent(function.weight, report.weight),
            short(function.executions),
            short(function.blocks),
            format!("{:#x}", function.address),
            name(&function.name),
        ]);
    }
    section("Functions", table, list.shown.len(), list.all);

    let list = &report.hot_edges;
    let mut table = TextTable::new(&[
        ("Count", Right),
        ("Of block", Right),
        ("Kind", Left),
        ("From", Left),
        ("To", Left),
    ]);
    for edge in &list.shown {
        table.row([
            short(edge.count),
            percent(edge.count, edge.total),
            edge.kind.into(),
            name(&edge.from),
            name(&edge.to),
        ]);
    }
    section("Hot edges", table, list.shown.len(), list.all);

    let list = &report.hot_paths;
    let mut table = TextTable::new(&[
        ("Count", Right),
        ("Of head", Right),
        ("Outcomes", Left),
        ("Head", Left),
    ]);
    for path in &list.shown {
        table.row([
            short(path.count),
            percent(path.count, path.total),
            path.outcomes.clone(),
            name(&path.head),
        ]);
    }
    section("Hot paths", table, list.shown.len(), list.all);

    let list = &report.indirect_targets;
    let mut table = TextTable::new(&[
        ("Count", Right),
        ("Of branch", Right),
        ("Kind", Left),
        ("From", Left),
        ("To", Left),
    ]);
    for edge in &list.shown {
        table.row([
            short(edge.count),
            percent(edge.count, edge.total),
            edge.kind.into(),
            name(&edge.from),
            name(&edge.to),
        ]);
    }
    section("Indirect targets", table, list.shown.len(), list.all);
    text
}

#[cfg(test)]
mod tests;
