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
        ctx: &mut ThreadContext,
    ) -> SyscallResult {
        let [operation, flags, at, ..] = call.args;
        self.set_seccomp(operation as u32, flags as u32, at, thread, ctx)
    }

    /// prctl(PR_SET_SECCOMP), which has no flags and takes no filter for strict mode.
    pub(super) fn seccomp_prctl(
        &mut self,
        mode: u64,
        filter: u64,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
    ) -> SyscallResult {
        match u32::try_from(mode) {
            Ok(libc::SECCOMP_MODE_STRICT) => self.set_seccomp(SET_MODE_STRICT, 0, 0, thread, ctx),
            Ok(libc::SECCOMP_MODE_FILTER) => {
                self.set_seccomp(SET_MODE_FILTER, 0, filter, thread, ctx)
            }
            _ => INVALID,
        }
    }

    fn set_seccomp(
        &mut self,
        operation: u32,
        flags: u32,
        at: u64,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
    ) -> SyscallResult {
        match operation {
            SET_MODE_STRICT if flags == 0 && at == 0 => {
                // Temper itself may be under a filter, which only the kernel knows of.
                if host_mode()? == u64::from(libc::SECCOMP_MODE_FILTER) {
                    return INVALID;
                }
                thread.seccomp.set_strict().map_err(errno)?;
            }
            SET_MODE_FILTER => self.attach_filter(flags, at, thread)?,
            GET_ACTION_AVAIL if flags == 0 => return self.is_action_available(at),
            // SECCOMP_GET_NOTIF_SIZES too: as on a kernel without listeners.
            _ => return INVALID,
        }
        ctx.set_pass_through(self.pass_through_mask(thread));
        Ok(0)
    }

    fn attach_filter(
        &mut self,
        flags: u32,
        at: u64,
        thread: &mut ThreadState,
    ) -> Result<(), Errno> {
        if flags & !KNOWN_FLAGS != 0 {
            // Without a filter somebody only asks whether the flag is known.
            if flags & NEW_LISTENER != 0 && at != 0 {
                self.not_supported("seccomp's user notification", libc::EINVAL, thread)?;
            }
            return Err(Errno(libc::EINVAL));
        }
        let program = self.read_program(GuestAddr(at))?;
        thread.seccomp.attach(program).map_err(errno)
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

    /// How a call ends that the guest's filters don't let through; `None`: it is carried out.
    pub(super) fn filter_call(
        &mut self,
        call: Call,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Option<Ending> {
        if matches!(thread.seccomp, Seccomp::Off) {
            return None;
        }
        let at = ctx.cpu.rip;
        let data = CallData {
            number: call.number,
            instruction_pointer: at,
            args: call.args,
        };
        let action = match judge(thread, &data) {
            Verdict::Allow | Verdict::Log => return None,
            Verdict::Fail(errno) => return Some(Ending::Return(Err(Errno(errno.into())))),
            Verdict::Trap(data) => {
                let info = SigInfo::trapped_call(data, at, call.number, ARCH);
                self.with_signals(thread, ctx, code, |signals| signals.force_signal(info))
            }
            Verdict::KillThread(signo) => EnvAction::Kill(signo),
            Verdict::KillProcess => EnvAction::Kill(libc::SIGSYS),
        };
        Some(Ending::Action(action))
    }
}

/// What a thread's filters say of a call.
pub fn judge(thread: &ThreadState, call: &CallData) -> Verdict {
    let verdict = thread.seccomp.judge(call);
    if verdict == Verdict::Log {
        tracing::info!(target: "temper::process", number = call.number, "seccomp log");
    }
    verdict
}

/// PR_GET_SECCOMP.
pub(super) fn mode(thread: &ThreadState) -> SyscallResult {
    match &thread.seccomp {
        Seccomp::Off => host_mode(),
        seccomp => Ok(u64::from(seccomp.mode())),
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
    let option = libc::PR_GET_NO_NEW_PRIVS as u64;
    // SAFETY: asks only.
    let no_new_privileges = unsafe { host_call(Sysno::prctl, [option, 0, 0, 0, 0, 0]) };
    no_new_privileges == Ok(1) || has_capability(CAP_SYS_ADMIN)
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
