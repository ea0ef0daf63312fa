//! The guest's vdso: a copy of the host's image among the guest's code, so that it is
//! translated like any code below 2 GiB. What it reads outside its image (the time pages)
//! stays where the host put it, hence the alias.

use super::address_space::{AddressSpace, Attributes, MapRequest, NO_FILE, Prot, Role};
use super::deferred::Deferred;
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::decode::CodeAlias;
use crate::guest::{GuestMemory, Width};

/// Copies the host's vdso into low guest memory; `None` if there is none (vdso=0) or no room.
pub fn install(space: &mut AddressSpace, memory: &mut impl GuestMemory) -> Option<CodeAlias> {
    // SAFETY: getauxval has no preconditions.
    let original = GuestAddr(unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) });
    if original.0 == 0 {
        return None;
    }
    let bytes = image_bytes(memory, original)?;
    let mut image = vec![0; bytes as usize];
    memory.read_bytes(original, &mut image).ok()?;
    let start = space.free_low(bytes, PAGE_SIZE).ok()?;
    let request = MapRequest {
        addr: start,
        bytes,
        prot: Prot::READ_WRITE.host(),
        flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64,
        fd: NO_FILE,
        offset: 0,
    };
    space.mmap(request, &mut Deferred).ok()?;
    memory.write_bytes(start, &image).ok()?;
    let read_exec = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    space
        .mprotect(start.0, bytes, read_exec, None, &mut Deferred)
        .ok()?;
    let range = start..start.offset(bytes as i64);
    let mut attributes = Attributes::anonymous(Prot::READ_EXEC);
    attributes.role = Role::Vdso;
    space.adopt(range.clone(), attributes);
    Some(CodeAlias {
        start: range.start,
        end: range.end,
        bias: original.0.wrapping_sub(range.start.0) as i64,
    })
}

/// The image's size: its section headers come last (Linux arch/x86/entry/vdso), and the
/// kernel maps whole pages.
fn image_bytes(memory: &mut impl GuestMemory, image: GuestAddr) -> Option<u64> {
    let mut field = |at: i64, width| memory.load(image.offset(at), width).ok();
    if field(0, Width::B4)? != u64::from(u32::from_le_bytes(*b"\x7fELF")) {
        return None;
    }
    let table = field(0x28, Width::B8)?;
    let entries = field(0x3a, Width::B2)? * field(0x3c, Width::B2)?;
    table
        .checked_add(entries)
        .filter(|end| (1..=MAX_IMAGE_BYTES).contains(end))
        .map(|end| end.next_multiple_of(PAGE_SIZE))
}

/// Far more than any kernel's.
const MAX_IMAGE_BYTES: u64 = 1 << 20;
