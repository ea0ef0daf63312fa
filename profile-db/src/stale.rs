//! Taking over the records of an earlier build. A rebuilt module has another identity and
//! its code lies elsewhere, but most of it is the same code. Its blocks are found again
//! by what a rebuild leaves alone, from the strict to the lenient:
//!
//! 1. *Landmarks*: the opcodes of a block occur once in the old profile and once in the new
//!    code, and a landmark near by has moved about as far.
//! 2. *Neighbours in memory*: the block lies where it would if it had moved as far as the
//!    last one that was found, and has the same opcodes.
//! 3. *Neighbours in the flow of control*: an edge of a found block leads to it, and it has
//!    the same opcodes; then, at last, merely the same shape.
//!
//! Edges go where the new code says. What was changed beyond recognition gets the counts that
//! flow into it. After Ayupov, Panchenko and Pupyrev, "Stale Profile Matching" (2024),
//! but without symbols.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::code::{CodeBlock, Exit};
use crate::record::{
    BlockRecord, Counts, EdgeKind, EdgeRecord, PairRecord, PathRecord, Target, Tier, ValueRecord,
};

/// How far landmarks near each other may have moved apart: inserted or removed code.
const MAX_DRIFT: u64 = 4096;
/// How many landmarks on each side are asked.
const WITNESSES: usize = 4;
/// Rounds of letting counts flow through unknown blocks: more than most loops need.
const FLOW_ROUNDS: usize = 32;

/// What an earlier build's records are worth in a new one.
#[derive(Debug)]
pub struct Takeover {
    /// Canonical.
    pub counts: Counts,
    /// The executions that blocks which were found again had, of all.
    pub found: u64,
    pub all: u64,
    /// Blocks with counts that were inferred.
    pub inferred: usize,
}

impl Takeover {
    /// Whether the modules are builds of the same program: a quarter was found again.
    pub fn is_plausible(&self) -> bool {
        self.found > 0 && self.found >= self.all / 4
    }
}

/// What the records of `old`, canonical, amount to in the code `new`, sorted by offset.
pub fn take_over(old: &Counts, new: &[CodeBlock]) -> Takeover {
    let mut matching = Matching::new(old, new);
    matching.landmarks();
    matching.spread();
    while matching.follow_edges(true) + matching.spread() > 0 {}
    while matching.follow_edges(false) + matching.follow_edges(true) + matching.spread() > 0 {}
    let mut counts = matching.carried();
    let lost_returns = matching.lost_returns();
    let inferred = infer(&mut counts, new, &matching.used, lost_returns);
    counts.normalize();
    let found = old
        .blocks
        .iter()
        .zip(&matching.places)
        .filter(|(_, place)| place.is_some());
    Takeover {
        found: found.fold(0, |sum: u64, (block, _)| sum.saturating_add(block.count)),
        all: old.executions(),
        counts,
        inferred,
    }
}

/// The same code but for what a linker or a register allocator changes.
fn alike(old: &BlockRecord, new: &CodeBlock) -> bool {
    old.hash == new.hash || old.likeness.is_known() && old.likeness.opcodes == new.likeness.opcodes
}

struct Matching<'m> {
    old: &'m Counts,
    new: &'m [CodeBlock],
    /// For each old block, its place in `new`.
    places: Vec<Option<usize>>,
    /// For each new block: an old one was found to be it.
    used: Vec<bool>,
}

impl<'m> Matching<'m> {
    fn new(old: &'m Counts, new: &'m [CodeBlock]) -> Matching<'m> {
        Matching {
            old,
            new,
            places: vec![None; old.blocks.len()],
            used: vec![false; new.len()],
        }
    }

    fn new_at(&self, offset: u64) -> Option<usize> {
        self.new.binary_search_by_key(&offset, |b| b.offset).ok()
    }

    /// The old blocks at an offset.
    fn old_at(&self, offset: u64) -> impl Iterator<Item = usize> + use<'m> {
        let blocks = &self.old.blocks;
        let first = blocks.partition_point(|block| block.offset < offset);
        (first..blocks.len()).take_while(move |&at| blocks[at].offset == offset)
    }

    fn settle(&mut self, old: usize, new: usize) {
        self.places[old] = Some(new);
        self.used[new] = true;
    }

    /// How far a block has moved, wrapping.
    fn shift(&self, old: usize, new: usize) -> u64 {
        let from = self.old.blocks[old].offset;
        self.new[new].offset.wrapping_sub(from)
    }

    fn landmarks(&mut self) {
        let old = once(self.old.blocks.iter().map(|block| block.likeness.opcodes));
        let new = once(self.new.iter().map(|block| block.likeness.opcodes));
        let mut landmarks: Vec<(usize, usize)> = old
            .into_iter()
            .filter(|(opcodes, _)| *opcodes != 0)
            .filter_map(|(opcodes, at)| Some((at, *new.get(&opcodes)?)))
            .collect();
        landmarks.sort_unstable();
        let shifts: Vec<u64> = landmarks.iter().map(|&(o, n)| self.shift(o, n)).collect();
        for (at, &(old, new)) in landmarks.iter().enumerate() {
            let near = at.saturating_sub(WITNESSES)..(at + WITNESSES + 1).min(shifts.len());
            let witnessed = near.filter(|&other| other != at).any(|other| {
                let apart = shifts[other].wrapping_sub(shifts[at]) as i64;
                apart.unsigned_abs() <= MAX_DRIFT
            });
            if witnessed || self.old.blocks[old].hash == self.new[new].hash {
                self.settle(old, new);
            }
        }
    }

    /// Finds blocks next to found ones, upwards and downwards. Returns how many.
    fn spread(&mut self) -> usize {
        let len = self.places.len();
        let mut found = 0;
        let mut shift = None;
        for (step, old) in (0..len).chain((0..len).rev()).enumerate() {
            if step == len {
                shift = None;
            }
            if let Some(new) = self.places[old] {
                shift = Some(self.shift(old, new));
                continue;
            }
            let Some(shift) = shift else { continue };
            let there = self.old.blocks[old].offset.wrapping_add(shift);
            if let Some(new) = self.new_at(there).filter(|&new| !self.used[new])
                && alike(&self.old.blocks[old], &self.new[new])
            {
                self.settle(old, new);
                found += 1;
            }
        }
        found
    }

    /// Finds blocks that found ones lead to. Returns how many.
    fn follow_edges(&mut self, strictly: bool) -> usize {
        let mut found = 0;
        let mut waiting: Vec<usize> = (0..self.places.len()).collect();
        let mut edges: HashMap<u64, Vec<(EdgeKind, u64)>> = HashMap::new();
        for edge in &self.old.edges {
            if let Target::Here(to) = edge.to {
                edges.entry(edge.from).or_default().push((edge.kind, to));
            }
        }
        while let Some(from) = waiting.pop() {
            let Some(place) = self.places[from] else {
                continue;
            };
            let block = &self.old.blocks[from];
            let exit = self.new[place].exit;
            let direct = edges.get(&block.offset).into_iter().flatten();
            let mut leads: Vec<(u64, u64)> = direct
                .filter_map(|&(kind, to)| Some((to, direct_target(exit, kind)?)))
                .collect();
            if let Exit::Call { return_to, .. } | Exit::IndirectCall { return_to } = exit {
                leads.push((block.offset.wrapping_add(block.len.into()), return_to));
            }
            for (old_to, new_to) in leads {
                let Some(new) = self.new_at(new_to).filter(|&new| !self.used[new]) else {
                    continue;
                };
                let is_it = |&old: &usize| {
                    let block = &self.old.blocks[old];
                    let shape = self.new[new].likeness.shape;
                    self.places[old].is_none()
                        && (alike(block, &self.new[new])
                            || !strictly && block.likeness.shape == shape && shape != 0)
                };
                if let Some(old) = self.old_at(old_to).find(is_it) {
                    self.settle(old, new);
                    waiting.push(old);
                    found += 1;
                }
            }
        }
        found
    }

    /// The found blocks' records, at their new places.
    fn carried(&self) -> Counts {
        let mut counts = Counts {
            others: self.old.others.clone(),
            ..Counts::default()
        };
        let mut moved: HashMap<u64, usize> = HashMap::new();
        for (block, place) in self.old.blocks.iter().zip(&self.places) {
            let Some(place) = *place else { continue };
            moved.entry(block.offset).or_insert(place);
            let new = &self.new[place];
            counts.blocks.push(BlockRecord {
                offset: new.offset,
                hash: new.hash,
                len: new.len,
                likeness: new.likeness,
                ..block.clone()
            });
        }
        let target = |to: Target| match to {
            Target::Here(to) => match moved.get(&to) {
                Some(&place) => Target::Here(self.new[place].offset),
                None => Target::Elsewhere,
            },
            Target::There { .. } | Target::Elsewhere => to,
        };
        for edge in &self.old.edges {
            let Some(new) = moved.get(&edge.from).map(|&place| &self.new[place]) else {
                continue;
            };
            let to = match (edge.kind, new.exit) {
                (EdgeKind::IndirectJump, Exit::IndirectJump)
                | (EdgeKind::IndirectCall, Exit::IndirectCall { .. })
                | (EdgeKind::Return, Exit::Return) => target(edge.to),
                (kind, exit) => match direct_target(exit, kind) {
                    Some(to) => Target::Here(to),
                    None => continue,
                },
            };
            counts.edges.push(EdgeRecord {
                from: new.offset,
                to,
                ..*edge
            });
        }
        let place_of = |offset: &u64| moved.get(offset).map(|&place| &self.new[place]);
        counts
            .paths
            .extend(self.old.paths.iter().filter_map(|path| {
                Some(PathRecord {
                    head: place_of(&path.head)?.offset,
                    ..*path
                })
            }));
        counts
            .pairs
            .extend(self.old.pairs.iter().filter_map(|pair| {
                Some(PairRecord {
                    call: place_of(&pair.call)?.offset,
                    from: target(pair.from),
                    ..*pair
                })
            }));
        counts
            .values
            .extend(self.old.values.iter().filter_map(|value| {
                Some(ValueRecord {
                    at: self.moved_inside(value.at)?,
                    ..*value
                })
            }));
        counts
    }

    /// Where calls in found blocks come back to, and how often, if that was executed and
    /// isn't found: no edge leads there from the call.
    fn lost_returns(&self) -> Vec<(u64, u64)> {
        let lost = self.old.blocks.iter().zip(&self.places);
        lost.filter_map(|(block, place)| {
            let after = block.offset.wrapping_add(block.len.into());
            let return_to = match self.new[(*place)?].exit {
                Exit::Call { return_to, .. } | Exit::IndirectCall { return_to } => return_to,
                Exit::Jump(_)
                | Exit::Branch { .. }
                | Exit::IndirectJump
                | Exit::Return
                | Exit::Next(_)
                | Exit::End => return None,
            };
            let was_executed = self.old_at(after).next().is_some();
            let is_found = self.old_at(after).any(|old| self.places[old].is_some());
            (was_executed && !is_found).then_some((return_to, block.count))
        })
        .collect()
    }

    /// Where an instruction of an old block is now, if the block kept its length.
    fn moved_inside(&self, at: u64) -> Option<u64> {
        let blocks = &self.old.blocks;
        let after = blocks.partition_point(|block| block.offset <= at);
        let old = after.checked_sub(1)?;
        let new = &self.new[self.places[old]?];
        let distance = at - blocks[old].offset;
        (distance < u64::from(new.len) && new.len == blocks[old].len)
            .then(|| new.offset.wrapping_add(distance))
    }
}

/// The values that occur once, with where.
fn once(values: impl Iterator<Item = u32>) -> HashMap<u32, usize> {
    let mut seen: HashMap<u32, Option<usize>> = HashMap::new();
    for (at, value) in values.enumerate() {
        match seen.entry(value) {
            Entry::Occupied(mut twice) => {
                twice.insert(None);
            }
            Entry::Vacant(first) => {
                first.insert(Some(at));
            }
        }
    }
    seen.into_iter()
        .filter_map(|(value, at)| Some((value, at?)))
        .collect()
}

fn direct_target(exit: Exit, kind: EdgeKind) -> Option<u64> {
    match (kind, exit) {
        (EdgeKind::Taken, Exit::Branch { taken, .. }) => Some(taken),
        (EdgeKind::Next, Exit::Branch { next, .. } | Exit::Next(next)) => Some(next),
        (EdgeKind::Jump, Exit::Jump(to)) => Some(to),
        (EdgeKind::Call, Exit::Call { target, .. }) => Some(target),
        _ => None,
    }
}

/// A block that nothing is known of, and what has flowed into it.
struct Unknown {
    /// From known blocks.
    fixed: f64,
    flow: f64,
    /// The part of the flow that takes the branch.
    taken: f64,
}

/// Gives unknown blocks the counts that known ones send them, by edges and by `returns`;
/// returns how many.
fn infer(counts: &mut Counts, new: &[CodeBlock], used: &[bool], returns: Vec<(u64, u64)>) -> usize {
    let at = |offset: u64| new.binary_search_by_key(&offset, |b| b.offset).ok();
    let mut executions: HashMap<usize, u64> = HashMap::new();
    for block in &counts.blocks {
        if let Some(place) = at(block.offset) {
            let sum = executions.entry(place).or_insert(0);
            *sum = sum.saturating_add(block.count);
        }
    }
    // What flows in from known blocks, into known and unknown ones.
    let mut inflow: HashMap<usize, f64> = HashMap::new();
    let mut flows_in = |to: u64, count: u64| {
        if let Some(place) = at(to) {
            *inflow.entry(place).or_insert(0.0) += count as f64;
        }
    };
    for edge in &counts.edges {
        if let Target::Here(to) = edge.to
            && edge.kind != EdgeKind::Return
        {
            flows_in(to, edge.count);
        }
    }
    for (return_to, count) in returns {
        flows_in(return_to, count);
    }
    let mut unknown: HashMap<usize, Unknown> = HashMap::new();
    let mut waiting: Vec<usize> = inflow.keys().copied().filter(|&p| !used[p]).collect();
    while let Some(place) = waiting.pop() {
        let Entry::Vacant(entry) = unknown.entry(place) else {
            continue;
        };
        entry.insert(Unknown {
            fixed: inflow.get(&place).copied().unwrap_or(0.0),
            flow: 0.0,
            taken: 0.5,
        });
        let follow = successors(new[place].exit).into_iter().flatten();
        waiting.extend(follow.filter_map(at).filter(|&to| !used[to]));
    }
    let mut order: Vec<usize> = unknown.keys().copied().collect();
    order.sort_unstable();
    // What a known block lacks of its count must come from unknown ones.
    let lacks = |to: u64| {
        let place = at(to)?;
        let count = *executions.get(&place)? as f64;
        Some((count - inflow.get(&place).copied().unwrap_or(0.0)).max(0.0))
    };
    for &place in &order {
        if let Exit::Branch { taken, next } = new[place].exit
            && let Some(unknown) = unknown.get_mut(&place)
        {
            unknown.taken = match (lacks(taken), lacks(next)) {
                (Some(a), Some(b)) if a + b > 0.0 => a / (a + b),
                (Some(0.0), None) => 0.02,
                (None, Some(0.0)) => 0.98,
                _ if taken <= new[place].offset => 0.9,
                _ => 0.5,
            };
        }
    }
    for _ in 0..FLOW_ROUNDS {
        let mut arrived: HashMap<usize, f64> = HashMap::new();
        for &place in &order {
            for (to, count) in shares(new[place].exit, &unknown[&place]) {
                if let Some(to) = at(to).filter(|to| unknown.contains_key(to)) {
                    *arrived.entry(to).or_insert(0.0) += count;
                }
            }
        }
        for (place, unknown) in &mut unknown {
            unknown.flow = unknown.fixed + arrived.get(place).copied().unwrap_or(0.0);
        }
    }
    let mut inferred = 0;
    for place in order {
        let (block, unknown) = (&new[place], &unknown[&place]);
        let count = unknown.flow.round() as u64;
        if count == 0 {
            continue;
        }
        inferred += 1;
        counts.blocks.push(BlockRecord {
            offset: block.offset,
            hash: block.hash,
            len: block.len,
            tier: Tier::Interpreted,
            head: false,
            likeness: block.likeness,
            count,
        });
        let mut edge = |kind, to, count: f64| {
            counts.edges.push(EdgeRecord {
                from: block.offset,
                kind,
                to: Target::Here(to),
                count: count.round() as u64,
            });
        };
        match block.exit {
            Exit::Branch { taken, next } => {
                edge(EdgeKind::Taken, taken, unknown.flow * unknown.taken);
                edge(EdgeKind::Next, next, unknown.flow * (1.0 - unknown.taken));
            }
            Exit::Jump(to) => edge(EdgeKind::Jump, to, unknown.flow),
            Exit::Call { target, .. } => edge(EdgeKind::Call, target, unknown.flow),
            Exit::Next(to) => edge(EdgeKind::Next, to, unknown.flow),
            Exit::IndirectCall { .. } | Exit::IndirectJump | Exit::Return | Exit::End => {}
        }
    }
    inferred
}

/// Where a block's own function goes on.
fn successors(exit: Exit) -> [Option<u64>; 2] {
    match exit {
        Exit::Branch { taken, next } => [Some(taken), Some(next)],
        Exit::Jump(to) | Exit::Next(to) => [Some(to), None],
        Exit::Call { return_to, .. } | Exit::IndirectCall { return_to } => [Some(return_to), None],
        Exit::IndirectJump | Exit::Return | Exit::End => [None, None],
    }
}

fn shares(exit: Exit, block: &Unknown) -> impl Iterator<Item = (u64, f64)> {
    let part = match exit {
        Exit::Branch { .. } => [block.taken, 1.0 - block.taken],
        _ => [1.0, 0.0],
    };
    let flow = block.flow;
    let to = successors(exit).into_iter().zip(part);
    to.filter_map(move |(to, part)| Some((to?, flow * part)))
}

#[cfg(test)]
mod tests;
