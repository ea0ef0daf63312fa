//! `temper profile show`: a module's functions by weight, its hottest blocks, edges, paths
//! (with their code) and indirect branches, usual values, and superblocks' trials.

use std::io::Write;

use clap::{Args, ValueEnum};

use super::report::{Filter, PathRow, Report};
use super::select::Selection;
use super::table::{Align, TextTable, clean, name, percent, short};
use super::{modules, open, print, print_json};
use crate::cli::failure::Failure;

/// The arguments of `temper profile show`.
#[derive(Args, Debug)]
#[command(after_help = "\
A function's weight is the bytes of code executed in it, which follows its instructions \
closely. A path is shown by the outcomes of its branches: T taken, - not taken. Source lines \
are shown where the file has debug information.")]
pub struct ShowArgs {
    #[command(flatten)]
    selection: Selection,

    /// Only functions with this in their name
    #[arg(long, value_name = "NAME")]
    function: Option<String>,

    /// What comes first among the functions
    #[arg(long, value_enum, default_value_t = Order::Weight)]
    sort: Order,

    /// The length of each list
    #[arg(long, value_name = "N", default_value_t = 15)]
    top: usize,

    /// Show the code of so many of the hot paths
    #[arg(long, value_name = "N", default_value_t = 2)]
    code: usize,

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
    let store = open(&args.selection.profile_dir)?;
    let known = modules(&store)?;
    let chosen = args.selection.load(&store, &known)?;
    let filter = Filter {
        function: args.function.as_deref(),
        order: args.sort,
        top: args.top,
        code: args.code,
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
    if let Some(ancestor) = &report.ancestor {
        text.push_str(&format!(
            "Its first records are those of an earlier build, {ancestor}.\n"
        ));
    }
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

    let list = &report.hot_blocks;
    let mut table = TextTable::new(&[
        ("Weight", Right),
        ("Executions", Right),
        ("Bytes", Right),
        ("Tier", Left),
        ("Block", Left),
        ("Source", Left),
    ]);
    for block in &list.shown {
        table.row([
            percent(block.weight, report.weight),
            short(block.executions),
            block.bytes.to_string(),
            block.tier.into(),
            name(&block.place),
            block.source.as_deref().map_or(String::new(), name),
        ]);
    }
    section("Hot blocks", table, list.shown.len(), list.all);

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

    let list = &report.values;
    let mut table = TextTable::new(&[
        ("Count", Right),
        ("Of place", Right),
        ("Kind", Left),
        ("Value", Right),
        ("Place", Left),
    ]);
    for value in &list.shown {
        table.row([
            short(value.count),
            percent(value.count, value.total),
            value.kind.into(),
            value
                .value
                .map_or("other".into(), |value| value.to_string()),
            name(&value.place),
        ]);
    }
    section("Values", table, list.shown.len(), list.all);

    let list = &report.trials;
    let mut table = TextTable::new(&[
        ("Gain", Right),
        ("Verdict", Left),
        ("Slices", Right),
        ("Variant", Left),
        ("Head", Left),
        ("On", Left),
    ]);
    for trial in &list.shown {
        table.row([
            format!("{:+.1}%", f64::from(trial.gain) / 10.0),
            trial.verdict.into(),
            trial.slices.to_string(),
            trial.variant.into(),
            name(&trial.head),
            clean(&format!("{}, Temper {}", trial.cpu, trial.temper)),
        ]);
    }
    section("Superblock trials", table, list.shown.len(), list.all);
    for path in report.hot_paths.shown.iter().filter(|p| !p.code.is_empty()) {
        text.push_str(&listing(path));
    }
    text
}

/// The code of a path, with what its branches do and where it comes from.
fn listing(path: &PathRow) -> String {
    let mut text = format!(
        "\nCode of path {} from {}, {} time{}\n",
        path.outcomes,
        name(&path.head),
        short(path.count),
        if path.count == 1 { "" } else { "s" }
    );
    for instruction in &path.code {
        let taken = match instruction.taken {
            Some(true) => "T",
            Some(false) => "-",
            None => " ",
        };
        let line = format!(
            "{:>12x}  {taken}  {:<44}  {}",
            instruction.address,
            clean(&instruction.text.replace('\t', " ")),
            instruction.source.as_deref().map_or(String::new(), clean)
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
