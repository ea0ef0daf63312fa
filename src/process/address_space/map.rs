//! mmap and munmap.

use std::ffi::CString;
use std::ops::Range;
use std::sync::Arc;

use syscalls::Sysno;

use super::host_map::{self, MapRequest};
use super::low::{LARGEST_LOW, LOW_LIMIT, Placement};
use super::vma::{Attributes, Backing, FileKey, Prot, Role, VmaMap};
use super::{AddressSpace, page_range};
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::CodeControl;
use crate::host::syscall::{Errno, SyscallResult, call, raw};

const MAP_TYPE: u64 = 0xf;
const FIXED: u64 = libc::MAP_FIXED as u64;
const FIXED_NOREPLACE: u64 = libc::MAP_FIXED_NOREPLACE as u64;
const HUGE_SHIFT: u32 = 26;

impl AddressSpace {
    /// mmap(2), with executable memory and ELF files placed low unless the guest insists on
    /// an address.
    ///
    /// # Errors
    /// The kernel's; ENOMEM where the range is Temper's.
    pub fn mmap(&mut self, mut request: MapRequest, code: &mut dyn CodeControl) -> SyscallResult {
        if request.bytes == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let bytes = mapped_bytes(&request).ok_or(Errno(libc::ENOMEM))?;
        let mut prot = Prot::from_bits(request.prot);
        if self.read_implies_exec && prot.readable() {
            prot = prot.with_exec();
        }
        request.prot = (request.prot & !7) | prot.host();
        if self.lock_future {
            request.flags |= libc::MAP_LOCKED as u64;
        }
        let at = if request.has(libc::MAP_FIXED_NOREPLACE) {
            host_map::map(request)?
        } else if request.has(libc::MAP_FIXED) {
            self.map_fixed(request, bytes, code)?
        } else if self.belongs_low(&request, prot, bytes) {
            match self.map_low(request, bytes) {
                Ok(at) => at,
                Err(Errno(libc::ENOMEM)) if !request.has(libc::MAP_32BIT) => {
                    host_map::map(request)?
                }
                Err(error) => return Err(error),
            }
        } else {
            host_map::map(request)?
        };
        let range = at..at.offset(bytes as i64);
        let attributes = self.attributes(&request, prot);
        let writable_alias = attributes.shared && prot.writable();
        self.record(range.clone(), attributes);
        self.mapped_privately(&request, &range);
        if prot.executable() {
            self.announce_range(&range, code);
        }
        if writable_alias {
            self.alias_appears(range, code);
        }
        Ok(at.0)
    }

    fn map_fixed(
        &mut self,
        mut request: MapRequest,
        bytes: u64,
        code: &mut dyn CodeControl,
    ) -> Result<GuestAddr, Errno> {
        let range = page_range(request.addr.0, bytes, libc::ENOMEM)?;
        if self.map.within(range.clone()).is_empty() {
            request.flags = (request.flags & !FIXED) | FIXED_NOREPLACE;
            return host_map::map(request).map_err(|error| match error {
                Errno(libc::EEXIST) => Errno(libc::ENOMEM),
                other => other,
            });
        }
        let claim = self.claim(&range)?;
        match host_map::map(request) {
            Ok(at) => {
                self.code_changes(range, code);
                Ok(at)
            }
            Err(error) => {
                claim.undo();
                Err(error)
            }
        }
    }

    /// Code, and files that will hold code, belong below 2 GiB.
    fn belongs_low(&self, request: &MapRequest, prot: Prot, bytes: u64) -> bool {
        if request.has(libc::MAP_32BIT) || prot.executable() {
            return true;
        }
        let private_file = request.flags & MAP_TYPE == libc::MAP_PRIVATE as u64
            && !request.has(libc::MAP_ANONYMOUS);
        private_file
            && request.addr.0 == 0
            && bytes <= LARGEST_LOW
            && (request.has(libc::MAP_DENYWRITE) || is_elf_file(request.fd))
    }

    fn map_low(&mut self, mut request: MapRequest, bytes: u64) -> Result<GuestAddr, Errno> {
        let hint = request.addr.page();
        request.flags |= FIXED_NOREPLACE;
        if hint.0 != 0 && hint.0.saturating_add(bytes) <= LOW_LIMIT.0 {
            request.addr = hint;
            match host_map::map(request) {
                Err(Errno(libc::EEXIST | libc::EPERM)) => {}
                other => return other,
            }
        }
        let align = huge_page(&request).unwrap_or(PAGE_SIZE);
        let at = self.free_low(bytes, align)?;
        request.addr = at;
        host_map::map(request)
    }

    /// A free low range for `bytes` bytes of code; nothing is mapped there yet.
    ///
    /// # Errors
    /// ENOMEM when there is none.
    pub fn free_low(&mut self, bytes: u64, align: u64) -> Result<GuestAddr, Errno> {
        self.free_low_by(|placement, map| placement.library(map, bytes, align), bytes)
    }

    /// As [`AddressSpace::free_low`], for a position-independent program itself.
    ///
    /// # Errors
    /// ENOMEM when there is no room.
    pub fn free_low_image(&mut self, bytes: u64, align: u64) -> Result<GuestAddr, Errno> {
        self.free_low_by(|placement, map| placement.image(map, bytes, align), bytes)
    }

    fn free_low_by(
        &mut self,
        find: impl Fn(&Placement, &VmaMap) -> Option<GuestAddr>,
        bytes: u64,
    ) -> Result<GuestAddr, Errno> {
        // Only the guest's mappings are expected in the low range. Should the host hold
        // others there, they are stepped over.
        let mut foreign = Vec::new();
        let found = loop {
            let Some(at) = find(&self.placement, &self.map) else {
                break Err(Errno(libc::ENOMEM));
            };
            let range = at..at.offset(bytes as i64);
            if host_map::is_free(&range) {
                break Ok(at);
            }
            self.map
                .insert(range.clone(), Attributes::anonymous(Prot::NONE));
            foreign.push(range);
        };
        for range in foreign {
            self.map.remove(range);
        }
        found
    }

    fn attributes(&mut self, request: &MapRequest, prot: Prot) -> Attributes {
        let kind = request.flags & MAP_TYPE;
        let shared = kind == libc::MAP_SHARED as u64 || kind == libc::MAP_SHARED_VALIDATE as u64;
        let backing = if !request.has(libc::MAP_ANONYMOUS) {
            file_key(request.fd).map(|key| Backing {
                key,
                offset: request.offset,
                path: prot
                    .executable()
                    .then(|| descriptor_path(request.fd))
                    .flatten()
                    .map(Arc::new),
            })
        } else if shared {
            Some(self.anonymous_backing())
        } else {
            None
        };
        Attributes {
            prot,
            shared,
            grows_down: request.has(libc::MAP_GROWSDOWN),
            role: Role::Plain,
            backing,
        }
    }

    /// A fresh identity for shared anonymous memory, which mremap can map twice.
    fn anonymous_backing(&mut self) -> Backing {
        let inode = self.next_anonymous_key;
        self.next_anonymous_key += 1;
        Backing {
            key: FileKey {
                dev: FileKey::DEV_ANONYMOUS,
                inode,
            },
            offset: 0,
            path: None,
        }
    }

    /// munmap(2). Temper's mappings inside the range are not the guest's and stay.
    ///
    /// # Errors
    /// The kernel's.
    pub fn munmap(&mut self, addr: u64, bytes: u64, code: &mut dyn CodeControl) -> SyscallResult {
        if bytes == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let range = page_range(addr, bytes, libc::EINVAL)?;
        self.sync_grown_stacks();
        for part in mapped_parts(self, &range) {
            host_map::unmap(&part)?;
            self.code_changes(part.clone(), code);
            self.map.remove(part);
        }
        Ok(0)
    }

    /// Maps what is already on the host into the guest's view (what the loader made).
    pub fn adopt(&mut self, range: Range<GuestAddr>, attributes: Attributes) {
        self.record(range, attributes);
    }

    /// Makes a reservation that starts at `start` the guest stack: `mapped` at its top is
    /// usable, and the guest sees nothing of what lies below. The lowest `guard` bytes never
    /// become stack.
    ///
    /// # Errors
    /// What the host said.
    pub fn adopt_stack(
        &mut self,
        start: GuestAddr,
        mapped: Range<GuestAddr>,
        guard: u64,
        prot: Prot,
    ) -> Result<(), Errno> {
        host_map::protect(&mapped, prot.host(), None)?;
        // Stacks that the kernel grows have no huge pages either; a refusal costs memory only.
        let advice = [libc::MADV_NOHUGEPAGE as u64, 0, 0, 0];
        let _ = host_map::on_range(Sysno::madvise, &mapped, advice);
        let mut attributes = Attributes::anonymous(prot);
        attributes.role = Role::Stack;
        self.map.remove(start..mapped.end);
        self.stack_reserve = start.offset(guard as i64)..mapped.start;
        self.record(mapped, attributes);
        Ok(())
    }

    /// The guest raised RLIMIT_STACK to `limit` bytes: its stack may now grow to that.
    pub fn grow_stack(&mut self, limit: u64) {
        let reserve = self.stack_reserve.clone();
        let Some(stack) = self.map.find(reserve.end) else {
            return;
        };
        let wanted = GuestAddr(stack.range.end.0.saturating_sub(limit)).page();
        let start = wanted.max(reserve.start);
        if start >= reserve.end {
            return;
        }
        let grown = start..reserve.end;
        if host_map::protect(&grown, stack.attributes.prot.host(), None).is_ok() {
            self.map.insert(grown, stack.attributes);
            self.stack_reserve.end = start;
        }
    }

    /// MAP_GROWSDOWN mappings grow without a system call; this learns of it.
    pub(super) fn sync_grown_stacks(&mut self) {
        if !self.any_grows_down {
            return;
        }
        let growing: Vec<_> = self
            .map
            .iter()
            .filter(|vma| vma.attributes.grows_down)
            .collect();
        if growing.is_empty() {
            return;
        }
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
            return;
        };
        for vma in growing {
            let lowest = maps.lines().find_map(|line| {
                let (start, rest) = line.split_once('-')?;
                let (end, _) = rest.split_once(' ')?;
                let start = u64::from_str_radix(start, 16).ok()?;
                let end = u64::from_str_radix(end, 16).ok()?;
                (start..end).contains(&vma.range.start.0).then_some(start)
            });
            if let Some(start) = lowest.map(GuestAddr).filter(|s| *s < vma.range.start) {
                self.map.insert(start..vma.range.start, vma.attributes);
            }
        }
    }
}

/// The guest's mappings inside `range`, joined where they touch.
pub(super) fn mapped_parts(
    space: &AddressSpace,
    range: &Range<GuestAddr>,
) -> Vec<Range<GuestAddr>> {
    let mut parts: Vec<Range<GuestAddr>> = Vec::new();
    for vma in space.map.within(range.clone()) {
        match parts.last_mut() {
            Some(last) if last.end == vma.range.start => last.end = vma.range.end,
            _ => parts.push(vma.range),
        }
    }
    parts
}

fn huge_page(request: &MapRequest) -> Option<u64> {
    request
        .has(libc::MAP_HUGETLB)
        .then(|| match (request.flags >> HUGE_SHIFT) & 63 {
            0 => 2 << 20,
            shift => 1 << shift,
        })
}

/// How many bytes the kernel will map; `None` past the top of the address space.
fn mapped_bytes(request: &MapRequest) -> Option<u64> {
    let unit = huge_page(request).unwrap_or(PAGE_SIZE);
    let bytes = request.bytes.checked_next_multiple_of(unit)?;
    (bytes <= 1 << 47).then_some(bytes)
}

/// Which file a descriptor is open on.
pub fn file_key(fd: u64) -> Option<FileKey> {
    // SAFETY: an all-zero stat is a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let buffer = (&raw mut stat) as u64;
    // SAFETY: the kernel writes one stat structure into ours.
    unsafe { call(Sysno::fstat, [fd, buffer, 0, 0, 0, 0]) }.ok()?;
    Some(FileKey {
        dev: stat.st_dev,
        inode: stat.st_ino,
    })
}

fn is_elf_file(fd: u64) -> bool {
    let mut magic = [0u8; 4];
    let buffer = magic.as_mut_ptr() as u64;
    // SAFETY: the kernel writes at most four bytes into ours.
    let read = unsafe { raw(Sysno::pread64.id() as u64, [fd, buffer, 4, 0, 0, 0]) };
    read == 4 && &magic == b"\x7fELF"
}

/// The path that /proc shows for a descriptor.
pub fn descriptor_path(fd: u64) -> Option<CString> {
    let link = CString::new(format!("/proc/self/fd/{}", fd as i32)).ok()?;
    let mut buffer = vec![0u8; libc::PATH_MAX as usize];
    let args = [
        link.as_ptr() as u64,
        buffer.as_mut_ptr() as u64,
        buffer.len() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the path is a C string, the kernel writes at most the buffer's length.
    let len = unsafe { call(Sysno::readlink, args) }.ok()? as usize;
    buffer.truncate(len);
    CString::new(buffer).ok()
}
