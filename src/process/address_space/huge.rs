//! Huge pages for the guest's large private memory: programs that were built before there
//! were any lose much of their time to misses of the TLB there.

use std::ops::Range;

use syscalls::Sysno;

use super::host_map::{self, MapRequest};
use super::vma::Prot;
use super::{AddressSpace, Role};
use crate::addr::GuestAddr;

/// Mappings from this size on get huge pages: smaller ones gain nothing, and may be touched
/// in few places.
const LARGE: u64 = 4 << 20;
const HUGE_PAGE: u64 = 2 << 20;

impl AddressSpace {
    /// Asks for huge pages in large private mappings from now on, of at most `bound` bytes in
    /// all. A mapping of which the guest touches little may take up to all of that memory.
    pub fn use_huge_pages(&mut self, bound: u64) {
        self.huge_bytes_left = bound;
    }

    /// A mapping was made.
    pub(super) fn mapped_privately(&mut self, request: &MapRequest, range: &Range<GuestAddr>) {
        let unwanted = libc::MAP_SHARED
            | libc::MAP_NORESERVE
            | libc::MAP_GROWSDOWN
            | libc::MAP_STACK
            | libc::MAP_HUGETLB;
        let prot = Prot::from_bits(request.prot);
        if request.has(libc::MAP_ANONYMOUS)
            && request.flags & unwanted as u64 == 0
            && prot.writable()
            && !prot.executable()
        {
            self.advise_huge(range.clone());
        }
    }

    /// The heap has grown to `end`.
    pub(super) fn heap_grew(&mut self, grown: Range<GuestAddr>) {
        let start = self.brk.start;
        if grown.end.0 - start.0 < LARGE {
            return;
        }
        let is_heap = |at: GuestAddr| {
            let vma = self.map.find(at);
            vma.is_some_and(|vma| vma.attributes.role == Role::Heap)
        };
        // What was too small before is large now.
        let from = if grown.start.0 - start.0 < LARGE && is_heap(start) {
            start
        } else {
            grown.start
        };
        let range = from..grown.end;
        let bytes = range.end.0 - range.start.0;
        if self.huge_bytes_left >= bytes {
            self.huge_bytes_left -= bytes;
            advise(&range);
        }
    }

    fn advise_huge(&mut self, range: Range<GuestAddr>) {
        let start = range.start.0.next_multiple_of(HUGE_PAGE);
        let end = range.end.0 / HUGE_PAGE * HUGE_PAGE;
        let bytes = end.saturating_sub(start);
        if range.end.0 - range.start.0 >= LARGE && self.huge_bytes_left >= bytes {
            self.huge_bytes_left -= bytes;
            advise(&range);
        }
    }
}

/// Only advice: a refusal costs speed only.
fn advise(range: &Range<GuestAddr>) {
    let advice = [libc::MADV_HUGEPAGE as u64, 0, 0, 0];
    let _ = host_map::on_range(Sysno::madvise, range, advice);
}
