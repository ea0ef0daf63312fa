//! The profile database: what earlier runs of a program learned, one file a module.
//!
//! A module is an ELF file, named by [`ModuleId`]; places in it are file offsets, so neither
//! ASLR nor the program that loaded it matters. This crate knows nothing of Temper: it
//! holds [records](ModuleProfile), merges, ages and bounds them, and keeps them in a
//! [`Store`].
//!
//! # The file format, version 1
//!
//! All integers are little-endian. The first 24 bytes keep this layout in all versions.
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 8 | magic, `TEMPERDB` |
//! | 8 | 4 | format version |
//! | 12 | 6 | version of the writer: major, minor, patch |
//! | 18 | 2 | number of sections, at most 32 |
//! | 20 | 4 | CRC32 of bytes 0..20 and of the section table |
//! | 24 | 32 each | the section table |
//!
//! A section table entry: kind (2), section version (2), encoding (4: 0 plain, 1 zstd),
//! offset (8), stored length (4), length when unpacked (4), CRC32 of the stored bytes (4),
//! zero (4). Sections follow the table without gaps, in the table's order, up to the end of
//! the file. Each holds one bincode value (variable-length integers):
//!
//! | Kind | Section | Read |
//! |---|---|---|
//! | 1 | module: [`ModuleRecord`] and [`Totals`] | always |
//! | 2 | decisions: `Vec<Decision>`, for the start of a run | lazily, alone |
//! | 3 | counts: [`Counts`] | to merge and to show |
//!
//! Readers skip kinds they don't know (and a save drops them), so new kinds of records come
//! as new sections. A changed section gets a higher section version; a higher format version
//! keeps older writers from replacing the file. A file with a higher version of either kind
//! is refused and left alone.
//! Lists are sorted by their keys and stored as differences: each offset is relative to the
//! one of the record before, an edge's local target is relative to its origin, zigzag-coded.
//!
//! # Numbers
//!
//! Counts are 64 bits wide and saturate. Merging adds; it is commutative and associative.
//! Each run that is merged first ages what is there by one eighth (see [`Counts::age`]), so
//! that new behaviour shows within a few runs.

mod code;
mod codec;
mod error;
mod format;
mod hash;
mod merge;
#[cfg(test)]
mod properties;
mod record;
#[cfg(test)]
mod sample;
mod stale;
mod store;
mod trial;

pub use code::{Code, CodeBlock, Exit, NoCode};
pub use error::{Damage, Error};
pub use format::{Bias, Decision, FORMAT_VERSION, Refusal, Totals};
pub use hash::{content_hash, module_content_hash};
pub use merge::Limits;
pub use record::{
    BlockRecord, Counts, EdgeKind, EdgeRecord, Likeness, MAX_PATH_OUTCOMES, ModuleId,
    ModuleProfile, ModuleRecord, Observed, PairRecord, PathRecord, Target, Tier, ValueKind,
    ValueRecord,
};
pub use stale::{Takeover, take_over};
pub use store::{
    Dropped, Durability, Keep, Known, RunProfile, Store, Summary, Why, Written,
    default_profile_dir, read_profile,
};
pub use trial::{Machine, TrialRecord, Trials, Variant, Verdict};
