//! Sections as earlier versions of the format had them, brought to today's records. What
//! wasn't known then is empty.

use serde::Deserialize;

use super::sections::Totals;
use crate::codec;
use crate::record::{
    BlockRecord, Counts, EdgeRecord, Likeness, ModuleId, ModuleRecord, PathRecord, Tier,
};

/// The module section, version 1.
#[derive(Deserialize)]
struct Module1 {
    id: ModuleId,
    path: Vec<u8>,
    size: u64,
    first_seen: u64,
    last_seen: u64,
    runs: u32,
}

#[derive(Deserialize)]
struct Totals1 {
    blocks: u64,
    edges: u64,
    paths: u64,
    executions: u64,
}

/// The counts section, version 1.
#[derive(Deserialize)]
struct Counts1 {
    #[serde(deserialize_with = "crate::codec::list")]
    others: Vec<ModuleId>,
    #[serde(deserialize_with = "crate::codec::list")]
    blocks: Vec<Block1>,
    #[serde(deserialize_with = "crate::codec::list")]
    edges: Vec<EdgeRecord>,
    #[serde(deserialize_with = "crate::codec::list")]
    paths: Vec<PathRecord>,
}

#[derive(Deserialize)]
struct Block1 {
    offset: u64,
    hash: u64,
    len: u32,
    tier: Tier,
    head: bool,
    count: u64,
}

pub fn module(bytes: &[u8]) -> Option<(ModuleRecord, Totals)> {
    let (module, totals): (Module1, Totals1) = codec::decode(bytes)?;
    let module = ModuleRecord {
        id: module.id,
        path: module.path,
        size: module.size,
        first_seen: module.first_seen,
        last_seen: module.last_seen,
        runs: module.runs,
        ancestor: None,
    };
    let totals = Totals {
        blocks: totals.blocks,
        edges: totals.edges,
        paths: totals.paths,
        executions: totals.executions,
        ..Totals::default()
    };
    Some((module, totals))
}

/// Still as differences.
pub fn counts(bytes: &[u8]) -> Option<Counts> {
    let counts: Counts1 = codec::decode(bytes)?;
    let blocks = counts.blocks.into_iter().map(|block| BlockRecord {
        offset: block.offset,
        hash: block.hash,
        len: block.len,
        tier: block.tier,
        head: block.head,
        likeness: Likeness::default(),
        count: block.count,
    });
    Some(Counts {
        others: counts.others,
        blocks: blocks.collect(),
        edges: counts.edges,
        paths: counts.paths,
        ..Counts::default()
    })
}
