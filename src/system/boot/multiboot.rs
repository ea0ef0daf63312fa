//! Multiboot 1 (the Multiboot specification 0.6.96): a header in the first 8 KiB names how
//! the image loads, by its ELF segments or by addresses in the header itself.

use super::{BootError, Format, Image, c_string, elf, map, modes, place, place_high};
use crate::guest::Gpr;
use crate::system::memory::GuestRam;
use crate::system::state::VcpuState;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header is in the first 8 KiB.
const SEARCH: usize = 8192;
/// Header flags: load by the addresses in the header.
const BY_ADDRESS: u32 = 1 << 16;
/// Header flags that a loader must know: page-aligned modules, memory information. The
/// third, a video mode, isn't to be had.
const KNOWN_REQUIREMENTS: u32 = 3;
const REQUIREMENTS: u32 = 0xffff;

const LOADER_NAME: u64 = map::BOOT_INFO + 0x80;
const MODULE: u64 = map::BOOT_INFO + 0xa0;
const RANGES: u64 = map::BOOT_INFO + 0x100;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Where the header is in the file.
fn header(file: &[u8]) -> Option<usize> {
    (0..SEARCH.min(file.len())).step_by(4).find(|&at| {
        let fields = [word(file, at), word(file, at + 4), word(file, at + 8)];
        matches!(fields, [Some(HEADER_MAGIC), Some(flags), Some(check)]
            if HEADER_MAGIC.wrapping_add(flags).wrapping_add(check) == 0)
    })
}

pub fn has_header(file: &[u8]) -> bool {
    header(file).is_some()
}

pub(super) fn load(ram: &GuestRam, image: &Image) -> Result<VcpuState, BootError> {
    let format = Format::Multiboot;
    let file = &image.kernel;
    let missing = BootError::Truncated {
        format,
        what: "the header",
    };
    let at = header(file).ok_or_else(|| missing.clone())?;
    let flags = word(file, at + 4).ok_or(missing)?;
    if flags & REQUIREMENTS & !KNOWN_REQUIREMENTS != 0 {
        return Err(BootError::Malformed {
            format,
            what: "it requires a video mode, and there is no display",
        });
    }
    let loaded = if flags & BY_ADDRESS == 0 {
        elf::load(ram, format, file)?
    } else {
        load_by_address(ram, file, at)?
    };
    let mut info = [0u32; 22];
    // Which fields hold something: memory, command line, modules, memory map, loader's name.
    info[0] = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
    info[1] = (map::CONVENTIONAL_END >> 10) as u32;
    info[2] = (map::low_end(ram).saturating_sub(map::EXTENDED) >> 10) as u32;
    let cmdline = c_string(&image.cmdline);
    if cmdline.len() as u64 > map::BOOT_CMDLINE_BYTES {
        return Err(BootError::Malformed {
            format,
            what: "the command line is longer than 64 KiB",
        });
    }
    place(ram, "the command line", map::BOOT_CMDLINE, &cmdline)?;
    info[4] = map::BOOT_CMDLINE as u32;
    if let Some(initrd) = &image.initrd {
        let what = "the module";
        let start = place_high(ram, what, initrd, loaded.end, 1 << 32)?;
        let fields = [start as u32, (start + initrd.len() as u64) as u32, 0, 0];
        place(ram, what, MODULE, &words(&fields))?;
        info[5] = 1;
    }
    info[6] = MODULE as u32;
    let mut ranges = Vec::new();
    for range in map::ranges(ram) {
        ranges.extend(20u32.to_le_bytes());
        ranges.extend(range.start.to_le_bytes());
        ranges.extend(range.len.to_le_bytes());
        ranges.extend(range.kind.e820().to_le_bytes());
    }
    info[11] = ranges.len() as u32;
    info[12] = RANGES as u32;
    info[16] = LOADER_NAME as u32;
    let what = "the boot information";
    place(ram, what, RANGES, &ranges)?;
    place(ram, what, LOADER_NAME, b"temper\0")?;
    place(ram, what, map::BOOT_INFO, &words(&info))?;

    let mut state = modes::protected(ram, loaded.entry)?;
    state.gpr[Gpr::Rax as usize] = LOADER_MAGIC;
    state.gpr[Gpr::Rbx as usize] = map::BOOT_INFO;
    Ok(state)
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Loads by the header's addresses (section 3.1.3).
fn load_by_address(ram: &GuestRam, file: &[u8], at: usize) -> Result<elf::Loaded, BootError> {
    const WHAT: &str = "the image";
    let format = Format::Multiboot;
    let malformed = |what| BootError::Malformed { format, what };
    let field = |index: usize| {
        word(file, at + 12 + index * 4).ok_or(BootError::Truncated {
            format,
            what: "the header's addresses",
        })
    };
    let (header, load, load_end) = (field(0)?, field(1)?, field(2)?);
    let (bss_end, entry) = (field(3)?, field(4)?);
    let before = header
        .checked_sub(load)
        .and_then(|before| at.checked_sub(before as usize))
        .ok_or(malformed("its load address lies before the file"))?;
    let content = match load_end {
        0 => &file[before..],
        _ => {
            let len = load_end
                .checked_sub(load)
                .ok_or(malformed("its end lies before its start"))?;
            file.get(before..before.saturating_add(len as usize))
                .ok_or(BootError::Truncated {
                    format,
                    what: "its content",
                })?
        }
    };
    place(ram, WHAT, u64::from(load), content)?;
    let content_end = u64::from(load) + content.len() as u64;
    let end = content_end.max(u64::from(bss_end));
    super::check_room(ram, WHAT, u64::from(load), end - u64::from(load))?;
    Ok(elf::Loaded {
        entry: u64::from(entry),
        end,
    })
}
