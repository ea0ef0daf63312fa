//! Delivery: from a signal to the guest's handler, and back through rt_sigreturn. Follows
//! handle_signal, get_signal and force_sig of linux/kernel/signal.c and
//! linux/arch/x86/kernel/signal_64.c.

use super::action::{Action, DefaultAction, SIG_DFL, SIG_IGN, default_action, sa};
use super::frame::{self, FrameContents, SavedContext};
use super::host::{self, HostDisposition, HostFlags, HostHandlers};
use super::info::{SigInfo, TrapSignal};
use super::set::{MAX_SIGNAL, SYNCHRONOUS, SigSet, UNBLOCKABLE};
use super::thread::{AltStack, STACK_T_BYTES};
use super::{Outcome, Signals, fpstate};
use crate::addr::GuestAddr;
use crate::guest::{EnvAction, Gpr, GuestMemory, ThreadContext, flags};

/// A frame could not be written: the kernel forces SIGSEGV.
struct NoFrame;

impl<M: GuestMemory, H: HostHandlers> Signals<'_, M, H> {
    /// Delivers what is recorded in the context and what waits in Temper, then makes the
    /// host's mask the guest's again. Several handlers may be stacked, as in the kernel.
    pub fn deliver_pending(&mut self) -> EnvAction {
        // Cleared first: what is recorded from here on sets it again.
        self.ctx.set_signal_pending(false);
        let mut handled = false;
        while let Some(info) = self.next_deliverable() {
            match self.deliver(info) {
                Delivered::Handler => handled = true,
                Delivered::Nothing => {}
                Delivered::Ends(action) => return action,
            }
        }
        if !handled && let Some(suspended) = self.thread.suspended.take() {
            self.thread.mask = suspended.mask;
            if let Some(nr) = suspended.restart {
                self.restart_call(nr);
            }
        }
        self.update_host_mask();
        EnvAction::Continue
    }

    /// Delivers a trap's signal. The kernel forces such signals: where the guest blocks or
    /// ignores one, it dies.
    pub fn force(&mut self, signal: &TrapSignal) -> EnvAction {
        self.thread.fault.trap_number = u64::from(signal.trap_number);
        self.thread.fault.error_code = u64::from(signal.error_code);
        if let Some(cr2) = signal.cr2 {
            self.thread.fault.cr2 = cr2;
        }
        self.force_info(signal.info, signal.resume_flag)
    }

    fn force_info(&mut self, info: SigInfo, resume_flag: bool) -> EnvAction {
        let signo = info.signo();
        let action = self.dispositions.get(signo);
        let blocked = self.thread.mask.contains(signo);
        if blocked || !action.is_handler() {
            self.dispositions.set(
                signo,
                Action {
                    handler: SIG_DFL,
                    ..action
                },
            );
            self.thread.mask = self.thread.mask.without(signo);
            return EnvAction::Kill(signo);
        }
        let action = self.dispositions.take_for_delivery(signo);
        match self.enter_handler(&action, info, resume_flag) {
            Ok(()) => {
                self.update_host_mask();
                EnvAction::Continue
            }
            Err(NoFrame) => self.force_segv(signo),
        }
    }

    /// A frame for `failed` could not be made or restored.
    fn force_segv(&mut self, failed: i32) -> EnvAction {
        if failed == libc::SIGSEGV {
            return EnvAction::Kill(libc::SIGSEGV);
        }
        self.force_info(SigInfo::forced(libc::SIGSEGV), false)
    }

    /// The recorded signal, or a held one that the guest doesn't block.
    fn next_deliverable(&mut self) -> Option<SigInfo> {
        while let Some(info) = take_recorded(self.ctx) {
            // Only synchronous ones get here blocked: somebody sent one with kill(2).
            if !self.thread.mask.contains(info.signo()) {
                return Some(info);
            }
            self.thread.hold(info);
        }
        self.thread.take_held(SigSet(!self.thread.mask.0))
    }

    fn deliver(&mut self, info: SigInfo) -> Delivered {
        let signo = info.signo();
        let action = self.dispositions.take_for_delivery(signo);
        match action.handler {
            SIG_IGN => Delivered::Nothing,
            SIG_DFL => self.default_delivery(signo),
            _ => {
                if action.flags & sa::RESETHAND != 0 {
                    self.install_in_host(signo, &self.dispositions.get(signo));
                }
                match self.enter_handler(&action, info, false) {
                    Ok(()) => Delivered::Handler,
                    Err(NoFrame) => match self.force_segv(signo) {
                        EnvAction::Continue => Delivered::Handler,
                        end => Delivered::Ends(end),
                    },
                }
            }
        }
    }

    fn default_delivery(&mut self, signo: i32) -> Delivered {
        match default_action(signo) {
            DefaultAction::Terminate | DefaultAction::Core => {
                Delivered::Ends(EnvAction::Kill(signo))
            }
            DefaultAction::Ignore | DefaultAction::Continue => Delivered::Nothing,
            DefaultAction::Stop => {
                // The kernel alone knows whether the process group is orphaned, and tells
                // the parent: let it have the signal.
                self.host
                    .set(signo, HostDisposition::Default, HostFlags::default());
                host::raise(signo);
                let before = host::mask();
                host::set_mask(before.without(signo));
                host::set_mask(before);
                Delivered::Nothing
            }
        }
    }

    /// Builds the frame and makes the context enter the handler.
    fn enter_handler(
        &mut self,
        action: &Action,
        info: SigInfo,
        resume_flag: bool,
    ) -> Result<(), NoFrame> {
        let signo = info.signo();
        // x86-64 has no other way back.
        if action.flags & sa::RESTORER == 0 {
            return Err(NoFrame);
        }
        let sp = self.ctx.cpu.get(Gpr::Rsp);
        let place = frame::place(sp, action, &self.thread.alt_stack).ok_or(NoFrame)?;
        let saved_mask = self
            .thread
            .suspended
            .map_or(self.thread.mask, |suspended| suspended.mask);
        let bytes = FrameContents {
            restorer: action.restorer,
            cpu: &self.ctx.cpu,
            resume_flag,
            fault: self.thread.fault,
            mask: saved_mask,
            alt_stack: self.thread.alt_stack,
            fpstate: place.fpstate,
            info: (action.flags & sa::SIGINFO != 0).then_some(info),
        }
        .to_bytes();
        let frame_bytes = if action.flags & sa::SIGINFO != 0 {
            &bytes[..]
        } else {
            &bytes[..frame::INFO]
        };
        let state = fpstate::save(&mut self.ctx.vector);
        let state_bytes = &state.0[..fpstate::FrameLayout::get().frame_bytes()];
        self.write(place.fpstate, state_bytes)
            .map_err(|_| NoFrame)?;
        self.write(place.frame, frame_bytes).map_err(|_| NoFrame)?;

        fpstate::reset(&mut self.ctx.vector);
        let cpu = &mut self.ctx.cpu;
        cpu.set(Gpr::Rdi, signo as u64);
        cpu.set(Gpr::Rsi, place.frame + frame::INFO as u64);
        cpu.set(Gpr::Rdx, place.frame + frame::UC as u64);
        cpu.set(Gpr::Rax, 0);
        cpu.set(Gpr::Rsp, place.frame);
        cpu.rip = action.handler;
        cpu.rflags &= !(flags::DF | flags::TF | frame::RESUME_FLAG);

        self.thread.suspended = None;
        let mut mask = self.thread.mask.union(action.mask);
        if action.flags & sa::NODEFER == 0 {
            mask = mask.with(signo);
        }
        self.thread.mask = mask.minus(UNBLOCKABLE);
        if self.thread.alt_stack.flags & super::thread::SS_AUTODISARM != 0 {
            self.thread.alt_stack.reset();
        }
        Ok(())
    }

    /// rt_sigreturn(2): everything from the frame that rsp points after.
    pub(super) fn sigreturn(&mut self) -> Outcome {
        let at = self.ctx.cpu.get(Gpr::Rsp).wrapping_sub(8);
        let action = match self.restore_frame(at) {
            Ok(action) => action,
            Err(_) => {
                self.ctx.cpu.set(Gpr::Rax, 0);
                self.force_info(SigInfo::forced(libc::SIGSEGV), false)
            }
        };
        Outcome::Action(action)
    }

    fn restore_frame(&mut self, at: u64) -> Result<EnvAction, NoFrame> {
        let mut word = [0; 8];
        self.read_frame(at + frame::UC_SIGMASK as u64, &mut word)?;
        let mask = SigSet(u64::from_le_bytes(word));
        self.read_frame(at + frame::UC as u64, &mut word)?;
        let uc_flags = u64::from_le_bytes(word);
        self.set_mask(mask);

        // Before the registers (Linux 6.12 and later): a stack still in use stays as it is.
        let mut stack = [0; STACK_T_BYTES];
        self.read_frame(at + frame::UC_STACK as u64, &mut stack)?;
        let stack = AltStack::from_bytes(&stack);
        let sp = self.ctx.cpu.get(Gpr::Rsp);
        // The kernel ignores refusals here.
        let _ = self.thread.alt_stack.change(stack, sp);

        let mut bytes = [0; frame::SAVED_CONTEXT_BYTES];
        self.read_frame(at + frame::MC as u64, &mut bytes)?;
        let saved = SavedContext::from_bytes(&bytes, uc_flags, &self.ctx.cpu);
        self.ctx.cpu = saved.cpu;
        if saved.fpstate == 0 {
            fpstate::reset(&mut self.ctx.vector);
        } else {
            let memory = &mut *self.memory;
            let restored = fpstate::restore(saved.fpstate, &mut self.ctx.vector, |addr, buffer| {
                memory
                    .read_bytes(GuestAddr(addr), buffer)
                    .map_err(|_| fpstate::BadState)
            });
            if restored.is_err() {
                fpstate::reset(&mut self.ctx.vector);
                return Err(NoFrame);
            }
        }
        Ok(self.check_selectors(saved.cs, saved.ss))
    }

    /// IRET's check of the selectors.
    fn check_selectors(&mut self, cs: u16, ss: u16) -> EnvAction {
        let bad = match (cs, ss) {
            (frame::USER_CS, frame::USER_SS) => return EnvAction::Continue,
            (frame::USER32_CS, _) => {
                eprintln!(
                    "temper: a signal handler returned into 32-bit code (cs {cs:#x}), which a \
                     64-bit program can't run under Temper"
                );
                return EnvAction::Abort;
            }
            (frame::USER_CS, ss) => ss,
            (cs, _) => cs,
        };
        self.force(&TrapSignal {
            info: SigInfo::forced(libc::SIGSEGV),
            trap_number: 13,
            error_code: u32::from(bad & !3),
            cr2: None,
            resume_flag: true,
        })
    }

    fn read_frame(&mut self, addr: u64, buffer: &mut [u8]) -> Result<(), NoFrame> {
        self.memory
            .read_bytes(GuestAddr(addr), buffer)
            .map_err(|_| NoFrame)
    }

    /// Makes the guest repeat the system call `nr` that it has just made: what the kernel
    /// does where a handler with SA_RESTART interrupted it.
    pub fn restart_call(&mut self, nr: i64) {
        self.ctx.cpu.rip = self.ctx.cpu.rip.wrapping_sub(2);
        self.ctx.cpu.set(Gpr::Rax, nr as u64);
    }

    /// Changes what the guest blocks, here and in the host. Held signals that this releases
    /// are announced.
    pub(super) fn set_mask(&mut self, mask: SigSet) {
        let before = self.thread.mask;
        self.thread.mask = mask.minus(UNBLOCKABLE);
        let host_mask = self.thread.mask.minus(SYNCHRONOUS);
        if host_mask == before.minus(SYNCHRONOUS) {
            // Nothing to do in the host.
        } else if host_mask.covers(before.minus(SYNCHRONOUS)) {
            // Adding is right even if a signal is recorded this very moment (then all is
            // blocked until it is delivered), and takes one call.
            host::block(host_mask);
        } else {
            self.update_host_mask();
        }
        self.announce_held();
    }

    /// Gives the host the guest's mask, unless a signal is recorded: then everything stays
    /// blocked until its delivery, which comes back here.
    pub fn update_host_mask(&mut self) {
        // Blocked first: otherwise a signal recorded between the look and the change would
        // lose its protection against a second one.
        host::block(SigSet::all_asynchronous());
        if !is_recorded(self.ctx) {
            host::set_mask(self.thread.mask.minus(SYNCHRONOUS));
        }
        self.announce_held();
    }

    fn announce_held(&mut self) {
        if !self.thread.mask.covers(self.thread.held()) {
            self.ctx.set_signal_pending(true);
        }
    }

    /// Gives the host the guest's action for `signo` again, after somebody else changed it.
    pub fn reinstall(&mut self, signo: i32) {
        self.install_in_host(signo, &self.dispositions.get(signo));
    }

    /// Makes the host's disposition of `signo` fit the guest's action.
    pub(super) fn install_in_host(&mut self, signo: i32, action: &Action) {
        let disposition = match action.handler {
            _ if SYNCHRONOUS.contains(signo) => HostDisposition::Temper,
            SIG_DFL => HostDisposition::Default,
            SIG_IGN => HostDisposition::Ignore,
            _ => HostDisposition::Temper,
        };
        let mut host_flags = HostFlags::from_action_flags(action.flags);
        // A synchronous signal that the guest doesn't handle interrupts nothing.
        host_flags.restart |= !action.is_handler();
        self.host.set(signo, disposition, host_flags);
    }
}

enum Delivered {
    /// The context enters a handler.
    Handler,
    Nothing,
    Ends(EnvAction),
}

/// Whether the host's handler has recorded a signal that isn't delivered yet.
pub(super) fn is_recorded(ctx: &ThreadContext) -> bool {
    // SAFETY: a plain field; volatile because a signal handler of this thread writes it.
    let signo = unsafe { std::ptr::read_volatile(&raw const ctx.signal_info[0]) } as i32;
    signo != 0
}

fn take_recorded(ctx: &mut ThreadContext) -> Option<SigInfo> {
    if !is_recorded(ctx) {
        return None;
    }
    // SAFETY: plain memory of this thread's; volatile as in `is_recorded`. All asynchronous
    // signals are blocked until the number is zero again.
    let info = unsafe { std::ptr::read_volatile(&raw const ctx.signal_info) };
    // SAFETY: as above.
    unsafe { std::ptr::write_volatile(&raw mut ctx.signal_info[0], 0) };
    let info = SigInfo(info);
    debug_assert!((1..=MAX_SIGNAL).contains(&info.signo()));
    Some(info)
}
