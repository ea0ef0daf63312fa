//! The host's memory map: the few raw calls by which the guest's mappings come into being.
//! Nothing here knows what the guest believes.

use std::ops::Range;

use syscalls::Sysno;

use crate::addr::GuestAddr;
use crate::host::syscall::{Errno, SyscallResult, call};

const FIXED_NOREPLACE: u64 = libc::MAP_FIXED_NOREPLACE as u64;
const PRIVATE_ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;

/// No descriptor, as an argument.
pub const NO_FILE: u64 = u64::MAX;

pub fn bytes(range: &Range<GuestAddr>) -> u64 {
    range.end.0 - range.start.0
}

/// The arguments of mmap, in the kernel's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    pub addr: GuestAddr,
    pub bytes: u64,
    pub prot: u64,
    pub flags: u64,
    pub fd: u64,
    pub offset: u64,
}

impl MapRequest {
    pub fn has(&self, flag: i32) -> bool {
        self.flags & flag as u64 != 0
    }
}

/// mmap as given. The caller has made sure that a MAP_FIXED range is the guest's or free.
pub fn map(request: MapRequest) -> Result<GuestAddr, Errno> {
    let MapRequest {
        addr,
        bytes,
        prot,
        flags,
        fd,
        offset,
    } = request;
    // SAFETY: replaces only guest mappings (the callers' obligation); guest memory is never
    // borrowed by Rust references.
    unsafe { call(Sysno::mmap, [addr.0, bytes, prot, flags, fd, offset]) }.map(GuestAddr)
}

/// Maps private anonymous memory exactly at `range`, if nothing is there.
pub fn map_anonymous(range: &Range<GuestAddr>, prot: u64, extra_flags: u64) -> Result<(), Errno> {
    map(MapRequest {
        addr: range.start,
        bytes: bytes(range),
        prot,
        flags: PRIVATE_ANONYMOUS | FIXED_NOREPLACE | extra_flags,
        fd: NO_FILE,
        offset: 0,
    })
    .and_then(|at| {
        if at == range.start {
            return Ok(());
        }
        // A kernel before 4.17 takes the address as a hint only.
        unmap(&(at..at.offset(bytes(range) as i64)))?;
        Err(Errno(libc::EEXIST))
    })
}

pub fn unmap(range: &Range<GuestAddr>) -> Result<(), Errno> {
    // SAFETY: the range is the guest's (the callers' obligation).
    unsafe { call(Sysno::munmap, [range.start.0, bytes(range), 0, 0, 0, 0]) }.map(drop)
}

/// `prot` may hold more than the three access bits (PROT_SEM). A `key` makes it pkey_mprotect.
pub fn protect(range: &Range<GuestAddr>, prot: u64, key: Option<u64>) -> Result<(), Errno> {
    let (start, len) = (range.start.0, bytes(range));
    // SAFETY: the range is the guest's (the callers' obligation).
    unsafe {
        match key {
            None => call(Sysno::mprotect, [start, len, prot, 0, 0, 0]),
            Some(key) => call(Sysno::pkey_mprotect, [start, len, prot, key, 0, 0]),
        }
    }
    .map(drop)
}

/// A call on a range that is wholly the guest's.
pub fn on_range(number: Sysno, range: &Range<GuestAddr>, rest: [u64; 4]) -> SyscallResult {
    let [a, b, c, d] = rest;
    // SAFETY: the range is the guest's (the callers' obligation).
    unsafe { call(number, [range.start.0, bytes(range), a, b, c, d]) }
}

/// mremap as given; source and target are the guest's or free (the callers' obligation).
pub fn remap(args: [u64; 5]) -> Result<GuestAddr, Errno> {
    let [old, old_bytes, new_bytes, flags, new] = args;
    // SAFETY: as above.
    unsafe { call(Sysno::mremap, [old, old_bytes, new_bytes, flags, new, 0]) }.map(GuestAddr)
}

/// True if nothing is mapped in `range`.
pub fn is_free(range: &Range<GuestAddr>) -> bool {
    map_anonymous(range, 0, libc::MAP_NORESERVE as u64).is_ok() && unmap(range).is_ok()
}
