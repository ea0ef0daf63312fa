//! Accesses of guest memory behind the MMU: the interpreter's, with the hit path inline, and
//! the CPU's own to descriptor tables and stacks. Where an access goes is decided in [`mmu`].
//!
//! [`mmu`]: super::mmu

use super::host_access;
use super::mmu::{Mmu, Place, fault, is_canonical};
use super::registers::vector;
use super::tlb::Tlb;
use super::walk::{Privilege, Wanted};
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{Access, GuestMemory, GuestTrap, Width};
use crate::native::IdentityMemory;

impl Mmu {
    fn read_place(&mut self, place: Place, buffer: &mut [u8]) {
        match place {
            // SAFETY: the place was translated for this many bytes within its page.
            Place::Ram { host, .. } => unsafe {
                std::ptr::copy_nonoverlapping(host, buffer.as_mut_ptr(), buffer.len());
            },
            Place::Device(physical) => {
                for (index, part) in buffer.chunks_mut(8).enumerate() {
                    let at = physical + index as u64 * 8;
                    self.physical.device().mmio_read(at, part);
                }
            }
        }
    }

    fn write_place(&mut self, place: Place, bytes: &[u8]) {
        match place {
            // SAFETY: as in `read_place`, for writing.
            Place::Ram { host, .. } => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len());
            },
            Place::Device(physical) => {
                for (index, part) in bytes.chunks(8).enumerate() {
                    let at = physical + index as u64 * 8;
                    self.physical.device().mmio_write(at, part);
                }
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slowly(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        let (place, first, second) = self.places(addr, width.bytes(), Wanted::Read)?;
        if let (Place::Ram { host, .. }, None) = (place, second) {
            // SAFETY: translated just now, within one page.
            return Ok(unsafe { host_access::load(host, width) });
        }
        let mut bytes = [0; 8];
        let (low, rest) = bytes.split_at_mut(first as usize);
        self.read_place(place, low);
        if let Some(second) = second {
            self.read_place(second, &mut rest[..(width.bytes() - first) as usize]);
        }
        Ok(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slowly(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        let (place, first, second) = self.places(addr, width.bytes(), Wanted::Write)?;
        if let (Place::Ram { host, .. }, None) = (place, second) {
            // SAFETY: translated for writing just now, within one page.
            unsafe { host_access::store(host, width, value) };
            return Ok(());
        }
        let bytes = value.to_le_bytes();
        self.write_place(place, &bytes[..first as usize]);
        if let Some(second) = second {
            self.write_place(second, &bytes[first as usize..width.bytes() as usize]);
        }
        Ok(())
    }

    /// An access of the CPU's own to a linear address: descriptor tables, task states, the
    /// stacks of exceptions. `user` is false for all that the supervisor's rights decide.
    fn own(
        &mut self,
        linear: u64,
        len: u64,
        wanted: Wanted,
        user: bool,
    ) -> Result<[(Place, u64); 2], GuestTrap> {
        let long = self.is_long();
        if long && !(is_canonical(linear) && is_canonical(linear.wrapping_add(len - 1))) {
            return Err(fault(vector::GENERAL_PROTECTION, 0, 0));
        }
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        let by = Privilege { user, open: false };
        let mut parts = [(Place::Device(0), 0); 2];
        let mut done = 0;
        for part in &mut parts {
            let at = linear.wrapping_add(done) & mask;
            let bytes = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
            if bytes == 0 {
                break;
            }
            let walked = self
                .walk(at, wanted, by)
                .map_err(|code| self.page_fault(at, code))?;
            let physical = walked.physical + at % PAGE_SIZE;
            let place = match self.physical.host(physical) {
                Some(host) => Place::Ram { host, physical },
                None => Place::Device(physical),
            };
            if wanted == Wanted::Write {
                self.refuse_code(place, bytes)?;
            }
            *part = (place, bytes);
            done += bytes;
        }
        Ok(parts)
    }

    /// Reads a linear address with the supervisor's rights (or the user's).
    ///
    /// # Errors
    /// A page fault, or #GP(0) for a non-canonical address.
    pub fn read_own(&mut self, linear: u64, width: Width, user: bool) -> Result<u64, GuestTrap> {
        let parts = self.own(linear, width.bytes(), Wanted::Read, user)?;
        let mut bytes = [0; 8];
        let mut at = 0;
        for (place, len) in parts {
            self.read_place(place, &mut bytes[at..at + len as usize]);
            at += len as usize;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a linear address with the supervisor's rights (or the user's).
    ///
    /// # Errors
    /// As [`Mmu::read_own`].
    pub fn write_own(
        &mut self,
        linear: u64,
        width: Width,
        value: u64,
        user: bool,
    ) -> Result<(), GuestTrap> {
        let parts = self.own(linear, width.bytes(), Wanted::Write, user)?;
        let bytes = value.to_le_bytes();
        let mut at = 0;
        for (place, len) in parts {
            self.write_place(place, &bytes[at..at + len as usize]);
            at += len as usize;
        }
        Ok(())
    }

    /// Calls `part` for each piece of a buffer that lies in one page.
    fn in_parts(
        addr: GuestAddr,
        len: usize,
        mut part: impl FnMut(GuestAddr, std::ops::Range<usize>) -> Result<(), GuestTrap>,
    ) -> Result<(), GuestTrap> {
        let mut done = 0;
        while done < len {
            let at = addr.offset(done as i64);
            // Offsets and linear addresses may differ in their place in the page.
            let bytes = (len - done).min(64);
            part(at, done..done + bytes)?;
            done += bytes;
        }
        Ok(())
    }
}

impl GuestMemory for Mmu {
    const SEGMENTED: bool = true;

    #[inline(always)]
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        match self.tlb.readable(addr, width.bytes()) {
            // SAFETY: the TLB holds RAM pages only, and the access is within the page.
            Some(host) => Ok(unsafe { host_access::load(host, width) }),
            None => self.load_slowly(addr, width),
        }
    }

    #[inline(always)]
    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        match self.tlb.writable(addr, width.bytes()) {
            Some(host) => {
                // SAFETY: as in `load`; the page may be written.
                unsafe { host_access::store(host, width, value) };
                Ok(())
            }
            None => self.store_slowly(addr, width, value),
        }
    }

    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap> {
        let host = match self.tlb.writable(addr, width.bytes()) {
            Some(host) => Some(host),
            None => match self.places(addr, width.bytes(), Wanted::Write)? {
                (Place::Ram { host, .. }, _, None) => Some(host),
                _ => None,
            },
        };
        if let Some(host) = host {
            // RAM is mapped in this process: the host's own locked access doesn't fault.
            return IdentityMemory.compare_exchange(GuestAddr(host as u64), width, expected, new);
        }
        // Across pages, or on a device: not atomic, as on a bus that knows no lock.
        let held = self.load(addr, width)?;
        if held == expected & width.mask() {
            self.store(addr, width, new)?;
        }
        Ok(held)
    }

    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap> {
        if !addr.0.is_multiple_of(16) {
            return Err(fault(vector::GENERAL_PROTECTION, 0, 0));
        }
        let host = match self.tlb.writable(addr, 16) {
            Some(host) => host,
            None => match self.places(addr, 16, Wanted::Write)? {
                (Place::Ram { host, .. }, _, None) => host,
                _ => return Err(GuestTrap::Unsupported),
            },
        };
        IdentityMemory.compare_exchange_16(GuestAddr(host as u64), expected, new)
    }

    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        let len = buffer.len();
        if let Some(host) = self.tlb.readable(addr, len.max(1) as u64)
            && len <= PAGE_SIZE as usize
        {
            // SAFETY: as in `load`.
            unsafe { std::ptr::copy_nonoverlapping(host, buffer.as_mut_ptr(), len) };
            return Ok(());
        }
        Mmu::in_parts(addr, len, |at, part| {
            let buffer = &mut buffer[part];
            let (place, first, second) = self.places(at, buffer.len() as u64, Wanted::Read)?;
            let (low, high) = buffer.split_at_mut(first as usize);
            self.read_place(place, low);
            if let Some(second) = second {
                self.read_place(second, high);
            }
            Ok(())
        })
    }

    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        if let Some(host) = self.tlb.writable(addr, bytes.len().max(1) as u64)
            && bytes.len() <= PAGE_SIZE as usize
        {
            // SAFETY: as in `store`.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) };
            return Ok(());
        }
        self.probe_write(addr, bytes.len())?;
        Mmu::in_parts(addr, bytes.len(), |at, part| {
            let bytes = &bytes[part];
            let (place, first, second) = self.places(at, bytes.len() as u64, Wanted::Write)?;
            self.write_place(place, &bytes[..first as usize]);
            if let Some(second) = second {
                self.write_place(second, &bytes[first as usize..]);
            }
            Ok(())
        })
    }

    fn probe_write(&mut self, addr: GuestAddr, len: usize) -> Result<(), GuestTrap> {
        Mmu::in_parts(addr, len, |at, part| {
            self.places(at, part.len() as u64, Wanted::Write)?;
            Ok(())
        })
    }

    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        self.fetch_code(addr.0, buffer)
    }

    #[inline]
    fn direct(&mut self, addr: GuestAddr, len: usize, access: Access) -> Option<*mut u8> {
        let len = len.max(1) as u64;
        if len > PAGE_SIZE {
            return None;
        }
        let find = |tlb: &Tlb| match access {
            Access::Read => tlb.readable(addr, len),
            Access::Write | Access::ReadWrite => tlb.writable(addr, len),
        };
        if let Some(host) = find(&self.tlb) {
            return Some(host);
        }
        let wanted = match access {
            Access::Read => Wanted::Read,
            Access::Write | Access::ReadWrite => Wanted::Write,
        };
        // Fills the TLB if it can; a fault shows again on the copy.
        let _ = self.places(addr, len, wanted).ok()?;
        find(&self.tlb)
    }
}
