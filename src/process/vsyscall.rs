//! The vsyscall page, which no mapping can stand for: calls into it are carried out when the
//! guest gets there, as the kernel does (linux/arch/x86/entry/vsyscall/vsyscall_64.c).

use std::ops::Range;

use syscalls::Sysno;

use super::Process;
use super::seccomp::{ARCH, CallData, Verdict};
use super::signals::SigInfo;
use super::thread::ThreadState;
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, EnvAction, Gpr, GuestMemory, ThreadContext, Width};
use crate::host::syscall::{Errno, encode, raw};

/// The legacy page with three entry points (arch/x86/entry/vsyscall).
const VSYSCALL: Range<u64> = 0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000;

/// The call that an address in the page stands for.
fn entry_at(addr: u64) -> Option<Sysno> {
    if !VSYSCALL.contains(&addr) || addr & 0x3ff != 0 {
        return None;
    }
    match (addr - VSYSCALL.start) >> 10 {
        0 => Some(Sysno::gettimeofday),
        1 => Some(Sysno::time),
        2 => Some(Sysno::getcpu),
        _ => None,
    }
}

impl Process {
    /// If the guest has called into the vsyscall page: does what it asked for and returns to
    /// its caller. `None`: not that page, not an entry point, or a bad pointer.
    pub(super) fn vsyscall(
        &mut self,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> Option<EnvAction> {
        let at = ctx.cpu.rip;
        let number = entry_at(at)?.id() as u32;
        let stack = GuestAddr(ctx.cpu.get(Gpr::Rsp));
        let caller = self.memory.load(stack, Width::B8).ok()?;
        let call = CallData {
            number,
            instruction_pointer: at,
            args: [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8, Gpr::R9]
                .map(|reg| ctx.cpu.get(reg)),
        };
        let mut trapped = None;
        let result = match self.judge(thread, &call) {
            Verdict::Allow | Verdict::Log => {
                let [first, second, ..] = call.args;
                // getcpu's third argument is ignored by every kernel since 2.6.24.
                let args = [first, second, 0, 0, 0, 0];
                // SAFETY: writes at most a few words through the guest's own pointers.
                let result = unsafe { raw(u64::from(number), args) };
                if result == -i64::from(libc::EFAULT) {
                    return None;
                }
                result as u64
            }
            Verdict::Fail(errno) => encode(Err(Errno(errno.into()))),
            Verdict::Trap(data) => {
                trapped = Some(SigInfo::trapped_call(data, at, number, ARCH));
                u64::from(number)
            }
            Verdict::KillThread(signo) => return Some(self.kill_thread(thread, signo, code)),
            Verdict::KillProcess => return Some(EnvAction::Kill(libc::SIGSYS)),
        };
        ctx.cpu.set(Gpr::Rax, result);
        ctx.cpu.set(Gpr::Rsp, stack.0.wrapping_add(8));
        ctx.cpu.rip = caller;
        Some(match trapped {
            Some(info) => {
                self.with_signals(thread, ctx, code, |signals| signals.force_signal(info))
            }
            None => EnvAction::Continue,
        })
    }
}
