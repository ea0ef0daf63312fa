//! A live fragment as something to be kept for later runs.

use super::fragments::{CodeCache, Counter, Entry, Fragment, Part, Relocation};
use crate::addr::{GuestAddr, HostAddr};

/// See the module documentation.
#[derive(Clone, Copy)]
pub struct Movable<'c> {
    cache: &'c CodeCache,
    fragment: &'c Fragment,
}

impl<'c> Movable<'c> {
    pub(super) fn new(cache: &'c CodeCache, fragment: &'c Fragment) -> Movable<'c> {
        Movable { cache, fragment }
    }

    /// Where its code runs.
    pub fn at(&self) -> HostAddr {
        self.cache.arena.exec_addr(self.fragment.code.start)
    }

    /// Its code as it is now: linked, and with counters switched on or off.
    pub fn code(&self) -> &'c [u8] {
        self.cache.arena.bytes(self.fragment.code.clone())
    }

    pub fn entries(&self) -> &'c [Entry] {
        &self.fragment.entries
    }

    /// Offsets of the displacements of its exits, and where they lead.
    pub fn exits(&self) -> impl Iterator<Item = (u32, GuestAddr)> + 'c {
        self.cache.exits_of(self.fragment)
    }

    pub fn counters(&self) -> &'c [Counter] {
        &self.fragment.counters
    }

    pub fn parts(&self) -> &'c [Part] {
        &self.fragment.parts
    }

    pub fn recovery(&self) -> &'c [u8] {
        &self.fragment.recovery
    }

    pub fn relocations(&self) -> &'c [Relocation] {
        &self.fragment.relocations
    }

    /// An earlier run made it.
    pub fn is_restored(&self) -> bool {
        self.fragment.restored
    }
}
