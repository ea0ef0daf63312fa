//! The process's own address space as guest memory: a guest address is a host address.

use super::access;
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{Access, GuestMemory, GuestTrap, Width};

/// Set in a page fault's error code when it was an instruction fetch (Intel SDM volume 3,
/// section 4.7).
const INSTRUCTION_FETCH: u32 = 1 << 4;

/// Longer copies pay for the start of a string instruction.
const STRING_COPY_FROM: usize = 65;

/// Guest memory without translation. Has no state: executability and the guest's own view of
/// its map belong to a wrapper.
#[derive(Clone, Copy, Default, Debug)]
pub struct IdentityMemory;

// SAFETY (for every block below): identity mapping is the contract of process mode: what the
// guest names is the guest's or unmapped, and whoever keeps the guest's memory map rejects
// Temper's own ranges before they get here.
impl GuestMemory for IdentityMemory {
    #[inline(always)]
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        // SAFETY: see above.
        unsafe {
            match width {
                Width::B1 => access::load_1(addr.0),
                Width::B2 => access::load_2(addr.0),
                Width::B4 => access::load_4(addr.0),
                Width::B8 => access::load_8(addr.0),
            }
        }
    }

    #[inline(always)]
    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        // SAFETY: see above.
        unsafe {
            match width {
                Width::B1 => access::store_1(addr.0, value as u8),
                Width::B2 => access::store_2(addr.0, value as u16),
                Width::B4 => access::store_4(addr.0, value as u32),
                Width::B8 => access::store_8(addr.0, value),
            }
        }
    }

    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap> {
        // SAFETY: see above.
        unsafe {
            match width {
                Width::B1 => {
                    access::compare_exchange_1(addr.0, expected as u8, new as u8).map(u64::from)
                }
                Width::B2 => {
                    access::compare_exchange_2(addr.0, expected as u16, new as u16).map(u64::from)
                }
                Width::B4 => {
                    access::compare_exchange_4(addr.0, expected as u32, new as u32).map(u64::from)
                }
                Width::B8 => access::compare_exchange_8(addr.0, expected, new),
            }
        }
    }

    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap> {
        // SAFETY: see above.
        unsafe { access::compare_exchange_16(addr.0, expected, new) }
    }

    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        if buffer.len() < STRING_COPY_FROM {
            let (words, bytes) = buffer.as_chunks_mut::<8>();
            let mut at = addr;
            for word in words {
                *word = self.load(at, Width::B8)?.to_le_bytes();
                at = at.offset(8);
            }
            for byte in bytes {
                *byte = self.load(at, Width::B1)? as u8;
                at = at.offset(1);
            }
            return Ok(());
        }
        // SAFETY: see above; the buffer is ours and `len` long.
        unsafe { access::copy(buffer.as_mut_ptr() as u64, addr.0, buffer.len()) }
    }

    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        // A write that reaches further pages changes nothing unless all of them take it.
        let end = addr.0.saturating_add(bytes.len() as u64);
        let mut page = addr.page().0.saturating_add(PAGE_SIZE);
        while page < end {
            // SAFETY: see above.
            unsafe { access::probe_write(page)? };
            page = page.saturating_add(PAGE_SIZE);
        }
        if bytes.len() < STRING_COPY_FROM {
            let (words, rest) = bytes.as_chunks::<8>();
            let mut at = addr;
            for word in words {
                self.store(at, Width::B8, u64::from_le_bytes(*word))?;
                at = at.offset(8);
            }
            for byte in rest {
                self.store(at, Width::B1, u64::from(*byte))?;
                at = at.offset(1);
            }
            return Ok(());
        }
        // SAFETY: see above; the source is a Rust slice.
        unsafe { access::copy(addr.0, bytes.as_ptr() as u64, bytes.len()) }
    }

    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        let mut done = 0;
        while done < buffer.len() {
            let at = addr.offset(done as i64);
            let in_page = (PAGE_SIZE - at.page_offset()) as usize;
            let end = buffer.len().min(done + in_page);
            match self.read_bytes(at, &mut buffer[done..end]) {
                Ok(()) => done = end,
                Err(_) if done > 0 => break,
                Err(GuestTrap::Memory(mut fault)) => {
                    if fault.trap_number == 14 {
                        fault.error_code |= INSTRUCTION_FETCH;
                    }
                    return Err(GuestTrap::Memory(fault));
                }
                Err(trap) => return Err(trap),
            }
        }
        Ok(done)
    }

    #[inline(always)]
    fn direct(&mut self, addr: GuestAddr, _len: usize, _access: Access) -> Option<*mut u8> {
        Some(addr.0 as *mut u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::MemoryFault;
    use crate::native::install_test_handler;

    /// Two pages, the second without access (and so at any length after it).
    struct Pages(*mut u8);

    impl Pages {
        fn new() -> Pages {
            install_test_handler();
            // SAFETY: a fresh anonymous mapping.
            let at = unsafe {
                let at = libc::mmap(
                    std::ptr::null_mut(),
                    8192,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
                assert_ne!(at, libc::MAP_FAILED);
                libc::mprotect(at.add(4096), 4096, libc::PROT_NONE);
                at
            };
            Pages(at.cast())
        }

        fn at(&self, offset: i64) -> GuestAddr {
            GuestAddr(self.0 as u64).offset(offset)
        }

        fn protect(&self, prot: i32) {
            // SAFETY: our own mapping.
            unsafe { libc::mprotect(self.0.cast(), 4096, prot) };
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: our own mapping.
            unsafe { libc::munmap(self.0.cast(), 8192) };
        }
    }

    fn fault(result: Result<impl Sized, GuestTrap>) -> MemoryFault {
        match result.map(|_| ()) {
            Err(GuestTrap::Memory(fault)) => fault,
            other => panic!("expected a memory fault, got {other:?}"),
        }
    }

    #[test]
    fn scalars_read_back_in_every_width() {
        let pages = Pages::new();
        let mut memory = IdentityMemory;
        for (width, at) in [
            (Width::B1, 1),
            (Width::B2, 13),
            (Width::B4, 61),
            (Width::B8, 99),
        ] {
            memory
                .store(pages.at(at), width, 0x8182_8384_8586_8788)
                .expect("store");
            assert_eq!(
                memory.load(pages.at(at), width),
                Ok(0x8182_8384_8586_8788 & width.mask())
            );
            let beyond = pages.at(at).offset(width.bytes() as i64);
            assert_eq!(memory.load(beyond, Width::B1), Ok(0));
        }
    }

    #[test]
    fn a_fault_names_its_address_and_kind() {
        let pages = Pages::new();
        let mut memory = IdentityMemory;
        for width in [Width::B1, Width::B2, Width::B4, Width::B8] {
            let read = fault(memory.load(pages.at(4096), width));
            assert_eq!((read.addr, read.trap_number), (pages.at(4096), 14));
            assert_eq!(read.error_code & 2, 0);
            let write = fault(memory.store(pages.at(4096), width, 1));
            assert_eq!(write.error_code & 2, 2);
            let locked = fault(memory.compare_exchange(pages.at(4096), width, 0, 0));
            assert_eq!(locked.addr, pages.at(4096));
        }
        let straddling = fault(memory.load(pages.at(4092), Width::B8));
        assert_eq!(straddling.addr, pages.at(4096));
        let odd = fault(memory.load(GuestAddr(1 << 63), Width::B8));
        assert_eq!((odd.addr, odd.trap_number), (GuestAddr(0), 13));
        assert_eq!(odd.signal, libc::SIGSEGV as u8);
    }

    #[test]
    fn compare_exchange_stores_only_on_a_match() {
        let pages = Pages::new();
        let mut memory = IdentityMemory;
        for width in [Width::B1, Width::B2, Width::B4, Width::B8] {
            memory.store(pages.at(64), Width::B8, 5).expect("store");
            assert_eq!(
                memory.compare_exchange(pages.at(64), width, 4, 9),
                Ok(5),
                "{width:?}"
            );
            assert_eq!(memory.load(pages.at(64), width), Ok(5));
            assert_eq!(memory.compare_exchange(pages.at(64), width, 5, 9), Ok(5));
            assert_eq!(memory.load(pages.at(64), width), Ok(9));
        }
        pages.protect(libc::PROT_READ);
        let refused = fault(memory.compare_exchange(pages.at(64), Width::B4, 4, 9));
        assert_eq!(refused.error_code & 2, 2, "faults as a write");
    }

    #[test]
    fn sixteen_bytes_are_exchanged_at_once_and_must_be_aligned() {
        let pages = Pages::new();
        let mut memory = IdentityMemory;
        let (old, new) = (
            0x11u128 << 64 | 0x22,
            0x3333_0000_0000_0001u128 << 64 | 0x44,
        );
        memory
            .write_bytes(pages.at(32), &old.to_le_bytes())
            .expect("write");
        assert_eq!(memory.compare_exchange_16(pages.at(32), 0, new), Ok(old));
        assert_eq!(memory.compare_exchange_16(pages.at(32), old, new), Ok(old));
        assert_eq!(memory.compare_exchange_16(pages.at(32), new, new), Ok(new));
        let odd = fault(memory.compare_exchange_16(pages.at(40), 0, 0));
        assert_eq!(odd.trap_number, 13);
        let none = fault(memory.compare_exchange_16(pages.at(4096), 0, 0));
        assert_eq!((none.trap_number, none.addr), (14, pages.at(4096)));
    }

    #[test]
    fn copies_of_every_length_fault_where_memory_ends() {
        let pages = Pages::new();
        let mut memory = IdentityMemory;
        let bytes: Vec<u8> = (0..200).map(|i| i as u8 + 1).collect();
        for len in [1, 7, 8, 15, 16, 64, 65, 200] {
            let start = pages.at(4096 - len as i64);
            memory.write_bytes(start, &bytes[..len]).expect("write");
            let mut back = vec![0; len];
            memory.read_bytes(start, &mut back).expect("read");
            assert_eq!(back, bytes[..len]);
            let beyond = fault(memory.read_bytes(start.offset(1), &mut back));
            assert_eq!(beyond.addr, pages.at(4096));
        }
    }

    #[test]
    fn a_write_into_an_unwritable_page_changes_nothing_before_it() {
        let pages = Pages::new();
        let mut memory = IdentityMemory;
        for len in [8, 100] {
            let start = pages.at(4096 - 4);
            assert_eq!(
                fault(memory.write_bytes(start, &vec![7; len])).addr,
                pages.at(4096)
            );
            assert_eq!(memory.load(start, Width::B4), Ok(0));
        }
    }

    #[test]
    fn fetching_stops_before_a_page_that_faults() {
        let pages = Pages::new();
        let mut memory = IdentityMemory;
        let mut code = [0xff; 32];
        assert_eq!(memory.fetch(pages.at(4096 - 5), &mut code), Ok(5));
        assert_eq!(code[..6], [0, 0, 0, 0, 0, 0xff]);
        let none = fault(memory.fetch(pages.at(4096), &mut code));
        assert_eq!(none.error_code & INSTRUCTION_FETCH, INSTRUCTION_FETCH);
    }
}
