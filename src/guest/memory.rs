//! Guest memory as the interpreter and the decoder see it. One implementation is the
//! process's own address space (identity mapped); an MMU and a write-buffering memory are
//! others. Accesses are single-copy atomic where x86 makes them so (Intel SDM volume 3,
//! section 9.1.1): naturally aligned ones, and those within a cache line where the host does.

use super::trap::GuestTrap;
use crate::addr::GuestAddr;

/// The size of a scalar access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Width {
    B1 = 1,
    B2 = 2,
    B4 = 4,
    B8 = 8,
}

impl Width {
    /// Bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// Bits: 8, 16, 32 or 64.
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// All ones in this width.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
}

/// What a direct pointer will be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

/// Marks an address as an offset in a segment; no 64-bit address of a guest's has this form,
/// because it isn't canonical.
const SEGMENTED_TAG: u64 = 1 << 62;

/// The address `offset` bytes into the segment in segment register `segment` (numbered as
/// encoded), for memory that is [`GuestMemory::SEGMENTED`]. Offsets have 32 bits.
#[inline(always)]
pub const fn segmented(segment: u8, offset: u64) -> GuestAddr {
    GuestAddr(SEGMENTED_TAG | (segment as u64) << 32 | offset & 0xffff_ffff)
}

/// The segment register's number and the offset of an address made by [`segmented`].
#[inline(always)]
pub const fn segment_and_offset(addr: GuestAddr) -> Option<(u8, u32)> {
    if addr.0 >> 35 == SEGMENTED_TAG >> 35 {
        Some(((addr.0 >> 32 & 7) as u8, addr.0 as u32))
    } else {
        None
    }
}

/// A guest's data and code memory.
pub trait GuestMemory {
    /// Whether data addresses of 16- and 32-bit code arrive as [`segmented`] ones, because
    /// segments may have bases and limits. 64-bit code always uses linear addresses.
    const SEGMENTED: bool = false;

    /// Reads a scalar, zero-extended.
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap>;

    /// Writes the low `width` bytes of `value`.
    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap>;

    /// LOCK CMPXCHG: stores `new` if memory holds `expected`; returns what memory held.
    /// Faults as a write does, even when the comparison fails.
    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap>;

    /// LOCK CMPXCHG16B. `addr` must be 16-byte aligned (#GP otherwise).
    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap>;

    /// Reads `buffer.len()` bytes with no atomicity beyond bytes.
    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap>;

    /// Writes all of `bytes`, or none where the fault can be known before.
    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap>;

    /// Finds out whether [`GuestMemory::write_bytes`] would succeed, for callers that can't
    /// undo what comes before it. Memory that grants pointers to all of it needs no answer.
    fn probe_write(&mut self, _addr: GuestAddr, _len: usize) -> Result<(), GuestTrap> {
        Ok(())
    }

    /// Reads up to `buffer.len()` bytes of code; fewer when what follows can't be executed.
    /// Errs only when the first byte can't be fetched.
    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap>;

    /// Where a stub may access `len` bytes at `addr` directly, faulting as the guest would.
    /// `None`: the caller goes through a bounce buffer with `read_bytes` and `write_bytes`.
    fn direct(&mut self, addr: GuestAddr, len: usize, access: Access) -> Option<*mut u8>;
}
