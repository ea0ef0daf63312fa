//! /proc files about the process itself that must show the guest rather than Temper.
//! Recognizes paths that lead to them and makes their contents, which are served through
//! a memory file: a snapshot, as one read of the original is.

pub mod host_maps;
mod maps;
mod recognize;
mod status;

use std::ops::Range;

use syscalls::Sysno;

use super::address_space::VmaMap;
use super::identity::Identity;
use super::seccomp::Seccomp;
use crate::addr::GuestAddr;
use crate::guest::GuestMemory;
use crate::host::syscall::{SyscallResult, call, raw};

pub use recognize::{ProcFile, recognize};

/// What `file` holds for the guest; `None` where the kernel's own file is right.
pub fn contents(
    file: ProcFile,
    map: &VmaMap,
    identity: &Identity,
    seccomp: &Seccomp,
    memory: &mut impl GuestMemory,
) -> Option<Vec<u8>> {
    match file {
        ProcFile::Exe => None,
        ProcFile::Status => status::status(seccomp),
        ProcFile::Maps => {
            let host = host_maps::read("/proc/self/maps").ok()?;
            Some(maps::maps(map, &host).into_bytes())
        }
        ProcFile::Smaps => {
            let host = host_maps::read("/proc/self/smaps").ok()?;
            Some(maps::smaps(map, &host).into_bytes())
        }
        _ if identity.kernel_agrees => None,
        ProcFile::Auxv => Some(identity.auxv.clone()),
        ProcFile::Cmdline => read_range(memory, &identity.args),
        ProcFile::Environ => read_range(memory, &identity.env),
    }
}

fn read_range(memory: &mut impl GuestMemory, range: &Range<GuestAddr>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; (range.end.0 - range.start.0) as usize];
    memory.read_bytes(range.start, &mut bytes).ok()?;
    Some(bytes)
}

/// A descriptor from which `contents` can be read.
///
/// # Errors
/// The host's, as when there are too many open files.
pub fn serve(file: ProcFile, contents: &[u8], close_on_exec: bool) -> SyscallResult {
    let flags = if close_on_exec { libc::MFD_CLOEXEC } else { 0 };
    let name = file.name().as_ptr() as u64;
    // SAFETY: a C string.
    let fd = unsafe { call(Sysno::memfd_create, [name, u64::from(flags), 0, 0, 0, 0]) }?;
    let mut done = 0;
    while done < contents.len() {
        let rest = &contents[done..];
        let args = [
            fd,
            rest.as_ptr() as u64,
            rest.len() as u64,
            done as u64,
            0,
            0,
        ];
        // At an offset, so that the descriptor's own position stays at the start.
        // SAFETY: writes from our own slice.
        match unsafe { call(Sysno::pwrite64, args) } {
            Ok(count) if count > 0 => done += count as usize,
            result => {
                // SAFETY: the descriptor was opened above; the guest hasn't seen it.
                unsafe { raw(Sysno::close.id() as u64, [fd, 0, 0, 0, 0, 0]) };
                return result.and(Err(crate::host::syscall::Errno(libc::EIO)));
            }
        }
    }
    Ok(fd)
}
