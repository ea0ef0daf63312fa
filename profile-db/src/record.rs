//! The records. Places are file offsets in the module; the lists of [`Counts`] are sorted
//! by their keys and hold each key once ([`Counts::normalize`]).

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::trial::Trials;

/// The most branch outcomes that a path holds.
pub const MAX_PATH_OUTCOMES: u8 = 32;

/// Names a module independent of where its file lies.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ModuleId {
    /// The GNU build-id note's bytes, 8 to 64 of them.
    BuildId(Vec<u8>),
    /// [`module_content_hash`](crate::module_content_hash) of a file without one.
    Content([u8; 16]),
}

impl ModuleId {
    /// A build-id, if it is long enough to tell modules apart and short enough to be one.
    pub fn from_build_id(bytes: &[u8]) -> Option<ModuleId> {
        (8..=64)
            .contains(&bytes.len())
            .then(|| ModuleId::BuildId(bytes.to_vec()))
    }

    pub(crate) fn is_valid(&self) -> bool {
        match self {
            ModuleId::BuildId(bytes) => (8..=64).contains(&bytes.len()),
            ModuleId::Content(_) => true,
        }
    }

    /// What [`Display`](fmt::Display) shows, read back: `build-id:` or `content:` and
    /// hexadecimal digits.
    pub fn parse(text: &str) -> Option<ModuleId> {
        let (kind, hex) = text.split_once(':')?;
        if !hex.len().is_multiple_of(2) || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let bytes = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        match kind {
            "build-id" => ModuleId::from_build_id(&bytes),
            "content" => Some(ModuleId::Content(bytes.try_into().ok()?)),
            _ => None,
        }
    }

    /// The name of the module's file in a profile directory, without extension.
    pub fn file_stem(&self) -> String {
        let (kind, bytes) = match self {
            ModuleId::BuildId(bytes) => ('b', &bytes[..]),
            ModuleId::Content(bytes) => ('c', &bytes[..]),
        };
        let mut stem = String::with_capacity(1 + bytes.len() * 2);
        stem.push(kind);
        for byte in bytes {
            stem.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            stem.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        stem
    }
}

impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stem = self.file_stem();
        match self {
            ModuleId::BuildId(_) => write!(f, "build-id:{}", &stem[1..]),
            ModuleId::Content(_) => write!(f, "content:{}", &stem[1..]),
        }
    }
}

/// What is known of a module as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModuleRecord {
    pub id: ModuleId,
    /// Where its file was last seen (bytes of a Unix path).
    pub path: Vec<u8>,
    /// The file's size in bytes.
    pub size: u64,
    /// Seconds since 1970, UTC.
    pub first_seen: u64,
    pub last_seen: u64,
    /// Runs merged into this profile; saturates.
    pub runs: u32,
    /// The earlier build whose records this profile started with, see
    /// [`Store::merge`](crate::Store::merge).
    pub ancestor: Option<ModuleId>,
}

/// The highest tier that a block has reached.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub enum Tier {
    #[default]
    Interpreted,
    Block,
    Superblock,
}

/// What a block looks like apart from what every rebuild changes. Whoever decodes
/// instructions makes it (a [`Code`](crate::Code)); here it is only compared.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Likeness {
    /// A hash of its instructions without registers, immediates, displacements and branch
    /// targets. 0: not known.
    pub opcodes: u32,
    /// A hash of how many instructions there are and how the last one goes on. 0: not known.
    pub shape: u16,
}

impl Likeness {
    pub fn is_known(self) -> bool {
        self.opcodes != 0
    }
}

/// A block, keyed by `(offset, hash)`: two contents at one offset are two blocks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockRecord {
    pub offset: u64,
    /// [`content_hash`](crate::content_hash) of its bytes.
    pub hash: u64,
    /// Length in bytes.
    pub len: u32,
    pub tier: Tier,
    /// A path head: backward branches or calls lead to it.
    pub head: bool,
    pub likeness: Likeness,
    /// Executions.
    pub count: u64,
}

/// How an edge leaves its block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum EdgeKind {
    /// A conditional branch, taken.
    Taken,
    /// Straight on: a branch not taken, a split block, after a system call.
    Next,
    Jump,
    Call,
    IndirectJump,
    IndirectCall,
    Return,
}

impl EdgeKind {
    /// True where one block can have many targets.
    pub fn is_indirect(self) -> bool {
        match self {
            EdgeKind::IndirectJump | EdgeKind::IndirectCall | EdgeKind::Return => true,
            EdgeKind::Taken | EdgeKind::Next | EdgeKind::Jump | EdgeKind::Call => false,
        }
    }
}

/// Where an edge leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Target {
    /// An offset in the same module.
    Here(u64),
    /// An offset in the module `Counts::others[module]`.
    There { module: u32, offset: u64 },
    /// Code of no module, or the targets that found no room in a bounded set.
    Elsewhere,
}

/// An edge, keyed by `(from, kind, to)`. `from` is the start of the block it leaves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EdgeRecord {
    pub from: u64,
    pub kind: EdgeKind,
    pub to: Target,
    pub count: u64,
}

/// A bounded path, keyed by `(head, len, outcomes)`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathRecord {
    /// The start of its first block: a loop head or a function's entry.
    pub head: u64,
    /// The outcomes of the conditional branches on the way: bit `i` is set when the
    /// `i`-th was taken.
    pub outcomes: u32,
    /// How many there were, 1 to [`MAX_PATH_OUTCOMES`].
    pub len: u8,
    pub count: u64,
}

/// A call and the return that came back to it, keyed by `(call, from)`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairRecord {
    /// The start of the block that ends in the call.
    pub call: u64,
    /// The block that ends in the return.
    pub from: Target,
    pub count: u64,
}

/// What an observed value is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ValueKind {
    /// What a division divides by.
    Divisor,
    /// How often a loop's head was reached from one entry of the loop.
    TripCount,
    /// From one address of a memory access to its next, in bytes, two's complement.
    Stride,
}

/// A value that was seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Observed {
    Is(u64),
    /// The values that found no room in a bounded set.
    Other,
}

/// An observed value, keyed by `(at, kind, value)`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ValueRecord {
    /// The instruction that divides or accesses; for a trip count, the loop's head.
    pub at: u64,
    pub kind: ValueKind,
    pub value: Observed,
    pub count: u64,
}

/// What was counted in a module.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// The other modules that [`Target::There`] names.
    #[serde(deserialize_with = "crate::codec::list")]
    pub others: Vec<ModuleId>,
    #[serde(deserialize_with = "crate::codec::list")]
    pub blocks: Vec<BlockRecord>,
    #[serde(deserialize_with = "crate::codec::list")]
    pub edges: Vec<EdgeRecord>,
    #[serde(deserialize_with = "crate::codec::list")]
    pub paths: Vec<PathRecord>,
    #[serde(deserialize_with = "crate::codec::list")]
    pub pairs: Vec<PairRecord>,
    #[serde(deserialize_with = "crate::codec::list")]
    pub values: Vec<ValueRecord>,
}

impl Counts {
    /// True when nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.blocks.len()
            + self.edges.len()
            + self.paths.len()
            + self.pairs.len()
            + self.values.len()
    }

    /// How much two profiles agree: what part of all that flowed along edges flowed along
    /// the same ones in both, 0 to 1.
    pub fn edge_overlap(&self, other: &Counts) -> f64 {
        let sum = |counts: &Counts| counts.edges.iter().map(|e| e.count as f64).sum::<f64>();
        let (ours, theirs) = (sum(self), sum(other));
        let key = |counts: &Counts, edge: &EdgeRecord| {
            let there = match edge.to {
                Target::There { module, .. } => counts.others.get(module as usize).cloned(),
                Target::Here(_) | Target::Elsewhere => None,
            };
            let offset = match edge.to {
                Target::Here(offset) | Target::There { offset, .. } => Some(offset),
                Target::Elsewhere => None,
            };
            (edge.from, edge.kind, there, offset)
        };
        let parts: HashMap<_, f64> = other
            .edges
            .iter()
            .map(|edge| (key(other, edge), edge.count as f64 / theirs))
            .collect();
        let common = self.edges.iter().filter_map(|edge| {
            let part = parts.get(&key(self, edge))?;
            Some(part.min(edge.count as f64 / ours))
        });
        common.sum()
    }

    /// All blocks' executions, saturating.
    pub fn executions(&self) -> u64 {
        self.blocks
            .iter()
            .fold(0, |sum, block| sum.saturating_add(block.count))
    }
}

/// All that is known of one module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleProfile {
    pub module: ModuleRecord,
    pub counts: Counts,
    pub trials: Trials,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_that_is_shown_can_be_read() {
        for id in [
            ModuleId::BuildId((0..20).collect()),
            ModuleId::Content([0xf0; 16]),
        ] {
            assert_eq!(ModuleId::parse(&id.to_string()), Some(id));
        }
        for wrong in [
            "",
            "content:",
            "content:00",
            "build-id:0",
            "b:00",
            "content:é0",
            "build-id:zz",
        ] {
            assert_eq!(ModuleId::parse(wrong), None, "{wrong}");
        }
    }
}
