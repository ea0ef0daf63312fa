//! Maps an image's segments, as the kernel's loader does (fs/binfmt_elf.c).

use std::ops::Range;
use std::os::fd::AsRawFd;

use super::header::{Image, Kind, Segment};
use super::open::OpenProgram;
use super::{ElfError, LoadError};
use crate::addr::GuestAddr;
use crate::guest::GuestMemory;
use crate::host::syscall::Errno;
use crate::process::address_space::{AddressSpace, MapRequest, NO_FILE, RESERVED, intersection};
use crate::process::deferred::Deferred;

/// An image in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadedImage {
    /// What was added to its addresses.
    pub bias: u64,
    pub entry: GuestAddr,
    pub headers: GuestAddr,
    /// From its lowest to one past its highest page.
    pub span: Range<GuestAddr>,
    /// One past its last byte.
    pub end: GuestAddr,
}

/// Maps `program`. `is_main`: as the program itself, not as its interpreter.
///
/// # Errors
/// `AddressTaken`, `NoRoom`, or what the host said.
pub fn load_image(
    space: &mut AddressSpace,
    memory: &mut impl GuestMemory,
    program: &OpenProgram,
    is_main: bool,
) -> Result<LoadedImage, LoadError> {
    let image = &program.image;
    let span = image.span();
    let bias = reserve(space, program, &span, is_main)?;
    // Placed images may wrap: vaddr + bias is modular by definition.
    let at = |vaddr: u64| GuestAddr(vaddr.wrapping_add(bias));
    let whole = at(span.start)..at(span.end);
    for segment in &image.segments {
        map_segment(space, memory, program, segment, bias)?;
    }
    release_holes(space, image, &whole, bias)?;
    Ok(LoadedImage {
        bias,
        entry: at(image.entry),
        headers: if image.headers_vaddr == 0 {
            GuestAddr(0)
        } else {
            at(image.headers_vaddr)
        },
        end: at(image.end().0),
        span: whole,
    })
}

/// Finds and reserves the image's whole span; returns the bias.
fn reserve(
    space: &mut AddressSpace,
    program: &OpenProgram,
    span: &Range<u64>,
    is_main: bool,
) -> Result<u64, LoadError> {
    let image = &program.image;
    let bytes = span.end - span.start;
    let anonymous = |at: u64| MapRequest {
        addr: GuestAddr(at),
        bytes,
        prot: 0,
        flags: (libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE) as u64,
        fd: NO_FILE,
        offset: 0,
    };
    match image.kind {
        Kind::Fixed => {
            let taken = || LoadError::AddressTaken {
                path: program.path.clone(),
                range: GuestAddr(span.start)..GuestAddr(span.end),
            };
            let range = GuestAddr(span.start)..GuestAddr(span.end);
            if intersection(&range, &RESERVED).is_some() {
                return Err(taken());
            }
            space
                .mmap(anonymous(span.start), &mut Deferred)
                .map_err(|_| taken())?;
            Ok(0)
        }
        Kind::PositionIndependent => {
            let no_room = || LoadError::NoRoom {
                path: program.path.clone(),
                bytes,
            };
            // Only the low bits of the first address can be kept: the kernel aligns the
            // bias, so that addresses stay congruent to p_align.
            let lead = span.start & (image.align - 1);
            let padded = bytes.checked_add(lead).ok_or_else(no_room)?;
            let at = if is_main {
                space.free_low_image(padded, image.align)
            } else {
                space.free_low(padded, image.align)
            }
            .map_err(|_| no_room())?;
            let start = at.0 + lead;
            space
                .mmap(anonymous(start), &mut Deferred)
                .map_err(|_| no_room())?;
            Ok(start.wrapping_sub(span.start))
        }
    }
}

fn map_segment(
    space: &mut AddressSpace,
    memory: &mut impl GuestMemory,
    program: &OpenProgram,
    segment: &Segment,
    bias: u64,
) -> Result<(), LoadError> {
    let host_error = |errno| LoadError::Host {
        what: "mapping the program",
        errno,
    };
    let mut prot = 0;
    for (set, bit) in [
        (segment.readable, libc::PROT_READ),
        (segment.writable, libc::PROT_WRITE),
        (segment.executable, libc::PROT_EXEC),
    ] {
        if set {
            prot |= bit as u64;
        }
    }
    let start = GuestAddr(segment.vaddr.wrapping_add(bias));
    let first_page = start.page();
    let lead = start.page_offset();
    let file_end = GuestAddr(start.0 + segment.file_bytes);
    let end = GuestAddr(start.0 + segment.memory_bytes);
    let (Some(file_pages_end), Some(pages_end)) = (file_end.page_up(), end.page_up()) else {
        return Err(host_error(Errno(libc::ENOMEM)));
    };
    let mut anonymous_from = first_page;
    if segment.file_bytes > 0 {
        let request = MapRequest {
            addr: first_page,
            bytes: lead + segment.file_bytes,
            prot,
            flags: (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64,
            fd: program.file.as_raw_fd() as u64,
            offset: segment.offset - lead,
        };
        space.mmap(request, &mut Deferred).map_err(host_error)?;
        anonymous_from = file_pages_end;
        let tail = (file_pages_end.0 - file_end.0).min(pages_end.0.saturating_sub(file_end.0));
        if segment.memory_bytes > segment.file_bytes && segment.writable && tail > 0 {
            // The rest of the last file page belongs to the bss.
            memory
                .write_bytes(file_end, &vec![0; tail as usize])
                .map_err(|_| LoadError::Elf {
                    path: program.path.clone(),
                    error: ElfError::Truncated("a segment's end"),
                })?;
        }
    }
    if pages_end > anonymous_from {
        let request = MapRequest {
            addr: anonymous_from,
            bytes: pages_end.0 - anonymous_from.0,
            prot,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64,
            fd: NO_FILE,
            offset: 0,
        };
        space.mmap(request, &mut Deferred).map_err(host_error)?;
    }
    Ok(())
}

/// What no segment covers was reserved only.
fn release_holes(
    space: &mut AddressSpace,
    image: &Image,
    whole: &Range<GuestAddr>,
    bias: u64,
) -> Result<(), LoadError> {
    let mut covered: Vec<Range<u64>> = image.segments.iter().map(Segment::pages).collect();
    covered.sort_by_key(|range| range.start);
    let mut at = whole.start.0;
    covered.push(image.span().end..image.span().end);
    for range in covered {
        let range = range.start.wrapping_add(bias)..range.end.wrapping_add(bias);
        if range.start > at {
            space
                .munmap(at, range.start - at, &mut Deferred)
                .map_err(|errno| LoadError::Host {
                    what: "mapping the program",
                    errno,
                })?;
        }
        at = at.max(range.end);
    }
    Ok(())
}
