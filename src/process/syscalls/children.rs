//! Children and other programs: the calls' arguments are read here; [`crate::process::exec`],
//! [`crate::process::fork`] and [`crate::process::share`] do the rest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use ::syscalls::Sysno;

use super::clone::CloneRequest;
use super::{After, Call, Ending};
use crate::guest::{CodeControl, EnvAction, ThreadContext};
use crate::host::syscall::{Errno, SyscallResult};
use crate::process::Process;
use crate::process::elf::{Executable, LoadError};
use crate::process::exec::{Request, read_path, read_vector};
use crate::process::notice::Notice;
use crate::process::procfs::ProcFile;
use crate::process::thread::ThreadState;

/// AT_EXECVE_CHECK (Linux 6.14): whether the file could be executed, and no more.
const CHECK_ONLY: u64 = 0x1_0000;

impl Process {
    pub(super) fn child_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        let [a, b, c, d, e, _] = call.args;
        let request = match sysno {
            Sysno::execve => self.exec_request(libc::AT_FDCWD, [a, b, c], 0, thread),
            Sysno::execveat if e & CHECK_ONLY != 0 => return call.pass(call.args).into(),
            Sysno::execveat => self.exec_request(a as i32, [b, c, d], e as u32, thread),
            Sysno::fork => {
                return self.make_child(CloneRequest::fork(), thread, ctx, code);
            }
            Sysno::vfork => {
                return self.make_child(CloneRequest::vfork(), thread, ctx, code);
            }
            _ => return self.clone_call(sysno, call, thread, ctx, code),
        };
        match request.and_then(|request| self.examined(request, thread)) {
            Ok(request) => self.execute(request, thread, ctx, code),
            Err(errno) => Err(errno).into(),
        }
    }

    /// A child that isn't a thread.
    pub(super) fn make_child(
        &mut self,
        request: CloneRequest,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        let shares = request.has(libc::CLONE_VM);
        if shares && !request.has(libc::CLONE_VFORK) {
            let name = "clone with CLONE_VM but neither CLONE_THREAD nor CLONE_VFORK";
            return self.not_supported(name, libc::ENOSYS, thread).into();
        }
        for output in request.outputs() {
            let space = &mut self.memory.space;
            space.prepare_write(output..output.offset(4), code);
        }
        // A signal that came before the child is the parent's alone.
        let blocked = self.with_signals(thread, ctx, code, |signals| signals.before_child());
        if let Err(outcome) = blocked {
            return outcome.into();
        }
        let request = thread.cloning.insert(Box::new(request));
        Ending::Action(if shares {
            EnvAction::Share
        } else {
            EnvAction::Fork(request.host_call(None))
        })
    }

    fn execute(
        &mut self,
        request: Request,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        if !self.records.of(thread).shares_memory {
            code.keep_learned();
        }
        match self.with_signals(thread, ctx, code, |signals| signals.before_exec()) {
            Ok(mask) => Ending::Call {
                call: self.exec_call(request, mask, thread),
                after: After::Exec,
            },
            Err(outcome) => outcome.into(),
        }
    }

    /// `pointers` are to the path, the arguments and the environment.
    fn exec_request(
        &mut self,
        folder: i32,
        pointers: [u64; 3],
        flags: u32,
        thread: &ThreadState,
    ) -> Result<Request, Errno> {
        let [path_at, arguments, environment] = pointers;
        let exe = self.proc_file(folder as u64, path_at) == Some(ProcFile::Exe);
        let (memory, _) = self.memory.parts();
        let path = read_path(memory, path_at)?;
        let record = self.records.of_mut(thread);
        let opened = if exe {
            // Ours would be Temper.
            let exe = &record.identity.exe;
            Executable::open_at(libc::AT_FDCWD, exe, 0).map(|opened| Executable {
                name: OsStr::from_bytes(path.to_bytes()).into(),
                ..opened
            })
        } else {
            Executable::open_at(folder, &path, flags)
        };
        let executable = opened.map_err(|error: LoadError| {
            if error.is_tempers() {
                record.notices.give(Notice::Refused(error.to_string()));
            }
            error.errno()
        })?;
        Ok(Request {
            executable,
            arguments: read_vector(memory, arguments)?,
            environment: read_vector(memory, environment)?,
        })
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
}
