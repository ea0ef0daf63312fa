//! Guest threads on host threads, one each: how the first one runs, how others start, and
//! what happens when one ends.
//!
//! Whichever thread ends the guest closes it (saves profiles, shows statistics) and takes
//! the process with it; it never gives the world's lock back, so no other thread comes
//! between. A first thread that ends before the others is ended in the host too, as the
//! kernel's books want it, without a return from `main`.

use std::ffi::c_void;
use std::fmt;
use std::mem::MaybeUninit;

use syscalls::Sysno;

use super::signals::{SigSet, host_mask};
use super::{Loaded, Process, ThreadState};
use crate::engine::host_signals::{SignalStack, leave_context, without_context};
use crate::engine::{Engine, GuestThread, Held, Outcome, Shared, World};
use crate::guest::{CodeControl, ThreadContext};
use crate::host::syscall::{Errno, raw};

/// The guest's thread as the engine runs it.
pub(super) type Thread = GuestThread<Process>;

/// What is to be done at the guest's end; gives the exit status, or dies by the signal.
pub type Closing = Box<dyn FnOnce(&mut Engine<Process>, &Process, &ThreadState, Outcome) -> i32>;

/// The world that a process lives in, for the threads that it starts.
#[derive(Clone, Copy)]
pub(super) struct Home(&'static World<Process>);

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Home")
    }
}

/// A [`Closing`] that is still to come.
#[derive(Default)]
pub(super) struct Ahead(Option<Closing>);

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ahead")
    }
}

/// Bytes of a guest thread's host stack; pages exist once they are touched. The deepest use
/// is saving the profile.
const STACK_BYTES: usize = 512 << 10;

/// Runs a loaded guest to its end on the calling thread and those that the guest starts.
/// Returns the exit status if this thread ends the guest, otherwise not at all.
pub fn run(engine: Engine<Process>, loaded: Loaded, closing: Closing) -> Result<i32, Errno> {
    let Loaded {
        mut process,
        thread,
        start,
    } = loaded;
    process.closing = Ahead(Some(closing));
    // It lives as long as any thread may: to the end of the process.
    let world: &'static World<Process> = Box::leak(Box::new(World::new(engine, process)));
    world.hold().env.home = Some(Home(world));
    let mut thread = Thread::new(ThreadContext::default(), thread);
    start.apply(&mut thread.ctx);
    // The kernel's to the end, as the world.
    std::mem::forget(SignalStack::new()?.make_current());
    let (held, outcome) = world.run(&mut thread);
    match outcome {
        Outcome::ThreadExit(status) => {
            drop(held);
            exit_thread(status)
        }
        Outcome::Exit(_) | Outcome::Killed(_) | Outcome::Aborted => {
            Ok(close(held, &thread.own, outcome))
        }
    }
}

/// The guest ends: nobody else gets the lock any more.
fn close(mut held: Held<'_, Process>, thread: &ThreadState, outcome: Outcome) -> i32 {
    let Shared { engine, env } = &mut *held;
    // Natively they'd be gone at once.
    engine.code.stop_world();
    engine.complete_stats();
    let closing = env.closing.0.take().expect("a guest ends once");
    let status = closing(engine, env, thread, outcome);
    std::mem::forget(held);
    status
}

/// Ends the calling host thread, whatever the C library thinks of it.
fn exit_thread(status: i32) -> ! {
    loop {
        // SAFETY: nothing of this thread is needed any more; its stack stays mapped.
        unsafe { raw(Sysno::exit.id() as u64, [status as u64, 0, 0, 0, 0, 0]) };
    }
}

/// What a new host thread starts with.
struct Beginning {
    world: &'static World<Process>,
    thread: Box<Thread>,
    stack: SignalStack,
    /// What it isn't to share with the others: flags for unshare(2).
    unshare: u64,
}

impl Process {
    /// Starts a host thread for `thread`, which runs once the world's lock is free. Returns
    /// its id. All asynchronous signals are blocked meanwhile, and in the new thread until
    /// it takes on its own mask.
    ///
    /// # Errors
    /// The kernel's, as when there are too many threads.
    pub(super) fn start_thread(&mut self, thread: Box<Thread>, unshare: u64) -> Result<i32, Errno> {
        let Some(Home(world)) = self.home else {
            return Err(Errno(libc::ENOSYS));
        };
        let beginning = Box::new(Beginning {
            world,
            thread,
            stack: SignalStack::new()?,
            unshare,
        });
        let mask = host_mask::block(SigSet::all_asynchronous());
        host_mask::catch_what_the_c_library_opens();
        let tid = start_host_thread(beginning);
        host_mask::set_mask(mask);
        tid
    }
}

fn start_host_thread(beginning: Box<Beginning>) -> Result<i32, Errno> {
    let argument = Box::into_raw(beginning);
    let mut attributes = MaybeUninit::uninit();
    let mut thread: libc::pthread_t = 0;
    // SAFETY: the attributes are initialized before they are used and destroyed after; the
    // argument is the new thread's, or still ours where there is none.
    let (error, clock) = unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK_BYTES);
        let detached = libc::PTHREAD_CREATE_DETACHED;
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), detached);
        let error = without_context(|| {
            libc::pthread_create(&raw mut thread, attributes.as_ptr(), begin, argument.cast())
        });
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        let mut clock: libc::clockid_t = 0;
        if error == 0 {
            // The thread waits for the lock, which is held here, so it is still there.
            libc::pthread_getcpuclockid(thread, &raw mut clock);
        } else {
            drop(Box::from_raw(argument));
        }
        (error, clock)
    };
    match error {
        // A thread's clock has its id in it (include/linux/posix-timers_types.h).
        0 => Ok(!(clock >> 3)),
        error => Err(Errno(error)),
    }
}

extern "C" fn begin(argument: *mut c_void) -> *mut c_void {
    // SAFETY: what `start_host_thread` passes, once.
    let beginning = unsafe { Box::from_raw(argument.cast::<Beginning>()) };
    let Beginning {
        world,
        mut thread,
        stack,
        unshare,
    } = *beginning;
    let stack = stack.make_current();
    if unshare != 0 {
        // SAFETY: affects what this thread alone uses from here on.
        let result = unsafe { raw(Sysno::unshare.id() as u64, [unshare, 0, 0, 0, 0, 0]) };
        if result < 0 {
            tracing::warn!(target: "temper::process", result, "a thread shares too much");
        }
    }
    let (held, outcome) = world.run(&mut thread);
    match outcome {
        Outcome::ThreadExit(_) => {
            // Freeing needs no lock of the world's.
            drop(held);
            leave_context();
            drop(thread);
            drop(stack);
            std::ptr::null_mut()
        }
        Outcome::Exit(_) | Outcome::Killed(_) | Outcome::Aborted => {
            let status = close(held, &thread.own, outcome);
            // SAFETY: ends the process; nothing of the C library's is to be flushed.
            unsafe { libc::_exit(status) }
        }
    }
}
