//! The guest's address space: its memory map as the guest believes it, kept beside the
//! host's, which differs: guest code is never executable there, pages that hold translated
//! code are write-protected, and Temper's own mappings lie between the guest's.
//!
//! Invariants: every range in the map is mapped on the host and was mapped for the guest;
//! what is mapped on the host and not in the map is Temper's, so whether a hole in the map
//! may be used is asked of the host (MAP_FIXED_NOREPLACE), never of a list.
//! Code that the guest could have run (executable ranges) is invalidated when its mapping
//! changes. Does not decode system calls.

mod advise;
mod brk;
mod host_map;
mod huge;
mod low;
mod map;
mod protect;
mod remap;
mod shm;
mod vma;
#[cfg(test)]
mod vma_tests;
mod watch;

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use brk::ProgramBreak;
pub use host_map::{MapRequest, NO_FILE};
pub use low::{LOW_CODE, LOW_LIMIT, Placement, RESERVED};
pub use map::{descriptor_path, file_key};
pub use vma::{Attributes, Backing, FileKey, Prot, Role, Vma, VmaMap, intersection};
pub use watch::CodeWatch;

use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{CodeControl, Watched};
use crate::host::syscall::Errno;

/// See the module documentation.
#[derive(Debug)]
pub struct AddressSpace {
    map: VmaMap,
    watch: CodeWatch,
    placement: Placement,
    pub brk: ProgramBreak,
    /// Where the guest stack may still grow to when its limit is raised.
    stack_reserve: Range<GuestAddr>,
    /// personality(READ_IMPLIES_EXEC).
    pub read_implies_exec: bool,
    /// mlockall(MCL_FUTURE): new mappings are locked.
    lock_future: bool,
    attached_segments: Vec<Range<GuestAddr>>,
    next_anonymous_key: u64,
    /// Bytes that may still be advised to be huge pages.
    huge_bytes_left: u64,
    /// A mapping came that the kernel extends by itself.
    any_grows_down: bool,
    /// Executable or shared memory came, or changed, since anyone asked.
    code_changed: bool,
}

impl AddressSpace {
    pub fn new(placement: Placement) -> AddressSpace {
        AddressSpace {
            map: VmaMap::default(),
            watch: CodeWatch::default(),
            placement,
            brk: ProgramBreak::default(),
            stack_reserve: GuestAddr(0)..GuestAddr(0),
            read_implies_exec: false,
            lock_future: false,
            attached_segments: Vec::new(),
            next_anonymous_key: 1,
            huge_bytes_left: 0,
            any_grows_down: false,
            code_changed: false,
        }
    }

    /// What the guest believes is mapped.
    pub fn map(&self) -> &VmaMap {
        &self.map
    }

    /// Tells the engine of new executable memory, and of the files that it maps.
    fn announce_range(&self, range: &Range<GuestAddr>, code: &mut dyn CodeControl) {
        if range.end > LOW_LIMIT {
            code.require_exact_indirect();
        }
        code.executable_mapped(range.clone());
        for vma in self.map.within(range.clone()) {
            let backing = vma.attributes.backing.as_ref();
            if let Some((backing, path)) = backing.and_then(|b| Some((b, b.path.as_ref()?))) {
                let path = Path::new(OsStr::from_bytes(path.as_bytes()));
                code.module_mapped(vma.range, path, backing.offset);
            }
        }
    }

    /// Announces all executable memory: for an engine that starts after loading.
    pub fn announce(&self, code: &mut dyn CodeControl) {
        for (range, attributes) in self.map.iter_ref() {
            if attributes.prot.executable() {
                self.announce_range(&range, code);
            }
        }
    }

    /// True while a guest write may hit a page that is protected on Temper's account.
    pub fn is_watching(&self) -> bool {
        self.watch.is_active()
    }

    /// Whether [`AddressSpace::code_exposure`] may have another answer than when last asked.
    pub fn take_code_change(&mut self) -> bool {
        std::mem::take(&mut self.code_changed)
    }

    /// Enters `range` into the map.
    fn record(&mut self, range: Range<GuestAddr>, attributes: Attributes) {
        self.code_changed |= attributes.prot.executable() || attributes.shared;
        self.any_grows_down |= attributes.grows_down;
        self.map.insert(range, attributes);
    }

    /// By which ways, other than mapping calls, the guest could change executable memory.
    pub fn code_exposure(&self) -> CodeExposure {
        let mut exposure = CodeExposure::default();
        let mut written_files = Vec::new();
        for (_, a) in self.map.iter_ref() {
            exposure.shared_file |= a.prot.executable() && a.shared;
            exposure.writable |= a.prot.writable() && a.prot.executable();
            if a.prot.writable() && a.shared {
                written_files.extend(a.backing.as_ref().map(|b| b.key));
            }
        }
        exposure.writable |= !written_files.is_empty()
            && self.map.iter_ref().any(|(_, a)| {
                a.prot.executable()
                    && a.backing
                        .as_ref()
                        .is_some_and(|b| written_files.contains(&b.key))
            });
        exposure
    }

    /// The content of a file (or, with `None`, of any file) changed through a descriptor:
    /// code in shared mappings of it is forgotten.
    pub fn file_changed(&mut self, file: Option<FileKey>, code: &mut dyn CodeControl) {
        for (range, a) in self.map.iter_ref() {
            let same = match (&a.backing, file) {
                (Some(backing), Some(key)) => backing.key == key,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if same && a.shared && a.prot.executable() {
                code.invalidate(range);
            }
        }
    }

    /// See [`crate::guest::GuestEnv::watch_code`]. `busy` says whether the kernel may write to
    /// a page this very moment.
    pub fn watch_code(
        &mut self,
        range: Range<GuestAddr>,
        busy: &mut dyn FnMut(GuestAddr) -> bool,
    ) -> Watched {
        self.watch.watch(range, &self.map, busy)
    }

    /// A write to `addr` faulted. True if only because the page is watched: it no longer is,
    /// and the instruction can run again.
    pub fn on_write_fault(&mut self, addr: GuestAddr, code: &mut dyn CodeControl) -> bool {
        let page = addr.page();
        self.prepare_write(page..page.offset(PAGE_SIZE as i64), code)
    }

    /// Somebody other than a guest instruction is about to write to `range`.
    /// True if a page there was protected.
    pub fn prepare_write(&mut self, range: Range<GuestAddr>, code: &mut dyn CodeControl) -> bool {
        self.watch.release(range, &self.map, code)
    }

    /// Forgets code in `range`: its mapping changed, or is about to.
    fn code_changes(&mut self, range: Range<GuestAddr>, code: &mut dyn CodeControl) {
        for vma in self.map.within(range.clone()) {
            if vma.attributes.prot.executable() {
                code.invalidate(vma.range);
            }
        }
        self.watch.forget(range, code);
    }

    /// A writable shared mapping of a file came into being at `range`: code made from other
    /// mappings of these bytes must be watched anew, and so is forgotten.
    fn alias_appears(&mut self, range: Range<GuestAddr>, code: &mut dyn CodeControl) {
        for alias in self.map.within(range) {
            let Some(backing) = &alias.attributes.backing else {
                continue;
            };
            if !alias.attributes.shared || !alias.attributes.prot.writable() {
                continue;
            }
            let bytes = backing.offset..backing.offset.saturating_add(alias.bytes());
            for (range, attributes) in self.map.iter_ref() {
                let same_file = attributes
                    .backing
                    .as_ref()
                    .is_some_and(|b| b.key == backing.key && b.offset < bytes.end);
                if attributes.prot.executable() && same_file {
                    code.invalidate(range);
                }
            }
        }
    }

    /// Makes sure that `range` holds nothing of Temper's: the guest's part may be replaced,
    /// the rest is reserved. `Err(ENOMEM)`: Temper lives there.
    fn claim(&mut self, range: &Range<GuestAddr>) -> Result<Claim, Errno> {
        self.sync_grown_stacks();
        let mut claim = Claim::default();
        for gap in self.map.gaps(range.clone()) {
            if host_map::map_anonymous(&gap, 0, libc::MAP_NORESERVE as u64).is_err() {
                claim.undo();
                return Err(Errno(libc::ENOMEM));
            }
            claim.reserved.push(gap);
        }
        Ok(claim)
    }
}

/// How executable memory can change without a call that maps or protects memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CodeExposure {
    /// By stores: only then can [`AddressSpace::watch_code`] ever protect a page.
    pub writable: bool,
    /// By writing to, or truncating, a file.
    pub shared_file: bool,
}

/// Holes that were reserved ahead of a MAP_FIXED.
#[derive(Default)]
struct Claim {
    reserved: Vec<Range<GuestAddr>>,
}

impl Claim {
    /// The mapping that was to replace them failed.
    fn undo(self) {
        for gap in self.reserved {
            // Only our own reservation is removed; a failure leaves it, harmlessly.
            let _ = host_map::unmap(&gap);
        }
    }
}

/// `addr..addr+bytes`, page-rounded.
///
/// # Errors
/// EINVAL for an unaligned start, `overflow` past the top.
fn page_range(addr: u64, bytes: u64, overflow: i32) -> Result<Range<GuestAddr>, Errno> {
    let start = GuestAddr(addr);
    if start.page_offset() != 0 {
        return Err(Errno(libc::EINVAL));
    }
    let end = addr
        .checked_add(bytes)
        .and_then(|end| GuestAddr(end).page_up())
        .ok_or(Errno(overflow))?;
    Ok(start..end)
}
