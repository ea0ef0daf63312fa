//! Who called whom, and stacks estimated from it.

use std::collections::BTreeMap;

use super::Program;
use crate::record::EdgeKind;

/// A part of all cost that gets no stack of its own, but counts for its caller's.
const SMALLEST_STACK: f64 = 1e-5;
const DEEPEST_STACK: usize = 128;

/// Calls between functions, without those that close a cycle.
pub struct CallGraph {
    /// For each function: callees and how often they were called, by callee.
    pub callees: Vec<Vec<(usize, u64)>>,
    /// For each function: calls of it.
    called: Vec<u64>,
    /// Callees before callers.
    order: Vec<usize>,
    /// For each function: its own cost, and with all that it called.
    own: Vec<u64>,
    pub inclusive: Vec<f64>,
}

/// The calls of one function by another.
pub struct Calls {
    pub count: u64,
    /// The first block that calls, a place in [`Program::blocks`].
    pub site: usize,
}

/// All calls from one function to another or itself, tail calls too.
pub fn calls(program: &Program) -> BTreeMap<(usize, usize), Calls> {
    let mut calls = BTreeMap::new();
    for edge in &program.edges {
        let Some((to, address)) = edge.to else {
            continue;
        };
        let from = program.blocks[edge.from].function;
        let is_call = match edge.kind {
            EdgeKind::Call | EdgeKind::IndirectCall => true,
            // A jump to another function's start is a call in its last place.
            EdgeKind::Jump | EdgeKind::IndirectJump | EdgeKind::Taken | EdgeKind::Next => {
                from != to && program.functions[to].start == address
            }
            EdgeKind::Return => false,
        };
        if is_call {
            let calls = calls.entry((from, to)).or_insert(Calls {
                count: 0,
                site: edge.from,
            });
            calls.count = calls.count.saturating_add(edge.count);
        }
    }
    calls
}

impl CallGraph {
    pub fn new(program: &Program) -> CallGraph {
        let functions = program.functions.len();
        let mut callees = vec![Vec::new(); functions];
        let mut is_called = vec![false; functions];
        for ((from, to), calls) in calls(program) {
            callees[from].push((to, calls.count));
            is_called[to] |= from != to;
        }
        let own = program.costs();
        let mut roots: Vec<usize> = (0..functions).collect();
        roots.sort_by_key(|&f| (is_called[f], std::cmp::Reverse(own[f])));
        let order = cut_cycles(&mut callees, &roots);
        let mut called = vec![0u64; functions];
        for &(to, count) in callees.iter().flatten() {
            called[to] = called[to].saturating_add(count);
        }
        let mut graph = CallGraph {
            inclusive: own.iter().map(|&cost| cost as f64).collect(),
            callees,
            called,
            order,
            own,
        };
        for &function in &graph.order {
            let callees = graph.callees[function].iter();
            let more: f64 = callees
                .map(|&(to, count)| graph.inclusive[to] * graph.share(to, count))
                .sum();
            graph.inclusive[function] += more;
        }
        graph
    }

    /// What part of a function's cost is due to `count` calls of it.
    pub fn share(&self, function: usize, count: u64) -> f64 {
        match self.called[function] {
            0 => 0.0,
            called => count as f64 / called as f64,
        }
    }

    /// Stacks, callers first, and what they cost; in the order of functions.
    pub fn stacks(&self) -> Vec<(Vec<usize>, u64)> {
        let all: f64 = self.own.iter().map(|&cost| cost as f64).sum();
        let mut stacks = Vec::new();
        // What rounding took from earlier stacks goes to later ones.
        let mut owed = 0.0;
        let mut emit = |stack: &[usize], cost: f64| {
            owed += cost;
            let cost = owed.round().max(0.0);
            owed -= cost;
            if cost > 0.0 {
                stacks.push((stack.to_vec(), cost as u64));
            }
        };
        for root in (0..self.own.len()).filter(|&f| self.called[f] == 0) {
            // Depth, function, and what part of its cost is spent in this stack.
            let mut waiting = vec![(0, root, 1.0)];
            let mut stack = Vec::new();
            while let Some((depth, function, part)) = waiting.pop() {
                stack.truncate(depth);
                stack.push(function);
                let whole = self.inclusive[function] * part;
                if whole < all * SMALLEST_STACK || depth >= DEEPEST_STACK {
                    emit(&stack, whole);
                    continue;
                }
                emit(&stack, self.own[function] as f64 * part);
                for &(to, count) in self.callees[function].iter().rev() {
                    waiting.push((depth + 1, to, part * self.share(to, count)));
                }
            }
        }
        stacks
    }
}

/// Removes the calls that lead back to a function which is being searched; returns the
/// functions, callees first.
fn cut_cycles(callees: &mut [Vec<(usize, u64)>], roots: &[usize]) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut states = vec![State::New; callees.len()];
    let mut order = Vec::with_capacity(callees.len());
    for &root in roots {
        if states[root] != State::New {
            continue;
        }
        states[root] = State::Open;
        let mut open = vec![(root, 0)];
        while let Some((function, next)) = open.last_mut() {
            let function = *function;
            match callees[function]
                .get(*next)
                .map(|&(to, _)| (to, states[to]))
            {
                None => {
                    states[function] = State::Done;
                    order.push(function);
                    open.pop();
                }
                Some((_, State::Open)) => {
                    callees[function].remove(*next);
                }
                Some((_, State::Done)) => *next += 1,
                Some((to, State::New)) => {
                    *next += 1;
                    states[to] = State::Open;
                    open.push((to, 0));
                }
            }
        }
    }
    order
}
