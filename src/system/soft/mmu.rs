//! Guest memory behind segmentation and paging. The hit path ([`accesses`]) is one comparison
//! in the TLB. Everything else (misses, accesses across a page boundary, devices, pages with
//! code, data breakpoints) goes the slow way, which either fills the TLB or faults.
//!
//! 64-bit code comes with linear addresses, 16- and 32-bit code with an offset in a segment
//! ([`segmented`](crate::guest::segmented)); a segment with a page-aligned base and the whole
//! page within its limit is cached by that offset, so flat 32-bit code pays nothing either.
//!
//! [`accesses`]: super::accesses

use std::sync::Arc;

use super::super::memory::GuestRam;
use super::super::state::{Segment, SegmentRegister, VcpuState};
use super::Attention;
use super::code_pages::CodePages;
use super::physical::Physical;
use super::registers::{cr0, cr4, efer, vector};
use super::tlb::{FetchTlb, Mapping, Set, Tlb};
use super::walk::{Privilege, Wanted};
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{CpuMode, GuestTrap, MemoryFault, flags, segment_and_offset};

/// A trap number of the engine's own: the store would change code that blocks were made
/// from. The fault's address is physical.
pub const CODE_CHANGES: u8 = 0xff;

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Ram { host: *mut u8, physical: u64 },
    Device(u64),
}

/// System registers, address translation and physical memory of one CPU.
pub struct Mmu {
    /// The system registers. Integer registers, RIP and RFLAGS in it are stale while a CPU
    /// runs; the bases of FS and GS are kept equal to the live ones.
    pub sys: VcpuState,
    pub cpl: u8,
    pub physical: Physical,
    pub code: CodePages,
    /// Counts whatever may change where code is found: links between blocks hold for one epoch.
    pub epoch: u64,
    /// DR6 bits of the data breakpoints that the current instruction hit.
    pub hits: u64,
    pub(super) pdptes: [u64; 4],
    pub(super) tlb: Tlb,
    /// For the supervisor, for the user.
    fetched: [FetchTlb; 2],
    set: Set,
    /// 64-bit mode: addresses are linear.
    long: bool,
    /// Data breakpoints are set: nothing is cached.
    watching: bool,
}

pub(super) fn fault(trap_number: u8, error_code: u32, addr: u64) -> GuestTrap {
    GuestTrap::Memory(MemoryFault {
        addr: GuestAddr(addr),
        error_code,
        trap_number,
        signal: 0,
        si_code: 0,
    })
}

pub fn is_canonical(addr: u64) -> bool {
    ((addr as i64) << 16 >> 16) as u64 == addr
}

impl Mmu {
    pub fn new(ram: Arc<GuestRam>, attention: Arc<Attention>) -> Mmu {
        Mmu {
            sys: VcpuState::default(),
            cpl: 0,
            physical: Physical::new(ram, attention),
            code: CodePages::default(),
            epoch: 0,
            hits: 0,
            pdptes: [0; 4],
            tlb: Tlb::new(),
            fetched: [FetchTlb::new(), FetchTlb::new()],
            set: Set::Supervisor,
            long: false,
            watching: false,
        }
    }

    pub fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.sys.segments[register as usize]
    }

    /// IA-32e mode, its compatibility submode included.
    pub fn is_long(&self) -> bool {
        self.sys.efer & efer::LMA != 0
    }

    pub fn is_protected(&self) -> bool {
        self.sys.cr0 & cr0::PE != 0
    }

    /// How code is decoded.
    pub fn code_mode(&self) -> CpuMode {
        let cs = self.segment(SegmentRegister::Cs);
        if self.is_long() && cs.has(Segment::L) {
            CpuMode::Bits64
        } else if cs.has(Segment::DB) {
            CpuMode::Bits32
        } else {
            CpuMode::Bits16
        }
    }

    /// The stack's address size.
    pub fn stack_mode(&self) -> CpuMode {
        if self.code_mode() == CpuMode::Bits64 {
            CpuMode::Bits64
        } else if self.segment(SegmentRegister::Ss).has(Segment::DB) {
            CpuMode::Bits32
        } else {
            CpuMode::Bits16
        }
    }

    /// Follows a change of the mode, the privilege level or RFLAGS.AC.
    pub fn select(&mut self, rflags: u64) {
        self.long = self.code_mode() == CpuMode::Bits64;
        let open = rflags & flags::AC != 0 && self.sys.cr4 & cr4::SMAP != 0;
        self.set = match self.cpl {
            3 => Set::User,
            _ if open => Set::SupervisorOpen,
            _ => Set::Supervisor,
        };
        self.tlb.select(self.set, !self.long);
    }

    /// Follows a change of DR7.
    pub fn select_breakpoints(&mut self) {
        let dr7 = self.sys.dr7;
        let data = |n: u32| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 1 != 0;
        let watching = (0..4).any(data);
        if watching != self.watching {
            self.watching = watching;
            self.tlb.flush();
        }
    }

    /// Forgets all translations.
    pub fn flush(&mut self) {
        self.tlb.flush();
        self.flush_fetched();
    }

    /// A load of CR3 keeps global pages where they are enabled.
    pub fn flush_but_global(&mut self) {
        if self.sys.cr4 & cr4::PGE == 0 {
            self.tlb.flush();
        } else {
            self.tlb.flush_but_global();
        }
        self.flush_fetched();
    }

    pub fn flush_page(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        self.flush_fetched();
    }

    fn flush_fetched(&mut self) {
        for fetched in &mut self.fetched {
            fetched.flush();
        }
        self.epoch += 1;
    }

    /// Replaces a segment register.
    pub fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        let old = std::mem::replace(&mut self.sys.segments[register as usize], segment);
        let same = old.base == segment.base
            && old.limit == segment.limit
            && old.attributes == segment.attributes
            && old.unusable == segment.unusable;
        if !same {
            self.tlb.flush_segmented();
            if register == SegmentRegister::Cs {
                self.epoch += 1;
            }
        }
    }

    fn privilege(&self) -> Privilege {
        Privilege {
            user: self.set == Set::User,
            open: self.set == Set::SupervisorOpen,
        }
    }

    pub(super) fn page_fault(&self, linear: u64, code: u32) -> GuestTrap {
        fault(vector::PAGE_FAULT, code, linear)
    }

    /// Checks `len` bytes at `offset` against a segment; the linear address.
    ///
    /// # Errors
    /// #GP(0), or #SS(0) for the stack segment.
    pub fn in_segment(
        &self,
        segment: &Segment,
        stack: bool,
        offset: u32,
        len: u64,
        write: bool,
    ) -> Result<u64, GuestTrap> {
        let refuse = || {
            let vector = if stack {
                vector::STACK
            } else {
                vector::GENERAL_PROTECTION
            };
            Err(fault(vector, 0, u64::from(offset)))
        };
        let last = u64::from(offset) + len - 1;
        let limit = u64::from(segment.limit);
        let kind = segment.kind();
        if self.is_protected() {
            let code = kind & 8 != 0;
            // Bit 1: data may be written, code may be read.
            let marked = kind & 2 != 0;
            let allowed = if write {
                !code && marked
            } else {
                !code || marked
            };
            if segment.unusable || !allowed {
                return refuse();
            }
            // Expand-down data: the limit is the last offset that is not valid.
            if !code && kind & 4 != 0 {
                let top = if segment.has(Segment::DB) {
                    u64::from(u32::MAX)
                } else {
                    0xffff
                };
                if u64::from(offset) <= limit || last > top {
                    return refuse();
                }
                return Ok(segment.base.wrapping_add(u64::from(offset)) & 0xffff_ffff);
            }
        }
        if last > limit {
            return refuse();
        }
        Ok(segment.base.wrapping_add(u64::from(offset)) & 0xffff_ffff)
    }

    /// The linear address of an access, with all checks of segmentation.
    fn linear(&self, addr: GuestAddr, len: u64, write: bool) -> Result<u64, GuestTrap> {
        if self.long {
            let last = addr.0.wrapping_add(len - 1);
            if is_canonical(addr.0) && is_canonical(last) {
                return Ok(addr.0);
            }
            return Err(fault(vector::GENERAL_PROTECTION, 0, 0));
        }
        match segment_and_offset(addr) {
            Some((register, offset)) => {
                let segment = &self.sys.segments[usize::from(register)];
                let stack = register == SegmentRegister::Ss as u8;
                self.in_segment(segment, stack, offset, len, write)
            }
            None => Ok(addr.0 & 0xffff_ffff),
        }
    }

    /// Whether the page of a segmented address can be cached by it: what the segment adds is
    /// the same for each of its bytes. And whether it may be written.
    fn cacheable(&self, addr: GuestAddr) -> Option<bool> {
        let Some((register, offset)) = segment_and_offset(addr).filter(|_| !self.long) else {
            return Some(true);
        };
        let segment = &self.sys.segments[usize::from(register)];
        let kind = segment.kind();
        let expands_down = kind & 0b1100 == 0b0100;
        let whole = u64::from(offset) | (PAGE_SIZE - 1);
        let aligned = segment.base.is_multiple_of(PAGE_SIZE);
        let fits = whole <= u64::from(segment.limit) && !expands_down;
        (aligned && fits).then_some(kind & 0b1010 == 0b0010 || !self.is_protected())
    }

    /// Translates an access within one page, and remembers the translation. `addr` is what
    /// the instruction came with, `linear` what became of it.
    fn translate(
        &mut self,
        addr: GuestAddr,
        linear: u64,
        wanted: Wanted,
    ) -> Result<Place, GuestTrap> {
        let walked = self
            .walk(linear, wanted, self.privilege())
            .map_err(|code| self.page_fault(linear, code))?;
        let within = linear % PAGE_SIZE;
        let Some(host) = self.physical.host(walked.physical) else {
            return Ok(Place::Device(walked.physical + within));
        };
        if let Some(writable) = self.cacheable(addr)
            && !self.watching
        {
            let code = self.physical.watch(walked.physical);
            let code = code.is_some_and(|(watch, page)| watch.is_watched(page));
            let mapping = Mapping {
                page: addr.0 & !(PAGE_SIZE - 1),
                host,
                physical: walked.physical,
                write: walked.writable && writable && !code,
                global: walked.global,
                size: walked.size,
            };
            self.tlb.insert(self.set, !self.long, mapping);
        }
        // SAFETY: `host` is valid to the end of its page.
        let host = unsafe { host.add(within as usize) };
        Ok(Place::Ram {
            host,
            physical: walked.physical + within,
        })
    }

    /// The places of an access: one, or two when it crosses a page boundary, with the bytes
    /// in the first. Both pages are checked before anything is accessed.
    pub(super) fn places(
        &mut self,
        addr: GuestAddr,
        len: u64,
        wanted: Wanted,
    ) -> Result<(Place, u64, Option<Place>), GuestTrap> {
        let write = wanted == Wanted::Write;
        let linear = self.linear(addr, len, write)?;
        let first = (PAGE_SIZE - linear % PAGE_SIZE).min(len);
        let place = self.translate(addr, linear, wanted)?;
        let second = if first < len {
            let next = self.wrap(linear.wrapping_add(first));
            // The second part is cached only by addresses of its own page.
            Some(self.translate(addr.offset(first as i64), next, wanted)?)
        } else {
            None
        };
        if write {
            self.refuse_code(place, first)?;
            if let Some(second) = second {
                self.refuse_code(second, len - first)?;
            }
        }
        if self.watching {
            self.note(linear, len, write);
        }
        Ok((place, first, second))
    }

    fn wrap(&self, linear: u64) -> u64 {
        if self.long {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }

    /// A store into code is the engine's business first.
    pub(super) fn refuse_code(&self, place: Place, len: u64) -> Result<(), GuestTrap> {
        match place {
            Place::Ram { physical, .. } if self.code.holds(physical, len) => {
                Err(fault(CODE_CHANGES, len as u32, physical))
            }
            Place::Ram { .. } | Place::Device(_) => Ok(()),
        }
    }

    /// Notes the data breakpoints that an access hits.
    fn note(&mut self, linear: u64, len: u64, write: bool) {
        for n in 0..4 {
            let enabled = self.sys.dr7 >> (2 * n) & 3 != 0;
            let kind = self.sys.dr7 >> (16 + 4 * n) & 3;
            let wanted = kind == 3 || kind == 1 && write;
            let bytes = [1, 2, 8, 4][(self.sys.dr7 >> (18 + 4 * n) & 3) as usize];
            let start = self.sys.breakpoints[n] & !(bytes - 1);
            if enabled && wanted && linear < start + bytes && start < linear + len {
                self.hits |= 1 << n;
            }
        }
    }

    /// The linear address of the instruction at `rip`.
    ///
    /// # Errors
    /// #GP(0) outside the code segment or the canonical addresses.
    pub fn code_linear(&self, rip: u64) -> Result<u64, GuestTrap> {
        if self.long {
            if is_canonical(rip) {
                return Ok(rip);
            }
        } else {
            let cs = self.segment(SegmentRegister::Cs);
            if rip <= u64::from(cs.limit) {
                return Ok(cs.base.wrapping_add(rip) & 0xffff_ffff);
            }
        }
        Err(fault(vector::GENERAL_PROTECTION, 0, 0))
    }

    /// The physical address of the code at a linear address.
    ///
    /// # Errors
    /// The page fault of fetching it.
    #[inline]
    pub fn code_physical(&mut self, linear: u64) -> Result<u64, GuestTrap> {
        let page = linear & !(PAGE_SIZE - 1);
        let user = self.cpl == 3;
        if let Some(physical) = self.fetched[usize::from(user)].get(page) {
            return Ok(physical | (linear % PAGE_SIZE));
        }
        let by = Privilege { user, open: false };
        let walked = self
            .walk(linear, Wanted::Fetch, by)
            .map_err(|code| self.page_fault(linear, code))?;
        self.fetched[usize::from(user)].insert(page, walked.physical);
        Ok(walked.physical | (linear % PAGE_SIZE))
    }

    /// The page at `physical` holds code from now on.
    pub fn watch_code(&mut self, physical: u64) {
        if let Some((watch, page)) = self.physical.watch(physical) {
            watch.watch(page);
        }
        self.tlb.forbid_writes(physical);
    }

    /// The page at `physical` holds no code any more.
    pub fn unwatch_code(&mut self, physical: u64) {
        if let Some((watch, page)) = self.physical.watch(physical) {
            watch.unwatch(page);
        }
    }

    /// Reads code bytes at `rip`, up to the end of its page (or of the next one's first
    /// bytes, when an instruction may reach there).
    pub(super) fn fetch_code(&mut self, rip: u64, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        const LONGEST: usize = 15;
        let linear = self.code_linear(rip)?;
        let mut room = buffer.len();
        if !self.long {
            let limit = u64::from(self.segment(SegmentRegister::Cs).limit);
            room = room.min((limit - rip + 1).min(buffer.len() as u64) as usize);
        }
        let physical = self.code_physical(linear)?;
        let first = room.min((PAGE_SIZE - physical % PAGE_SIZE) as usize);
        self.fetch_physical(physical, &mut buffer[..first])?;
        if first >= room.min(LONGEST) {
            return Ok(first);
        }
        let next = self.wrap(linear.wrapping_add(first as u64));
        let end = room.min(LONGEST);
        if self.long && !is_canonical(next) {
            return Ok(first);
        }
        let Ok(physical) = self.code_physical(next) else {
            return Ok(first);
        };
        match self.fetch_physical(physical, &mut buffer[first..end]) {
            Ok(()) => Ok(end),
            Err(_) => Ok(first),
        }
    }

    fn fetch_physical(&self, physical: u64, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        // Code in a device's memory can't be watched; nothing that boots here has any.
        let host = self.physical.host(physical).ok_or(GuestTrap::Unsupported)?;
        // SAFETY: the bytes are within one page of RAM.
        unsafe { std::ptr::copy_nonoverlapping(host, buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }
}
