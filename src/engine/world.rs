//! The world: everything that a guest's threads share, behind one lock, and the loop that
//! runs a thread in it.
//!
//! Rust code of the engine and of the guest's surroundings runs under the lock, so both are
//! written as if there were one thread. The lock is free while a thread is in generated code
//! and while it is in a system call that may block.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::dispatch::{Engine, Next};
use super::entry;
use crate::addr::HostAddr;
use crate::guest::{EnvAction, ExitKind, GuestEnv, HostCall, ThreadContext, pending, presence};
use crate::host::Lock;
use crate::host::syscall::interruptible;

/// What a guest's threads share.
pub struct Shared<E: GuestEnv> {
    pub engine: Engine<E>,
    pub env: E,
}

/// See the module documentation.
pub struct World<E: GuestEnv> {
    pub(super) lock: Lock,
    shared: UnsafeCell<Shared<E>>,
}

// SAFETY: what is shared is reached under the lock alone, by one thread at a time, and
// nothing in it is bound to the thread that made it.
unsafe impl<E: GuestEnv> Sync for World<E> {}
// SAFETY: as above.
unsafe impl<E: GuestEnv> Send for World<E> {}

/// One guest thread: what nobody else needs. Boxed, because its context must not move while
/// it runs.
pub struct GuestThread<E: GuestEnv> {
    pub ctx: ThreadContext,
    /// What the surroundings keep for the thread.
    pub own: E::Thread,
    /// Blocks that are still to be interpreted to refresh the profile, translated or not.
    pub(super) burst: u32,
    /// The state of the map's far entries that the context's copies are from.
    pub(super) far_epoch: u64,
}

impl<E: GuestEnv> GuestThread<E> {
    pub fn new(ctx: ThreadContext, own: E::Thread) -> Box<GuestThread<E>> {
        Box::new(GuestThread {
            ctx,
            own,
            burst: 0,
            far_epoch: 0,
        })
    }
}

/// How a thread's run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The thread ended with this status; others may go on.
    ThreadExit(i32),
    Exit(i32),
    Killed(i32),
    /// Temper could not go on; the reason is on standard error already.
    Aborted,
}

/// The world while this thread holds its lock.
pub struct Held<'a, E: GuestEnv> {
    pub(super) world: &'a World<E>,
}

impl<E: GuestEnv> Deref for Held<'_, E> {
    type Target = Shared<E>;

    #[inline]
    fn deref(&self) -> &Shared<E> {
        // SAFETY: the lock is held as long as this lives.
        unsafe { &*self.world.shared.get() }
    }
}

impl<E: GuestEnv> DerefMut for Held<'_, E> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Shared<E> {
        // SAFETY: as above.
        unsafe { &mut *self.world.shared.get() }
    }
}

impl<E: GuestEnv> Drop for Held<'_, E> {
    fn drop(&mut self) {
        self.world.lock.release();
    }
}

impl<E: GuestEnv> World<E> {
    pub fn new(engine: Engine<E>, env: E) -> World<E> {
        World {
            lock: Lock::default(),
            shared: UnsafeCell::new(Shared { engine, env }),
        }
    }

    /// Waits for the lock.
    pub fn hold(&self) -> Held<'_, E> {
        self.lock.acquire();
        Held { world: self }
    }

    /// Runs the guest thread from `thread.ctx.cpu` to its end, on the calling host thread:
    /// its gs base belongs to the context from now on, and all its signals come to Temper's
    /// handlers, for which it needs an alternate stack.
    pub fn run(&self, thread: &mut GuestThread<E>) -> (Held<'_, E>, Outcome) {
        entry::prepare(&mut thread.ctx);
        let mut held = self.hold();
        if !held.engine.code.threads.lists(&thread.ctx) {
            let listed = held.engine.code.threads.add(&mut thread.ctx);
            assert!(listed, "only a first thread comes unannounced");
        }
        let outcome = held.run(thread);
        held.engine.thread_ended(thread);
        (held, outcome)
    }
}

impl<E: GuestEnv> Held<'_, E> {
    pub(super) fn run(&mut self, thread: &mut GuestThread<E>) -> Outcome {
        let mut steps = 0u32;
        loop {
            let Shared { engine, env } = &mut **self;
            let mut action = match engine.step(thread, env) {
                Next::Act(action) => {
                    steps = steps.wrapping_add(1);
                    if steps.is_multiple_of(TURN_STEPS) {
                        self.hand_over();
                    }
                    action
                }
                Next::Enter(host) => self.enter(thread, host),
            };
            loop {
                match action {
                    EnvAction::Continue => break,
                    EnvAction::Call(call) => action = self.make_call(thread, call),
                    EnvAction::Fork(call) => action = self.fork(thread, call),
                    EnvAction::Share => action = self.share(thread),
                    EnvAction::ExitThread(status) => return Outcome::ThreadExit(status),
                    EnvAction::Exit(status) => {
                        let Shared { engine, env } = &mut **self;
                        engine.complete(env);
                        return Outcome::Exit(status);
                    }
                    EnvAction::Kill(signo) => return Outcome::Killed(signo),
                    EnvAction::Abort => return Outcome::Aborted,
                }
            }
        }
    }

    /// Runs generated code at `host`, which is the guest's pc's, with the lock free if anybody
    /// may want it.
    #[inline]
    fn enter(&mut self, thread: &mut GuestThread<E>, host: HostAddr) -> EnvAction {
        let engine = &mut self.engine;
        let started = engine.settings.timing.then(Instant::now);
        let exit = if engine.code.threads.alone() {
            // SAFETY: `World::run` prepared the context, which is borrowed here; `host` was
            // just looked up for the guest's pc.
            unsafe { entry::enter(&mut thread.ctx, host) }
        } else {
            self.enter_beside_others(thread, host)
        };
        let Shared { engine, env } = &mut **self;
        if let Some(started) = started {
            engine.stats.blocks.seconds += started.elapsed().as_secs_f64();
        }
        engine.left(thread, env, exit)
    }

    fn enter_beside_others(&mut self, thread: &mut GuestThread<E>, host: HostAddr) -> ExitKind {
        let ctx = &mut thread.ctx;
        ctx.presence.store(presence::INSIDE, Ordering::Release);
        self.world.lock.release();
        // SAFETY: as in `enter`. Who removes the code at `host` from here on finds the thread
        // inside, and makes it leave first.
        unsafe { entry::enter(ctx, host) };
        ctx.presence.store(presence::LEFT, Ordering::Release);
        self.world.lock.acquire();
        ctx.presence.store(presence::OUTSIDE, Ordering::Relaxed);
        ctx.pending.fetch_and(!pending::LEAVE, Ordering::Relaxed);
        // Whoever stopped the world may have changed it.
        entry::exit_of(ctx)
    }

    /// Lets other threads have the lock for a while, if they wait for it.
    fn hand_over(&mut self) {
        if self.world.lock.hand_over() {
            self.engine.code.profile.interrupt_path();
        }
    }

    fn make_call(&mut self, thread: &mut GuestThread<E>, call: HostCall) -> EnvAction {
        let ctx = &mut thread.ctx;
        ctx.call = call;
        ctx.in_syscall.store(1, Ordering::Release);
        let engine = &mut self.engine;
        let alone = engine.code.threads.alone();
        if !alone {
            engine.code.profile.interrupt_path();
            self.world.lock.release();
        }
        // SAFETY: the surroundings' call on the guest's memory or on the thread's own; the
        // word is the thread's, and its signal handler redirects a thread in the call.
        let result = unsafe { interruptible(ctx.pending.as_ptr(), call.number, call.args) };
        if !alone {
            self.world.lock.acquire();
        }
        ctx.in_syscall.store(0, Ordering::Relaxed);
        let Shared { engine, env } = &mut **self;
        env.call_returned(&mut thread.own, &mut thread.ctx, &mut engine.code, result)
    }
}

/// Blocks that a thread may interpret before it lets others have their turn: some 30 us.
const TURN_STEPS: u32 = 64;
