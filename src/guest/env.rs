//! What an engine asks of its surroundings (a Linux process, a machine), and what the
//! surroundings may ask of the engine in return. Keeps the engine free of any operating
//! system and the surroundings free of any code cache.

use std::ops::Range;
use std::path::Path;

use super::context::ThreadContext;
use super::memory::GuestMemory;
use super::trap::GuestTrap;
use crate::addr::{GuestAddr, HostAddr};

/// What the engine offers to its surroundings while they handle an event.
pub trait CodeControl {
    /// Forgets everything made from guest code in `range`: predecoded blocks, fragments,
    /// links, map entries. Called after the guest's view of that code changed.
    fn invalidate(&mut self, range: Range<GuestAddr>);

    /// From now on indirect branches are resolved exactly for targets anywhere in the
    /// address space (slower): executable memory exists beyond the shadow map's range.
    fn require_exact_indirect(&mut self);

    /// Announces executable guest memory, before code in it runs.
    fn executable_mapped(&mut self, range: Range<GuestAddr>);

    /// Says that executable memory in `range` maps the file at `path` from `file_offset`
    /// (bytes) on, so that what is learned of it can be kept for later runs.
    fn module_mapped(&mut self, range: Range<GuestAddr>, path: &Path, file_offset: u64);

    /// Waits until only guest threads are left in the process. Called before what concerns one
    /// thread alone to the host but all of a program to its author (credentials, namespaces),
    /// and before fork. No other thread comes into being while the caller handles its event.
    fn finish_workers(&mut self);

    /// The process is about to become another program: saves what was learned so far.
    fn keep_learned(&mut self);

    /// Lets no thread run generated code from its return until the caller has given up the
    /// world's lock. Threads in system calls stay there, and don't enter generated code
    /// when those return.
    fn stop_world(&mut self);

    /// Enters a new thread's context, before the thread starts: it doesn't move as long as
    /// it is listed. False: the host can't make threads stop, so there can't be another.
    #[must_use]
    fn add_thread(&mut self, ctx: &mut ThreadContext) -> bool;

    /// Takes a context that [`CodeControl::add_thread`] entered off the list: its thread
    /// could not be started. Threads that ran are taken off at their end.
    fn forget_thread(&mut self, ctx: *const ThreadContext);

    /// Sets for every thread which system calls go out from assembly. None of those that no
    /// longer do is on its way to the kernel when this returns, unless it is there already.
    fn set_pass_through(&mut self, mask: [u64; 8]);
}

/// How the guest goes on after its surroundings handled an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnvAction {
    /// Go on at `ctx.cpu.rip`.
    Continue,
    /// Make this system call on the guest's behalf, which may block: other threads run
    /// meanwhile. Then [`GuestEnv::call_returned`] goes on.
    Call(HostCall),
    /// This thread ends; the guest lives on if it has others. The status is the guest's own
    /// where this is its last.
    ExitThread(i32),
    /// The guest exits with this status.
    Exit(i32),
    /// The guest dies by this signal.
    Kill(i32),
    /// This call makes a child process with a copy of all memory, in which this thread goes
    /// on. [`GuestEnv::forked`] gets its result, in both processes.
    Fork(HostCall),
    /// A child process that shares all memory is to be made, while this thread waits:
    /// [`GuestEnv::begin_child`] says how.
    Share,
    /// Temper can't go on; the surroundings have said why on standard error.
    Abort,
}

/// The system calls in which other threads are.
pub trait CallsInFlight {
    /// Those that began before the question; some may have ended.
    fn calls(&self) -> Vec<HostCall>;
}

/// What became of a request to watch code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watched {
    /// It can't have changed unnoticed since before the request.
    Already,
    /// It is watched from now on; another thread may have written to it just before.
    Newly,
    /// It changes too often to be worth translating.
    Refused,
}

/// A system call to be made in the host.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct HostCall {
    pub number: u64,
    pub args: [u64; 6],
}

/// The guest's surroundings, shared by its threads: each method runs while no other does.
/// What belongs to the calling thread alone comes as `thread` and `ctx`.
pub trait GuestEnv {
    type Memory: GuestMemory;

    /// What the surroundings keep for one guest thread beyond its context.
    type Thread;

    fn memory(&mut self) -> &mut Self::Memory;

    /// A SYSCALL instruction was reached; `ctx.cpu.rip` is already after it. Registers are
    /// as the guest left them; the implementation sets RAX, RCX, R11 as the kernel does.
    fn syscall(
        &mut self,
        thread: &mut Self::Thread,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> EnvAction;

    /// The call of [`EnvAction::Call`] returned (an error as its negative number). `None`:
    /// it was not made, because something asynchronous is pending; the guest is to make its
    /// system call again after that.
    fn call_returned(
        &mut self,
        thread: &mut Self::Thread,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
        result: Option<i64>,
    ) -> EnvAction;

    /// An instruction at `ctx.cpu.rip` trapped (for Breakpoint, Overflow and Debug: the one
    /// before it). If the trap was of the surroundings' own making (a write to a page that they protect
    /// because it holds translated code), they undo it and say `Continue` with the state
    /// unchanged: the instruction runs again.
    fn trap(
        &mut self,
        thread: &mut Self::Thread,
        ctx: &mut ThreadContext,
        trap: GuestTrap,
        code: &mut dyn CodeControl,
    ) -> EnvAction;

    /// Asynchronous events (signals) are pending: deliver what may be delivered now.
    fn deliver_pending(
        &mut self,
        thread: &mut Self::Thread,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> EnvAction;

    /// The call of [`EnvAction::Fork`] was made; `result` is as the kernel left it, 0 in the
    /// child.
    fn forked(
        &mut self,
        _thread: &mut Self::Thread,
        _ctx: &mut ThreadContext,
        _code: &mut dyn CodeControl,
        _result: i64,
    ) -> EnvAction {
        unreachable!("no fork was asked for")
    }

    /// For [`EnvAction::Share`]: the child's thread, and the call that makes it and lasts until
    /// the child has other memory or is gone. The child runs Temper on `stack`.
    fn begin_child(
        &mut self,
        _thread: &mut Self::Thread,
        _stack: Range<HostAddr>,
    ) -> (Self::Thread, HostCall) {
        unreachable!("no child was asked for")
    }

    /// In that child, before guest code runs there; `ctx` is a copy of its parent's.
    fn child_began(
        &mut self,
        _thread: &mut Self::Thread,
        _ctx: &mut ThreadContext,
        _code: &mut dyn CodeControl,
    ) {
    }

    /// That child's guest has ended: ends its process. Nothing is locked.
    fn end_child(_end: EnvAction) -> ! {
        unreachable!("no child was asked for")
    }

    /// In the parent: that child has left the memory, or the call has failed with `result`.
    fn child_left(
        &mut self,
        _thread: &mut Self::Thread,
        _ctx: &mut ThreadContext,
        _code: &mut dyn CodeControl,
        _child: &Self::Thread,
        _result: i64,
    ) -> EnvAction {
        unreachable!("no child was asked for")
    }

    /// Code in `range` is about to be predecoded or translated: from now on the
    /// surroundings must report changes to it (for writable pages by write-protecting them).
    /// Memory that one of `calls` may write to isn't to be protected.
    fn watch_code(&mut self, range: Range<GuestAddr>, calls: &dyn CallsInFlight) -> Watched;
}
