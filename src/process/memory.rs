//! Guest memory in process mode: the process's own, plus what the host's page tables can't
//! say: which pages the guest may execute (on the host, none).

use std::ops::Range;

use super::address_space::AddressSpace;
use super::elf::{self, LoadError, LoadedImage, OpenProgram};
use crate::addr::GuestAddr;
use crate::guest::{Access, GuestMemory, GuestTrap, MemoryFault, Width};
use crate::native::IdentityMemory;

/// si_code values of SIGSEGV (include/uapi/asm-generic/siginfo.h).
pub const SEGV_MAPERR: i32 = 1;
pub const SEGV_ACCERR: i32 = 2;

/// Page-fault error code bits (Intel SDM volume 3, section 4.7).
pub const FAULT_PRESENT: u32 = 1;
pub const FAULT_WRITE: u32 = 2;
pub const FAULT_USER: u32 = 4;
pub const FAULT_FETCH: u32 = 16;

/// The guest's memory and its map.
#[derive(Debug)]
pub struct ProcessMemory {
    native: IdentityMemory,
    pub space: AddressSpace,
    executable: FetchCache,
}

/// The executable range that was fetched from last, while the map stays as it is.
#[derive(Debug)]
struct FetchCache {
    generation: u64,
    range: Range<GuestAddr>,
}

impl ProcessMemory {
    pub fn new(space: AddressSpace) -> ProcessMemory {
        ProcessMemory {
            native: IdentityMemory,
            space,
            executable: FetchCache {
                generation: 0,
                range: GuestAddr(0)..GuestAddr(0),
            },
        }
    }

    /// Maps an image; see [`elf::load_image`].
    ///
    /// # Errors
    /// As there.
    pub fn load_image(
        &mut self,
        program: &OpenProgram,
        is_main: bool,
    ) -> Result<LoadedImage, LoadError> {
        elf::load_image(&mut self.space, &mut self.native, program, is_main)
    }

    /// Memory alone, for whoever changes the map at the same time.
    pub fn parts(&mut self) -> (&mut IdentityMemory, &mut AddressSpace) {
        (&mut self.native, &mut self.space)
    }

    /// One past the last byte that can be executed from `addr` on without a hole, as far as
    /// `limit`; `None` if `addr` itself can't.
    fn executable_until(&mut self, addr: GuestAddr, limit: GuestAddr) -> Option<GuestAddr> {
        let map = self.space.map();
        let cached = self.executable.generation == map.generation();
        if !(cached && self.executable.range.contains(&addr)) {
            let (range, _) = map.peek(addr).filter(|(_, a)| a.prot.executable())?;
            self.executable = FetchCache {
                generation: map.generation(),
                range,
            };
        }
        let mut end = self.executable.range.end;
        while end < limit {
            match map.peek(end) {
                Some((range, a)) if a.prot.executable() => end = range.end,
                _ => break,
            }
        }
        Some(end.min(limit))
    }

    /// The fault of executing where it isn't allowed.
    fn fetch_fault(&self, addr: GuestAddr) -> GuestTrap {
        let canonical = (addr.0 as i64) << 16 >> 16 == addr.0 as i64;
        let fault = if !canonical {
            MemoryFault {
                addr: GuestAddr(0),
                error_code: 0,
                trap_number: 13,
                signal: libc::SIGSEGV as u8,
                si_code: 0x80,
            }
        } else {
            let present = self
                .space
                .map()
                .peek(addr)
                .is_some_and(|(_, a)| a.prot.host() != 0);
            let mapped = self.space.map().peek(addr).is_some();
            MemoryFault {
                addr,
                error_code: FAULT_FETCH | FAULT_USER | if present { FAULT_PRESENT } else { 0 },
                trap_number: 14,
                signal: libc::SIGSEGV as u8,
                si_code: if mapped { SEGV_ACCERR } else { SEGV_MAPERR },
            }
        };
        GuestTrap::Memory(fault)
    }
}

impl GuestMemory for ProcessMemory {
    #[inline(always)]
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        self.native.load(addr, width)
    }

    #[inline(always)]
    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        self.native.store(addr, width, value)
    }

    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap> {
        self.native.compare_exchange(addr, width, expected, new)
    }

    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap> {
        self.native.compare_exchange_16(addr, expected, new)
    }

    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        self.native.read_bytes(addr, buffer)
    }

    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        self.native.write_bytes(addr, bytes)
    }

    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        let limit = GuestAddr(addr.0.saturating_add(buffer.len() as u64));
        match self.executable_until(addr, limit) {
            Some(end) => {
                let len = (end.0 - addr.0) as usize;
                self.native.fetch(addr, &mut buffer[..len])
            }
            None => Err(self.fetch_fault(addr)),
        }
    }

    #[inline(always)]
    fn direct(&mut self, addr: GuestAddr, len: usize, access: Access) -> Option<*mut u8> {
        self.native.direct(addr, len, access)
    }
}

/// A NUL-terminated string of at most `limit` bytes; `None` if it can't be read or is longer.
pub fn read_c_string(
    memory: &mut impl GuestMemory,
    addr: GuestAddr,
    limit: usize,
) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut at = addr;
    while text.len() < limit {
        // Never beyond the page: the next one may not exist.
        let in_page = (crate::addr::PAGE_SIZE - at.page_offset()) as usize;
        let mut chunk = vec![0; in_page.min(limit - text.len()).min(256)];
        memory.read_bytes(at, &mut chunk).ok()?;
        if let Some(end) = chunk.iter().position(|b| *b == 0) {
            text.extend_from_slice(&chunk[..end]);
            return Some(text);
        }
        at = at.offset(chunk.len() as i64);
        text.append(&mut chunk);
    }
    None
}
