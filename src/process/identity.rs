//! Who the guest is to itself and to others: its executable, its arguments as /proc shows
//! them, its name in ps.

use std::ffi::{CString, OsStr};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use syscalls::Sysno;

use super::procfs::host_maps;
use super::stack::StackLayout;
use crate::addr::GuestAddr;
use crate::host::syscall::call;

/// What /proc shows of the guest.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The path that /proc/self/exe leads to.
    pub exe: CString,
    pub args: Range<GuestAddr>,
    pub env: Range<GuestAddr>,
    pub auxv: Vec<u8>,
    /// The kernel's own cmdline, environ and auxv show the guest's.
    pub kernel_agrees: bool,
    /// personality(2) as the guest set it.
    pub personality: u64,
}

impl Identity {
    pub fn new(exe: CString, stack: &StackLayout, personality: u64) -> Identity {
        let auxv = stack
            .auxv
            .iter()
            .flatten()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        Identity {
            exe,
            args: stack.args.clone(),
            env: stack.env.clone(),
            auxv,
            kernel_agrees: false,
            personality,
        }
    }

    /// Tells the kernel, so that ps and others see the guest: the thread's name, and where
    /// arguments, environment and auxiliary vector are. Refusals are harmless.
    pub fn announce(&mut self, name: &OsStr, stack: GuestAddr) {
        if let Ok(name) = CString::new(name.as_bytes()) {
            let args = [libc::PR_SET_NAME as u64, name.as_ptr() as u64, 0, 0, 0, 0];
            // SAFETY: a C string; the kernel copies at most 16 bytes.
            let _ = unsafe { call(Sysno::prctl, args) };
        }
        self.kernel_agrees = self.set_memory_map(stack).is_some();
    }

    fn set_memory_map(&self, stack: GuestAddr) -> Option<()> {
        let stat = host_maps::read("/proc/self/stat").ok()?;
        // The name in parentheses may hold anything; fields are counted from behind it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // proc(5) numbers fields from 1; the first one here is number 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        // The break stays Temper's: its C library uses it.
        // SAFETY: an impossible break changes nothing and returns the current one.
        let brk = unsafe { call(Sysno::brk, [0; 6]) }.ok()?;
        let map = PrctlMemoryMap {
            start_code: field(26)?,
            end_code: field(27)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            brk,
            start_stack: stack.0,
            arg_start: self.args.start.0,
            arg_end: self.args.end.0,
            env_start: self.env.start.0,
            env_end: self.env.end.0,
            auxv: self.auxv.as_ptr() as u64,
            auxv_bytes: self.auxv.len() as u32,
            exe_fd: u32::MAX,
        };
        let args = [
            libc::PR_SET_MM as u64,
            libc::PR_SET_MM_MAP as u64,
            (&raw const map) as u64,
            size_of::<PrctlMemoryMap>() as u64,
            0,
            0,
        ];
        // SAFETY: the kernel reads the structure and the vector, both alive, and changes
        // nothing but what /proc shows.
        unsafe { call(Sysno::prctl, args) }.ok().map(drop)
    }
}

/// struct prctl_mm_map (include/uapi/linux/prctl.h).
#[repr(C)]
struct PrctlMemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_bytes: u32,
    exe_fd: u32,
}
