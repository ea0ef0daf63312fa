//! The engine runs guest threads: it interprets code that is new, promotes what runs
//! again to translation blocks, enters and leaves generated code, and hands system calls,
//! traps and signals to the guest's surroundings ([`crate::guest::GuestEnv`]).
//!
//! [`world`] is what threads share and the loop of each, [`dispatch`] decides what comes
//! next, [`children`] makes processes, [`superblocks`] tries what hot paths become, [`code`] holds everything made from guest code, [`promote`]
//! decides what a fragment contains, [`entry`] is the way in and out, [`host_signals`] what
//! happens when the host interrupts. Knows nothing of any operating system's system calls.

mod children;
mod code;
mod counters;
mod dispatch;
mod entry;
pub mod host_signals;
mod lockstep;
mod predecoded;
mod promote;
mod reuse;
pub mod stats;
mod superblocks;
mod threads;
mod world;

pub use code::Code;
pub use dispatch::Engine;
pub use reuse::KeptReport;
pub use superblocks::Superblocks;
pub use world::{GuestThread, Held, Outcome, Shared, World};

/// The highest tier that guest code may reach.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tier {
    Interpreter,
    Block,
    Superblock,
}

/// What a stage shows on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Dump {
    pub decode: bool,
    pub blocks: bool,
    pub fragments: bool,
    pub superblocks: bool,
}

/// How the engine works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub max_tier: Tier,
    /// Bound of the code cache, in bytes.
    pub cache_bytes: usize,
    /// Executions of a block in the interpreter before it is translated.
    pub promote_after: u16,
    /// Empty the cache at every so many entries of generated code; 0 is never.
    pub flush_every: u64,
    /// Translate nothing more after so many fragments.
    pub stop_after: u64,
    /// Gather a profile.
    pub profile: bool,
    /// Use translated code of earlier runs, and keep this run's.
    pub reuse: bool,
    /// Measure how long each tier runs.
    pub timing: bool,
    /// Run each block in both tiers and compare.
    pub verify: bool,
    pub dump: Dump,
    pub superblocks: Superblocks,
}

/// Executions after which a block is promoted: what runs twice is translated. Interpreting a
/// block for the first time costs about what translating it does, and each later visit from
/// generated code 0.2 us more; measured on python3's start-up, 1 beats 0, 3 and more.
pub const PROMOTE_AFTER: u16 = 1;

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_tier: Tier::Superblock,
            cache_bytes: 64 << 20,
            promote_after: PROMOTE_AFTER,
            flush_every: 0,
            stop_after: u64::MAX,
            profile: true,
            reuse: true,
            timing: false,
            verify: false,
            dump: Dump::default(),
            superblocks: Superblocks::default(),
        }
    }
}
