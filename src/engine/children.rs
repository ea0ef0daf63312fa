//! Child processes. With a copy of the guest's memory: the views of executable memory are
//! shared mappings, which a child would share, so they are copied before it is made, while
//! nobody changes them, and the child maps the copies over its views before it runs anything.
//! With the guest's memory itself: the child is one more thread in this world, on a stack of
//! its own, and its parent's thread waits until it has gone.

use std::io;

use super::Engine;
use super::host_signals::{alternate_stack_bytes, use_alternate_stack};
use super::world::{GuestThread, Held, Outcome, Shared, World};
use crate::addr::HostAddr;
use crate::guest::{EnvAction, GuestEnv, HostCall, ThreadContext};
use crate::host::syscall::raw;
use crate::host::{DualMapCopy, Stack, clone_onto};

/// What generated code a forked child starts with.
struct Copies {
    cache: DualMapCopy,
    stubs: Vec<DualMapCopy>,
}

/// A child that shares memory, as it finds itself on its new stack.
struct Newborn<'a, E: GuestEnv> {
    world: &'a World<E>,
    thread: Box<GuestThread<E>>,
    /// Where its signal handler runs.
    signal_stack: HostAddr,
}

/// Rust code of a child: no deeper than any thread's.
const STACK_BYTES: usize = 1 << 20;

impl<E: GuestEnv> Held<'_, E> {
    /// Makes `call`, in which a child with a copy of all memory begins. Returns as the call
    /// does, in both processes.
    pub(super) fn fork(&mut self, thread: &mut GuestThread<E>, call: HostCall) -> EnvAction {
        let result = match self.engine.copy_code() {
            Ok(copies) => {
                // SAFETY: the surroundings' call, which makes a child on a copy of this stack.
                let result = unsafe { raw(call.number, call.args) };
                if result == 0 {
                    self.be_alone();
                    self.engine.become_child(copies);
                }
                result
            }
            Err(error) => {
                tracing::warn!(target: "temper::engine", %error, "no copy of the code cache");
                -i64::from(libc::ENOMEM)
            }
        };
        let Shared { engine, env } = &mut **self;
        env.forked(&mut thread.own, &mut thread.ctx, &mut engine.code, result)
    }

    /// Makes a child that shares all memory, and waits until it has left it.
    pub(super) fn share(&mut self, thread: &mut GuestThread<E>) -> EnvAction {
        let signal_stack_bytes = alternate_stack_bytes();
        let stack = match Stack::new(STACK_BYTES + signal_stack_bytes) {
            Ok(stack) => stack,
            Err(error) => {
                tracing::warn!(target: "temper::engine", %error, "no stack for a child");
                return EnvAction::Abort;
            }
        };
        let whole = stack.range();
        let own_part = whole.start.offset(signal_stack_bytes as i64)..whole.end;
        let mut ctx = ThreadContext::default();
        ctx.cpu = thread.ctx.cpu.clone();
        ctx.vector = thread.ctx.vector.clone();
        let (own, call) = self.env.begin_child(&mut thread.own, own_part);
        let mut newborn = Newborn {
            world: self.world,
            thread: GuestThread::new(ctx, own),
            signal_stack: whole.start,
        };
        let argument = (&raw mut newborn).cast();
        self.world.lock.release();
        // SAFETY: the stack and the newborn live until the call returns here, which is when
        // the child has left this memory; until then the parent's thread-locals are the
        // child's, because the parent waits in the kernel.
        let result = unsafe { clone_onto(call.number, call.args, be_born::<E>, argument) };
        self.world.lock.acquire();
        let child = &newborn.thread.own;
        let Shared { engine, env } = &mut **self;
        env.child_left(
            &mut thread.own,
            &mut thread.ctx,
            &mut engine.code,
            child,
            result,
        )
    }
}

/// The child's life, from its first instruction to its end.
unsafe extern "C" fn be_born<E: GuestEnv>(newborn: *mut u8) -> ! {
    // SAFETY: the parent's, which waits meanwhile and doesn't look at it.
    let newborn = unsafe { &mut *newborn.cast::<Newborn<'_, E>>() };
    let set = use_alternate_stack(newborn.signal_stack);
    assert!(set.is_ok(), "no stack for signals: {set:?}");
    let thread = &mut *newborn.thread;
    let (held, outcome) = newborn.world.run_with(thread, |held, thread| {
        let Shared { engine, env } = &mut **held;
        env.child_began(&mut thread.own, &mut thread.ctx, &mut engine.code);
    });
    drop(held);
    E::end_child(match outcome {
        Outcome::ThreadExit(status) | Outcome::Exit(status) => EnvAction::Exit(status),
        Outcome::Killed(signo) => EnvAction::Kill(signo),
        Outcome::Aborted => EnvAction::Abort,
    })
}

impl<E: GuestEnv> Engine<E> {
    fn copy_code(&self) -> io::Result<Copies> {
        Ok(Copies {
            cache: self.code.cache.copy()?,
            stubs: self.stubs.copy()?,
        })
    }

    fn become_child(&mut self, copies: Copies) {
        let shown = self.code.cache.show(copies.cache);
        if let Err(error) = shown.and_then(|()| self.stubs.show(copies.stubs)) {
            eprintln!("temper: a forked child can't have executable memory ({error})");
            std::process::abort();
        }
        self.code.profile.interrupt_path();
        // The parent saves what was counted so far.
        self.code.profile.forget_counts();
    }
}
