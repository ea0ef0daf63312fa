//! What the sections hold, and how records become differences and back.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::old;
use crate::codec;
use crate::error::Damage;
use crate::merge::{Limits, keep_most};
use crate::record::{BlockRecord, Counts, EdgeKind, EdgeRecord, ModuleRecord, Target, Tier};
use crate::trial::Trials;

/// What a section holds. Kind 5 is kept free for translated code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Section {
    Module = 1,
    Decisions = 2,
    Counts = 3,
    Trials = 4,
}

impl Section {
    pub fn of_kind(kind: u16) -> Option<Section> {
        [
            Section::Module,
            Section::Decisions,
            Section::Counts,
            Section::Trials,
        ]
        .into_iter()
        .find(|section| *section as u16 == kind)
    }

    /// The version that is written, and the highest that is read.
    pub fn version(self) -> u16 {
        match self {
            Section::Module | Section::Counts => 2,
            Section::Decisions | Section::Trials => 1,
        }
    }

    /// Whether it is worth compressing: what every start of a run reads stays plain.
    pub fn is_packed(self) -> bool {
        match self {
            Section::Counts => true,
            Section::Module | Section::Decisions | Section::Trials => false,
        }
    }
}

/// What the counts amount to, so that listing needn't read them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    pub blocks: u64,
    pub edges: u64,
    pub paths: u64,
    pub pairs: u64,
    pub values: u64,
    pub trials: u64,
    /// Executions of all blocks.
    pub executions: u64,
}

impl Totals {
    pub fn new(counts: &Counts, trials: &Trials) -> Totals {
        Totals {
            blocks: counts.blocks.len() as u64,
            edges: counts.edges.len() as u64,
            paths: counts.paths.len() as u64,
            pairs: counts.pairs.len() as u64,
            values: counts.values.len() as u64,
            trials: trials.trials.len() as u64,
            executions: counts.executions(),
        }
    }
}

/// A block that was hot: worth translating before it is interpreted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// The block's offset in the module's file.
    pub offset: u64,
    /// [`content_hash`](crate::content_hash) of its bytes.
    pub hash: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The highest tier it has reached.
    pub tier: Tier,
    /// A path head: backward branches or calls lead to it.
    pub head: bool,
    pub bias: Bias,
}

/// Which way the conditional branch at a block's end usually goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Bias {
    /// It has no such branch, or nothing was counted.
    #[default]
    Unknown,
    Taken,
    Next,
}

/// The blocks of `counts` that the next run should translate at once.
pub fn decisions(counts: &Counts, limits: &Limits) -> Vec<Decision> {
    let mut hot: Vec<&BlockRecord> = counts
        .blocks
        .iter()
        .filter(|block| block.count >= limits.hot_count || block.tier > Tier::Interpreted)
        .collect();
    keep_most(&mut hot, limits.decisions, |block| block.count);
    let mut edges = &counts.edges[..];
    hot.iter()
        .map(|block| {
            // Both lists are sorted by place.
            let before = edges.iter().take_while(|edge| edge.from < block.offset);
            edges = &edges[before.count()..];
            Decision {
                offset: block.offset,
                hash: block.hash,
                len: block.len,
                tier: block.tier,
                head: block.head,
                bias: bias(edges.iter().take_while(|edge| edge.from == block.offset)),
            }
        })
        .collect()
}

fn bias<'a>(edges: impl Iterator<Item = &'a EdgeRecord>) -> Bias {
    let (mut taken, mut next) = (0u64, 0u64);
    for edge in edges {
        match edge.kind {
            EdgeKind::Taken => taken = taken.saturating_add(edge.count),
            EdgeKind::Next => next = next.saturating_add(edge.count),
            EdgeKind::Jump
            | EdgeKind::Call
            | EdgeKind::IndirectJump
            | EdgeKind::IndirectCall
            | EdgeKind::Return => {}
        }
    }
    match taken.cmp(&next) {
        Ordering::Greater => Bias::Taken,
        Ordering::Less => Bias::Next,
        Ordering::Equal => Bias::Unknown,
    }
}

fn to_differences<'a>(offsets: impl Iterator<Item = &'a mut u64>) {
    let mut last = 0;
    for offset in offsets {
        let this = *offset;
        *offset = this.wrapping_sub(last);
        last = this;
    }
}

/// `None` when the offsets run over.
fn from_differences<'a>(offsets: impl Iterator<Item = &'a mut u64>) -> Option<()> {
    let mut last = 0u64;
    for offset in offsets {
        last = last.checked_add(*offset)?;
        *offset = last;
    }
    Some(())
}

fn zigzag(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    ((difference << 1) ^ (difference >> 63)) as u64
}

fn unzigzag(from: u64, coded: u64) -> u64 {
    let difference = (coded >> 1) ^ (coded & 1).wrapping_neg();
    from.wrapping_add(difference)
}

/// As it is stored: each offset relative to the one before, each local target relative to
/// where it is left for.
fn counts_to_differences(counts: &mut Counts) {
    let edges = counts
        .edges
        .iter_mut()
        .map(|edge| (edge.from, &mut edge.to));
    let pairs = counts
        .pairs
        .iter_mut()
        .map(|pair| (pair.call, &mut pair.from));
    for (at, target) in edges.chain(pairs) {
        if let Target::Here(to) = target {
            *to = zigzag(at, *to);
        }
    }
    to_differences(counts.blocks.iter_mut().map(|block| &mut block.offset));
    to_differences(counts.edges.iter_mut().map(|edge| &mut edge.from));
    to_differences(counts.paths.iter_mut().map(|path| &mut path.head));
    to_differences(counts.pairs.iter_mut().map(|pair| &mut pair.call));
    to_differences(counts.values.iter_mut().map(|value| &mut value.at));
}

fn counts_from_differences(counts: &mut Counts) -> Option<()> {
    from_differences(counts.blocks.iter_mut().map(|block| &mut block.offset))?;
    from_differences(counts.edges.iter_mut().map(|edge| &mut edge.from))?;
    from_differences(counts.paths.iter_mut().map(|path| &mut path.head))?;
    from_differences(counts.pairs.iter_mut().map(|pair| &mut pair.call))?;
    from_differences(counts.values.iter_mut().map(|value| &mut value.at))?;
    let edges = counts
        .edges
        .iter_mut()
        .map(|edge| (edge.from, &mut edge.to));
    let pairs = counts
        .pairs
        .iter_mut()
        .map(|pair| (pair.call, &mut pair.from));
    for (at, target) in edges.chain(pairs) {
        if let Target::Here(to) = target {
            *to = unzigzag(at, *to);
        }
    }
    Some(())
}

pub fn encode_module(module: &ModuleRecord, totals: Totals) -> Vec<u8> {
    codec::encode(&(module, totals))
}

pub fn decode_module(bytes: &[u8], version: u16) -> Result<(ModuleRecord, Totals), Damage> {
    let (module, totals): (ModuleRecord, Totals) = match version {
        1 => old::module(bytes),
        _ => codec::decode(bytes),
    }
    .ok_or(Damage::Encoding)?;
    let ids = [Some(&module.id), module.ancestor.as_ref()];
    if !ids.into_iter().flatten().all(|id| id.is_valid()) {
        return Err(Damage::Records);
    }
    Ok((module, totals))
}

/// The list has a limit when it is read.
#[derive(Deserialize)]
struct Decisions(#[serde(deserialize_with = "crate::codec::list")] Vec<Decision>);

pub fn encode_decisions(mut decisions: Vec<Decision>) -> Vec<u8> {
    to_differences(decisions.iter_mut().map(|decision| &mut decision.offset));
    codec::encode(&decisions)
}

pub fn decode_decisions(bytes: &[u8]) -> Result<Vec<Decision>, Damage> {
    let Decisions(mut decisions) = codec::decode(bytes).ok_or(Damage::Encoding)?;
    from_differences(decisions.iter_mut().map(|d| &mut d.offset)).ok_or(Damage::Records)?;
    Ok(decisions)
}

/// Leaves `counts` as it was: a copy would cost more than turning it round twice.
pub fn encode_counts(counts: &mut Counts) -> Vec<u8> {
    counts_to_differences(counts);
    let bytes = codec::encode(counts);
    counts_from_differences(counts).expect("differences add up to what they were made of");
    bytes
}

pub fn decode_counts(bytes: &[u8], version: u16) -> Result<Counts, Damage> {
    let mut counts: Counts = match version {
        1 => old::counts(bytes),
        _ => codec::decode(bytes),
    }
    .ok_or(Damage::Encoding)?;
    counts_from_differences(&mut counts).ok_or(Damage::Records)?;
    if !counts.is_canonical() {
        return Err(Damage::Records);
    }
    Ok(counts)
}

pub fn encode_trials(trials: &Trials) -> Vec<u8> {
    codec::encode(trials)
}

pub fn decode_trials(bytes: &[u8]) -> Result<Trials, Damage> {
    let trials: Trials = codec::decode(bytes).ok_or(Damage::Encoding)?;
    if !trials.is_canonical() {
        return Err(Damage::Records);
    }
    Ok(trials)
}
