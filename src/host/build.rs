//! Which build of Temper this is: the build-id that the linker gave it, read from the
//! program's own headers in memory.

use object::NativeEndian;
use object::elf::{ELF_NOTE_GNU, FileHeader64, NT_GNU_BUILD_ID, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};

unsafe extern "C" {
    /// The linker's name for the first byte of the ELF header in memory.
    #[link_name = "__ehdr_start"]
    static HEADER: u8;
}

/// The linker puts headers and notes into the first page.
const PAGE: usize = 4096;

/// The build-id of the running program; `None` when it was linked without one.
pub fn build_id() -> Option<&'static [u8]> {
    // SAFETY: the first page of a program is mapped whole, read-only, for good.
    let page = unsafe { std::slice::from_raw_parts(&raw const HEADER, PAGE) };
    let header = FileHeader64::<NativeEndian>::parse(page).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, page).ok()? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        // The first page is at the same place in memory as in the file.
        let Ok(Some(mut notes)) = segment.notes(endian, page) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
                return Some(note.desc());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_a_build_id() {
        match build_id() {
            Some(id) => assert!(id.len() >= 8, "{id:?}"),
            None => println!("skipped: the linker gives no build-id"),
        }
    }
}
