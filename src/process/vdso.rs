//! The guest's vdso: a copy of the host's image among the guest's code, so that it is
//! translated like any code below 2 GiB. What it reads outside its image (the time pages)
//! stays where the host put it, hence the alias. Also the vsyscall page, which no mapping
//! can stand for: calls into it are carried out when the guest gets there.

use std::ops::Range;

use syscalls::Sysno;

use super::address_space::{AddressSpace, Attributes, MapRequest, NO_FILE, Prot, Role};
use super::deferred::Deferred;
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::decode::CodeAlias;
use crate::guest::{Gpr, GuestMemory, ThreadContext, Width};
use crate::host::syscall::raw;

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

/// The legacy page with three entry points (arch/x86/entry/vsyscall).
const VSYSCALL: Range<u64> = 0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000;

/// If the guest has called into the vsyscall page: does what it asked for and returns to its
/// caller, true. False: not that page, not an entry point, or a bad pointer.
pub fn emulate_vsyscall(ctx: &mut ThreadContext, memory: &mut impl GuestMemory) -> bool {
    if !VSYSCALL.contains(&ctx.cpu.rip) || ctx.cpu.rip & 0x3ff != 0 {
        return false;
    }
    let number = match (ctx.cpu.rip - VSYSCALL.start) >> 10 {
        0 => Sysno::gettimeofday,
        1 => Sysno::time,
        2 => Sysno::getcpu,
        _ => return false,
    };
    let stack = GuestAddr(ctx.cpu.get(Gpr::Rsp));
    let Ok(caller) = memory.load(stack, Width::B8) else {
        return false;
    };
    let (first, second) = (ctx.cpu.get(Gpr::Rdi), ctx.cpu.get(Gpr::Rsi));
    // getcpu's third argument is ignored by every kernel since 2.6.24.
    // SAFETY: writes at most a few words through the guest's own pointers.
    let result = unsafe { raw(number.id() as u64, [first, second, 0, 0, 0, 0]) };
    if result == -i64::from(libc::EFAULT) {
        return false;
    }
    ctx.cpu.set(Gpr::Rax, result as u64);
    ctx.cpu.set(Gpr::Rsp, stack.0.wrapping_add(8));
    ctx.cpu.rip = caller;
    true
}
