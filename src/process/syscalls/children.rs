//! Threads and children: not supported yet, which is said once a call. Other programs: the
//! calls' arguments are read here, [`crate::process::exec`] does the rest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use ::syscalls::Sysno;

use super::{Call, Ending};
use crate::guest::{CodeControl, ThreadContext};
use crate::host::syscall::{Errno, SyscallResult};
use crate::process::Process;
use crate::process::elf::{Executable, LoadError};
use crate::process::exec::{Request, read_path, read_vector};
use crate::process::notice::Notice;
use crate::process::procfs::ProcFile;
use crate::process::signals::Outcome;

/// AT_EXECVE_CHECK (Linux 6.14): whether the file could be executed, and no more.
const CHECK_ONLY: u64 = 0x1_0000;

impl Process {
    pub(super) fn child_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        let [a, b, c, d, e, _] = call.args;
        let request = match sysno {
            Sysno::execve => self.exec_request(call, libc::AT_FDCWD, [a, b, c], 0),
            Sysno::execveat if e & CHECK_ONLY != 0 => return call.pass(call.args).into(),
            Sysno::execveat => self.exec_request(call, a as i32, [b, c, d], e as u32),
            _ => return self.not_supported(sysno, libc::ENOSYS).into(),
        };
        let request = request.and_then(|request| self.examine(&request).map(|()| request));
        match request {
            Ok(request) => self.execute(i64::from(call.number), request, ctx, code),
            Err(errno) => Err(errno).into(),
        }
    }

    fn execute(
        &mut self,
        number: i64,
        request: Request,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        code.keep_learned();
        let mask = match self.with_signals(ctx, code, |signals| signals.before_exec(number)) {
            Ok(mask) => mask,
            Err(Outcome::Action(action)) => return Ending::Action(action),
            Err(Outcome::Return(result)) => return crate::host::syscall::decode(result).into(),
        };
        let errno = self.replace(request, mask);
        self.with_signals(ctx, code, |signals| signals.after_failed_exec());
        Err(errno).into()
    }

    /// `pointers` are to the path, the arguments and the environment.
    fn exec_request(
        &mut self,
        call: Call,
        folder: i32,
        pointers: [u64; 3],
        flags: u32,
    ) -> Result<Request, Errno> {
        let [path_at, arguments, environment] = pointers;
        let exe = self.proc_file(folder as u64, path_at) == Some(ProcFile::Exe);
        let (memory, _) = self.memory.parts();
        let path = read_path(memory, path_at)?;
        let opened = if exe {
            // Ours would be Temper.
            Executable::open_at(libc::AT_FDCWD, &self.identity.exe, 0).map(|opened| Executable {
                name: OsStr::from_bytes(path.to_bytes()).into(),
                ..opened
            })
        } else {
            Executable::open_at(folder, &path, flags)
        };
        let executable = opened.map_err(|error: LoadError| {
            if error.is_tempers() {
                self.notices.give(Notice::Refused(error.to_string()));
            }
            tracing::debug!(target: "temper::process", call = call.number, %error, "not executed");
            error.errno()
        })?;
        let (memory, _) = self.memory.parts();
        Ok(Request {
            executable,
            arguments: read_vector(memory, arguments)?,
            environment: read_vector(memory, environment)?,
        })
    }

    /// Says that `call` isn't supported, and what it fails with.
    pub(super) fn not_supported(&mut self, sysno: Sysno, errno: i32) -> SyscallResult {
        self.notices.give(Notice::Unsupported {
            call: sysno.name(),
            errno,
        });
        Err(Errno(errno))
    }
}
