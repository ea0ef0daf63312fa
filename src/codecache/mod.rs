//! The code cache: where generated code lives and how its pieces are linked.
//!
//! A *fragment* is one run of generated code with an entry for each guest block in it and
//! with *exits*, each a patchable jump: to its own stub (which leaves to the dispatcher) or,
//! once *linked*, to the fragment of its target. Indirect branches go through the
//! [`IndirectMap`]. Space is handed out in generations; when the cache is full the oldest
//! generation is retired whole. Invariants: a link's target is an entry of a live fragment;
//! an address has at most one live entry; an indirect-map entry is either a live fragment's
//! indirect entry or the miss routine.
//!
//! Does not generate code, choose what to translate, or know of guest memory.

mod arena;
mod fragments;
mod indirect_map;
mod movable;
mod superblocks;

pub use arena::{ARENA_BASE, ARENA_LIMIT, Space};
pub use fragments::{
    CacheStats, CodeCache, Counter, Entry, FragmentId, IndirectEntry, LATE_ENTRY_BYTES, Location,
    NewExit, NewFragment, Part, Relocation,
};
pub use indirect_map::{IndirectMap, MAP_DISPLACEMENT, MAP_REACH};
pub use movable::Movable;
pub use superblocks::{Detour, Superblock};
