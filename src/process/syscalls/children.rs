//! Children and other programs: not supported yet, which is said once a call.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ::syscalls::Sysno;

use super::Call;
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, ThreadContext};
use crate::host::syscall::{Errno, SyscallResult};
use crate::process::Process;
use crate::process::elf::{LoadError, check};
use crate::process::memory::read_c_string;
use crate::process::notice::Notice;
use crate::process::thread::ThreadState;

impl Process {
    pub(super) fn child_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        if matches!(sysno, Sysno::clone | Sysno::clone3) {
            return self.clone_call(sysno, call, thread, ctx, code);
        }
        if sysno == Sysno::execve {
            self.check_executable(call.args[0])?;
        }
        self.not_supported(sysno.name(), libc::ENOSYS, thread)
    }

    /// Says that `call` isn't supported, and what it fails with.
    pub(super) fn not_supported(
        &mut self,
        call: &'static str,
        errno: i32,
        thread: &ThreadState,
    ) -> SyscallResult {
        let notices = &mut self.records.of_mut(thread).notices;
        notices.give(Notice::Unsupported { call, errno });
        Err(Errno(errno))
    }

    /// Programs look for others along PATH by trying: what isn't there is no news.
    fn check_executable(&mut self, path: u64) -> Result<(), Errno> {
        let (memory, _) = self.memory.parts();
        let path = read_c_string(memory, GuestAddr(path), libc::PATH_MAX as usize)
            .ok_or(Errno(libc::EFAULT))?;
        match check(Path::new(OsStr::from_bytes(&path))) {
            Err(LoadError::NotFound(_)) => Err(Errno(libc::ENOENT)),
            Err(LoadError::NotPermitted(_)) => Err(Errno(libc::EACCES)),
            Err(LoadError::Unreadable { errno, .. }) => Err(errno),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
