//! Linux bzImages, by the 64-bit boot protocol where the kernel has it, else the 32-bit one
//! (the kernel's Documentation/arch/x86/boot.rst).

use std::io::Cursor;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::{BootError, Format, Image, acpi, c_string, check_room, map, modes, place, place_high};
use crate::guest::Gpr;
use crate::system::memory::GuestRam;
use crate::system::state::VcpuState;

/// The protocol version that has `init_size` and `pref_address`.
const OLDEST: u16 = 0x20a;
const CAN_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
const LOADER_UNDEFINED: u8 = 0xff;

pub(super) fn load(ram: &GuestRam, image: &Image) -> Result<VcpuState, BootError> {
    const WHAT: &str = "the kernel";
    let format = Format::BzImage;
    check_room(ram, WHAT, map::EXTENDED, image.kernel.len() as u64)?;
    let loaded = BzImage::load(
        ram,
        Some(GuestAddress(map::EXTENDED)),
        &mut Cursor::new(&image.kernel),
        None,
    );
    let truncated = BootError::Truncated {
        format,
        what: "the kernel proper",
    };
    let loaded = loaded.map_err(|_| truncated.clone())?;
    let mut header = loaded.setup_header.ok_or_else(|| truncated.clone())?;
    let (version, init_size, preferred) = (header.version, header.init_size, header.pref_address);
    if version < OLDEST {
        return Err(BootError::Malformed {
            format,
            what: "its boot protocol is older than 2.10 (Linux 2.6.31)",
        });
    }
    let setup_bytes = (u64::from(header.setup_sects.max(1)) + 1) * 512;
    if setup_bytes + u64::from(header.syssize) * 16 > image.kernel.len() as u64 + 15 {
        return Err(truncated);
    }
    // It unpacks itself to where it prefers to be.
    let end = preferred.saturating_add(u64::from(init_size));
    check_room(ram, WHAT, preferred, u64::from(init_size))?;

    let cmdline = c_string(&image.cmdline);
    if cmdline.len() as u64 > u64::from(header.cmdline_size).min(map::BOOT_CMDLINE_BYTES) {
        return Err(BootError::Malformed {
            format,
            what: "the command line is longer than the kernel takes",
        });
    }
    place(ram, "the command line", map::BOOT_CMDLINE, &cmdline)?;
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = map::BOOT_CMDLINE as u32;
    if let Some(initrd) = &image.initrd {
        let limit = u64::from(header.initrd_addr_max) + 1;
        let at = place_high(ram, "the initial RAM disk", initrd, end, limit)?;
        header.ramdisk_image = at as u32;
        header.ramdisk_size = initrd.len() as u32;
    }

    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: acpi::RSDP,
        ..boot_params::default()
    };
    let ranges = map::ranges(ram);
    for (index, range) in ranges.iter().enumerate() {
        params.e820_table[index] = boot_e820_entry {
            addr: range.start,
            size: range.len,
            r#type: range.kind.e820(),
        };
    }
    params.e820_entries = ranges.len() as u8;
    place(ram, "the zero page", map::BOOT_INFO, params.as_slice())?;

    let start = loaded.kernel_load.0;
    let mut state = if header.xloadflags & CAN_64 != 0 {
        modes::long(ram, start + ENTRY_64)?
    } else {
        modes::protected(ram, start)?
    };
    state.gpr[Gpr::Rsi as usize] = map::BOOT_INFO;
    Ok(state)
}
