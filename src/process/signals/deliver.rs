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

    /// Forces a signal that no trap of the CPU's made: what a seccomp filter sends.
    pub fn force_signal(&mut self, info: SigInfo) -> EnvAction {
        self.force_info(info, false)
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
            return self.die_of(info);
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
            return self.die_of(SigInfo::forced(libc::SIGSEGV));
        }
        self.force_info(SigInfo::forced(libc::SIGSEGV), false)
    }

    /// A synchronous signal that somebody sent, which the kernel prefers, or the recorded
    /// one.
    fn next_deliverable(&mut self) -> Option<SigInfo> {
        self.hold_sent();
        if let Some(info) = self.thread.take_held(SigSet(!self.thread.mask.0)) {
            return Some(info);
        }
        let info = take(&mut self.ctx.signal_info)?;
        if self.thread.mask.contains(info.signo()) {
            // It came just before a trap whose handler blocks it.
            host::give_back(&info);
            return None;
        }
        Some(info)
    }

    /// Takes in what the host's handler recorded of synchronous signals.
    pub(super) fn hold_sent(&mut self) {
        for record in &mut self.ctx.sent_synchronous {
            if let Some(info) = take(record) {
                self.thread.hold(info);
            }
        }
    }

    fn deliver(&mut self, info: SigInfo) -> Delivered {
        let signo = info.signo();
        let action = self.dispositions.take_for_delivery(signo);
        match action.handler {
            SIG_IGN => Delivered::Nothing,
            SIG_DFL => self.default_delivery(info),
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

    fn default_delivery(&mut self, info: SigInfo) -> Delivered {
        let signo = info.signo();
        match default_action(signo) {
            DefaultAction::Terminate | DefaultAction::Core => Delivered::Ends(self.die_of(info)),
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
        match self.restore_frame(at) {
            Ok(outcome) => outcome,
            Err(_) => {
                self.ctx.cpu.set(Gpr::Rax, 0);
                Outcome::Action(self.force_info(SigInfo::forced(libc::SIGSEGV), false))
            }
        }
    }

    fn restore_frame(&mut self, at: u64) -> Result<Outcome, NoFrame> {
        let mut word = [0; 8];
        self.read_frame(at + frame::UC_SIGMASK as u64, &mut word)?;
        let mask = SigSet(u64::from_le_bytes(word));
        self.read_frame(at + frame::UC as u64, &mut word)?;
        let uc_flags = u64::from_le_bytes(word);
        if !self.set_mask(mask) {
            return Ok(Outcome::Again);
        }

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
        Ok(Outcome::Action(self.check_selectors(saved.cs, saved.ss)))
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
    /// does where no handler interrupted it after all.
    fn restart_call(&mut self, nr: i64) {
        self.ctx.cpu.rip = self.ctx.cpu.rip.wrapping_sub(2);
        self.ctx.cpu.set(Gpr::Rax, nr as u64);
    }

    /// Changes what the guest blocks, here and in the host. Held signals that this releases
    /// are announced. False: a signal came before, and nothing is changed; it must be
    /// delivered under the mask that let it come.
    #[must_use]
    pub(super) fn set_mask(&mut self, mask: SigSet) -> bool {
        let mask = mask.minus(UNBLOCKABLE);
        let before = self.thread.mask.minus(SYNCHRONOUS);
        let host_mask = mask.minus(SYNCHRONOUS);
        if host_mask != before {
            let adds_only = host_mask.covers(before);
            host::block(if adds_only {
                host_mask
            } else {
                SigSet::all_asynchronous()
            });
            if is_recorded(self.ctx) {
                return false;
            }
            if !adds_only {
                host::set_mask(host_mask);
            }
        }
        self.thread.mask = mask;
        self.announce_held();
        true
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
            SIG_DFL if signo == host::OPEN_IN_NEW_THREADS => HostDisposition::Temper,
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

/// Takes what the host's handler recorded. It writes a record only while that is empty.
fn take(record: &mut [u64; 16]) -> Option<SigInfo> {
    // SAFETY: plain memory of this thread's; volatile as in `is_recorded`.
    let info = SigInfo(unsafe { std::ptr::read_volatile(record) });
    if info.signo() == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { std::ptr::write_volatile(&raw mut record[0], 0) };
    debug_assert!((1..=MAX_SIGNAL).contains(&info.signo()));
    Some(info)
}
