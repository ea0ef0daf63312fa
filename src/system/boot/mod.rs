//! Puts an image into guest memory and a CPU at its entry: what a PC's firmware and boot
//! loader would have done. Four kinds of image, told apart by their content: Linux bzImage,
//! multiboot 1, PVH ELF, and flat boot sectors. Every guest finds the same memory map
//! ([`map`]) and ACPI tables ([`acpi`]).

pub mod acpi;
pub mod map;

mod elf;
mod flat;
mod linux;
mod modes;
mod multiboot;
mod pvh;

use std::fmt;

use vm_memory::{Bytes, GuestAddress};

use super::memory::GuestRam;
use super::state::VcpuState;

/// What is to be booted.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// The image file's content.
    pub kernel: Vec<u8>,
    /// An initial RAM disk (Linux, PVH) or a module (multiboot).
    pub initrd: Option<Vec<u8>>,
    pub cmdline: String,
}

/// How an image wants to be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A Linux kernel as its build makes it (the kernel's Documentation/arch/x86/boot.rst).
    BzImage,
    /// A header with the magic number of the Multiboot specification 0.6.96.
    Multiboot,
    /// An ELF file with a note that names its PVH entry (Xen's docs/misc/pvh.pandoc).
    Pvh,
    /// 512 bytes or more that end their first sector with 55AA; started at 0000:7C00.
    BootSector,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::BzImage => "Linux bzImage",
            Format::Multiboot => "multiboot image",
            Format::Pvh => "PVH image",
            Format::BootSector => "boot sector",
        })
    }
}

/// Why an image can't be booted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BootError {
    /// None of the formats; what it looks like, if that can be told.
    Unknown(&'static str),
    Truncated {
        format: Format,
        what: &'static str,
    },
    /// A part would lie in `start..end`, where there is no memory for it.
    NoRoom {
        what: &'static str,
        start: u64,
        end: u64,
        memory: u64,
    },
    /// The headers contradict themselves or ask for what no loader does.
    Malformed {
        format: Format,
        what: &'static str,
    },
    /// The format has no place for what was given.
    NotTaken {
        format: Format,
        what: &'static str,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootError::Unknown(looks_like) => write!(
                f,
                "{looks_like}; Temper boots Linux bzImages, multiboot 1 and PVH ELF images, \
                 and boot sectors"
            ),
            BootError::Truncated { format, what } => {
                write!(f, "the {format} is cut short: {what} is missing")
            }
            BootError::NoRoom {
                what,
                start,
                end,
                memory,
            } => write!(
                f,
                "{what} needs guest memory from {start:#x} to {end:#x}, and there are {} MiB; \
                 give more with --memory",
                memory >> 20
            ),
            BootError::Malformed { format, what } => write!(f, "the {format} is damaged: {what}"),
            BootError::NotTaken { format, what } => write!(f, "a {format} takes no {what}"),
        }
    }
}

impl std::error::Error for BootError {}

/// The format of an image.
///
/// # Errors
/// It is none.
pub fn format_of(kernel: &[u8]) -> Result<Format, BootError> {
    let is_elf = kernel.starts_with(b"\x7fELF");
    if !is_elf && kernel.get(0x202..0x206) == Some(b"HdrS".as_slice()) {
        return Ok(Format::BzImage);
    }
    if multiboot::has_header(kernel) {
        return Ok(Format::Multiboot);
    }
    if is_elf {
        return if pvh::entry(kernel).is_some() {
            Ok(Format::Pvh)
        } else {
            Err(BootError::Unknown(
                "an ELF file without a multiboot header or a PVH entry",
            ))
        };
    }
    if kernel.get(510..512) == Some([0x55, 0xaa].as_slice()) {
        return Ok(Format::BootSector);
    }
    Err(BootError::Unknown(match kernel {
        [] => "the image is empty",
        [0x1f, 0x8b, ..] => "a gzip file",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file",
        _ if kernel.len() < 512 => "less than one sector, and no known image",
        _ => "no known image",
    }))
}

/// Loads `image` into `ram` and gives the CPU's state at its entry.
///
/// # Errors
/// See [`BootError`]; guest memory may have been written to.
pub fn load(ram: &GuestRam, image: &Image) -> Result<VcpuState, BootError> {
    let format = format_of(&image.kernel)?;
    acpi::write_tables(ram)?;
    map::write_bios_data(ram)?;
    match format {
        Format::BzImage => linux::load(ram, image),
        Format::Multiboot => multiboot::load(ram, image),
        Format::Pvh => pvh::load(ram, image),
        Format::BootSector => flat::load(ram, image),
    }
}

/// Writes `bytes` at `addr`, or says that `what` has no room there.
fn place(ram: &GuestRam, what: &'static str, addr: u64, bytes: &[u8]) -> Result<(), BootError> {
    check_room(ram, what, addr, bytes.len() as u64)?;
    ram.write_slice(bytes, GuestAddress(addr))
        .map_err(|_| no_room(ram, what, addr, bytes.len() as u64))
}

fn check_room(ram: &GuestRam, what: &'static str, addr: u64, len: u64) -> Result<(), BootError> {
    if map::has_ram(ram, addr, len) {
        Ok(())
    } else {
        Err(no_room(ram, what, addr, len))
    }
}

fn no_room(ram: &GuestRam, what: &'static str, addr: u64, len: u64) -> BootError {
    BootError::NoRoom {
        what,
        start: addr,
        end: addr.saturating_add(len),
        memory: map::total(ram),
    }
}

/// Places an initial RAM disk as high as possible below `limit`, page-aligned.
fn place_high(
    ram: &GuestRam,
    what: &'static str,
    bytes: &[u8],
    above: u64,
    limit: u64,
) -> Result<u64, BootError> {
    let top = map::low_end(ram).min(limit);
    let len = bytes.len() as u64;
    match top.checked_sub(len).map(|start| start & !0xfff) {
        Some(start) if start >= above => {
            place(ram, what, start, bytes)?;
            Ok(start)
        }
        _ => Err(no_room(ram, what, above, len)),
    }
}

/// A C string for the guest.
fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests;
