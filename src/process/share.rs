//! Children that share their parent's memory while it waits: vfork, clone with CLONE_VM and
//! CLONE_VFORK, and posix_spawn, which is made of the latter. To Temper such a child is one
//! more thread with a process record of its own; what it does to memory its parent sees, as
//! posix_spawn needs for its error.

use std::ops::Range;

use ::syscalls::Sysno;

use super::Process;
use super::descriptors::OwnDescriptor;
use super::notice::Notices;
use super::record::ProcessRecord;
use super::signals::die_sharing;
use super::thread::ThreadState;
use crate::addr::HostAddr;
use crate::guest::{CodeControl, EnvAction, Gpr, HostCall, ThreadContext};
use crate::host::syscall::{call as host_call, decode, encode, raw};

/// What a child ends with whose guest can't go on.
const ABORTED: i32 = 125;

impl Process {
    /// The child's thread, and the call that makes it, on `stack`.
    pub(super) fn make_sharing_child(
        &mut self,
        thread: &mut ThreadState,
        stack: Range<HostAddr>,
    ) -> (ThreadState, HostCall) {
        let request = thread.cloning.as_mut().expect("a child was asked for");
        let call = request.host_call(Some(stack));
        let parent = self.records.of(thread);
        let mut relaunch = parent.relaunch.clone();
        relaunch.options = relaunch.options_of_children.clone();
        let record = ProcessRecord {
            identity: parent.identity.clone(),
            dispositions: parent.dispositions.clone(),
            memory_limits: parent.memory_limits,
            notices: Notices::default(),
            own_descriptor: OwnDescriptor::default(),
            relaunch,
            is_child: true,
            shares_memory: true,
            threads: 1,
        };
        let record = self.records.add(record);
        let mut child = ThreadState::new(record, thread.signals.for_child(false));
        child.cloning = thread.cloning.clone();
        child.seccomp = thread.seccomp.inherited();
        (child, call)
    }

    /// In the child, before its guest runs.
    pub(super) fn sharing_child_began(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) {
        let request = thread.cloning.take().expect("this child was asked for");
        if !request.has(libc::CLONE_FILES) {
            self.close_descriptors_of_others(thread);
        }
        self.start_child(&request, thread, ctx, code);
        self.with_signals(thread, ctx, code, |signals| signals.update_host_mask());
    }

    /// The child has copies of Temper's descriptors; their owners are in the parent.
    fn close_descriptors_of_others(&self, thread: &ThreadState) {
        for fd in self.records.own_descriptors_of_others(thread) {
            // SAFETY: the child's own copy, which nobody uses.
            let _ = unsafe { host_call(Sysno::close, [u64::from(fd), 0, 0, 0, 0, 0]) };
        }
    }

    /// In the parent: the child has other memory, or is gone, or never was.
    pub(super) fn sharing_child_left(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        child: &ThreadState,
        result: i64,
    ) -> EnvAction {
        thread.cloning = None;
        self.records.remove(child.record);
        self.with_signals(thread, ctx, code, |signals| signals.update_host_mask());
        ctx.cpu.set(Gpr::Rax, encode(decode(result)));
        EnvAction::Continue
    }
}

/// Ends the child's process. Nothing of Rust's may be undone: it is the parent's.
pub(super) fn end_sharing_child(end: EnvAction) -> ! {
    let status = match end {
        EnvAction::Kill(signo) => die_sharing(signo),
        EnvAction::Exit(status) | EnvAction::ExitThread(status) => status,
        EnvAction::Continue
        | EnvAction::Call(_)
        | EnvAction::Fork(_)
        | EnvAction::Share
        | EnvAction::Abort => ABORTED,
    };
    loop {
        // SAFETY: ends this process, which is one thread.
        unsafe {
            raw(
                Sysno::exit_group.id() as u64,
                [status as u64, 0, 0, 0, 0, 0],
            )
        };
    }
}
