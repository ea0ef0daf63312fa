//! The records. Places are file offsets in the module; the lists of [`Counts`] are sorted
//! by their keys and hold each key once ([`Counts::normalize`]).

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// Runs merged into this profile.
    pub runs: u32,
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

/// What was counted in a module.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// The other modules that [`Target::There`] names.
    pub others: Vec<ModuleId>,
    pub blocks: Vec<BlockRecord>,
    pub edges: Vec<EdgeRecord>,
    pub paths: Vec<PathRecord>,
}

impl Counts {
    /// True when nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.edges.is_empty() && self.paths.is_empty()
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.blocks.len() + self.edges.len() + self.paths.len()
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
}
