//! Calls on ranges that leave the map as it is: madvise, msync, mlock and their kin. Holes
//! of the guest's map that Temper fills on the host are holes to them too.

use std::ops::Range;

use syscalls::Sysno;

use super::host_map;
use super::map::mapped_parts;
use super::vma::Attributes;
use super::{AddressSpace, page_range};
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::CodeControl;
use crate::host::syscall::{Errno, SyscallResult};

const MCL_CURRENT: u64 = 1;
const MCL_FUTURE: u64 = 2;
const MCL_ONFAULT: u64 = 4;

impl AddressSpace {
    /// madvise(2). Advice that may empty executable pages forgets the code made from them.
    ///
    /// # Errors
    /// The kernel's; ENOMEM after advising the rest if part of the range isn't mapped.
    pub fn madvise(
        &mut self,
        addr: u64,
        bytes: u64,
        advice: u64,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let range = page_range(addr, bytes, libc::EINVAL)?;
        let empties = matches!(
            advice as i32,
            libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE | 24 // DONTNEED_LOCKED
        );
        let result = self.each_part(Sysno::madvise, &range, advice);
        if empties {
            self.code_is_emptied(range, code);
        }
        result
    }

    fn code_is_emptied(&mut self, range: Range<GuestAddr>, code: &mut dyn CodeControl) {
        self.watch.release(range.clone(), &self.map, code);
        for vma in self.map.within(range) {
            if vma.attributes.prot.executable() {
                code.invalidate(vma.range);
            }
        }
    }

    /// msync, mlock, mlock2, munlock, mincore and mseal. With a hole in the range they do
    /// what the kernel does before it notices: msync all the rest, locking what lies before.
    ///
    /// # Errors
    /// The kernel's; ENOMEM with a hole in the range.
    pub fn on_range(
        &mut self,
        number: Sysno,
        addr: u64,
        bytes: u64,
        argument: u64,
    ) -> SyscallResult {
        self.sync_grown_stacks();
        // mlock and munlock round the start down, the others refuse it unaligned.
        let start = GuestAddr(addr).page();
        let lead = addr - start.0;
        let range = page_range(start.0, bytes.saturating_add(lead), libc::ENOMEM)?;
        let reach = self.map.mapped_up_to(range.clone());
        if reach >= range.end {
            // SAFETY: the range is the guest's own; none of these calls unmaps anything.
            return unsafe { crate::host::syscall::call(number, [addr, bytes, argument, 0, 0, 0]) };
        }
        match number {
            Sysno::msync => return self.each_part(number, &range, argument),
            Sysno::mlock | Sysno::mlock2 | Sysno::munlock if reach > start => {
                host_map::on_range(number, &(start..reach), [argument, 0, 0, 0])?;
            }
            _ => {}
        }
        Err(Errno(libc::ENOMEM))
    }

    /// Applies `number` to every mapped part.
    fn each_part(
        &mut self,
        number: Sysno,
        range: &Range<GuestAddr>,
        argument: u64,
    ) -> SyscallResult {
        self.sync_grown_stacks();
        if range.is_empty() || self.map.covers(range.clone()) {
            return host_map::on_range(number, range, [argument, 0, 0, 0]);
        }
        for part in mapped_parts(self, range) {
            host_map::on_range(number, &part, [argument, 0, 0, 0])?;
        }
        // The kernel checks the advice before the range.
        host_map::on_range(number, &(range.start..range.start), [argument, 0, 0, 0])?;
        Err(Errno(libc::ENOMEM))
    }

    /// mlockall(2) for the guest's mappings alone: Temper's reservations are far larger than
    /// what may be locked.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mlockall(&mut self, flags: u64) -> SyscallResult {
        if flags == 0 || flags & !(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        if flags == MCL_ONFAULT {
            return Err(Errno(libc::EINVAL));
        }
        self.lock_future = flags & MCL_FUTURE != 0;
        if flags & MCL_CURRENT != 0 {
            let on_fault = u64::from(flags & MCL_ONFAULT != 0);
            for (range, attributes) in self.map.iter_ref() {
                let locked = host_map::on_range(Sysno::mlock2, &range, [on_fault, 0, 0, 0]);
                match locked {
                    // Memory without access can't be faulted in; mlockall ignores that.
                    Err(Errno(libc::ENOMEM)) if !attributes.prot.readable() => {}
                    other => drop(other?),
                }
            }
        }
        Ok(0)
    }

    /// munlockall(2).
    ///
    /// # Errors
    /// The kernel's.
    pub fn munlockall(&mut self) -> SyscallResult {
        self.lock_future = false;
        for (range, _) in self.map.iter_ref() {
            host_map::on_range(Sysno::munlock, &range, [0; 4])?;
        }
        Ok(0)
    }

    /// True if `addr..addr+bytes` is wholly the guest's, whatever the alignment.
    pub fn is_guests(&self, addr: u64, bytes: u64) -> bool {
        let start = GuestAddr(addr).page();
        addr.checked_add(bytes)
            .and_then(|end| GuestAddr(end).page_up())
            .is_some_and(|end| self.map.covers(start..end))
    }

    /// How many pages are mapped with attributes that `count` accepts.
    pub fn mapped_pages(&self, count: impl Fn(&Attributes) -> bool) -> u64 {
        self.map
            .iter_ref()
            .filter(|(_, attributes)| count(attributes))
            .map(|(range, _)| host_map::bytes(&range) / PAGE_SIZE)
            .sum()
    }
}
