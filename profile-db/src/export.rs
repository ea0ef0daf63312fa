//! A profile in the formats of other tools. Input is a [`Program`]: counts at addresses and
//! with names, which this crate can't know; output is text or bytes, nothing is written.
//!
//! A profile has no call stacks, only how often each function called each other one. Formats
//! that want stacks get estimates: what a function costs is spread over its callers by
//! their calls, as gprof does (Graham, Kessler and McKusick, 1982), and calls that close a
//! cycle are left out.

mod bolt;
mod callgraph;
mod callgrind;
mod dot;
mod folded;
mod perf_script;
mod pprof;
mod speedscope;

use crate::record::EdgeKind;

pub use bolt::bolt;
pub use callgrind::callgrind;
pub use dot::{call_graph, control_flow};
pub use folded::folded;
pub use perf_script::perf_script;
pub use pprof::pprof;
pub use speedscope::speedscope;

/// What is exported. Addresses are those of the modules' files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Program {
    /// For people.
    pub name: String,
    pub modules: Vec<Module>,
    pub functions: Vec<Function>,
    /// Sorted by module and address.
    pub blocks: Vec<Block>,
    pub edges: Vec<Edge>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    pub path: String,
    /// In hexadecimal.
    pub build_id: Option<String>,
    /// The executable segment: where it starts, how long it is, and where in the file.
    pub address: u64,
    pub len: u64,
    pub offset: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    pub name: String,
    /// As in the symbol table; `None` where there is no symbol.
    pub symbol: Option<Symbol>,
    /// Its place in [`Program::modules`].
    pub module: usize,
    pub start: u64,
    pub end: u64,
    pub source: Option<Line>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Symbol {
    pub name: String,
    /// Of a local symbol: which one of its name it is by address, from 1.
    pub local: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Line {
    pub file: String,
    pub line: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// Its place in [`Program::functions`].
    pub function: usize,
    pub address: u64,
    pub len: u32,
    pub instructions: u32,
    /// The address of its last instruction, which leaves it unless the block is split.
    pub last: u64,
    /// It ends in no branch: it was split for its length, or by a system call.
    pub is_split: bool,
    pub count: u64,
    pub source: Option<Line>,
}

impl Block {
    /// Instructions executed.
    pub fn cost(&self) -> u64 {
        self.count.saturating_mul(self.instructions.into())
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Its place in [`Program::blocks`].
    pub from: usize,
    pub kind: EdgeKind,
    /// The function it leads to and the address there; `None` where that isn't known.
    pub to: Option<(usize, u64)>,
    pub count: u64,
}

impl Program {
    /// Instructions executed in each function.
    pub fn costs(&self) -> Vec<u64> {
        let mut costs = vec![0u64; self.functions.len()];
        for block in &self.blocks {
            let cost = &mut costs[block.function];
            *cost = cost.saturating_add(block.cost());
        }
        costs
    }

    /// Instructions executed in all.
    pub fn cost(&self) -> u64 {
        let costs = self.costs();
        costs.into_iter().fold(0, u64::saturating_add)
    }

    fn module_name(&self, function: &Function) -> &str {
        let path = &self.modules[function.module].path;
        path.rsplit('/').next().unwrap_or(path)
    }
}

#[cfg(test)]
mod tests;
