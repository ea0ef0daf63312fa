//! mremap.

use std::ops::Range;

use super::host_map::{self, bytes};
use super::low::LOW_LIMIT;
use super::vma::{Role, Vma};
use super::{AddressSpace, page_range};
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::CodeControl;
use crate::host::syscall::{Errno, SyscallResult};

const MAYMOVE: u64 = libc::MREMAP_MAYMOVE as u64;
const FIXED: u64 = libc::MREMAP_FIXED as u64;
const DONTUNMAP: u64 = libc::MREMAP_DONTUNMAP as u64;

impl AddressSpace {
    /// mremap(2).
    ///
    /// # Errors
    /// The kernel's; ENOMEM where the target is Temper's, EFAULT where the source is.
    pub fn mremap(
        &mut self,
        [old, old_bytes, new_bytes, flags, new]: [u64; 5],
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        self.sync_grown_stacks();
        if new_bytes == 0 || flags & !(MAYMOVE | FIXED | DONTUNMAP) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let source = page_range(old, old_bytes, libc::EINVAL)?;
        let new_len = bytes(&page_range(0, new_bytes, libc::EINVAL)?);
        let vma = self.map.find(source.start).ok_or(Errno(libc::EFAULT))?;
        // A shrinking call may span mappings: the kernel unmaps the tail first.
        let kept =
            source.start..GuestAddr(source.end.0.min(source.start.0.saturating_add(new_len)));
        if kept.end > vma.range.end {
            return Err(Errno(libc::EFAULT));
        }
        // Watched pages split the host's mapping, which must be one.
        self.watch.release(source.clone(), &self.map, code);
        let result = if flags & FIXED != 0 {
            let target = page_range(new, new_bytes, libc::EINVAL)?;
            let claim = self.claim(&target)?;
            host_map::remap([old, old_bytes, new_bytes, flags, new]).inspect_err(|_| claim.undo())
        } else {
            self.remap_anywhere(&vma, &source, [old_bytes, new_bytes, flags, new])
        };
        let at = result?;
        self.record_move(vma, source, at..at.offset(new_len as i64), flags, code);
        Ok(at.0)
    }

    /// Code that has to move stays low if it was; everything else goes where the kernel says.
    fn remap_anywhere(
        &mut self,
        vma: &Vma,
        source: &Range<GuestAddr>,
        [old_bytes, new_bytes, flags, hint]: [u64; 4],
    ) -> Result<GuestAddr, Errno> {
        let old = source.start.0;
        let low_code = vma.attributes.prot.executable() && source.end <= LOW_LIMIT;
        if low_code && flags & MAYMOVE != 0 {
            if flags & DONTUNMAP == 0 && old_bytes != 0 {
                let in_place = host_map::remap([old, old_bytes, new_bytes, flags & !MAYMOVE, 0]);
                if in_place != Err(Errno(libc::ENOMEM)) {
                    return in_place;
                }
            }
            let len = bytes(&page_range(0, new_bytes, libc::EINVAL)?);
            if let Ok(at) = self.free_low(len, PAGE_SIZE) {
                return host_map::remap([old, old_bytes, new_bytes, flags | FIXED, at.0]);
            }
        }
        host_map::remap([old, old_bytes, new_bytes, flags, hint])
    }

    fn record_move(
        &mut self,
        vma: Vma,
        source: Range<GuestAddr>,
        target: Range<GuestAddr>,
        flags: u64,
        code: &mut dyn CodeControl,
    ) {
        let moved = target.start != source.start;
        let Some(part) = vma.clipped(&(source.start..vma.range.end)) else {
            return;
        };
        let mut attributes = part.attributes;
        if moved {
            attributes.role = Role::Plain;
            attributes.grows_down = false;
            self.code_changes(target.clone(), code);
            if flags & DONTUNMAP == 0 {
                self.code_changes(source.clone(), code);
                // With an old size of 0 the source is empty: the target is a second mapping.
                self.map.remove(source);
            } else {
                self.code_changes(source, code);
            }
        } else if target.end < source.end {
            let tail = target.end..source.end;
            self.code_changes(tail.clone(), code);
            self.map.remove(tail);
        }
        let executable = attributes.prot.executable();
        self.record(target.clone(), attributes);
        if executable {
            self.announce_range(&target, code);
        }
        self.alias_appears(target, code);
    }
}
