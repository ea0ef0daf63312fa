//! PVH: an ELF file with a note (Xen, type 18) that holds its 32-bit entry, started in
//! protected mode with EBX at a structure that names everything else.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use object::LittleEndian as Le;
use object::elf::{FileHeader32, FileHeader64, NoteType};
use object::read::elf::{FileHeader, ProgramHeader};

use super::{BootError, Format, Image, acpi, c_string, elf, map, modes, place, place_high};
use crate::guest::Gpr;
use crate::system::memory::GuestRam;
use crate::system::state::VcpuState;

const PHYS32_ENTRY: NoteType = NoteType(18);
const MODULES: u64 = map::BOOT_INFO + 0x100;
const RANGES: u64 = map::BOOT_INFO + 0x200;

/// The entry that the note names.
pub fn entry(file: &[u8]) -> Option<u64> {
    match file.get(4)? {
        1 => entry_in::<FileHeader32<Le>>(file),
        2 => entry_in::<FileHeader64<Le>>(file),
        _ => None,
    }
}

fn entry_in<H: FileHeader<Endian = Le>>(file: &[u8]) -> Option<u64> {
    let header = H::parse(file).ok()?;
    for segment in header.program_headers(Le, file).ok()? {
        let Ok(Some(mut notes)) = segment.notes(Le, file) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"Xen" && note.n_type(Le) == PHYS32_ENTRY {
                let mut bytes = [0; 8];
                let len = note.desc().len().min(8);
                bytes[..len].copy_from_slice(&note.desc()[..len]);
                return Some(u64::from_le_bytes(bytes));
            }
        }
    }
    None
}

fn words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

pub(super) fn load(ram: &GuestRam, image: &Image) -> Result<VcpuState, BootError> {
    let format = Format::Pvh;
    let entry = entry(&image.kernel).ok_or(BootError::Malformed {
        format,
        what: "its PVH entry can't be read",
    })?;
    if entry > u64::from(u32::MAX) {
        return Err(BootError::Malformed {
            format,
            what: "its PVH entry is above 4 GiB",
        });
    }
    let loaded = elf::load(ram, format, &image.kernel)?;
    let cmdline = c_string(&image.cmdline);
    if cmdline.len() as u64 > map::BOOT_CMDLINE_BYTES {
        return Err(BootError::Malformed {
            format,
            what: "the command line is longer than 64 KiB",
        });
    }
    place(ram, "the command line", map::BOOT_CMDLINE, &cmdline)?;
    let mut modules = 0;
    if let Some(initrd) = &image.initrd {
        let what = "the initial RAM disk";
        let at = place_high(ram, what, initrd, loaded.end, 1 << 32)?;
        let entry = hvm_modlist_entry {
            paddr: at,
            size: initrd.len() as u64,
            ..hvm_modlist_entry::default()
        };
        let bytes = words(&[entry.paddr, entry.size, entry.cmdline_paddr, entry.reserved]);
        place(ram, what, MODULES, &bytes)?;
        modules = 1;
    }
    let ranges = map::ranges(ram);
    for (index, range) in ranges.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len,
            type_: match range.kind {
                map::Kind::Usable => XEN_HVM_MEMMAP_TYPE_RAM,
                map::Kind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
            },
            reserved: 0,
        };
        let bytes = words(&[entry.addr, entry.size, u64::from(entry.type_)]);
        let at = RANGES + index as u64 * 24;
        place(ram, "the memory map", at, &bytes)?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        flags: 0,
        nr_modules: modules,
        modlist_paddr: MODULES,
        cmdline_paddr: map::BOOT_CMDLINE,
        rsdp_paddr: acpi::RSDP,
        memmap_paddr: RANGES,
        memmap_entries: ranges.len() as u32,
        reserved: 0,
    };
    let bytes = words(&[
        u64::from(info.magic) | u64::from(info.version) << 32,
        u64::from(info.flags) | u64::from(info.nr_modules) << 32,
        info.modlist_paddr,
        info.cmdline_paddr,
        info.rsdp_paddr,
        info.memmap_paddr,
        u64::from(info.memmap_entries),
    ]);
    place(ram, "the start structure", map::BOOT_INFO, &bytes)?;
    let mut state = modes::protected(ram, entry)?;
    state.gpr[Gpr::Rbx as usize] = map::BOOT_INFO;
    Ok(state)
}
