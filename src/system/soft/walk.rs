//! Page walks: 32-bit, PAE and 4-level paging (Intel SDM volume 3, chapter 4). Finds the
//! page, checks the rights, sets accessed and dirty bits. Does not cache.

use super::mmu::Mmu;
use super::registers::{cr0, cr4, efer};
use crate::addr::PAGE_SIZE;

/// Physical address bits that the guest's CPUID announces.
pub const PHYSICAL_BITS: u32 = 40;

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    Read,
    Write,
    Fetch,
}

/// On whose behalf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Privilege {
    pub user: bool,
    /// SMAP doesn't apply: RFLAGS.AC is set, and the access is an instruction's own.
    pub open: bool,
}

/// A successful walk.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    /// The 4 KiB page's physical address.
    pub physical: u64,
    /// A write would succeed too, and the dirty bit is set.
    pub writable: bool,
    pub global: bool,
    /// Bytes of the guest's page.
    pub size: u64,
}

/// Page-fault error code bits (Intel SDM volume 3, section 4.7).
mod code {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const ACCESSED: u8 = 1 << 5;
const DIRTY: u8 = 1 << 6;
const PS: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// The address bits of a 64-bit entry.
const FRAME: u64 = ((1 << PHYSICAL_BITS) - 1) & !(PAGE_SIZE - 1);
/// Address bits that this CPU doesn't have.
const BEYOND: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);

/// The rights that the entries so far leave, and where those entries are.
struct Path {
    rights: u64,
    no_execute: bool,
    entries: [u64; 4],
    depth: usize,
}

impl Path {
    fn push(&mut self, addr: u64, entry: u64) {
        self.rights &= entry;
        self.no_execute |= entry & NX != 0;
        self.entries[self.depth] = addr;
        self.depth += 1;
    }
}

impl Mmu {
    /// Walks the page tables for the page that holds `linear`.
    ///
    /// # Errors
    /// The page fault's error code.
    pub fn walk(&mut self, linear: u64, wanted: Wanted, by: Privilege) -> Result<Walked, u32> {
        let sys = &self.sys;
        if sys.cr0 & cr0::PG == 0 {
            return Ok(Walked {
                physical: linear & 0xffff_f000,
                writable: true,
                global: true,
                size: PAGE_SIZE,
            });
        }
        let mut base = match wanted {
            Wanted::Read => 0,
            Wanted::Write => code::WRITE,
            Wanted::Fetch if self.reports_fetches() => code::FETCH,
            Wanted::Fetch => 0,
        };
        if by.user {
            base |= code::USER;
        }
        let mut path = Path {
            rights: RW | US,
            no_execute: false,
            entries: [0; 4],
            depth: 0,
        };
        let leaf = if sys.cr4 & cr4::PAE == 0 {
            self.walk_32(linear, &mut path)
        } else if sys.efer & efer::LMA != 0 {
            self.walk_64(linear, &mut path, sys.cr3 & FRAME, 39)
        } else {
            let entry = self.pdptes[(linear >> 30 & 3) as usize];
            if entry & P == 0 {
                Err(0)
            } else {
                self.walk_64(linear, &mut path, entry & FRAME, 21)
            }
        };
        let (entry, physical, size) = leaf.map_err(|error| base | error)?;
        let write_protect = self.sys.cr0 & cr0::WP != 0;
        let user_page = path.rights & US != 0;
        let allowed = match wanted {
            _ if by.user && !user_page => false,
            Wanted::Fetch if path.no_execute => false,
            Wanted::Fetch => by.user || !user_page || self.sys.cr4 & cr4::SMEP == 0,
            Wanted::Read | Wanted::Write
                if !by.user && user_page && !by.open && self.sys.cr4 & cr4::SMAP != 0 =>
            {
                false
            }
            Wanted::Read => true,
            Wanted::Write => path.rights & RW != 0 || !by.user && !write_protect,
        };
        if !allowed {
            return Err(base | code::PRESENT);
        }
        let last = path.depth - 1;
        for (level, &addr) in path.entries[..path.depth].iter().enumerate() {
            let mut bits = ACCESSED;
            if level == last && wanted == Wanted::Write {
                bits |= DIRTY;
            }
            if self.physical.entry(addr, 4) as u8 & bits != bits {
                self.physical.set_entry_bits(addr, bits);
            }
        }
        let dirty = wanted == Wanted::Write || entry & u64::from(DIRTY) != 0;
        let may_write = path.rights & RW != 0 || !by.user && !write_protect;
        Ok(Walked {
            physical,
            writable: dirty && may_write,
            global: entry & GLOBAL != 0 && self.sys.cr4 & cr4::PGE != 0,
            size,
        })
    }

    /// Whether a page fault's code tells fetches apart.
    fn reports_fetches(&self) -> bool {
        let nx = self.sys.cr4 & cr4::PAE != 0 && self.sys.efer & efer::NXE != 0;
        nx || self.sys.cr4 & cr4::SMEP != 0
    }

    /// The leaf entry, the 4 KiB page's address, and the guest's page size.
    fn walk_64(
        &self,
        linear: u64,
        path: &mut Path,
        mut table: u64,
        mut shift: u32,
    ) -> Result<(u64, u64, u64), u32> {
        let no_nx = if self.sys.efer & efer::NXE == 0 {
            NX
        } else {
            0
        };
        loop {
            let addr = table + (linear >> shift & 0x1ff) * 8;
            let entry = self.physical.entry(addr, 8);
            if entry & P == 0 {
                return Err(0);
            }
            let size = 1u64 << shift;
            let large = entry & PS != 0 && (shift == 21 || shift == 30);
            let mut reserved = BEYOND | no_nx;
            if large {
                // Bit 12 is PAT.
                reserved |= (size - 1) & FRAME & !(1 << 12);
            } else if shift == 39 {
                reserved |= PS;
            }
            if entry & reserved != 0 {
                return Err(code::PRESENT | code::RESERVED);
            }
            path.push(addr, entry);
            if large {
                let within = linear & (size - 1) & !(PAGE_SIZE - 1);
                return Ok((entry, entry & FRAME & !(size - 1) | within, size));
            }
            if shift == 12 {
                return Ok((entry, entry & FRAME, size));
            }
            table = entry & FRAME;
            shift -= 9;
        }
    }

    fn walk_32(&self, linear: u64, path: &mut Path) -> Result<(u64, u64, u64), u32> {
        let directory = (self.sys.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4;
        let entry = self.physical.entry(directory, 4);
        if entry & P == 0 {
            return Err(0);
        }
        if entry & PS != 0 && self.sys.cr4 & cr4::PSE != 0 {
            // PSE-36: bits 13 to 20 are address bits 32 to 39, bit 21 is reserved.
            if entry & 1 << 21 != 0 {
                return Err(code::PRESENT | code::RESERVED);
            }
            path.push(directory, entry);
            let high = (entry >> 13 & 0xff) << 32;
            let page = entry & 0xffc0_0000 | high | linear & 0x003f_f000;
            return Ok((entry, page, 4 << 20));
        }
        path.push(directory, entry);
        let addr = (entry & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
        let entry = self.physical.entry(addr, 4);
        if entry & P == 0 {
            return Err(0);
        }
        path.push(addr, entry);
        Ok((entry, entry & 0xffff_f000, PAGE_SIZE))
    }

    /// Loads the four PDPTEs of PAE paging, as loading CR3 does.
    ///
    /// # Errors
    /// Reserved bits are set: #GP(0).
    pub fn load_pdptes(&mut self, cr3: u64) -> Result<(), ()> {
        let mut entries = [0; 4];
        for (index, entry) in entries.iter_mut().enumerate() {
            *entry = self
                .physical
                .entry((cr3 & 0xffff_ffe0) + index as u64 * 8, 8);
            let reserved = BEYOND | NX | RW | US | 0x1e0;
            if *entry & P != 0 && *entry & reserved != 0 {
                return Err(());
            }
        }
        self.pdptes = entries;
        Ok(())
    }
}
