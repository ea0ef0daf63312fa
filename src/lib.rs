//! Temper, a dynamic binary optimizer: runs an existing x86-64 program, learns which paths
//! are hot, rebuilds those, and remembers for the next run.
//!
//! A guest instruction's life: bytes are decoded ([`decode`]), interpreted and counted
//! ([`interp`], [`profile`]), translated when hot ([`translate`]) into the code cache
//! ([`codecache`]), along hot paths rebuilt and tried ([`superblock`]); [`engine`] decides which of these happens next; [`process`] is the
//! Linux that the guest sees, [`system`] the hardware that a guest kernel sees; [`cli`] is what people see.
//!
//! Modules import only from modules before them:
//! `addr < host < guest < decode < {profile, codecache, native} < {interp, translate,
//! superblock} < engine < {process, system} < cli`; those in one pair of braces don't see each other.
//!
//! Unsafe code lives in these modules, and nowhere else: `host`, `native`, `codecache`,
//! `interp`, `engine`, `process`, `system`. `tests/architecture.rs` holds both rules.

pub mod addr;
pub mod cli;
pub mod codecache;
pub mod decode;
pub mod engine;
pub mod guest;
pub mod host;
pub mod interp;
pub mod native;
pub mod process;
pub mod profile;
pub mod superblock;
pub mod system;
pub mod translate;
