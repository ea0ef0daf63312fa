//! `temper profile diff`: what got hotter, colder, is new or gone, between two runs or two
//! builds, by function. What is compared is each function's part of all instructions
//! executed, so that a longer run isn't hotter everywhere.

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, ValueEnum};
use profile_db::{Code as _, ModuleProfile, ModuleRecord, take_over};
use serde::Serialize;

use super::select;
use super::table::{Align, TextTable, clean, name, short};
use super::{image, modules, open, print, print_json, view};
use crate::cli::failure::Failure;
use crate::cli::options::ProfileDirArg;
use crate::profile::ModuleCode;

/// The arguments of `temper profile diff`.
#[derive(Args, Debug)]
#[command(after_help = "\
A profile file is a copy of one in the profile folder (`temper profile list --json` says \
where they are) or a dump. Two builds are compared by the names of functions; without \
symbols, by the code that is found again in the later build.")]
pub struct DiffArgs {
    /// The earlier profile: a program, name, identity, profile file or dump
    before: String,

    /// The later one
    after: String,

    #[command(flatten)]
    profile_dir: ProfileDirArg,

    /// Only functions with this in their name
    #[arg(long, value_name = "NAME")]
    function: Option<String>,

    /// What comes first
    #[arg(long, value_enum, default_value_t = Order::Change)]
    sort: Order,

    /// So many functions
    #[arg(long, value_name = "N", default_value_t = 25)]
    top: usize,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Order {
    /// The largest change, up or down
    Change,
    /// The largest part before
    Before,
    /// The largest part after
    After,
    Name,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Hotter,
    Colder,
    New,
    Gone,
    Same,
}

/// One function; shares are parts of all instructions executed, 0 to 1.
#[derive(Serialize)]
struct Row {
    function: String,
    verdict: Verdict,
    before: f64,
    after: f64,
    change: f64,
    before_executed: u64,
    after_executed: u64,
}

#[derive(Serialize)]
struct Side {
    path: String,
    id: String,
    runs: u32,
}

#[derive(Serialize)]
struct Difference {
    before: Side,
    after: Side,
    /// How much of what flows along edges flows along the same ones, 0 to 1.
    edge_overlap: f64,
    functions: Vec<Row>,
    /// How many functions there are.
    all: usize,
}

/// Prints the difference.
///
/// # Errors
/// There is no such profile, or the two can't be compared.
pub fn run(args: &DiffArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.profile_dir)?;
    let known = modules(&store)?;
    let mut before = select::load(&store, &known, &args.before)?;
    let after = select::load(&store, &known, &args.after)?;
    let (was, is) = (side(&before.module), side(&after.module));
    let mut edge_overlap = before.counts.edge_overlap(&after.counts);
    if before.module.id != after.module.id {
        let carried = carry(&before, &after.module);
        if let Some(carried) = &carried {
            edge_overlap = carried.counts.edge_overlap(&after.counts);
        }
        let have_names = has_names(&before.module) && has_names(&after.module);
        match carried {
            Some(carried) if !have_names => before = carried,
            None if !have_names => {
                return Err(Failure::own(format!(
                    "{} and {} are different builds without names of functions, and little of \
                     the one's code is in the other",
                    args.before, args.after
                )));
            }
            Some(_) | None => {}
        }
    }
    let costs = |profile: &ModuleProfile| {
        let program = view::program(std::slice::from_ref(profile), &known);
        let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
        for (function, cost) in program.functions.iter().zip(program.costs()) {
            if function.module == 0 {
                let sum = by_name.entry(function.name.clone()).or_default();
                *sum = sum.saturating_add(cost);
            }
        }
        by_name
    };
    let mut functions = rows(&costs(&before), &costs(&after));
    if let Some(wanted) = &args.function {
        functions.retain(|row| row.function.contains(wanted));
    }
    match args.sort {
        Order::Change => functions.sort_by(|a, b| b.change.abs().total_cmp(&a.change.abs())),
        Order::Before => functions.sort_by(|a, b| b.before.total_cmp(&a.before)),
        Order::After => functions.sort_by(|a, b| b.after.total_cmp(&a.after)),
        // They come in this order.
        Order::Name => {}
    }
    let all = functions.len();
    functions.truncate(args.top);
    let difference = Difference {
        before: was,
        after: is,
        edge_overlap,
        functions,
        all,
    };
    if args.json {
        return print_json(out, &difference);
    }
    print(out, &text(&difference))
}

fn side(module: &ModuleRecord) -> Side {
    Side {
        path: String::from_utf8_lossy(&module.path).into_owned(),
        id: module.id.to_string(),
        runs: module.runs,
    }
}

/// Whether the module's file is at hand and names its functions.
fn has_names(module: &ModuleRecord) -> bool {
    image::Image::of_module(view::path_of(&module.path), &module.id)
        .is_some_and(|image| image.has_symbols())
}

/// `before` at the places that its code has in `after`'s file.
fn carry(before: &ModuleProfile, after: &ModuleRecord) -> Option<ModuleProfile> {
    let blocks = ModuleCode::new(view::path_of(&after.path), &after.id).blocks();
    let takeover = take_over(&before.counts, &blocks);
    takeover.is_plausible().then(|| ModuleProfile {
        module: after.clone(),
        counts: takeover.counts,
        trials: before.trials.clone(),
    })
}

fn rows(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<Row> {
    /// Less than this part of the program up or down is the same.
    const SAME: f64 = 0.0005;
    let sum = |costs: &BTreeMap<String, u64>| {
        let sum: f64 = costs.values().map(|&cost| cost as f64).sum();
        sum.max(1.0)
    };
    let (all_before, all_after) = (sum(before), sum(after));
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let row = |name: &String| {
        let of = |costs: &BTreeMap<String, u64>| costs.get(name).copied().unwrap_or(0);
        let (was, is) = (of(before), of(after));
        let (before, after) = (was as f64 / all_before, is as f64 / all_after);
        let change = after - before;
        Row {
            function: name.clone(),
            verdict: match (was, is) {
                (0, _) => Verdict::New,
                (_, 0) => Verdict::Gone,
                _ if change.abs() < SAME => Verdict::Same,
                _ if change > 0.0 => Verdict::Hotter,
                _ => Verdict::Colder,
            },
            before,
            after,
            change,
            before_executed: was,
            after_executed: is,
        }
    };
    names.into_iter().map(row).collect()
}

fn text(difference: &Difference) -> String {
    use Align::{Left, Right};
    let Difference { before, after, .. } = difference;
    let mut text = String::new();
    for (what, side) in [("before", before), ("after ", after)] {
        text.push_str(&format!(
            "{what}  {}, {}, {} runs\n",
            clean(&side.path),
            side.id,
            side.runs
        ));
    }
    text.push_str(&format!(
        "{:.1}% of what flows along edges is the same\n\n",
        difference.edge_overlap * 100.0
    ));
    let mut table = TextTable::new(&[
        ("", Left),
        ("Before", Right),
        ("After", Right),
        ("Change", Right),
        ("Executed", Right),
        ("Function", Left),
    ]);
    for row in &difference.functions {
        let verdict = match row.verdict {
            Verdict::Hotter => "hotter",
            Verdict::Colder => "colder",
            Verdict::New => "new",
            Verdict::Gone => "gone",
            Verdict::Same => "same",
        };
        table.row([
            verdict.into(),
            format!("{:.1}%", row.before * 100.0),
            format!("{:.1}%", row.after * 100.0),
            format!("{:+.1}%", row.change * 100.0),
            short(row.after_executed),
            name(&row.function),
        ]);
    }
    text.push_str(&table.text());
    if difference.functions.len() < difference.all {
        text.push_str(&format!(
            "{} of {} functions\n",
            difference.functions.len(),
            difference.all
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_compared_by_their_parts() {
        let costs = |list: &[(&str, u64)]| {
            let list = list.iter().map(|(name, cost)| ((*name).to_owned(), *cost));
            list.collect::<BTreeMap<_, _>>()
        };
        let before = costs(&[("a", 50), ("b", 40), ("gone", 10)]);
        // Ten times as long.
        let after = costs(&[("a", 500), ("b", 300), ("new", 200)]);
        let rows = rows(&before, &after);
        let found: Vec<_> = rows
            .iter()
            .map(|r| (r.function.as_str(), r.verdict))
            .collect();
        assert_eq!(
            found,
            [
                ("a", Verdict::Same),
                ("b", Verdict::Colder),
                ("gone", Verdict::Gone),
                ("new", Verdict::New)
            ]
        );
        assert!((rows[1].change + 0.1).abs() < 1e-9);
    }
}
