//! `temper profile export`: a profile for other tools.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use inferno::flamegraph;
use profile_db::export::{self, Program};

use super::select::Selection;
use super::{modules, open, view};
use crate::cli::failure::Failure;

/// The arguments of `temper profile export`.
#[derive(Args, Debug)]
#[command(after_help = "\
Stacks (folded, speedscope, pprof, svg, and the calls of callgrind) are estimates: a profile \
knows how often each function called each other one, and what a function cost is spread \
over its callers by their calls. Costs are instructions executed.")]
pub struct ExportArgs {
    #[command(flatten)]
    selection: Selection,

    /// What to make
    #[arg(long, value_enum)]
    format: Format,

    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,

    /// Only functions with this in their name; with dot, that one function's blocks
    #[arg(long, value_name = "NAME")]
    function: Option<String>,

    /// Of the call graph (dot): so many functions
    #[arg(long, value_name = "N", default_value_t = 40)]
    top: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// For callgrind_annotate and KCachegrind
    Callgrind,
    /// Folded stacks, for flame graph tools
    Folded,
    /// For speedscope.app
    Speedscope,
    /// For `go tool pprof`
    Pprof,
    /// For `llvm-bolt -data`
    Bolt,
    /// As `perf script` prints samples with branch stacks, for llvm-profgen
    PerfScriptLbr,
    /// For Graphviz: the call graph, or one function's blocks
    Dot,
    /// A flame graph, for browsers
    Svg,
}

/// Writes the export.
///
/// # Errors
/// There is no such profile or function; the output can't be written.
pub fn run(args: &ExportArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = open(&args.selection.profile_dir)?;
    let known = modules(&store)?;
    let profiles = args.selection.load(&store, &known)?;
    let mut program = view::program(&profiles, &known);
    let chosen = match &args.function {
        Some(wanted) => Some(choose(&mut program, wanted, args.format)?),
        None => None,
    };
    let content = match args.format {
        Format::Callgrind => export::callgrind(&program).into_bytes(),
        Format::Folded => export::folded(&program).into_bytes(),
        Format::Speedscope => export::speedscope(&program).into_bytes(),
        Format::Pprof => export::pprof(&program),
        Format::Bolt => bolt(&program)?.into_bytes(),
        Format::PerfScriptLbr => export::perf_script(&program).into_bytes(),
        Format::Dot => match chosen {
            Some(function) => export::control_flow(&program, function).into_bytes(),
            None => export::call_graph(&program, args.top).into_bytes(),
        },
        Format::Svg => svg(&program)?,
    };
    match &args.output {
        Some(path) => write(path, &content),
        None => match out.write_all(&content).and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Failure::own(format!("can't write the output ({error})")))
            }
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    File::create(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|error| Failure::own(format!("can't write {} ({error})", path.display())))
}

/// Leaves the functions with `wanted` in their names, and returns the costliest of those.
/// A graph of one function keeps the others, which its edges may lead to.
fn choose(program: &mut Program, wanted: &str, format: Format) -> Result<usize, Failure> {
    let costs = program.costs();
    let is_wanted = |index: usize| program.functions[index].name.contains(wanted);
    let costliest = (0..costs.len())
        .filter(|&index| is_wanted(index))
        .max_by_key(|&index| (program.functions[index].name == wanted, costs[index]))
        .ok_or_else(|| {
            Failure::own(format!(
                "{} has no function `{wanted}` that was seen; `temper profile show` lists them",
                program.name
            ))
        })?;
    if format != Format::Dot {
        let wanted: Vec<bool> = (0..costs.len()).map(is_wanted).collect();
        let blocks = &program.blocks;
        program
            .edges
            .retain(|edge| wanted[blocks[edge.from].function]);
        for block in &mut program.blocks {
            if !wanted[block.function] {
                block.count = 0;
            }
        }
    }
    Ok(costliest)
}

fn bolt(program: &Program) -> Result<String, Failure> {
    let text = export::bolt(program);
    if text.is_empty() {
        return Err(Failure::own(format!(
            "{} has no function symbols (or its file is gone), and BOLT finds functions by \
             those; use a program that isn't stripped",
            program.name
        )));
    }
    Ok(text)
}

fn svg(program: &Program) -> Result<Vec<u8>, Failure> {
    let folded = export::folded(program);
    if folded.is_empty() {
        return Err(Failure::own(format!(
            "{}: nothing was counted",
            program.name
        )));
    }
    let mut options = flamegraph::Options::default();
    options.title = format!("{}, instructions executed", program.name);
    options.count_name = "instructions".into();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, folded.lines(), &mut svg)
        .map_err(|error| Failure::own(format!("the flame graph can't be made ({error})")))?;
    Ok(svg)
}
