//! Child processes. With a copy of the guest's memory: the views of executable memory are
//! shared mappings, which a child would share, so they are copied before it is made, while
//! nobody changes them, and the child maps the copies over its views before it runs anything.
//! With the guest's memory itself: the child is one more thread in this world, on a stack of
//! its own, and its parent's thread waits until it has gone.

use std::io;
use std::sync::atomic::Ordering;

use super::host_signals::{set_alternate_stack, signal_stack_bytes};
use super::world::{GuestThread, Held, Outcome, Shared, World};
use super::{Engine, entry};
use crate::addr::HostAddr;
use crate::guest::{EnvAction, GuestEnv, HostCall, presence};
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
    /// The world's lock is its parent's again when it ends; otherwise it is its own now.
    lent: bool,
    thread: Box<GuestThread<E>>,
    /// Where its signal handler runs.
    signal_stack: HostAddr,
}

/// For Temper's code in a child; pages exist once they are touched.
const STACK_BYTES: usize = 512 << 10;

impl<E: GuestEnv> Held<'_, E> {
    /// Makes `call`, in which a child with a copy of all memory begins. Goes on as the call
    /// returns, in both processes.
    pub(super) fn fork(&mut self, thread: &mut GuestThread<E>, call: HostCall) -> EnvAction {
        // Nobody changes generated code under the lock, but others may run in it, and what
        // is on its way there must be the same in the child.
        self.engine.code.stop();
        // A thread of Temper's own would be missing in the child, with what it held.
        self.engine.code.profile.finish_timed_save();
        let result = match self.engine.copy_code() {
            Ok(copies) => {
                // SAFETY: the surroundings' call, which makes a child on a copy of this stack.
                let result = unsafe { raw(call.number, call.args) };
                if result == 0 {
                    self.world.lock.be_alone();
                    self.engine.code.threads.keep_only(&mut thread.ctx);
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

    /// Makes a child that shares all memory, and waits until it has left it. To the world, the
    /// child's thread takes the place of this one; an only thread lends it the lock as well,
    /// so that a child that is killed at any moment leaves no lock behind.
    pub(super) fn share(&mut self, thread: &mut GuestThread<E>) -> EnvAction {
        let signal_stack = signal_stack_bytes();
        let stack = match Stack::new(STACK_BYTES + signal_stack) {
            Ok(stack) => stack,
            Err(error) => {
                eprintln!("temper: no memory for a child process ({error})");
                return EnvAction::Abort;
            }
        };
        let range = stack.range();
        let main_part = range.start.offset(signal_stack as i64)..range.end;
        let (own, call) = self.env.begin_child(&mut thread.own, main_part);
        let lent = self.engine.code.threads.alone();
        let mut newborn = Newborn {
            world: self.world,
            lent,
            thread: GuestThread::new(thread.ctx.for_child(), own),
            signal_stack: range.start,
        };
        let threads = &mut self.engine.code.threads;
        threads.replace(&mut thread.ctx, &mut newborn.thread.ctx);
        self.engine.code.profile.interrupt_path();
        // One that the child started would be killed at its end, with what it holds of this
        // memory.
        self.engine.code.profile.suspend_timed_saves();
        if !lent {
            self.engine.code.threads.sharing_began();
        }
        // The lock is held until the child runs, and is then the child's: were it free, the child
        // could get a copy of a descriptor that another thread has open just then, such as that
        // of the profiles' lock.
        // SAFETY: the stack and the newborn live until the call returns here, which is when
        // the child has left this memory; until then this thread's thread-locals are the
        // child's, because this thread waits in the kernel.
        let result = unsafe {
            clone_onto(
                call.number,
                call.args,
                be_born::<E>,
                (&raw mut newborn).cast(),
            )
        };
        let was_born = result >= 0;
        // Killed in generated code or in a call, it would seem to be there for ever, and
        // whoever stops the world has the lock and waits for that to change.
        let ctx = &newborn.thread.ctx;
        ctx.presence.store(presence::OUTSIDE, Ordering::Release);
        ctx.in_syscall.store(0, Ordering::Release);
        if !lent && was_born {
            self.take_lock_after_child();
        }
        let Shared { engine, env } = &mut **self;
        if !lent {
            engine.code.threads.sharing_ended();
        }
        engine.code.profile.resume_timed_saves();
        let child = &mut newborn.thread;
        let threads = &mut engine.code.threads;
        threads.replace(&mut child.ctx, &mut thread.ctx);
        engine.thread_ended(child);
        env.child_left(
            &mut thread.own,
            &mut thread.ctx,
            &mut engine.code,
            &child.own,
            result,
        )
    }
}

impl<E: GuestEnv> Held<'_, E> {
    /// A child that was killed at a bad moment left the lock held in this thread's name, and
    /// perhaps the world stopped. Whatever it was about to change has to do as it is.
    fn take_lock_after_child(&mut self) {
        if self.world.lock.acquire_after_child() {
            tracing::warn!(target: "temper::engine", "a child died in the midst of its work");
            self.engine.code.start();
        }
    }
}

/// The child's life, from its first instruction to its end.
unsafe extern "C" fn be_born<E: GuestEnv>(newborn: *mut u8) -> ! {
    // SAFETY: its parent's, which waits meanwhile and doesn't look at it.
    let newborn = unsafe { &mut *newborn.cast::<Newborn<'_, E>>() };
    let Newborn {
        world,
        lent,
        thread,
        signal_stack,
    } = newborn;
    let base = signal_stack.0 as *mut libc::c_void;
    // SAFETY: the lower part of this thread's own stack, kept free for this.
    assert!(unsafe { set_alternate_stack(base, signal_stack_bytes(), 0) });
    entry::prepare(&mut thread.ctx);
    let mut held = Held { world };
    let Shared { engine, env } = &mut *held;
    env.child_began(&mut thread.own, &mut thread.ctx, &mut engine.code);
    let outcome = held.run(thread);
    if *lent {
        // The parent has it again once this process has ended.
        std::mem::forget(held);
    } else {
        drop(held);
    }
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
