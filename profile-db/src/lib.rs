//! The profile database: what earlier runs of a program learned, one file a module.
//!
//! A module is an ELF file, named by [`ModuleId`]; places in it are file offsets, so neither
//! ASLR nor the program that loaded it matters. This crate knows nothing of Temper: it
//! holds [records](ModuleProfile), merges, ages and bounds them, and keeps them in a
//! [`Store`].
//!
//! # Who does what
//!
//! | Module | |
//! |---|---|
//! | `record`, `trial` | what is kept: see [`Counts`] and [`Trials`] |
//! | `merge` | merging, ageing, bounding |
//! | `query` | what is known of one place |
//! | `format`, `codec` | profiles to bytes and back, of this version and earlier ones |
//! | `store` | the directory: locks, replacing files, pruning; translated code beside profiles |
//! | `stale` | [taking over](take_over) an earlier build's records, with a [`Code`] |
//! | [`export`] | other tools' formats |
//!
//! # The format of a profile, version 2
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
//! An entry of the section table:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 2 | kind |
//! | 2 | 2 | version of the section, from 1 |
//! | 4 | 4 | encoding: 0 plain, 1 zstd |
//! | 8 | 8 | offset in the file |
//! | 16 | 4 | length as stored, at most 64 MiB |
//! | 20 | 4 | length when unpacked, at most 64 MiB and 512 times the stored length |
//! | 24 | 4 | CRC32 of the stored bytes |
//! | 28 | 4 | zero |
//!
//! Sections follow the table without gaps, in the table's order, up to the end of the file.
//! Each holds one bincode value: structs field by field, integers of variable length (up to
//! 250 in one byte; 251, 252 and 253 announce two, four and eight), lists and strings after
//! their length, enums after their variant's number, options after 0 or 1. A list has at
//! most 2^20 items.
//!
//! | Kind | Section | Version | Read |
//! |---|---|---|---|
//! | 1 | module: [`ModuleRecord`], then [`Totals`] | 2 | always |
//! | 2 | decisions: list of [`Decision`] | 1 | at the start of a run, alone |
//! | 3 | counts: [`Counts`] | 2 | to merge, to show, to form superblocks |
//! | 4 | trials: [`Trials`] | 1 | at the start of a run, alone |
//! | 5 | kept free | | |
//!
//! The fields are those of the types named, in their order. Three rules make files small
//! and reading them safe:
//!
//! - Lists are sorted by their keys, each key once, and no count is 0; a file where that
//!   isn't so is damaged. Each type says what its key is.
//! - In decisions and counts, the offset by which a list is sorted first is stored as the
//!   difference to the record before. A local target ([`Target::Here`]) is stored relative
//!   to the place that it is left from, zigzag-coded: 2d for d ≥ 0, else -2d-1.
//! - What names another record (a module of [`Target::There`], a machine of a trial) is
//!   an index into a list of the same section, checked when it is read.
//!
//! Readers skip kinds they don't know (and a save drops them), so new kinds of records come
//! as new sections. A changed section gets a higher section version; a higher format version
//! keeps older writers from replacing the file. A file with a higher version of either kind
//! is refused and left alone, with an error that names the Temper which wrote it.
//!
//! Version 1 had no section 4, no `ancestor` in the module record, no pairs, values and
//! trials in the totals, no pairs and values in the counts, and no likeness in a block. Its
//! files are read, and written in version 2 when they are merged into.
//!
//! # Numbers
//!
//! Counts are 64 bits wide and saturate; runs are 32 bits wide and saturate. Merging adds; it
//! is commutative and associative. Of two trials of one superblock on one machine the later
//! counts. Each run that is merged first ages what is there by one eighth (see
//! [`Counts::age`]), so that what isn't seen again halves in five runs, and new behaviour
//! shows within a few. Merging a profile from elsewhere ages nothing. Then [`Limits`] apply.
//!
//! # Rebuilt modules
//!
//! A module that is saved for the first time takes over what an earlier build at the same
//! path (else of the same name) left, as far as its code is still there: [`take_over`] says
//! how. It happens in that save, so it costs a start nothing, and a long run nothing but
//! once: about 70 ms for a megabyte of code.

mod code;
mod codec;
mod error;
pub mod export;
mod format;
mod hash;
mod merge;
#[cfg(test)]
mod properties;
mod query;
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
    CodePiece, Dropped, Durability, Keep, KeptCode, Known, Maker, NewPiece, RunProfile, Store,
    Summary, Verified, VerifiedCode, Why, Written, default_profile_dir, read_profile,
};
pub use trial::{Machine, TrialRecord, Trials, Variant, Verdict};
