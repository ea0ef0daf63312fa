//! Death by a signal, passed on: whoever waits for this process sees the status that the
//! guest's own death has, and a core file (where limits allow one) shows the registers and
//! the memory that the guest died with. Temper's own large mappings stay out of it.

use std::arch::asm;

use super::frame::{self, FrameContents};
use super::host::{self, HostHandlers};
use super::info::{FaultCodes, SigInfo};
use super::set::SigSet;
use super::thread::{AltStack, ThreadSignals};
use super::{EnvAction, Signals};
use crate::guest::{CpuState, GuestMemory};

/// What a thread died of, and in which state.
#[derive(Clone, Debug)]
pub struct Death {
    info: SigInfo,
    cpu: CpuState,
    fault: FaultCodes,
}

impl<M: GuestMemory, H: HostHandlers> Signals<'_, M, H> {
    /// The guest dies of `info`, here and now.
    pub(super) fn die_of(&mut self, info: SigInfo) -> EnvAction {
        self.thread.death = Some(Box::new(Death {
            info,
            cpu: self.ctx.cpu.clone(),
            fault: self.thread.fault,
        }));
        EnvAction::Kill(info.signo())
    }
}

impl ThreadSignals {
    /// Ends this process by `signo`, of which this thread of the guest's died.
    pub fn die_by(&self, signo: i32) -> ! {
        host::give_to_kernel(signo, false);
        host::set_mask(SigSet(!0));
        if let Some(death) = &self.death
            && death.info.signo() == signo
        {
            host::give_back(&death.info);
            // To process 1 of a PID namespace its own signals do nothing: it would run on.
            if host::pending().contains(signo) && std::process::id() != 1 {
                death.meet();
            }
        }
        host::raise(signo);
        host::set_mask(SigSet(!0).without(signo));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(128 + signo) }
    }
}

/// Ends a process by `signo` whose memory is its parent's too: without a core file.
pub fn die_sharing(signo: i32) -> ! {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: affects only this process, which is ending.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    ThreadSignals::default().die_by(signo)
}

impl Death {
    /// Takes the guest's registers on, by the return from a signal handler that never was. The
    /// signal waits and comes before the guest's next instruction.
    fn meet(&self) -> ! {
        let frame = FrameContents {
            restorer: 0,
            cpu: &self.cpu,
            resume_flag: false,
            fault: self.fault,
            mask: SigSet(!0).without(self.info.signo()),
            alt_stack: AltStack::default(),
            fpstate: 0,
            info: None,
        }
        .to_bytes();
        // rt_sigreturn finds the frame 8 bytes below the stack pointer.
        let at = frame.as_ptr() as u64 + 8;
        // SAFETY: FSGSBASE was checked at start-up; from here on nothing of Rust's runs, and
        // the kernel reads the frame, which lives.
        unsafe {
            asm!(
                "wrfsbase {fs}",
                "wrgsbase {gs}",
                "mov rsp, {at}",
                "mov eax, {sigreturn}",
                "syscall",
                "ud2",
                fs = in(reg) self.cpu.fs_base,
                gs = in(reg) self.cpu.gs_base,
                at = in(reg) at,
                sigreturn = const libc::SYS_rt_sigreturn,
                options(noreturn),
            )
        }
    }
}

const _: () = assert!(frame::UC == 8, "rt_sigreturn looks for the ucontext at rsp");
