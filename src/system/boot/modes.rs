//! CPU states at the entries that boot protocols ask for: flat 32-bit protected mode, and
//! 64-bit mode with identity page tables.

use super::{BootError, map, place};
use crate::system::memory::GuestRam;
use crate::system::state::{Segment, TableRegister, VcpuState};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG: u64 = 1 << 8 | 1 << 10;

/// The selectors of Linux's boot protocol, which suit the others too.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Entries 2 and 3 of the table: flat code of the mode, flat data; 4 is a TSS.
fn write_descriptors(ram: &GuestRam, code: u64) -> Result<(), BootError> {
    let entries = [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    place(ram, "the boot descriptors", map::BOOT_GDT, &bytes)
}

fn flat(selector: u16, attributes: u16) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
        unusable: false,
    }
}

fn with_segments(code_size: u16) -> VcpuState {
    let data = flat(DATA, Segment::G | Segment::DB | Segment::P | Segment::S | 3);
    let code = flat(CODE, Segment::G | code_size | Segment::P | Segment::S | 0xb);
    VcpuState {
        segments: [data, code, data, data, data, data],
        tr: Segment {
            selector: TASK,
            limit: 0x67,
            attributes: Segment::P | 0xb,
            ..Segment::default()
        },
        gdtr: TableRegister {
            base: map::BOOT_GDT,
            limit: 0x2f,
        },
        idtr: TableRegister::default(),
        ..VcpuState::default()
    }
}

/// Paging off, interrupts off, flat segments.
pub fn protected(ram: &GuestRam, entry: u64) -> Result<VcpuState, BootError> {
    write_descriptors(ram, 0x00cf_9b00_0000_ffff)?;
    Ok(VcpuState {
        rip: entry,
        cr0: CR0_PE | CR0_ET,
        ..with_segments(Segment::DB)
    })
}

/// 64-bit mode; the low 4 GiB are mapped to themselves by 2 MiB pages.
pub fn long(ram: &GuestRam, entry: u64) -> Result<VcpuState, BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    write_descriptors(ram, 0x00af_9b00_0000_ffff)?;
    let pml4 = map::BOOT_PAGE_TABLES;
    let mut tables = vec![0u64; 6 * 512];
    tables[0] = (pml4 + 0x1000) | PRESENT_WRITABLE;
    for directory in 0..4 {
        tables[512 + directory] = (pml4 + 0x2000 + directory as u64 * 0x1000) | PRESENT_WRITABLE;
    }
    for page in 0..4 * 512 {
        tables[1024 + page] = (page as u64) << 21 | LARGE | PRESENT_WRITABLE;
    }
    let bytes: Vec<u8> = tables
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    place(ram, "the boot page tables", pml4, &bytes)?;
    Ok(VcpuState {
        rip: entry,
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: pml4,
        cr4: CR4_PAE,
        efer: EFER_LONG,
        ..with_segments(Segment::L)
    })
}
