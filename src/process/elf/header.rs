//! ELF64 headers, read by hand with checked arithmetic: the loader needs the file header
//! and the program headers only, and must agree with the kernel's loader about hostile ones.

use std::ops::Range;

use super::ElfError;
use crate::addr::{GuestAddr, PAGE_SIZE};

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// The kernel refuses larger tables (fs/binfmt_elf.c, load_elf_phdrs).
const MAX_TABLE_BYTES: usize = 65536;
/// One past the last user address with four-level paging, less the guard page.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// Program header types and flags that matter here (System V gABI, chapter 5).
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// Where an image's addresses come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// ET_EXEC: mapped at the addresses that it names.
    Fixed,
    /// ET_DYN: mapped anywhere.
    PositionIndependent,
}

/// A PT_LOAD segment; sizes are checked to fit in the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub vaddr: u64,
    pub offset: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
}

impl Segment {
    /// The pages it occupies, unrelocated.
    pub fn pages(&self) -> Range<u64> {
        let end = self.vaddr + self.memory_bytes;
        (self.vaddr & !(PAGE_SIZE - 1))..end.next_multiple_of(PAGE_SIZE)
    }
}

/// What the loader needs to know of an ELF file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    pub kind: Kind,
    pub entry: u64,
    /// Where the program headers are in memory, unrelocated; 0 if nowhere.
    pub headers_vaddr: u64,
    pub header_count: u16,
    pub segments: Vec<Segment>,
    /// PT_INTERP's place in the file.
    pub interpreter: Option<Range<u64>>,
    /// PT_GNU_STACK asks for an executable stack.
    pub executable_stack: bool,
    /// The largest p_align, at least a page, a power of two.
    pub align: u64,
}

impl Image {
    /// From the lowest to one past the highest page, unrelocated.
    pub fn span(&self) -> Range<u64> {
        let start = self.segments.iter().map(|s| s.pages().start).min();
        let end = self.segments.iter().map(|s| s.pages().end).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    /// One past the last byte of memory, unrelocated (where a break would start).
    pub fn end(&self) -> GuestAddr {
        GuestAddr(
            self.segments
                .iter()
                .map(|s| s.vaddr + s.memory_bytes)
                .max()
                .unwrap_or(0),
        )
    }
}

/// Reads `length` bytes at an offset of the file; `None` past its end.
pub type ReadAt<'a> = dyn Fn(u64, usize) -> Option<Vec<u8>> + 'a;

/// Reads the headers of a file of `file_bytes` bytes.
///
/// # Errors
/// Says what the file is instead, or what is wrong with it.
pub fn parse(read: &ReadAt<'_>, file_bytes: u64) -> Result<Image, ElfError> {
    let ident = read(0, 4.min(file_bytes as usize)).unwrap_or_default();
    if ident != b"\x7fELF" {
        return Err(ElfError::NotElf);
    }
    let header = read(0, HEADER_BYTES.min(file_bytes as usize)).unwrap_or_default();
    check_class(&header)?;
    if header.len() < HEADER_BYTES {
        return Err(ElfError::Truncated("the file header"));
    }
    let kind = match u16_at(&header, 16) {
        2 => Kind::Fixed,
        3 => Kind::PositionIndependent,
        other => return Err(ElfError::NotExecutable { elf_type: other }),
    };
    let table_offset = u64_at(&header, 32);
    let count = u16_at(&header, 56);
    if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_BYTES {
        return Err(ElfError::Malformed("the size of a program header"));
    }
    let table_bytes = usize::from(count) * PROGRAM_HEADER_BYTES;
    if count == 0 || table_bytes > MAX_TABLE_BYTES {
        return Err(ElfError::Malformed("the number of program headers"));
    }
    let within_file = table_offset
        .checked_add(table_bytes as u64)
        .is_some_and(|end| end <= file_bytes);
    let table = within_file
        .then(|| read(table_offset, table_bytes))
        .flatten()
        .filter(|table| table.len() == table_bytes)
        .ok_or(ElfError::Truncated("the program headers"))?;
    let mut image = Image {
        kind,
        entry: u64_at(&header, 24),
        headers_vaddr: 0,
        header_count: count,
        segments: Vec::new(),
        interpreter: None,
        executable_stack: false,
        align: PAGE_SIZE,
    };
    read_program_headers(&mut image, &table, table_offset, file_bytes)?;
    Ok(image)
}

/// The machine is told apart even when the rest is missing or another class's.
fn check_class(header: &[u8]) -> Result<(), ElfError> {
    let (Some(&class), Some(&data)) = (header.get(4), header.get(5)) else {
        return Err(ElfError::Truncated("the file header"));
    };
    let machine = match header.get(18..20) {
        Some(bytes) if data == 2 => u16::from_be_bytes([bytes[0], bytes[1]]),
        Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
        None => return Err(ElfError::Truncated("the file header")),
    };
    match (machine, class, data) {
        (EM_X86_64, 2, 1) => Ok(()),
        (EM_X86_64, 1, 1) => Err(ElfError::X32),
        (EM_386, ..) => Err(ElfError::I386),
        (EM_X86_64, ..) => Err(ElfError::Malformed("the class or byte order")),
        _ => Err(ElfError::OtherArchitecture { machine }),
    }
}

fn read_program_headers(
    image: &mut Image,
    table: &[u8],
    table_offset: u64,
    file_bytes: u64,
) -> Result<(), ElfError> {
    for header in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        let flags = u32_at(header, 4);
        let offset = u64_at(header, 8);
        let vaddr = u64_at(header, 16);
        let in_file = u64_at(header, 32);
        let in_memory = u64_at(header, 40);
        let align = u64_at(header, 48);
        match u32_at(header, 0) {
            PT_LOAD => {
                let segment = Segment {
                    vaddr,
                    offset,
                    file_bytes: in_file,
                    memory_bytes: in_memory,
                    readable: flags & PF_R != 0,
                    writable: flags & PF_W != 0,
                    executable: flags & PF_X != 0,
                };
                check_segment(&segment, file_bytes)?;
                if in_memory == 0 {
                    continue;
                }
                if align.is_power_of_two() {
                    image.align = image.align.max(align);
                }
                let in_segment = table_offset
                    .checked_sub(offset)
                    .filter(|delta| *delta < in_file);
                if image.headers_vaddr == 0
                    && let Some(delta) = in_segment
                {
                    image.headers_vaddr = vaddr + delta;
                }
                image.segments.push(segment);
            }
            PT_INTERP => {
                if image.interpreter.is_some() {
                    continue;
                }
                let end = offset
                    .checked_add(in_file)
                    .filter(|end| *end <= file_bytes)
                    .ok_or(ElfError::Truncated("the interpreter's name"))?;
                if in_file < 2 || in_file > libc::PATH_MAX as u64 {
                    return Err(ElfError::Malformed("the interpreter's name"));
                }
                image.interpreter = Some(offset..end);
            }
            PT_PHDR => image.headers_vaddr = vaddr,
            PT_GNU_STACK => image.executable_stack = flags & PF_X != 0,
            // PT_GNU_PROPERTY (CET, which is refused) and all others don't concern loading.
            _ => {}
        }
    }
    if image.segments.is_empty() {
        return Err(ElfError::Malformed("no loadable segment"));
    }
    Ok(())
}

fn check_segment(segment: &Segment, file_bytes: u64) -> Result<(), ElfError> {
    let Segment {
        vaddr,
        offset,
        file_bytes: in_file,
        memory_bytes: in_memory,
        ..
    } = *segment;
    if in_file > in_memory {
        return Err(ElfError::Malformed(
            "a segment larger in file than in memory",
        ));
    }
    let fits = vaddr
        .checked_add(in_memory)
        .is_some_and(|end| end <= TASK_SIZE);
    if !fits {
        return Err(ElfError::Malformed("a segment beyond the address space"));
    }
    if in_file == 0 {
        return Ok(());
    }
    if vaddr % PAGE_SIZE != offset % PAGE_SIZE {
        return Err(ElfError::Malformed(
            "a segment whose address and offset disagree",
        ));
    }
    match offset.checked_add(in_file) {
        Some(end) if end <= file_bytes => Ok(()),
        _ => Err(ElfError::Truncated("a segment")),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_bytes(bytes: &[u8]) -> Result<Image, ElfError> {
        let read = |at: u64, len: usize| {
            let start = usize::try_from(at).ok()?;
            Some(bytes.get(start..start.checked_add(len)?)?.to_vec())
        };
        parse(&read, bytes.len() as u64)
    }

    fn sample() -> Vec<u8> {
        std::fs::read("/bin/true").expect("/bin/true")
    }

    #[test]
    fn a_dynamic_program_has_segments_an_interpreter_and_headers() {
        let bytes = sample();
        let image = parse_bytes(&bytes).expect("an ELF file");
        let range = image.interpreter.clone().expect("PT_INTERP");
        let name = &bytes[range.start as usize..range.end as usize];
        assert!(name.starts_with(b"/lib"), "{name:?}");
        assert!(image.segments.iter().any(|s| s.executable));
        assert_ne!(image.headers_vaddr, 0);
        assert!(image.span().end >= image.end().0);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_or_whole() {
        let bytes = sample();
        let whole = parse_bytes(&bytes).expect("an ELF file");
        let needed = whole
            .segments
            .iter()
            .map(|s| s.offset + s.file_bytes)
            .max()
            .expect("segments");
        for len in (0..1024).chain((1024..bytes.len()).step_by(509)) {
            let result = parse_bytes(&bytes[..len]);
            assert_eq!(result.is_ok(), len as u64 >= needed, "{len} bytes");
        }
    }

    #[test]
    fn flipped_bytes_in_the_headers_never_panic() {
        let bytes = sample();
        let mut refused = 0;
        for at in 0..64 + 13 * 56 {
            for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 0x10] {
                let mut mutated = bytes.clone();
                mutated[at] = value;
                match parse_bytes(&mutated) {
                    Ok(image) => assert!(image.span().end <= TASK_SIZE.next_multiple_of(PAGE_SIZE)),
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > 200, "{refused}");
    }

    #[test]
    fn other_machines_are_named() {
        let mut bytes = sample();
        bytes[18] = 3;
        assert_eq!(parse_bytes(&bytes), Err(ElfError::I386));
        bytes[4] = 1;
        assert_eq!(parse_bytes(&bytes), Err(ElfError::I386));
        bytes[18] = 183;
        let arm = ElfError::OtherArchitecture { machine: 183 };
        assert_eq!(parse_bytes(&bytes), Err(arm));
        bytes[18] = 62;
        assert_eq!(parse_bytes(&bytes), Err(ElfError::X32));
        assert_eq!(parse_bytes(b"#!/bin/sh\n"), Err(ElfError::NotElf));
        assert_eq!(parse_bytes(b""), Err(ElfError::NotElf));
    }
}
