//! Boot sectors: the whole file at 0000:7C00 in real mode, as after a load from the first
//! disk. There is no BIOS behind its interrupts: they return and do nothing.

use super::{BootError, Format, Image, map, place};
use crate::guest::Gpr;
use crate::system::memory::GuestRam;
use crate::system::state::{Segment, TableRegister, VcpuState};

const ENTRY: u64 = 0x7c00;
const FIRST_DISK: u64 = 0x80;

pub(super) fn load(ram: &GuestRam, image: &Image) -> Result<VcpuState, BootError> {
    let format = Format::BootSector;
    if image.initrd.is_some() {
        return Err(BootError::NotTaken {
            format,
            what: "initial RAM disk",
        });
    }
    if !image.cmdline.is_empty() {
        return Err(BootError::NotTaken {
            format,
            what: "command line",
        });
    }
    if image.kernel.len() as u64 > map::CONVENTIONAL_END - ENTRY {
        return Err(BootError::Malformed {
            format,
            what: "it is longer than the 607 KiB of conventional memory from 0x7c00 on",
        });
    }
    place(ram, "the boot sector", ENTRY, &image.kernel)?;
    let data = Segment::real_mode(0);
    let mut code = data;
    code.attributes = 0x9b;
    let mut state = VcpuState {
        rip: ENTRY,
        segments: [data, code, data, data, data, data],
        idtr: TableRegister {
            base: 0,
            limit: 0x3ff,
        },
        ..VcpuState::default()
    };
    state.gpr[Gpr::Rsp as usize] = ENTRY;
    state.gpr[Gpr::Rdx as usize] = FIRST_DISK;
    Ok(state)
}
