//! BOLT's profile data (fdata; `llvm/tools/bolt/docs` and `BranchRecord` in BOLT's
//! DataReader.h): a line a branch, both ends as symbol and offset, then mispredictions and
//! count. BOLT wants taken branches and what fell through alike.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Function, Program, Symbol};

/// The branches between functions that have symbols.
pub fn bolt(program: &Program) -> String {
    // Blocks that overlap end in the same branch.
    let mut branches: BTreeMap<String, u64> = BTreeMap::new();
    for edge in &program.edges {
        let from = &program.blocks[edge.from];
        let Some((to, address)) = edge.to.filter(|_| !from.is_split) else {
            continue;
        };
        let source = &program.functions[from.function];
        let Some(source_symbol) = &source.symbol else {
            continue;
        };
        let from_end = end(source, source_symbol, from.last);
        let target = &program.functions[to];
        let to_end = match &target.symbol {
            Some(symbol) if target.module == source.module => end(target, symbol, address),
            // Another module: BOLT takes it for a branch out of the binary.
            Some(_) | None => "0 [unknown] 0".into(),
        };
        let count = branches.entry(format!("{from_end} {to_end}")).or_default();
        *count = count.saturating_add(edge.count);
    }
    let mut text = String::new();
    for (branch, count) in branches {
        writeln!(text, "{branch} 0 {count}").expect("writing to a string");
    }
    text
}

fn end(function: &Function, symbol: &Symbol, address: u64) -> String {
    let offset = address.saturating_sub(function.start);
    // Blanks separate fields; BOLT escapes them so.
    let name = symbol.name.replace('\\', "\\\\").replace(' ', "\\ ");
    match symbol.local {
        Some(number) => format!("1 {name}/{number} {offset:x}"),
        None => format!("1 {name} {offset:x}"),
    }
}
