//! execve(2) and execveat(2): another program takes this process over, under another Temper.
//!
//! The target is examined first, so that whatever is wrong with it is the caller's error, as
//! the kernel would have it. Then Temper executes its own file. The kernel keeps what it keeps
//! over an exec (descriptors, limits, timers, pending signals, who this is); what only Temper
//! knows goes along as a [`Handover`]. The environment and the arguments are the guest's own
//! strings, behind a few of Temper's.

mod handover;
mod request;

use std::ffi::{CString, OsString};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStringExt;

use ::syscalls::Sysno;

pub use handover::{Handover, Kept, Relaunch, Resumed};
pub use request::{Request, read_path, read_vector};

use super::Process;
use super::elf;
use super::notice::Notice;
use super::signals::SigSet;
use super::stack::has_room;
use super::thread::ThreadState;
use crate::guest::HostCall;
use crate::host::syscall::{Errno, call as host_call};

/// Where this process's own program is.
const OWN_PROGRAM: &std::ffi::CStr = c"/proc/self/exe";

/// What the kernel reads during the call, and what is undone after it. Of a child that shares
/// memory it is dropped by the parent, once the child is another program.
#[derive(Debug)]
pub struct Executing {
    file: i32,
    /// Behind the pointers in the vectors.
    _strings: Vec<CString>,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
}

impl Process {
    /// The request, once it is clear that it can be met.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn examined(
        &mut self,
        request: Request,
        thread: &ThreadState,
    ) -> Result<Request, Errno> {
        let executable = request.executable.try_clone()?;
        let args = request.arguments.iter();
        let args = args.map(|text| OsString::from_vec(text.to_bytes().to_vec()));
        let program = elf::open_program(executable, args.collect()).map_err(|error| {
            if error.is_tempers() {
                let notices = &mut self.records.of_mut(thread).notices;
                notices.give(Notice::Refused(error.to_string()));
            }
            error.errno()
        })?;
        let strings = program.args.iter().map(|text| text.len());
        let environment = request.environment.iter().map(|text| text.count_bytes());
        if !has_room(strings.chain(environment)) {
            return Err(Errno(libc::E2BIG));
        }
        Ok(request)
    }

    /// The call that executes Temper for `request`, in a guest that blocks `mask`.
    pub(super) fn exec_call(
        &mut self,
        request: Request,
        mask: SigSet,
        thread: &mut ThreadState,
    ) -> HostCall {
        let record = self.records.of(thread);
        let Request {
            executable,
            arguments,
            environment,
        } = request;
        let file = executable.file.into_raw_fd();
        let handover = Handover {
            name: executable.name.into_os_string().into_vec(),
            file,
            unreachable: executable.unreachable,
            nameless: executable.nameless,
            mask: mask.0,
            memory_limits: record.memory_limits,
            seccomp: thread.seccomp.get().carried(),
            console: record.own_descriptor.number(),
        };
        let own = handover.arguments(&record.relaunch);
        let executing = Executing {
            file,
            arguments: vector(own.iter().chain(&arguments)),
            environment: vector(&environment),
            // The strings themselves don't move.
            _strings: own
                .into_iter()
                .chain(arguments)
                .chain(environment)
                .collect(),
        };
        self.survive_exec(&executing, true, thread);
        let executing = thread.executing.insert(Box::new(executing));
        HostCall {
            number: Sysno::execve.id() as u64,
            args: [
                OWN_PROGRAM.as_ptr() as u64,
                executing.arguments.as_ptr() as u64,
                executing.environment.as_ptr() as u64,
                0,
                0,
                0,
            ],
        }
    }

    /// The call came back: all is as before it.
    pub(super) fn exec_failed(&mut self, result: Option<i64>, thread: &mut ThreadState) {
        // What the guest asked for could be executed, so this is about Temper's own program.
        let is_lost = |errno| matches!(errno, libc::ENOENT | libc::ENOTDIR | libc::EACCES);
        if result.is_some_and(|result| is_lost(-result as i32)) {
            let notices = &mut self.records.of_mut(thread).notices;
            notices.give(Notice::ProgramLost);
        }
        if let Some(executing) = thread.executing.take() {
            self.survive_exec(&executing, false, thread);
            let args = [executing.file as u64, 0, 0, 0, 0, 0];
            // SAFETY: the request's own descriptor, which nobody else has.
            let _ = unsafe { host_call(Sysno::close, args) };
        }
    }

    fn survive_exec(&self, executing: &Executing, survive: bool, thread: &ThreadState) {
        let flags = if survive { 0 } else { libc::FD_CLOEXEC as u64 };
        let own = self.records.of(thread).own_descriptor.number();
        for fd in std::iter::once(executing.file as u32).chain(own) {
            let args = [u64::from(fd), libc::F_SETFD as u64, flags, 0, 0, 0];
            // SAFETY: Temper's own descriptors.
            let _ = unsafe { host_call(Sysno::fcntl, args) };
        }
    }
}

fn vector<'a>(texts: impl IntoIterator<Item = &'a CString>) -> Vec<*const libc::c_char> {
    let pointers = texts.into_iter().map(|text| text.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}
