//! The flat shadow map: for each byte of guest code below 2 GiB one 8-byte host address,
//! at `MAP_DISPLACEMENT + 8 * guest address`, so that an indirect branch is one jump
//! through memory, with no tag to compare and no flags touched. Address space is reserved
//! and only touched pages exist. An address without an entry holds the miss routine, or
//! zero in a page that was never filled: the jump to zero faults and is resolved then.

use std::io;

use hashbrown::{HashMap, HashSet};

use crate::addr::{GuestAddr, HostAddr, PAGE_SIZE};

/// The 32-bit displacement of the map: entry address = displacement + 8 * guest address.
pub const MAP_DISPLACEMENT: u32 = 0x7fff_f000;
/// Guest addresses below this have an entry.
pub const MAP_REACH: GuestAddr = GuestAddr(0x8000_0000);

const START: u64 = 0x8000_0000;
const BYTES: usize = 16 << 30;
/// Where the displacement takes the vsyscall page's addresses (they wrap around).
const VSYSCALL: u64 = 0x7aff_f000;
const VSYSCALL_BYTES: usize = 0x8000;

/// See the module documentation. One to a process.
#[derive(Debug)]
pub struct IndirectMap {
    miss: HostAddr,
    filled: HashSet<u64>,
    /// The page of `filled` that was asked for last.
    recent: u64,
    /// Entries beyond the map's reach, for the exact form of indirect branches.
    far: HashMap<GuestAddr, HostAddr>,
    /// Counts removals from `far`: whoever keeps copies compares.
    pub far_epoch: u64,
}

impl IndirectMap {
    /// Reserves the map; unknown entries will go to `miss`.
    ///
    /// # Errors
    /// The kernel's, as when the range is taken or the address space is limited.
    pub fn new(miss: HostAddr) -> io::Result<IndirectMap> {
        reserve(START, BYTES)?;
        reserve_nothing(u64::from(MAP_DISPLACEMENT))?;
        reserve(VSYSCALL, VSYSCALL_BYTES)?;
        let mut map = IndirectMap {
            miss,
            filled: HashSet::new(),
            recent: 0,
            far: HashMap::new(),
            far_epoch: 0,
        };
        for page in (VSYSCALL..VSYSCALL + VSYSCALL_BYTES as u64).step_by(PAGE_SIZE as usize) {
            map.fill(page);
        }
        Ok(map)
    }

    fn entry(addr: GuestAddr) -> Option<u64> {
        (addr < MAP_REACH && addr.0 >= 0x200).then(|| u64::from(MAP_DISPLACEMENT) + 8 * addr.0)
    }

    /// Lets indirect branches to `addr` go to `host`.
    pub fn set(&mut self, addr: GuestAddr, host: HostAddr) {
        match Self::entry(addr) {
            Some(entry) => {
                self.fill(entry & !(PAGE_SIZE - 1));
                store(entry, host.0);
            }
            None => {
                self.far.insert(addr, host);
            }
        }
    }

    /// Lets indirect branches to `addr` miss.
    pub fn clear(&mut self, addr: GuestAddr) {
        match Self::entry(addr) {
            Some(entry) => {
                if self.filled.contains(&(entry & !(PAGE_SIZE - 1))) {
                    store(entry, self.miss.0);
                }
            }
            None => {
                if self.far.remove(&addr).is_some() {
                    self.far_epoch += 1;
                }
            }
        }
    }

    /// What an indirect branch to `addr` would jump to, if that is known.
    pub fn get(&self, addr: GuestAddr) -> Option<HostAddr> {
        let Some(entry) = Self::entry(addr) else {
            return self.far.get(&addr).copied();
        };
        if !self.filled.contains(&(entry & !(PAGE_SIZE - 1))) {
            return None;
        }
        // SAFETY: a filled page of the reserved map.
        let host = unsafe { *(entry as *const u64) };
        (host != self.miss.0).then_some(HostAddr(host))
    }

    /// Makes a branch to `addr` miss by a jump instead of a fault from now on.
    pub fn prepare(&mut self, addr: GuestAddr) {
        if let Some(entry) = Self::entry(addr) {
            self.fill(entry & !(PAGE_SIZE - 1));
        }
    }

    /// As [`IndirectMap::prepare`] for many addresses, in fewer page faults: those of
    /// neighbouring pages are one call to the kernel.
    pub fn prepare_all(&mut self, addrs: impl Iterator<Item = GuestAddr>) {
        let mut pages: Vec<u64> = addrs
            .filter_map(Self::entry)
            .map(|entry| entry & !(PAGE_SIZE - 1))
            .filter(|page| !self.filled.contains(page))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        for run in pages.chunk_by(|page, next| page + PAGE_SIZE == *next) {
            if run.len() > 1 {
                let bytes = run.len() * PAGE_SIZE as usize;
                // SAFETY: pages of the reserved map; where the kernel can't do it (before
                // Linux 5.14) the stores below fault one by one.
                unsafe { libc::madvise(run[0] as *mut _, bytes, libc::MADV_POPULATE_WRITE) };
            }
            for &page in run {
                self.fill(page);
            }
        }
    }

    fn fill(&mut self, page: u64) {
        if self.recent == page {
            return;
        }
        self.recent = page;
        if self.filled.insert(page) {
            for entry in (page..page + PAGE_SIZE).step_by(8) {
                store(entry, self.miss.0);
            }
        }
    }

    /// Memory that the map's touched pages take, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.filled.len() as u64 * PAGE_SIZE
    }
}

/// Keeps the page where wild targets near zero (or near multiples of 2^61) would look without
/// access: the jump itself faults then, and its origin is known.
fn reserve_nothing(page: u64) -> io::Result<()> {
    // SAFETY: as in `reserve`.
    let at = unsafe {
        libc::mmap(
            page as *mut _,
            PAGE_SIZE as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn store(entry: u64, value: u64) {
    // SAFETY: `entry` lies in the reserved map (callers check), 8-byte aligned; generated
    // code reads it with plain 8-byte loads.
    unsafe {
        (*(entry as *const std::sync::atomic::AtomicU64))
            .store(value, std::sync::atomic::Ordering::Release);
    }
}

fn reserve(start: u64, bytes: usize) -> io::Result<()> {
    // SAFETY: MAP_FIXED_NOREPLACE takes only free address space; the range is Temper's for
    // the life of the process.
    let at = unsafe {
        libc::mmap(
            start as *mut _,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: our own mapping. One entry must not cost a whole huge page, and a core file is
    // not to be searched for entries.
    unsafe {
        libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE);
        libc::madvise(at, bytes, libc::MADV_DONTDUMP);
    }
    Ok(())
}
