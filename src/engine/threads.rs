//! The guest's threads as the code cache must know them: who may be in generated code, and
//! how to get them out of it.
//!
//! Stopping the world takes no signal, so the guest sees no EINTR. Each thread inside is
//! marked in its `pending` word, which it looks at before it enters and around system calls
//! that go out from assembly; a membarrier makes sure that it either sees the mark or is
//! seen by the stopper. For those that just run, the generated code is made inaccessible:
//! they fault at their next instruction, and leave as if a signal had interrupted them.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

use syscalls::Sysno;

use super::code::Code;
use super::superblocks;
use crate::addr::HostAddr;
use crate::codecache::Location;
use crate::guest::{
    CallsInFlight, ExitKind, Gpr, GuestMemory, HostCall, ThreadContext, pending, presence,
};
use crate::host::syscall::{SyscallResult, call};
use crate::translate::recovery::{self, Place};

/// The contexts of all guest threads. Each is boxed by its thread and stays in place until it
/// is taken off the list.
#[derive(Default)]
pub(super) struct Threads {
    contexts: Vec<NonNull<ThreadContext>>,
    /// membarrier(2) is ready for use.
    barrier: bool,
    /// Memory-sharing children that have the lock in their own right: it isn't their parent's
    /// again when they end, so even an only thread among them gives it back.
    sharing: u32,
}

impl Threads {
    /// Whether there is at most one guest thread: then nobody else wants the world's lock,
    /// and nobody is in generated code while Rust code runs.
    #[inline]
    pub(super) fn alone(&self) -> bool {
        self.contexts.len() <= 1 && self.sharing == 0
    }

    /// A child begins or ends that shares memory and isn't lent the lock.
    pub(super) fn sharing_began(&mut self) {
        self.sharing += 1;
    }

    pub(super) fn sharing_ended(&mut self) {
        self.sharing -= 1;
    }

    pub(super) fn lists(&self, ctx: &ThreadContext) -> bool {
        self.contexts.contains(&NonNull::from(ctx))
    }

    /// Lists a thread. False: there is one already and this host lacks membarrier(2).
    pub(super) fn add(&mut self, ctx: &mut ThreadContext) -> bool {
        if !self.contexts.is_empty() && !self.barrier {
            self.barrier = membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED).is_ok();
            if !self.barrier {
                return false;
            }
        }
        self.contexts.push(NonNull::from(ctx));
        true
    }

    pub(super) fn remove(&mut self, ctx: *const ThreadContext) {
        self.contexts
            .retain(|other| other.as_ptr().cast_const() != ctx);
    }

    /// In a forked child, which has no other thread than the one of `ctx`.
    pub(super) fn keep_only(&mut self, ctx: &mut ThreadContext) {
        self.contexts = vec![NonNull::from(ctx)];
        self.sharing = 0;
    }

    /// Lists one context in the place of another, whose thread waits meanwhile.
    pub(super) fn replace(&mut self, old: &mut ThreadContext, new: &mut ThreadContext) {
        let old = NonNull::from(old);
        for listed in self.contexts.iter_mut().filter(|listed| **listed == old) {
            *listed = NonNull::from(&mut *new);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &ThreadContext> {
        // SAFETY: listed contexts are alive; their threads change them while inside generated
        // code, but of those only the atomic words are looked at.
        self.contexts.iter().map(|ctx| unsafe { ctx.as_ref() })
    }

    /// Sets all masks; false if they were so already.
    pub(super) fn set_pass_through(&self, mask: [u64; 8]) -> bool {
        let mut changed = false;
        for ctx in self.iter() {
            changed |= ctx.set_pass_through(mask);
        }
        changed
    }

    /// System calls that went out from assembly in all threads.
    pub(super) fn syscalls_passed(&self) -> u64 {
        self.iter().map(|ctx| ctx.syscalls_passed).sum()
    }

    /// Marks all threads inside; true if there is one that isn't in a system call, which
    /// won't leave by itself.
    fn ask_to_leave(&self) -> bool {
        let mut any = false;
        for ctx in self.iter().filter(|ctx| is_inside(ctx)) {
            ctx.pending.fetch_or(pending::LEAVE, Ordering::SeqCst);
            any = true;
        }
        if any {
            let fenced = membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
            assert!(fenced.is_ok(), "membarrier: {fenced:?}");
        }
        self.any_running()
    }

    fn any_running(&self) -> bool {
        let running =
            |ctx: &ThreadContext| is_inside(ctx) && ctx.in_syscall.load(Ordering::Acquire) == 0;
        self.iter().any(running)
    }
}

impl CallsInFlight for Threads {
    fn calls(&self) -> Vec<HostCall> {
        let busy = |ctx: &&ThreadContext| ctx.in_syscall.load(Ordering::Acquire) != 0;
        // What is written again meanwhile belongs to a call that began later.
        self.iter().filter(busy).map(|ctx| ctx.call).collect()
    }
}

fn is_inside(ctx: &ThreadContext) -> bool {
    ctx.presence.load(Ordering::Acquire) == presence::INSIDE
}

fn membarrier(command: i32) -> SyscallResult {
    // SAFETY: orders memory accesses and changes none.
    unsafe { call(Sysno::membarrier, [command as u64, 0, 0, 0, 0, 0]) }
}

/// Waits a little longer each time.
#[derive(Default)]
struct Patience(u32);

impl Patience {
    fn wait(&mut self) {
        self.0 += 1;
        match self.0 {
            0..100 => std::hint::spin_loop(),
            100..200 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}

impl<M: GuestMemory> Code<M> {
    /// See [`crate::guest::CodeControl::stop_world`]. Threads that left where only the state
    /// map can tell the guest's state have it when this returns: the map may go next.
    pub(super) fn stop(&mut self) {
        if self.threads.alone() {
            return;
        }
        if self.threads.ask_to_leave() {
            let forbidden = self.cache.set_executable(false);
            assert!(forbidden.is_ok(), "generated code: {forbidden:?}");
            let mut patience = Patience::default();
            while self.threads.any_running() {
                patience.wait();
            }
            self.start();
        }
        for mut ctx in self.threads.contexts.clone() {
            // SAFETY: as in `iter`; a thread that left waits for the lock, which the caller
            // holds, and doesn't touch its context meanwhile.
            let ctx = unsafe { ctx.as_mut() };
            let unresolved = [ExitKind::Fault, ExitKind::Interrupted]
                .iter()
                .any(|&kind| ctx.exit_kind == kind as u64);
            if ctx.presence.load(Ordering::Acquire) == presence::LEFT
                && unresolved
                && self.recover(ctx).is_some()
            {
                // Whatever faulted faults again.
                ctx.exit_kind = ExitKind::NotEntered as u64;
            }
        }
    }

    /// Lets threads into generated code that a stop has closed.
    pub(super) fn start(&self) {
        let allowed = self.cache.set_executable(true);
        assert!(allowed.is_ok(), "generated code: {allowed:?}");
    }

    /// Turns the registers that generated code was interrupted with into the guest's.
    pub(super) fn recover(&self, ctx: &mut ThreadContext) -> Option<Place> {
        match self.cache.locate(HostAddr(ctx.fault.host_pc))? {
            Location::Code {
                start,
                offset,
                recovery: map,
            } => {
                let (guest, fix) = recovery::point_at(map, start, offset as u32)?;
                Some(recovery::apply(ctx, guest, fix))
            }
            Location::Superblock { id, offset } => {
                let superblock = self.superblocks.code(id)?;
                superblocks::recover(ctx, &superblock, offset as u32)
            }
            Location::ExitStub { target } => {
                ctx.cpu.rip = target.0;
                Some(Place::OnTheWay)
            }
            Location::CounterStub { head, spilled } => {
                ctx.cpu.rip = head.0;
                if spilled {
                    ctx.cpu.set(Gpr::Rcx, ctx.spill[0]);
                }
                Some(Place::OnTheWay)
            }
            Location::IndirectStub { target } => {
                ctx.cpu.rip = target.0;
                ctx.cpu.set(Gpr::R11, ctx.r11_slot);
                Some(Place::OnTheWay)
            }
        }
    }
}
