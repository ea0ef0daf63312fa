//! The physical memory map: where RAM is, what of it is kept for tables, and the list that
//! guests are given. A PC's: RAM from 0 to at most 3 GiB, devices below 4 GiB, the rest of
//! RAM above.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{BootError, place};
use crate::system::memory::GuestRam;

/// Devices live between here and 4 GiB.
const LOW_LIMIT: u64 = 3 << 30;
const HIGH_START: u64 = 4 << 30;
/// The extended BIOS data area, and the end of conventional memory.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Firmware's tables, up to 1 MiB.
pub const FIRMWARE: u64 = 0xe_0000;
/// Where extended memory begins.
pub const EXTENDED: u64 = 0x10_0000;

/// Structures for guests at their entry. All below conventional memory's end.
pub const BOOT_GDT: u64 = 0x500;
pub const BOOT_INFO: u64 = 0x7000;
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
pub const BOOT_CMDLINE: u64 = 0x2_0000;
pub const BOOT_CMDLINE_BYTES: u64 = 0x1_0000;

/// What a range of the memory map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Usable,
    Reserved,
}

impl Kind {
    /// The number in an E820 entry (ACPI specification 6.5, section 15).
    pub const fn e820(self) -> u32 {
        match self {
            Kind::Usable => 1,
            Kind::Reserved => 2,
        }
    }
}

/// One range of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub start: u64,
    pub len: u64,
    pub kind: Kind,
}

/// Guest memory of `bytes`, a multiple of the page size and at least 1 MiB.
///
/// # Errors
/// The host has not that much.
pub fn new_ram(bytes: u64) -> io::Result<GuestRam> {
    let low = bytes.min(LOW_LIMIT);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH_START), (bytes - low) as usize));
    }
    GuestRam::from_ranges(&ranges).map_err(io::Error::other)
}

/// Bytes of guest memory.
pub fn total(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Where the RAM that starts at 0 ends.
pub fn low_end(ram: &GuestRam) -> u64 {
    ram.find_region(GuestAddress(0))
        .map_or(0, GuestMemoryRegion::len)
}

/// Whether `start..start + len` is RAM.
pub fn has_ram(ram: &GuestRam, start: u64, len: u64) -> bool {
    start
        .checked_add(len)
        .is_some_and(|_| len == 0 || ram.check_range(GuestAddress(start), len as usize))
}

/// The list for a guest.
pub fn ranges(ram: &GuestRam) -> Vec<Range> {
    let range = |start, end, kind| Range {
        start,
        len: end - start,
        kind,
    };
    let mut list = vec![
        range(0, CONVENTIONAL_END, Kind::Usable),
        range(CONVENTIONAL_END, 0xa_0000, Kind::Reserved),
        range(FIRMWARE, EXTENDED, Kind::Reserved),
    ];
    let low_end = low_end(ram);
    if low_end > EXTENDED {
        list.push(range(EXTENDED, low_end, Kind::Usable));
    }
    for region in ram.iter() {
        if region.start_addr().0 != 0 {
            let start = region.start_addr().0;
            list.push(range(start, start + region.len(), Kind::Usable));
        }
    }
    list
}

/// What firmware leaves in low memory: an interrupt vector table whose entries do nothing,
/// and the BIOS data area's address of COM1 and size of conventional memory.
pub(super) fn write_bios_data(ram: &GuestRam) -> Result<(), BootError> {
    const IRET: u64 = 0xf_ff53;
    let what = "firmware data";
    place(ram, what, IRET, &[0xcf])?;
    let vector = [0x53, 0xff, 0x00, 0xf0];
    place(ram, what, 0, &vector.repeat(256))?;
    place(ram, what, 0x400, &0x3f8u16.to_le_bytes())?;
    place(
        ram,
        what,
        0x40e,
        &((CONVENTIONAL_END >> 4) as u16).to_le_bytes(),
    )?;
    place(
        ram,
        what,
        0x413,
        &((CONVENTIONAL_END >> 10) as u16).to_le_bytes(),
    )
}
