//! Asks the kernel what it would grant, by trying and undoing it: for `temper doctor`.
//! Nothing here is needed to run a guest.

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::addr::HostAddr;

/// Whether address space at `range` can be reserved: `Ok` if it is free and granted.
///
/// # Errors
/// EEXIST when something is there already, ENOMEM when limits forbid it.
pub fn reserve(range: Range<HostAddr>) -> io::Result<()> {
    let len = (range.end.0 - range.start.0) as usize;
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // The protection is the one that will be used: an overcommit limit counts only
    // private writable pages.
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping.
    let at = unsafe { libc::mmap(range.start.0 as *mut _, len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: mapped just above, and nobody else knows of it.
    unsafe { libc::munmap(at, len) };
    if at as u64 == range.start.0 {
        Ok(())
    } else {
        // Kernels before 4.17 take the address as a hint.
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    }
}

/// Opens /dev/kvm and creates (and drops) a machine; gives the API version.
///
/// # Errors
/// The kernel's: no such device, no permission, no hardware support.
pub fn kvm() -> io::Result<i32> {
    // linux/kvm.h: _IO(0xAE, 0x00) and _IO(0xAE, 0x01).
    const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let request = |code, argument: libc::c_ulong| {
        // SAFETY: both requests take a number, not a pointer.
        match unsafe { libc::ioctl(device.as_raw_fd(), code, argument) } {
            result if result < 0 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    };
    let version = request(KVM_GET_API_VERSION, 0)?;
    let machine = request(KVM_CREATE_VM, 0)?;
    // SAFETY: a descriptor that the kernel just gave to us.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(version)
}

/// Opens (and closes) a hardware cycle counter for this thread's user code.
///
/// # Errors
/// EACCES where perf_event_paranoid forbids it, ENOENT without a hardware counter.
pub fn cycle_counter() -> io::Result<()> {
    // linux/perf_event.h, struct perf_event_attr as of PERF_ATTR_SIZE_VER0 (64 bytes):
    // type PERF_TYPE_HARDWARE and config PERF_COUNT_HW_CPU_CYCLES are both 0.
    const SIZE_VER0: u32 = 64;
    const DISABLED_NO_KERNEL_NO_HYPERVISOR: u64 = 1 | 1 << 5 | 1 << 6;
    let mut attributes = [0u64; 8];
    attributes[0] = u64::from(SIZE_VER0) << 32;
    attributes[5] = DISABLED_NO_KERNEL_NO_HYPERVISOR;
    // SAFETY: the attributes are 64 bytes as their size field says; the kernel only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_ptr(),
            0,
            -1,
            -1,
            0u64,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just gave to us.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

/// Whether membarrier(2) can order other threads' accesses at once (PRIVATE_EXPEDITED).
///
/// # Errors
/// The kernel's, where it doesn't know the call.
pub fn membarrier_private() -> io::Result<bool> {
    const QUERY: i32 = 0;
    const PRIVATE_EXPEDITED: i64 = 1 << 3;
    // SAFETY: a query without pointers.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, QUERY, 0, 0) };
    if commands < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(commands & PRIVATE_EXPEDITED != 0)
}

/// How often the calling thread lost its CPU, by its own doing or not (getrusage(2)).
pub fn context_switches() -> u64 {
    // SAFETY: plain data, filled in by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage
    };
    (usage.ru_nvcsw + usage.ru_nivcsw) as u64
}

/// The largest resident set of this process so far, in bytes (getrusage(2)).
pub fn peak_memory() -> u64 {
    // SAFETY: plain data, filled in by the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}
