//! System calls. Most pass through to the kernel on the guest's own memory, many of them
//! straight from assembly (see [`table`]); this module carries out those that concern what
//! Temper owns, one file a family. Unknown numbers pass through with a log line.

mod children;
mod credentials;
mod descriptors;
mod lifetime;
mod limits;
mod memory;
mod modes;
mod outputs;
mod paths;
mod seccomp;
mod table;
mod tracers;

use ::syscalls::Sysno;

use super::Process;
use super::address_space::file_key;
use super::signals::Outcome;
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, EnvAction, Gpr, GuestMemory, ThreadContext};
use crate::host::syscall::{Errno, SyscallResult, encode, interruptible, raw};
pub use limits::MemoryLimits;
use table::Family;

/// 0F 05; a prefix before it means nothing.
const SYSCALL_BYTES: u64 = 2;

/// One system call as the guest made it.
#[derive(Clone, Copy, Debug)]
struct Call {
    /// As in EAX; the upper half of RAX is ignored by the kernel too.
    number: u32,
    args: [u64; 6],
}

impl Call {
    fn of(ctx: &ThreadContext) -> Call {
        Call {
            number: ctx.cpu.get(Gpr::Rax) as u32,
            args: [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8, Gpr::R9]
                .map(|reg| ctx.cpu.get(reg)),
        }
    }

    fn sysno(self) -> Option<Sysno> {
        Sysno::new(self.number as usize)
    }

    /// The kernel's own answer, for a call that may block: when a signal is pending, the
    /// guest is to make the call again after its handler.
    fn pass_blocking(self, args: [u64; 6], ctx: &mut ThreadContext) -> Ending {
        // SAFETY: as in `pass`; the field is written by this thread and its signal handler.
        let result = unsafe { interruptible(&raw const ctx.pending, u64::from(self.number), args) };
        match result {
            Some(result) => crate::host::syscall::decode(result).into(),
            None => {
                ctx.cpu.rip = ctx.cpu.rip.wrapping_sub(SYSCALL_BYTES);
                Ending::Action(EnvAction::Continue)
            }
        }
    }

    /// The kernel's own answer, with arguments that may differ from the guest's.
    fn pass(self, args: [u64; 6]) -> SyscallResult {
        // SAFETY: the guest's call on the guest's memory. Calls by which it could reach
        // Temper's memory or state are carried out elsewhere in this module.
        crate::host::syscall::decode(unsafe { raw(u64::from(self.number), args) })
    }
}

/// How a call ended.
enum Ending {
    Return(SyscallResult),
    /// The context is as it must be.
    Action(EnvAction),
}

impl From<SyscallResult> for Ending {
    fn from(result: SyscallResult) -> Ending {
        Ending::Return(result)
    }
}

impl Process {
    /// The calls that may go out from assembly as things stand: a bit each.
    pub fn pass_through_mask(&self) -> [u64; 8] {
        let passes = table::pass_through_mask(
            self.memory.space.code_exposure(),
            self.own_descriptor.is_held(),
        );
        let allowed = self.thread.seccomp.allows();
        std::array::from_fn(|at| passes[at] & allowed[at])
    }

    /// Carries out the system call in `ctx`, whose RIP is already after it.
    pub(super) fn system_call(
        &mut self,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        let call = Call::of(ctx);
        // SYSCALL itself: Intel SDM volume 2.
        ctx.cpu.set(Gpr::Rcx, ctx.cpu.rip);
        ctx.cpu.set(Gpr::R11, ctx.cpu.rflags);
        let ending = self
            .filter_call(call, ctx, code)
            .unwrap_or_else(|| self.carry_out(call, ctx, code));
        if self.memory.space.take_code_change() {
            ctx.pass_through = self.pass_through_mask();
        }
        match ending {
            Ending::Return(result) => {
                ctx.cpu.set(Gpr::Rax, encode(result));
                EnvAction::Continue
            }
            Ending::Action(action) => action,
        }
    }

    fn carry_out(
        &mut self,
        call: Call,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        let sysno = call.sysno();
        let family = sysno.map_or(Family::PassThrough, table::family);
        let (Some(sysno), true) = (sysno, family != Family::PassThroughSilent) else {
            if sysno.is_none() {
                self.counts.unknown_calls += 1;
                tracing::info!(
                    target: "temper::process",
                    number = call.number,
                    "unknown system call passed through"
                );
                self.release_outputs(call, code);
            }
            return call.pass_blocking(call.args, ctx);
        };
        self.release_outputs(call, code);
        match family {
            Family::PassThrough | Family::PassThroughSilent => call.pass_blocking(call.args, ctx),
            Family::FileWrites => {
                let ending = call.pass_blocking(call.args, ctx);
                self.file_written(sysno, call, code);
                ending
            }
            Family::Memory => self.memory_call(sysno, call, code).into(),
            Family::Paths => self.path_call(sysno, call, ctx),
            Family::Signals => self.signal_call(call, ctx, code),
            Family::Children => self.child_call(sysno, call).into(),
            Family::Lifetime => self.lifetime_call(sysno, call),
            Family::Modes => self.mode_call(sysno, call, ctx, code).into(),
            Family::Limits => self.limit_call(sysno, call).into(),
            Family::Descriptors => self.descriptor_call(sysno, call, ctx),
            Family::Credentials => credentials::carry_out(call, ctx, code),
            Family::Tracing => self.tracing_call(sysno, call, ctx),
        }
    }

    /// The call may have changed a file that is mapped as code.
    fn file_written(&mut self, sysno: Sysno, call: Call, code: &mut dyn CodeControl) {
        if !self.memory.space.code_exposure().shared_file {
            return;
        }
        let descriptor = match sysno {
            Sysno::truncate => None,
            Sysno::splice | Sysno::copy_file_range => Some(call.args[2]),
            _ => Some(call.args[0]),
        };
        match descriptor.map(file_key) {
            // Not a descriptor: nothing was written.
            Some(None) => {}
            Some(key) => self.memory.space.file_changed(key, code),
            None => self.memory.space.file_changed(None, code),
        }
    }

    /// Lets the kernel write where it would without Temper's protection of pages.
    fn release_outputs(&mut self, call: Call, code: &mut dyn CodeControl) {
        if !self.memory.space.is_watching() {
            return;
        }
        let (native, space) = self.memory.parts();
        for range in outputs::ranges(call.sysno(), &call.args, native) {
            space.prepare_write(range, code);
        }
    }

    fn signal_call(
        &mut self,
        call: Call,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        let number = i64::from(call.number);
        match self.with_signals(ctx, code, |signals| signals.syscall(number, call.args)) {
            Some(Outcome::Return(result)) => crate::host::syscall::decode(result).into(),
            Some(Outcome::Action(action)) => Ending::Action(action),
            None => call.pass_blocking(call.args, ctx),
        }
    }

    /// Writes to guest memory as the kernel would.
    fn put(&mut self, addr: u64, bytes: &[u8], code: &mut dyn CodeControl) -> Result<(), Errno> {
        let start = GuestAddr(addr);
        let end = GuestAddr(addr.saturating_add(bytes.len() as u64));
        self.memory.space.prepare_write(start..end, code);
        self.memory
            .write_bytes(start, bytes)
            .map_err(|_| Errno(libc::EFAULT))
    }
}
