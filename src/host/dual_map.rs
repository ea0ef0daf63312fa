//! Executable memory that is never writable and executable at the same address: one memfd
//! mapped twice, read-write in one place and read-execute in another. The descriptor is
//! closed once both views stand, so the guest can't reach it.

use crate::addr::HostAddr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// A memfd with a writable and an executable view. Dropping it unmaps both.
#[derive(Debug)]
pub struct DualMap {
    write: *mut u8,
    exec: HostAddr,
    len: usize,
}

// SAFETY: the views belong to this value alone; sharing it grants only raw addresses.
unsafe impl Send for DualMap {}
// SAFETY: as above; writes go through `write_at(&mut self)` or raw pointers with their own rules.
unsafe impl Sync for DualMap {}

impl DualMap {
    /// Maps `len` bytes (rounded up to pages). `exec_at` fixes the executable view's
    /// address (it must be free); `None` leaves it to the kernel.
    ///
    /// # Errors
    /// The kernel's, as when memfds may not be executable or `exec_at` is taken.
    pub fn new(len: usize, exec_at: Option<HostAddr>) -> io::Result<DualMap> {
        let len = len.next_multiple_of(4096);
        if file_size_limit() < len as u64 {
            return DualMap::without_file(len, exec_at);
        }
        let file = create_memfd(len)?;
        let fd = file.as_raw_fd();
        let map = |addr: u64, prot, extra| {
            // SAFETY: a fresh shared mapping of our own memfd; MAP_FIXED_NOREPLACE never
            // replaces what is there.
            let at =
                unsafe { libc::mmap(addr as *mut _, len, prot, libc::MAP_SHARED | extra, fd, 0) };
            if at == libc::MAP_FAILED {
                Err(io::Error::last_os_error())
            } else {
                Ok(at)
            }
        };
        let (want, extra) = match exec_at {
            Some(at) => (at.0, libc::MAP_FIXED_NOREPLACE),
            None => (0, 0),
        };
        let result = map(want, libc::PROT_READ | libc::PROT_EXEC, extra).and_then(|exec| {
            map(0, libc::PROT_READ | libc::PROT_WRITE, 0)
                .map(|write| (exec, write))
                .inspect_err(|_| {
                    // SAFETY: just mapped by us, nobody has seen it.
                    unsafe { libc::munmap(exec, len) };
                })
        });
        // The mappings keep the file alive.
        let (exec, write) = result?;
        let map = DualMap {
            write: write.cast(),
            exec: HostAddr(exec as u64),
            len,
        };
        map.leave_out_of_core_files();
        Ok(map)
    }

    /// A core file is about the program, and dumping would fill every page of the memory.
    fn leave_out_of_core_files(&self) {
        for view in [self.write.cast(), self.exec.0 as *mut libc::c_void] {
            // SAFETY: our own mapping, whose content stays as it is.
            unsafe { libc::madvise(view, self.len, libc::MADV_DONTDUMP) };
        }
    }

    /// A limit on the size of files forbids a memfd (SIGXFSZ at its ftruncate), but not
    /// shared anonymous memory, of which mremap(2) with an old size of 0 makes a second view.
    fn without_file(len: usize, exec_at: Option<HostAddr>) -> io::Result<DualMap> {
        let map = |addr: u64, prot, flags| {
            // SAFETY: fresh anonymous memory; MAP_FIXED_NOREPLACE never replaces what is there.
            let at = unsafe { libc::mmap(addr as *mut _, len, prot, flags, -1, 0) };
            if at == libc::MAP_FAILED {
                Err(io::Error::last_os_error())
            } else {
                Ok(at)
            }
        };
        let (want, fixed) = match exec_at {
            Some(at) => (at.0, libc::MAP_FIXED_NOREPLACE),
            None => (0, 0),
        };
        let place = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
        let exec = map(want, libc::PROT_NONE, place)?;
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let write = map(0, libc::PROT_READ | libc::PROT_WRITE, shared).inspect_err(|_| {
            // SAFETY: just mapped by us, nobody has seen it.
            unsafe { libc::munmap(exec, len) };
        })?;
        let map = DualMap {
            write: write.cast(),
            exec: HostAddr(exec as u64),
            len,
        };
        map.show_as_executable()?;
        Ok(map)
    }

    /// Makes the executable view one of the same (anonymous, shared) memory as the writable.
    fn show_as_executable(&self) -> io::Result<()> {
        let exec = self.exec.0 as *mut libc::c_void;
        // SAFETY: replaces our own view, in which nobody runs; it is executable only once it
        // is no longer writable.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(self.write.cast(), 0, self.len, flags, exec) != libc::MAP_FAILED
                && libc::mprotect(exec, self.len, libc::PROT_READ | libc::PROT_EXEC) == 0
        };
        if moved {
            self.leave_out_of_core_files();
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Bytes in each view.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where byte `offset` is executed.
    pub fn exec_addr(&self, offset: usize) -> HostAddr {
        debug_assert!(offset <= self.len);
        self.exec.offset(offset as i64)
    }

    /// Where byte `offset` is written.
    pub fn write_ptr(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len);
        // SAFETY: within the mapping (or one past its end).
        unsafe { self.write.add(offset) }
    }

    /// The offset of an executable address in this map, if it lies inside.
    pub fn offset_of(&self, addr: HostAddr) -> Option<usize> {
        let offset = addr.0.wrapping_sub(self.exec.0);
        (offset < self.len as u64).then_some(offset as usize)
    }

    /// Makes `range` of the executable view executable, or takes all access to it away: a
    /// thread that runs there faults at its next instruction.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_executable(&self, range: Range<usize>, executable: bool) -> io::Result<()> {
        assert!(range.end <= self.len);
        let prot = if executable {
            libc::PROT_READ | libc::PROT_EXEC
        } else {
            libc::PROT_NONE
        };
        let at = self.exec_addr(range.start).0 as *mut _;
        // SAFETY: within our own view.
        if unsafe { libc::mprotect(at, range.end - range.start, prot) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Copies `bytes` to `offset`. Panics when they don't fit.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        // SAFETY: bounds checked above; the source is a Rust slice, never this mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.write.add(offset), bytes.len());
        }
    }
}

impl Drop for DualMap {
    fn drop(&mut self) {
        // SAFETY: both views are ours and nobody runs in or writes to them any more (the
        // owner's obligation).
        unsafe {
            libc::munmap(self.write.cast(), self.len);
            libc::munmap(self.exec.0 as *mut _, self.len);
        }
    }
}

/// A [`DualMap`]'s bytes in memory of their own, for a process that is about to be forked:
/// the views would be shared with it.
#[derive(Debug)]
pub enum DualMapCopy {
    /// 0.4 ms a MiB (page faults cost twice that), but it takes a descriptor.
    File(File),
    Anonymous(AnonymousCopy),
}

/// Shared anonymous memory; dropping it unmaps it.
#[derive(Debug)]
pub struct AnonymousCopy {
    at: *mut libc::c_void,
    len: usize,
}

impl Drop for AnonymousCopy {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

impl DualMap {
    /// Copies the bytes in `used`; those between read as zero.
    ///
    /// # Errors
    /// The kernel's: no memory.
    pub fn copy(&self, used: &[Range<usize>]) -> io::Result<DualMapCopy> {
        if file_size_limit() >= self.len as u64
            && let Ok(file) = create_memfd(self.len)
        {
            for range in used {
                file.write_all_at(self.bytes(range), range.start as u64)?;
            }
            return Ok(DualMapCopy::File(file));
        }
        self.copy_without_file(used)
    }

    fn copy_without_file(&self, used: &[Range<usize>]) -> io::Result<DualMapCopy> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: fresh anonymous memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), self.len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let copy = AnonymousCopy { at, len: self.len };
        for range in used {
            let bytes = self.bytes(range);
            // SAFETY: the mapping is as long as the map, and nobody else has it.
            unsafe {
                let to = at.cast::<u8>().add(range.start);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            }
        }
        Ok(DualMapCopy::Anonymous(copy))
    }

    fn bytes(&self, range: &Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: within the mapping; writes to it need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.write.add(range.start), range.len()) }
    }

    /// Shows `copy`, which was made of this map, in both views from now on.
    ///
    /// # Errors
    /// The kernel's; the views may be gone then.
    pub fn show(&mut self, copy: DualMapCopy) -> io::Result<()> {
        match copy {
            DualMapCopy::File(file) => {
                let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
                let show = |at: *mut libc::c_void, prot| {
                    // SAFETY: replaces our own view, in which nobody runs.
                    let shown =
                        unsafe { libc::mmap(at, self.len, prot, fixed, file.as_raw_fd(), 0) };
                    if shown == libc::MAP_FAILED {
                        Err(io::Error::last_os_error())
                    } else {
                        Ok(())
                    }
                };
                show(self.write.cast(), libc::PROT_READ | libc::PROT_WRITE)?;
                show(self.exec.0 as *mut _, libc::PROT_READ | libc::PROT_EXEC)?;
                self.leave_out_of_core_files();
                Ok(())
            }
            DualMapCopy::Anonymous(copy) => {
                let copy = std::mem::ManuallyDrop::new(copy);
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                // SAFETY: moves the copy's mapping over our own view.
                let moved = unsafe { libc::mremap(copy.at, copy.len, self.len, flags, self.write) };
                if moved == libc::MAP_FAILED {
                    return Err(io::Error::last_os_error());
                }
                self.show_as_executable()
            }
        }
    }
}

fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the kernel writes our structure.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    limit.rlim_cur
}

fn create_memfd(len: usize) -> io::Result<File> {
    let file = memfd()?;
    file.set_len(len as u64)?;
    Ok(file)
}

fn memfd() -> io::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let name = c"temper-code";
    // SAFETY: a valid C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | MFD_EXEC) };
    if fd >= 0 {
        // SAFETY: just made.
        return Ok(unsafe { File::from_raw_fd(fd) });
    }
    // Kernels before 6.3 don't know MFD_EXEC and always make executable memfds.
    // SAFETY: as above.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: as above.
        Ok(unsafe { File::from_raw_fd(fd) })
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_written_through_one_view_runs_in_the_other() {
        runs_code(DualMap::new(4096, None).expect("dual map"));
        runs_code(DualMap::without_file(4096, None).expect("dual map"));
    }

    #[test]
    fn a_copy_is_another_memory() {
        for without_file in [false, true] {
            let mut map = DualMap::new(8192, None).expect("dual map");
            map.write_at(4000, b"before");
            let used = std::slice::from_ref(&(4000..4006));
            let copy = if without_file {
                map.copy_without_file(used)
            } else {
                map.copy(used)
            };
            map.write_at(4000, b"parent");
            map.show(copy.expect("a copy")).expect("shown");
            let executable = map.exec_addr(4000).0 as *const u8;
            // SAFETY: the executable view is readable.
            let seen = unsafe { std::slice::from_raw_parts(executable, 6) };
            assert_eq!(seen, b"before");
            runs_code(map);
        }
    }

    fn runs_code(mut map: DualMap) {
        // mov eax, 42; ret
        map.write_at(16, &[0xb8, 42, 0, 0, 0, 0xc3]);
        // SAFETY: the bytes above are a complete function.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(map.exec_addr(16).0) };
        assert_eq!(f(), 42);
    }
}
