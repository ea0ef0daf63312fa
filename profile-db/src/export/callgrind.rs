//! The profile format of Callgrind (Valgrind's manual, "Callgrind Format Specification"):
//! for callgrind_annotate and KCachegrind. The event is instructions executed.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::callgraph::{CallGraph, Calls, calls};
use super::{Function, Program};

/// The program's costs by block, and its calls.
pub fn callgrind(program: &Program) -> String {
    let mut text = format!(
        "# callgrind format\nversion: 1\ncreator: temper-{}\ncmd: {}\npositions: instr line\n\
         events: Ir\nsummary: {}\n",
        env!("CARGO_PKG_VERSION"),
        one_line(&program.name),
        program.cost()
    );
    let graph = CallGraph::new(program);
    let mut blocks: Vec<Vec<&super::Block>> = vec![Vec::new(); program.functions.len()];
    for block in &program.blocks {
        blocks[block.function].push(block);
    }
    let mut called: BTreeMap<usize, Vec<(usize, Calls)>> = BTreeMap::new();
    for ((from, to), calls) in calls(program) {
        called.entry(from).or_default().push((to, calls));
    }
    for (index, function) in program.functions.iter().enumerate() {
        if blocks[index].is_empty() {
            continue;
        }
        write(
            &mut text,
            format_args!("\n{}", place(program, function, "")),
        );
        for block in &blocks[index] {
            let line = line(block);
            write(
                &mut text,
                format_args!("{:#x} {line} {}\n", block.address, block.cost()),
            );
        }
        for (to, Calls { count, site }) in called.remove(&index).unwrap_or_default() {
            let callee = &program.functions[to];
            let kept = graph.callees[index].iter().any(|&(kept, _)| kept == to);
            // A call that closes a cycle: its cost is counted where the cycle was entered.
            let cost = match kept {
                true => graph.inclusive[to] * graph.share(to, count),
                false => 0.0,
            };
            let site = &program.blocks[site];
            let start = callee.source.as_ref().map_or(0, |source| source.line);
            write(
                &mut text,
                format_args!(
                    "{}calls={count} {:#x} {start}\n{:#x} {} {}\n",
                    place(program, callee, "c"),
                    callee.start,
                    site.last,
                    line(site),
                    cost.round() as u64
                ),
            );
        }
    }
    text
}

fn write(text: &mut String, part: std::fmt::Arguments) {
    text.write_fmt(part).expect("writing to a string");
}

fn line(block: &super::Block) -> u32 {
    block.source.as_ref().map_or(0, |source| source.line)
}

/// The lines that name a function; `prefix` is "c" of a callee.
fn place(program: &Program, function: &Function, prefix: &str) -> String {
    let object = &program.modules[function.module].path;
    let file = function
        .source
        .as_ref()
        .map_or("???", |source| &source.file);
    let file_key = if prefix.is_empty() { "fl" } else { "cfi" };
    format!(
        "{prefix}ob={}\n{file_key}={}\n{prefix}fn={}\n",
        one_line(object),
        one_line(file),
        one_line(&function.name)
    )
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}
