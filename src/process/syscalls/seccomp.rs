//! seccomp(2) and prctl(PR_SET_SECCOMP), and what the filters say of every other call.

use ::syscalls::Sysno;

use super::{Call, Ending};
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, EnvAction, GuestMemory, ThreadContext, Width};
use crate::host::syscall::{Errno, SyscallResult, call as host_call};
use crate::process::seccomp::{
    ARCH, CallData, INSTRUCTION_BYTES, MAX_INSTRUCTIONS, Program, RawInstruction, Refusal, Seccomp,
    Verdict, action,
};
use crate::process::signals::SigInfo;
use crate::process::{Process, ThreadState};

/// Operations of seccomp(2).
const SET_MODE_STRICT: u32 = libc::SECCOMP_SET_MODE_STRICT;
const SET_MODE_FILTER: u32 = libc::SECCOMP_SET_MODE_FILTER;
const GET_ACTION_AVAIL: u32 = libc::SECCOMP_GET_ACTION_AVAIL;

/// Flags of SECCOMP_SET_MODE_FILTER that Temper takes. SPEC_ALLOW and LOG change nothing that
/// a program can see; the flags about listeners are unknown, as to kernels before 5.0.
const KNOWN_FLAGS: u32 = (libc::SECCOMP_FILTER_FLAG_TSYNC
    | libc::SECCOMP_FILTER_FLAG_LOG
    | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
    | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH) as u32;
const SYNCHRONIZE: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
const SYNCHRONIZE_OR_FAIL: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH as u32;
const NEW_LISTENER: u32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;

const CAP_SYS_ADMIN: u32 = 21;
/// _LINUX_CAPABILITY_VERSION_3.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

const INVALID: SyscallResult = Err(Errno(libc::EINVAL));

impl Process {
    pub(super) fn seccomp_call(
        &mut self,
        call: Call,
        thread: &mut ThreadState,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let [operation, flags, at, ..] = call.args;
        match operation as u32 {
            SET_MODE_STRICT if flags as u32 == 0 && at == 0 => self.set_strict(thread, code),
            SET_MODE_FILTER => self.add_filter(flags as u32, at, thread, code),
            GET_ACTION_AVAIL if flags as u32 == 0 => self.is_action_available(at),
            // SECCOMP_GET_NOTIF_SIZES too: as on a kernel without listeners.
            _ => INVALID,
        }
    }

    /// prctl(PR_SET_SECCOMP), which has no flags and takes no filter for strict mode.
    pub(super) fn seccomp_prctl(
        &mut self,
        mode: u64,
        filter: u64,
        thread: &mut ThreadState,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        match u32::try_from(mode) {
            Ok(libc::SECCOMP_MODE_STRICT) => self.set_strict(thread, code),
            Ok(libc::SECCOMP_MODE_FILTER) => self.add_filter(0, filter, thread, code),
            _ => INVALID,
        }
    }

    fn set_strict(
        &mut self,
        thread: &mut ThreadState,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        // Temper itself may be under a filter, which only the kernel knows of.
        if host_mode()? == u64::from(libc::SECCOMP_MODE_FILTER) {
            return INVALID;
        }
        let mut seccomp = thread.seccomp.get();
        seccomp.set_strict().map_err(errno)?;
        self.restrict(seccomp, thread, code);
        Ok(0)
    }

    fn add_filter(
        &mut self,
        flags: u32,
        at: u64,
        thread: &mut ThreadState,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        if flags & !KNOWN_FLAGS != 0 {
            // Without a filter somebody only asks whether the flag is known.
            if flags & NEW_LISTENER != 0 && at != 0 {
                return self.not_supported("seccomp's user notification", libc::EINVAL, thread);
            }
            return INVALID;
        }
        let program = self.read_program(GuestAddr(at))?;
        let mut seccomp = thread.seccomp.get();
        seccomp.attach(program).map_err(errno)?;
        if flags & SYNCHRONIZE != 0 {
            let synchronized = self.filters.synchronize(
                thread.record,
                &thread.seccomp,
                &seccomp,
                is_without_new_privileges(),
            );
            match synchronized {
                Ok(()) => {}
                Err(_) if flags & SYNCHRONIZE_OR_FAIL != 0 => return Err(Errno(libc::ESRCH)),
                // The thread that stands in the way is the result.
                Err(tid) => return Ok(tid as u64),
            }
        }
        self.restrict(seccomp, thread, code);
        Ok(0)
    }

    /// From here on `thread` is restricted so.
    fn restrict(&mut self, seccomp: Seccomp, thread: &ThreadState, code: &mut dyn CodeControl) {
        self.filters.restrict(&seccomp);
        thread.seccomp.set(seccomp);
        code.set_pass_through(self.pass_through_mask());
    }

    /// The program of the struct sock_fprog at `at`; errors in the kernel's order.
    fn read_program(&mut self, at: GuestAddr) -> Result<Program, Errno> {
        let fault = |_| Errno(libc::EFAULT);
        let len = self.memory.load(at, Width::B2).map_err(fault)? as usize;
        let start = self.memory.load(at.offset(8), Width::B8).map_err(fault)?;
        if len == 0 || len > MAX_INSTRUCTIONS {
            return Err(Errno(libc::EINVAL));
        }
        if !may_filter() {
            return Err(Errno(libc::EACCES));
        }
        if start == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let mut bytes = vec![0; len * INSTRUCTION_BYTES];
        self.memory
            .read_bytes(GuestAddr(start), &mut bytes)
            .map_err(fault)?;
        let (instructions, _) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        let raw = instructions.iter().copied().map(RawInstruction::from_bytes);
        Program::new(raw.collect()).map_err(|_| Errno(libc::EINVAL))
    }

    fn is_action_available(&mut self, at: u64) -> SyscallResult {
        let wanted = self
            .memory
            .load(GuestAddr(at), Width::B4)
            .map_err(|_| Errno(libc::EFAULT))?;
        match wanted as u32 {
            action::KILL_PROCESS
            | action::KILL_THREAD
            | action::TRAP
            | action::ERRNO
            | action::TRACE
            | action::LOG
            | action::ALLOW => Ok(0),
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    /// What a thread's filters say of a call.
    pub(in crate::process) fn judge(&self, thread: &ThreadState, call: &CallData) -> Verdict {
        if !self.filters.any() {
            return Verdict::Allow;
        }
        if thread.seccomp.take_renunciation() {
            let args = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0];
            // SAFETY: changes what execve can give to this thread.
            let renounced = unsafe { host_call(Sysno::prctl, args) };
            debug_assert_eq!(renounced, Ok(0));
        }
        let verdict = thread.seccomp.with(|seccomp| seccomp.judge(call));
        if verdict == Verdict::Log {
            tracing::info!(target: "temper::process", number = call.number, "seccomp log");
        }
        verdict
    }

    /// How a call ends that the thread's filters don't let through; `None`: it is carried out.
    pub(super) fn filter_call(
        &mut self,
        call: Call,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Option<Ending> {
        let at = ctx.cpu.rip;
        let data = CallData {
            number: call.number,
            instruction_pointer: at,
            args: call.args,
        };
        let action = match self.judge(thread, &data) {
            Verdict::Allow | Verdict::Log => return None,
            Verdict::Fail(errno) => return Some(Ending::Return(Err(Errno(errno.into())))),
            Verdict::Trap(data) => {
                let info = SigInfo::trapped_call(data, at, call.number, ARCH);
                self.with_signals(thread, ctx, code, |signals| signals.force_signal(info))
            }
            Verdict::KillThread(signo) => self.kill_thread(thread, signo, code),
            Verdict::KillProcess => EnvAction::Kill(libc::SIGSYS),
        };
        Some(Ending::Action(action))
    }

    /// The thread dies, and the process too if it is the last one.
    pub(in crate::process) fn kill_thread(
        &mut self,
        thread: &mut ThreadState,
        signo: i32,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        match self.records.of(thread).threads {
            1 => EnvAction::Kill(signo),
            _ => self.thread_exits(thread, 0, code),
        }
    }
}

/// PR_GET_SECCOMP.
pub(super) fn mode(thread: &ThreadState) -> SyscallResult {
    match thread.seccomp.with(Seccomp::mode) {
        libc::SECCOMP_MODE_DISABLED => host_mode(),
        mode => Ok(u64::from(mode)),
    }
}

fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::OtherMode => Errno(libc::EINVAL),
        Refusal::TooLong => Errno(libc::ENOMEM),
    }
}

fn host_mode() -> SyscallResult {
    // SAFETY: asks only.
    unsafe { host_call(Sysno::prctl, [libc::PR_GET_SECCOMP as u64, 0, 0, 0, 0, 0]) }
}

/// Only who can't gain privileges any more, or has them, may filter.
fn may_filter() -> bool {
    is_without_new_privileges() || has_capability(CAP_SYS_ADMIN)
}

fn is_without_new_privileges() -> bool {
    let option = libc::PR_GET_NO_NEW_PRIVS as u64;
    // SAFETY: asks only.
    let set = unsafe { host_call(Sysno::prctl, [option, 0, 0, 0, 0, 0]) };
    set == Ok(1)
}

fn has_capability(capability: u32) -> bool {
    let header = [CAPABILITY_VERSION, 0];
    // Two times effective, permitted and inheritable: the lower 32 capabilities, the upper.
    let mut sets = [0u32; 6];
    let args = [header.as_ptr() as u64, sets.as_mut_ptr() as u64, 0, 0, 0, 0];
    // SAFETY: the kernel reads the header and fills the sets.
    let asked = unsafe { host_call(Sysno::capget, args) };
    asked.is_ok() && sets[0] & 1 << capability != 0
}
