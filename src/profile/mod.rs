//! Run-time profiles: which blocks ran, where they went, along which paths, and what
//! earlier runs knew of them. Upstream is the interpreter, which counts; downstream are the
//! promotion policy and superblock formation, which read. Counts are kept by live block
//! during a run and by module identity and file offset beyond it, so that ASLR doesn't
//! matter; code of no module is counted in memory and never saved.
//!
//! Nothing here fails a run: what goes wrong with the profile directory becomes a warning
//! value. Does not decide what is hot, and does not translate.

mod code;
mod counters;
mod identity;
mod index;
mod known;
mod live;
mod modules;
mod nesting;
mod past;
mod paths;
mod save;
mod site;
mod tally;
mod timed;
mod values;

pub use code::ModuleCode;
pub use counters::{Outcome, Profile, ProfileStats};
pub use identity::{Identities, Identity};
pub use known::KnownHot;
pub use live::BlockId;
pub use modules::{ModuleIndex, ModuleMap};
pub use past::Past;
pub use paths::{MAX_OUTCOMES, PathKey};
pub use profile_db::{Bias, Durability, Error as ProfileError, Store, Tier, default_profile_dir};
pub use save::SaveReport;
pub use timed::SaveTimes;
pub use values::Watching;
