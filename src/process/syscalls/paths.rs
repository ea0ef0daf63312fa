//! Calls with a path: /proc files about this process show the guest.

use ::syscalls::Sysno;

use super::{Call, Ending};
use crate::addr::GuestAddr;
use crate::guest::{GuestMemory, Width};
use crate::host::syscall::{Errno, SyscallResult};
use crate::process::Process;
use crate::process::procfs::{self, ProcFile};
use crate::process::thread::ThreadState;

const AT_FDCWD: u64 = libc::AT_FDCWD as u32 as u64;

impl Process {
    pub(super) fn path_call(&mut self, sysno: Sysno, call: Call, thread: &ThreadState) -> Ending {
        let [a, b, ..] = call.args;
        let (folder, path) = match sysno {
            Sysno::open | Sysno::stat | Sysno::access | Sysno::readlink => (AT_FDCWD, a),
            _ => (a, b),
        };
        let Some(file) = self.proc_file(folder, path) else {
            return call.pass_blocking(call.args);
        };
        self.proc_call(sysno, call, file, thread).into()
    }

    fn proc_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        file: ProcFile,
        thread: &ThreadState,
    ) -> SyscallResult {
        let [_, b, c, d, ..] = call.args;
        let no_follow = libc::AT_SYMLINK_NOFOLLOW as u64;
        match sysno {
            Sysno::readlink if file == ProcFile::Exe => self.read_exe_link(b, c, thread),
            Sysno::readlinkat if file == ProcFile::Exe => self.read_exe_link(c, d, thread),
            Sysno::readlink | Sysno::readlinkat => call.pass(call.args),
            Sysno::open => self.open_proc(call, file, Some(b), 0, thread),
            Sysno::openat => self.open_proc(call, file, Some(c), 1, thread),
            Sysno::openat2 => {
                let flags = self.memory.load(GuestAddr(c), Width::B8).ok();
                self.open_proc(call, file, flags, 1, thread)
            }
            Sysno::stat | Sysno::access if file == ProcFile::Exe => self.with_exe(call, 0, thread),
            Sysno::newfstatat if file == ProcFile::Exe && d & no_follow == 0 => {
                self.with_exe(call, 1, thread)
            }
            Sysno::statx if file == ProcFile::Exe && c & no_follow == 0 => {
                self.with_exe(call, 1, thread)
            }
            Sysno::faccessat if file == ProcFile::Exe => self.with_exe(call, 1, thread),
            Sysno::faccessat2 if file == ProcFile::Exe && d & no_follow == 0 => {
                self.with_exe(call, 1, thread)
            }
            _ => call.pass(call.args),
        }
    }

    /// Which file about this process a path leads to, if any. Most calls are done after
    /// a look at six bytes.
    pub(super) fn proc_file(&mut self, folder: u64, path: u64) -> Option<ProcFile> {
        let (memory, _) = self.memory.parts();
        procfs::recognize(memory, folder as i32, GuestAddr(path))
    }

    /// The same call with the guest's program in place of the path in argument `index`.
    fn with_exe(&self, call: Call, index: usize, thread: &ThreadState) -> SyscallResult {
        let mut args = call.args;
        args[index] = self.records.of(thread).identity.exe.as_ptr() as u64;
        call.pass(args)
    }

    fn read_exe_link(&mut self, buffer: u64, bytes: u64, thread: &ThreadState) -> SyscallResult {
        let bytes = bytes as i32;
        if bytes <= 0 {
            return Err(Errno(libc::EINVAL));
        }
        let path = self.records.of(thread).identity.exe.as_bytes();
        let len = path.len().min(bytes as usize);
        let (memory, _) = self.memory.parts();
        memory
            .write_bytes(GuestAddr(buffer), &path[..len])
            .map_err(|_| Errno(libc::EFAULT))?;
        Ok(len as u64)
    }

    /// `flags` are open(2)'s; `index` is the path's argument.
    fn open_proc(
        &mut self,
        call: Call,
        file: ProcFile,
        flags: Option<u64>,
        index: usize,
        thread: &ThreadState,
    ) -> SyscallResult {
        let Some(flags) = flags.map(|flags| flags as i32) else {
            return call.pass(call.args);
        };
        let special = libc::O_PATH | libc::O_DIRECTORY | libc::O_CREAT;
        if file == ProcFile::Exe {
            if flags & libc::O_NOFOLLOW != 0 {
                return call.pass(call.args);
            }
            return self.with_exe(call, index, thread);
        }
        if flags & special != 0 || flags & libc::O_ACCMODE != libc::O_RDONLY {
            return call.pass(call.args);
        }
        let identity = &self.records.of(thread).identity;
        let (memory, space) = self.memory.parts();
        let seccomp = &thread.seccomp.get();
        match procfs::contents(file, space.map(), identity, seccomp, memory) {
            Some(contents) => procfs::serve(file, &contents, flags & libc::O_CLOEXEC != 0),
            None => call.pass(call.args),
        }
    }
}
