//! What `perf script -F ip,brstack --show-mmap-events` prints for samples with last-branch
//! records, as llvm-profgen and create_llvm_prof read it. Each line is a stack of branches,
//! the latest first.
//!
//! A real record holds up to 32 consecutive branches. Here each holds two: a taken transfer
//! and the one that led to the code before it, so that readers, who take what lies between
//! two branches as executed, count every block by its transfers.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Program;
use crate::record::EdgeKind;

/// The most lines that one transfer gets; all counts are scaled down alike.
const MOST_LINES: u64 = 200_000;
const PID: u32 = 1;

/// The program's transfers as samples.
pub fn perf_script(program: &Program) -> String {
    let mut text = String::new();
    for module in &program.modules {
        writeln!(
            text,
            "PERF_RECORD_MMAP2 {PID}/{PID}: [{:#x}({:#x}) @ {:#x} 00:00 0 0]: r-xp {}",
            module.address,
            module.len,
            module.offset,
            module.path.replace(char::is_control, "?")
        )
        .expect("writing to a string");
    }
    let taken: Vec<_> = program
        .edges
        .iter()
        .filter(|edge| edge.kind != EdgeKind::Next)
        .filter_map(|edge| Some((edge, edge.to?.1)))
        .collect();
    // The busiest transfer to each block, and blocks that are fallen into from others.
    let mut arrivals: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (edge, to) in &taken {
        let last = program.blocks[edge.from].last;
        let best = arrivals.entry(*to).or_insert((last, edge.count));
        if edge.count > best.1 {
            *best = (last, edge.count);
        }
    }
    let mut fallen: BTreeMap<u64, usize> = BTreeMap::new();
    for edge in &program.edges {
        if let (EdgeKind::Next, Some((_, to))) = (edge.kind, edge.to) {
            fallen.insert(to, edge.from);
        }
    }
    let all = taken
        .iter()
        .fold(0u64, |sum, (edge, _)| sum.saturating_add(edge.count));
    let scale = all.div_ceil(MOST_LINES).max(1);
    for (edge, to) in taken {
        let from = &program.blocks[edge.from];
        // Back to where a transfer led into this straight piece of code.
        let mut start = edge.from;
        let mut steps = 0;
        while !arrivals.contains_key(&program.blocks[start].address)
            && let Some(&before) = fallen.get(&program.blocks[start].address)
            && program.blocks[before].address < program.blocks[start].address
            && steps < 64
        {
            start = before;
            steps += 1;
        }
        let begin = program.blocks[start].address;
        let mut line = format!("{to:x} {:#x}/{to:#x}/P/-/-/0", from.last);
        if let Some((last, _)) = arrivals.get(&begin) {
            write!(line, " {last:#x}/{begin:#x}/P/-/-/0").expect("writing to a string");
        }
        for _ in 0..edge.count.div_ceil(scale) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}
