//! The program break. The host's own break belongs to Temper's C library; the guest's is a
//! region of anonymous memory that grows where nothing else is.

use super::vma::{Attributes, Prot, Role};
use super::{AddressSpace, host_map};
use crate::addr::GuestAddr;
use crate::guest::CodeControl;

#[derive(Clone, Copy, Default, Debug)]
pub struct ProgramBreak {
    pub start: GuestAddr,
    /// As the guest set it, to the byte.
    pub current: GuestAddr,
}

impl AddressSpace {
    /// Where the break starts; `start` is page-aligned and nothing is mapped there yet.
    pub fn set_break_start(&mut self, start: GuestAddr) {
        self.brk = ProgramBreak {
            start,
            current: start,
        };
    }

    /// Where a position-independent program's break goes: high, as its image is low.
    pub fn high_break(&self) -> GuestAddr {
        self.placement.brk_high
    }

    /// Where the break of an image that ends at `end` goes.
    pub fn break_after(&self, end: GuestAddr) -> Option<GuestAddr> {
        end.page_up()?
            .0
            .checked_add(self.placement.brk_gap)
            .map(GuestAddr)
    }

    /// brk(2): the new break, or the old one when it can't move.
    pub fn set_break(&mut self, wanted: GuestAddr, code: &mut dyn CodeControl) -> u64 {
        if self.try_set_break(wanted, code).is_some() {
            self.brk.current = wanted;
        }
        self.brk.current.0
    }

    fn try_set_break(&mut self, wanted: GuestAddr, code: &mut dyn CodeControl) -> Option<()> {
        if wanted < self.brk.start {
            return None;
        }
        let old_end = self.brk.current.page_up()?;
        let new_end = wanted.page_up()?;
        if new_end > old_end {
            let grown = old_end..new_end;
            let lock = if self.lock_future {
                libc::MAP_LOCKED
            } else {
                0
            };
            let prot = self.heap_prot();
            host_map::map_anonymous(&grown, prot.host(), lock as u64).ok()?;
            let mut attributes = Attributes::anonymous(prot);
            attributes.role = Role::Heap;
            self.record(grown.clone(), attributes);
            self.heap_grew(grown.clone());
            if prot.executable() {
                self.announce_range(&grown, code);
            }
        } else if new_end < old_end {
            // The guest may have unmapped parts of its heap itself.
            self.munmap(new_end.0, old_end.0 - new_end.0, code).ok()?;
        }
        Some(())
    }

    fn heap_prot(&self) -> Prot {
        if self.read_implies_exec {
            Prot::READ_WRITE.with_exec()
        } else {
            Prot::READ_WRITE
        }
    }
}
