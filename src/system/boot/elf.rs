//! ELF images: program headers into guest memory, by their physical addresses.

use object::LittleEndian as Le;
use object::elf::{FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

use super::{BootError, Format, check_room, map, no_room, place};
use crate::system::memory::GuestRam;

/// Where an image was put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    pub entry: u64,
    /// The end of its last segment.
    pub end: u64,
}

/// Loads the segments of a 32-bit or 64-bit x86 ELF file.
pub fn load(ram: &GuestRam, format: Format, file: &[u8]) -> Result<Loaded, BootError> {
    match file.get(4) {
        Some(1) => load_class::<FileHeader32<Le>>(ram, format, file),
        Some(2) => load_class::<FileHeader64<Le>>(ram, format, file),
        _ => Err(BootError::Malformed {
            format,
            what: "its ELF class is neither 32 nor 64 bits",
        }),
    }
}

fn load_class<H: FileHeader<Endian = Le>>(
    ram: &GuestRam,
    format: Format,
    file: &[u8],
) -> Result<Loaded, BootError> {
    const WHAT: &str = "the image";
    let truncated = |what| BootError::Truncated { format, what };
    let header = H::parse(file).map_err(|_| truncated("the ELF header"))?;
    let headers = header
        .program_headers(Le, file)
        .map_err(|_| truncated("the table of its segments"))?;
    let mut end = 0;
    for segment in headers
        .iter()
        .filter(|segment| segment.p_type(Le) == PT_LOAD)
    {
        let start: u64 = segment.p_paddr(Le).into();
        let len: u64 = segment.p_memsz(Le).into();
        let data = segment
            .data(Le, file)
            .map_err(|()| truncated("a segment's content"))?;
        if len == 0 {
            continue;
        }
        if data.len() as u64 > len {
            return Err(BootError::Malformed {
                format,
                what: "a segment is longer in the file than in memory",
            });
        }
        check_room(ram, WHAT, start, len)?;
        if start < map::EXTENDED && start + len > map::CONVENTIONAL_END {
            return Err(no_room(ram, WHAT, start, len));
        }
        // Memory is new, so what isn't in the file is zero already.
        place(ram, WHAT, start, data)?;
        end = end.max(start + len);
    }
    if end == 0 {
        return Err(BootError::Malformed {
            format,
            what: "it has nothing to load",
        });
    }
    Ok(Loaded {
        entry: header.e_entry(Le).into(),
        end,
    })
}
