//! System calls. Most pass through to the kernel on the guest's own memory, many of them
//! straight from assembly (see [`table`]); this module carries out those that concern what
//! Temper owns, one file a family. Unknown numbers pass through with a log line.

mod children;
mod clone;
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
use super::thread::ThreadState;
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{CodeControl, EnvAction, Gpr, GuestMemory, HostCall, ThreadContext};
use crate::host::syscall::{Errno, SyscallResult, decode, encode, raw};
pub use clone::{CLEAR_SIGHAND, CloneRequest};
pub use limits::MemoryLimits;
use table::Family;

/// 0F 05; a prefix before it means nothing.
const SYSCALL_BYTES: u64 = 2;

/// One system call as the guest made it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
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

    /// The kernel's own answer, for a call that may block.
    fn pass_blocking(self, args: [u64; 6]) -> Ending {
        Ending::Call {
            call: HostCall {
                number: u64::from(self.number),
                args,
            },
            after: After::Return,
        }
    }

    /// The calling thread's id.
    fn own_tid(self) -> SyscallResult {
        // SAFETY: asks only.
        decode(unsafe { raw(Sysno::gettid.id() as u64, [0; 6]) })
    }

    /// The kernel's own answer, with arguments that may differ from the guest's.
    fn pass(self, args: [u64; 6]) -> SyscallResult {
        // SAFETY: the guest's call on the guest's memory. Calls by which it could reach
        // Temper's memory or state are carried out elsewhere in this module.
        decode(unsafe { raw(u64::from(self.number), args) })
    }
}

/// Whether a call under way may write to `page`.
pub fn may_write(call: &HostCall, page: GuestAddr, memory: &mut impl GuestMemory) -> bool {
    let sysno = Sysno::new(call.number as u32 as usize);
    if sysno.map(table::family) == Some(Family::PassThroughSilent) {
        return false;
    }
    let end = page.offset(PAGE_SIZE as i64);
    let ranges = outputs::ranges(sysno, &call.args, memory);
    ranges
        .iter()
        .any(|range| range.start < end && page < range.end)
}

/// How a call ended.
enum Ending {
    Return(SyscallResult),
    /// The context is as it must be.
    Action(EnvAction),
    /// Nothing was done: a signal came first, and after its handler the guest makes the
    /// call again.
    Again,
    /// A call that may block is to be made; other threads run meanwhile.
    Call {
        call: HostCall,
        after: After,
    },
}

/// What is to be done when a blocking call has returned, by the kind of call.
#[derive(Clone, Copy, Debug)]
pub enum After {
    /// Its result is the guest's.
    Return,
    /// And it may have changed a file that is mapped as code.
    FileWritten(Sysno, Call),
    /// A wait of the signal calls.
    SignalWait,
    /// An execve, which has failed if it returns.
    Exec,
}

impl From<SyscallResult> for Ending {
    fn from(result: SyscallResult) -> Ending {
        Ending::Return(result)
    }
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Ending {
        match outcome {
            Outcome::Return(result) => decode(result).into(),
            Outcome::Action(action) => Ending::Action(action),
            Outcome::Again => Ending::Again,
            Outcome::Call(call) => Ending::Call {
                call,
                after: After::SignalWait,
            },
        }
    }
}

impl Process {
    /// The calls that may go out from assembly as things stand: a bit each.
    pub fn pass_through_mask(&self) -> [u64; 8] {
        let passes = table::pass_through_mask(
            self.memory.space.code_exposure(),
            self.records.any_own_descriptor(),
        );
        let allowed = self.filters.allowed_to_all();
        std::array::from_fn(|at| passes[at] & allowed[at])
    }

    /// Carries out the system call in `ctx`, whose RIP is already after it.
    pub(super) fn system_call(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        let call = Call::of(ctx);
        thread.before_call = [Gpr::Rcx, Gpr::R11].map(|reg| ctx.cpu.get(reg));
        // SYSCALL itself: Intel SDM volume 2.
        ctx.cpu.set(Gpr::Rcx, ctx.cpu.rip);
        ctx.cpu.set(Gpr::R11, ctx.cpu.rflags);
        let ending = match self.filter_call(call, thread, ctx, code) {
            Some(ending) => ending,
            None => self.carry_out(call, thread, ctx, code),
        };
        self.end_call(ending, thread, ctx, code)
    }

    /// Goes on after the blocking call that [`Process::system_call`] asked for. `None`: it was
    /// not made; the guest is to make its call again after what is pending.
    pub(super) fn complete_call(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        result: Option<i64>,
    ) -> EnvAction {
        let ending = match (thread.after, result) {
            (After::SignalWait, result) => self
                .with_signals(thread, ctx, code, |signals| signals.call_returned(result))
                .into(),
            (After::Exec, result) => {
                self.exec_failed(result, thread);
                self.with_signals(thread, ctx, code, |signals| signals.after_failed_exec());
                result.map_or(Ending::Again, |result| decode(result).into())
            }
            (After::Return | After::FileWritten(..), None) => Ending::Again,
            (After::Return, Some(result)) => decode(result).into(),
            (After::FileWritten(sysno, call), Some(result)) => {
                self.file_written(sysno, call, code);
                decode(result).into()
            }
        };
        self.end_call(ending, thread, ctx, code)
    }

    fn end_call(
        &mut self,
        ending: Ending,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        if self.memory.space.take_code_change() {
            code.set_pass_through(self.pass_through_mask());
        }
        match ending {
            Ending::Return(result) => {
                ctx.cpu.set(Gpr::Rax, encode(result));
                EnvAction::Continue
            }
            Ending::Action(action) => action,
            Ending::Again => {
                let [rcx, r11] = thread.before_call;
                ctx.cpu.set(Gpr::Rcx, rcx);
                ctx.cpu.set(Gpr::R11, r11);
                ctx.cpu.rip = ctx.cpu.rip.wrapping_sub(SYSCALL_BYTES);
                EnvAction::Continue
            }
            Ending::Call { call, after } => {
                thread.after = after;
                EnvAction::Call(call)
            }
        }
    }

    fn carry_out(
        &mut self,
        call: Call,
        thread: &mut ThreadState,
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
            return call.pass_blocking(call.args);
        };
        self.release_outputs(call, code);
        match family {
            Family::PassThrough | Family::PassThroughSilent => call.pass_blocking(call.args),
            Family::FileWrites => match call.pass_blocking(call.args) {
                Ending::Call { call: host, .. } => Ending::Call {
                    call: host,
                    after: After::FileWritten(sysno, call),
                },
                other => other,
            },
            Family::Memory => self.memory_call(sysno, call, code).into(),
            Family::Paths => self.path_call(sysno, call, thread),
            Family::Signals => self.signal_call(call, thread, ctx, code),
            Family::Children => self.child_call(sysno, call, thread, ctx, code),
            Family::Lifetime => self.lifetime_call(sysno, call, thread, ctx, code),
            Family::Modes => self.mode_call(sysno, call, thread, ctx, code).into(),
            Family::Limits => self.limit_call(sysno, call, thread).into(),
            Family::Descriptors => self.descriptor_call(sysno, call, thread),
            Family::Credentials => credentials::carry_out(call, code).into(),
            Family::Tracing => self.tracing_call(sysno, call, thread),
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
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Ending {
        let number = i64::from(call.number);
        let outcome = self.with_signals(thread, ctx, code, |signals| {
            signals.syscall(number, call.args)
        });
        match outcome {
            Some(outcome) => outcome.into(),
            None => call.pass_blocking(call.args),
        }
    }

    /// Writes to guest memory as the kernel would.
    pub(super) fn put(
        &mut self,
        addr: u64,
        bytes: &[u8],
        code: &mut dyn CodeControl,
    ) -> Result<(), Errno> {
        let start = GuestAddr(addr);
        let end = GuestAddr(addr.saturating_add(bytes.len() as u64));
        self.memory.space.prepare_write(start..end, code);
        self.memory
            .write_bytes(start, bytes)
            .map_err(|_| Errno(libc::EFAULT))
    }
}
