//! Memory under RFLAGS.AC: misaligned accesses trap (Intel SDM volume 3, section 6.15,
//! interrupt 17). A wrapper, so that the usual handlers don't pay for what next to no
//! program asks for.
//!
//! Not exact in one thing: an instruction that wants its 16 bytes or more aligned anyway
//! (MOVAPS) gets the alignment check instead of its general protection fault.

use crate::addr::GuestAddr;
use crate::guest::{Access, GuestMemory, GuestTrap, Width, segment_and_offset};

/// Guest memory with the alignment check of ring 3.
pub struct AlignmentChecked<'a, M>(pub &'a mut M);

/// Nothing is required beyond this; wider vectors aren't either (measured on AMD Zen).
const STRICTEST: u64 = 16;

/// The alignment that an operand of `len` bytes must have.
fn required(len: u64) -> u64 {
    match len {
        10 => 8,
        // x87 environments and states.
        28 | 108 => 4,
        14 | 94 => 2,
        _ if len.is_power_of_two() => len.min(STRICTEST),
        _ => 1,
    }
}

fn check(addr: GuestAddr, len: u64) -> Result<(), GuestTrap> {
    // A non-canonical address faults before its alignment matters.
    let somewhere = super::machine::is_canonical(addr.0) || segment_and_offset(addr).is_some();
    if addr.0.is_multiple_of(required(len)) || !somewhere {
        Ok(())
    } else {
        Err(GuestTrap::AlignmentCheck)
    }
}

impl<M: GuestMemory> GuestMemory for AlignmentChecked<'_, M> {
    const SEGMENTED: bool = M::SEGMENTED;

    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        check(addr, width.bytes())?;
        self.0.load(addr, width)
    }

    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        check(addr, width.bytes())?;
        self.0.store(addr, width, value)
    }

    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap> {
        check(addr, width.bytes())?;
        self.0.compare_exchange(addr, width, expected, new)
    }

    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap> {
        self.0.compare_exchange_16(addr, expected, new)
    }

    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        check(addr, buffer.len() as u64)?;
        self.0.read_bytes(addr, buffer)
    }

    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        check(addr, bytes.len() as u64)?;
        self.0.write_bytes(addr, bytes)
    }

    fn probe_write(&mut self, addr: GuestAddr, len: usize) -> Result<(), GuestTrap> {
        self.0.probe_write(addr, len)
    }

    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        self.0.fetch(addr, buffer)
    }

    /// A misaligned operand is copied, and the copy says that it is misaligned.
    fn direct(&mut self, addr: GuestAddr, len: usize, access: Access) -> Option<*mut u8> {
        check(addr, len as u64).ok()?;
        self.0.direct(addr, len, access)
    }
}
