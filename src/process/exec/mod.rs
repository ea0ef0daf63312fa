//! execve(2) and execveat(2): another program takes this process over, under another Temper.
//!
//! The target is examined first, so that whatever is wrong with it is the caller's error, as
//! the kernel would have it. Then Temper executes its own file. The kernel keeps what it keeps
//! over an exec (descriptors, limits, timers, pending signals, who this is); what only Temper
//! knows goes along as a [`Handover`]. The environment and the arguments are the guest's own
//! strings, behind three of Temper's.

mod handover;
mod request;

use std::ffi::CString;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStringExt;

use ::syscalls::Sysno;

pub use handover::{Handover, Kept, Relaunch, Resumed};
pub use request::{Request, read_path, read_vector};

use super::Process;
use super::elf;
use super::notice::Notice;
use super::signals::SigSet;
use crate::host::syscall::{Errno, call as host_call};

/// Where this process's own program is.
const OWN_PROGRAM: &std::ffi::CStr = c"/proc/self/exe";

impl Process {
    /// What the call asks for, once it is clear that it can be done.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn examine(&mut self, request: &Request) -> Result<(), Errno> {
        let executable = request.executable.try_clone()?;
        let args = request.arguments.iter();
        let args = args.map(|text| std::ffi::OsString::from_vec(text.to_bytes().to_vec()));
        let program = elf::open_program(executable, args.collect()).map_err(|error| {
            if error.is_tempers() {
                self.notices.give(Notice::Refused(error.to_string()));
            }
            error.errno()
        })?;
        let strings = program.args.iter().map(|text| text.len());
        let environment = request.environment.iter().map(|text| text.count_bytes());
        if !super::stack::has_room(strings.chain(environment)) {
            return Err(Errno(libc::E2BIG));
        }
        Ok(())
    }

    /// Executes Temper for `request`. Comes back only if that fails.
    pub(super) fn replace(&mut self, request: Request, mask: SigSet) -> Errno {
        let name = request.executable.name.into_os_string().into_vec();
        let file = request.executable.file.into_raw_fd();
        let handover = Handover {
            name,
            file,
            unreachable: request.executable.unreachable,
            nameless: request.executable.nameless,
            mask: mask.0,
            memory_limits: self.memory_limits,
            console: self.own_descriptor.number(),
        };
        let mut arguments = handover.arguments(&self.relaunch);
        arguments.extend(request.arguments);
        self.survive_exec(file, true);
        let errno = execute(&arguments, &request.environment);
        self.survive_exec(file, false);
        // SAFETY: the request's own descriptor, which nobody else has.
        let _ = unsafe { host_call(Sysno::close, [file as u64, 0, 0, 0, 0, 0]) };
        errno
    }

    fn survive_exec(&self, file: i32, survive: bool) {
        let flags = if survive { 0 } else { libc::FD_CLOEXEC as u64 };
        let own = self.own_descriptor.borrow().map(|fd| fd.as_raw_fd());
        for fd in std::iter::once(file).chain(own) {
            let args = [fd as u64, libc::F_SETFD as u64, flags, 0, 0, 0];
            // SAFETY: Temper's own descriptors.
            let _ = unsafe { host_call(Sysno::fcntl, args) };
        }
    }
}

fn execute(arguments: &[CString], environment: &[CString]) -> Errno {
    let vector = |texts: &[CString]| -> Vec<*const libc::c_char> {
        let pointers = texts.iter().map(|text| text.as_ptr());
        pointers.chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (vector(arguments), vector(environment));
    let args = [
        OWN_PROGRAM.as_ptr() as u64,
        arguments.as_ptr() as u64,
        environment.as_ptr() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: two vectors of C strings, ended by a null.
    match unsafe { host_call(Sysno::execve, args) } {
        Err(errno) => errno,
        Ok(_) => unreachable!("execve came back"),
    }
}
