//! mprotect and pkey_mprotect.

use std::ops::Range;

use super::host_map;
use super::vma::{Prot, Role};
use super::{AddressSpace, page_range};
use crate::addr::GuestAddr;
use crate::guest::CodeControl;
use crate::host::syscall::{Errno, SyscallResult};

const PROT_GROWSDOWN: u64 = 0x0100_0000;

impl AddressSpace {
    /// mprotect(2), or pkey_mprotect(2) with a key. As the kernel does, what lies before a
    /// hole is changed even though the call then fails.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mprotect(
        &mut self,
        addr: u64,
        bytes: u64,
        prot_bits: u64,
        key: Option<u64>,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let mut range = page_range(addr, bytes, libc::ENOMEM)?;
        self.sync_grown_stacks();
        if range.is_empty() {
            return Ok(0);
        }
        let mut extra = prot_bits & !7;
        if extra & PROT_GROWSDOWN != 0
            && let Some((whole, attributes)) = self.map.peek(range.start)
            && attributes.role == Role::Stack
        {
            // The guest's stack grows down; the host's mapping of it is whole already.
            range.start = whole.start;
            extra &= !PROT_GROWSDOWN;
        }
        let mut prot = Prot::from_bits(prot_bits);
        if self.read_implies_exec && prot.readable() {
            prot = prot.with_exec();
        }
        let reach = self.map.mapped_up_to(range.clone());
        if reach > range.start {
            let done = range.start..reach;
            host_map::protect(&done, prot.host() | extra, key)?;
            self.apply(done, prot, code);
        }
        if reach < range.end {
            return Err(Errno(libc::ENOMEM));
        }
        Ok(0)
    }

    fn apply(&mut self, range: Range<GuestAddr>, prot: Prot, code: &mut dyn CodeControl) {
        self.code_changed |= self
            .map
            .within(range.clone())
            .iter()
            .any(|vma| vma.attributes.shared || vma.attributes.prot.executable())
            || prot.executable();
        if prot.executable() && !prot.writable() {
            // Code made so far stays true: its bytes can't have changed since it was made,
            // and from here on they can't by this mapping.
            for vma in self.map.within(range.clone()) {
                if !vma.attributes.prot.executable() {
                    self.announce_range(&vma.range, code);
                }
            }
            self.watch.forget(range.clone(), code);
        } else {
            self.code_changes(range.clone(), code);
            if prot.executable() {
                self.announce_range(&range, code);
            }
        }
        self.map.change(range.clone(), |a| a.prot = prot);
        if prot.writable() {
            self.alias_appears(range, code);
        }
    }
}
