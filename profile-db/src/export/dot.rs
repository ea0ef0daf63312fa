//! Graphviz: who calls whom, or one function's blocks and edges. Warm colours are hot.

use std::fmt::Write;

use super::callgraph::{CallGraph, calls};
use super::{Block, Program};
use crate::record::EdgeKind;

/// The call graph of the `top` costliest functions and the calls between them.
pub fn call_graph(program: &Program, top: usize) -> String {
    let graph = CallGraph::new(program);
    let all = program.cost();
    let mut functions: Vec<usize> = (0..program.functions.len()).collect();
    functions.sort_by(|&a, &b| graph.inclusive[b].total_cmp(&graph.inclusive[a]));
    functions.truncate(top);
    functions.sort_unstable();
    let costs = program.costs();
    let mut text = begin(&program.name);
    for &index in &functions {
        let function = &program.functions[index];
        let label = format!(
            "{}\n{}\nself {}, with callees {}",
            function.name,
            program.module_name(function),
            percent(costs[index] as f64, all),
            percent(graph.inclusive[index], all)
        );
        node(&mut text, index, &label, part(graph.inclusive[index], all));
    }
    for ((from, to), calls) in calls(program) {
        if functions.binary_search(&from).is_ok() && functions.binary_search(&to).is_ok() {
            writeln!(text, "  n{from} -> n{to} [label=\"{}\"];", calls.count).expect("a string");
        }
    }
    text + "}\n"
}

/// The blocks of one function and the edges between them.
pub fn control_flow(program: &Program, function: usize) -> String {
    let about = &program.functions[function];
    let blocks = program.blocks.iter().enumerate();
    let mut blocks: Vec<(usize, &Block)> = blocks.filter(|(_, b)| b.function == function).collect();
    // Two contents at one address share a node.
    blocks.dedup_by_key(|(_, block)| block.address);
    let most = blocks
        .iter()
        .map(|(_, block)| block.count)
        .max()
        .unwrap_or(0);
    let mut text = begin(&about.name);
    for (index, block) in &blocks {
        let offset = block.address.saturating_sub(about.start);
        let source = block.source.as_ref().map_or(String::new(), |source| {
            let file = source.file.rsplit('/').next().unwrap_or(&source.file);
            format!("\n{file}:{}", source.line)
        });
        let label = format!(
            "+{offset:#x}, {} instructions{source}\n{}",
            block.instructions, block.count
        );
        node(&mut text, *index, &label, part(block.count as f64, most));
    }
    let at = |address| {
        let found = blocks.binary_search_by_key(&address, |(_, block)| block.address);
        found.ok().map(|place| blocks[place].0)
    };
    for edge in &program.edges {
        let from = &program.blocks[edge.from];
        let Some((to, address)) = edge.to.filter(|_| from.function == function) else {
            continue;
        };
        let Some(from) = at(from.address) else {
            continue;
        };
        let style = match edge.kind {
            EdgeKind::Taken | EdgeKind::Jump | EdgeKind::Next => "solid",
            EdgeKind::IndirectJump => "dashed",
            EdgeKind::Call | EdgeKind::IndirectCall | EdgeKind::Return => "dotted",
        };
        let label = format!("{}{}", kind(edge.kind), edge.count);
        match at(address).filter(|_| to == function) {
            Some(to) => writeln!(
                text,
                "  n{from} -> n{to} [label=\"{label}\", style={style}];"
            ),
            None => {
                let name = quote(&program.functions[to].name);
                writeln!(
                    text,
                    "  n{from} -> {name} [label=\"{label}\", style={style}];"
                )
            }
        }
        .expect("writing to a string");
    }
    text + "}\n"
}

fn kind(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::Taken => "taken ",
        EdgeKind::Next | EdgeKind::Jump | EdgeKind::IndirectJump => "",
        EdgeKind::Call | EdgeKind::IndirectCall => "call ",
        EdgeKind::Return => "return ",
    }
}

fn begin(name: &str) -> String {
    format!(
        "digraph {} {{\n  node [shape=box, style=filled, fontname=\"sans-serif\"];\n  \
         edge [fontname=\"sans-serif\"];\n",
        quote(name)
    )
}

/// A node coloured from white to red.
fn node(text: &mut String, index: usize, label: &str, heat: f64) {
    let saturation = heat.clamp(0.0, 1.0) * 0.8;
    let label = quote(label);
    writeln!(
        text,
        "  n{index} [label={label}, fillcolor=\"0.02 {saturation:.3} 1.0\"];"
    )
    .expect("writing to a string");
}

fn part(cost: f64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { cost / all as f64 }
}

fn percent(cost: f64, all: u64) -> String {
    format!("{:.1}%", part(cost, all) * 100.0)
}

fn quote(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
        .replace(char::is_control, "?");
    format!("\"{escaped}\"")
}
