//! clone(2) and clone3(2): what the guest asks for, in one form, and new threads.

use ::syscalls::Sysno;

use super::Call;
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, Gpr, GuestMemory, ThreadContext};
use crate::host::syscall::{Errno, SyscallResult};
use crate::process::Process;
use crate::process::thread::ThreadState;
use crate::process::threads::Thread;

/// One past the last user address.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Bytes of the first struct clone_args, and the most that the kernel reads.
const FIRST_VERSION: u64 = 64;
const PAGE: u64 = 4096;
/// The struct as known here: eleven words.
const WORDS: usize = 11;

const fn bits(flags: i32) -> u64 {
    flags as u32 as u64
}

/// The exit signal's place in clone's flags.
const SIGNAL_MASK: u64 = 0xff;
const DETACHED: u64 = bits(libc::CLONE_DETACHED);

/// By which glibc's threads change their credentials together.
const SIGSETXID: i32 = 33;

/// What a thread may share with the others or not, as unshare(2) has it.
const SHAREABLE: u64 = bits(libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SYSVSEM);
/// What makes a thread.
const THREAD: u64 = bits(libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM);
/// Flags that a new thread can have.
const FOR_THREADS: u64 = THREAD
    | SHAREABLE
    | bits(
        libc::CLONE_SETTLS
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_SETTID
            | libc::CLONE_CHILD_CLEARTID,
    )
    // Of no consequence in a thread, or for a tracer.
    | bits(libc::CLONE_PARENT | libc::CLONE_PTRACE | libc::CLONE_UNTRACED | libc::CLONE_IO);

/// A clone as the guest asks for it.
#[derive(Clone, Copy, Default, Debug)]
pub struct CloneRequest {
    /// CLONE_* flags, without the exit signal.
    pub flags: u64,
    /// The child's stack pointer; 0: the parent's.
    pub stack: u64,
    pub tls: u64,
    pub parent_tid: u64,
    pub child_tid: u64,
    /// Where chosen ids are, and how many.
    pub set_tid: [u64; 2],
}

impl CloneRequest {
    pub fn has(&self, flag: i32) -> bool {
        self.flags & bits(flag) != 0
    }

    /// From clone's arguments.
    pub fn from_clone(args: [u64; 6]) -> CloneRequest {
        let [flags, stack, parent_tid, child_tid, tls, _] = args;
        // The kernel takes 32 bits of them.
        let flags = flags & 0xffff_ffff;
        CloneRequest {
            flags: flags & !(SIGNAL_MASK | DETACHED),
            stack,
            tls,
            parent_tid,
            child_tid,
            ..CloneRequest::default()
        }
    }

    /// From clone3's structure of `bytes` bytes (copy_clone_args_from_user and
    /// clone3_args_valid of linux/kernel/fork.c).
    ///
    /// # Errors
    /// The kernel's.
    pub fn from_clone3(
        memory: &mut impl GuestMemory,
        at: u64,
        bytes: u64,
    ) -> Result<CloneRequest, Errno> {
        if bytes > PAGE {
            return Err(Errno(libc::E2BIG));
        }
        if bytes < FIRST_VERSION {
            return Err(Errno(libc::EINVAL));
        }
        let mut buffer = vec![0; bytes as usize];
        memory
            .read_bytes(GuestAddr(at), &mut buffer)
            .map_err(|_| Errno(libc::EFAULT))?;
        if buffer.iter().skip(WORDS * 8).any(|&byte| byte != 0) {
            return Err(Errno(libc::E2BIG));
        }
        let mut words = [0u64; WORDS];
        for (word, bytes) in words.iter_mut().zip(buffer.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [
            flags,
            _pidfd,
            child_tid,
            parent_tid,
            exit_signal,
            stack,
            stack_bytes,
            tls,
            ids,
            id_count,
            _cgroup,
        ] = words;
        let threadlike = bits(libc::CLONE_THREAD | libc::CLONE_PARENT);
        let invalid = flags & (SIGNAL_MASK | DETACHED) != 0
            || exit_signal > 64
            || (flags & threadlike != 0 && exit_signal != 0)
            || (stack == 0) != (stack_bytes == 0)
            || (ids == 0) != (id_count == 0);
        if invalid {
            return Err(Errno(libc::EINVAL));
        }
        Ok(CloneRequest {
            flags,
            stack: stack.wrapping_add(stack_bytes),
            tls,
            parent_tid,
            child_tid,
            set_tid: [ids, id_count],
        })
    }
}

impl Process {
    pub(super) fn clone_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let request = if sysno == Sysno::clone {
            CloneRequest::from_clone(call.args)
        } else {
            let (memory, _) = self.memory.parts();
            CloneRequest::from_clone3(memory, call.args[0], call.args[1])?
        };
        let sighand = request.has(libc::CLONE_SIGHAND);
        if request.has(libc::CLONE_THREAD) && !sighand || sighand && !request.has(libc::CLONE_VM) {
            return Err(Errno(libc::EINVAL));
        }
        if request.has(libc::CLONE_THREAD) {
            self.clone_thread(request, thread, ctx, code)
        } else {
            self.not_supported(sysno.name(), libc::ENOSYS, thread)
        }
    }

    fn clone_thread(
        &mut self,
        request: CloneRequest,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let namespaces = bits(libc::CLONE_NEWUSER | libc::CLONE_NEWPID);
        if request.flags & namespaces != 0 {
            return Err(Errno(libc::EINVAL));
        }
        if request.flags & !FOR_THREADS != 0 || request.set_tid != [0; 2] {
            return self.not_supported("clone of a thread with these flags", libc::ENOSYS, thread);
        }
        if request.has(libc::CLONE_SETTLS) && request.tls >= TASK_SIZE {
            return Err(Errno(libc::EPERM));
        }
        let mut child = Thread::new(ctx.for_child(), thread.for_thread());
        let cpu = &mut child.ctx.cpu;
        cpu.set(Gpr::Rax, 0);
        if request.stack != 0 {
            cpu.set(Gpr::Rsp, request.stack);
        }
        if request.has(libc::CLONE_SETTLS) {
            cpu.fs_base = request.tls;
        }
        if request.has(libc::CLONE_CHILD_CLEARTID) {
            child.own.clear_child_tid = GuestAddr(request.child_tid);
        }
        // Its first step gives the host its mask.
        child.ctx.set_signal_pending(true);
        if !code.add_thread(&mut child.ctx) {
            return self.not_supported("a thread without membarrier(2)", libc::ENOSYS, thread);
        }
        let context = &raw const child.ctx;
        let seccomp = child.own.seccomp.clone();
        let tid = match self.start_thread(child, SHAREABLE & !request.flags) {
            Ok(tid) => tid,
            Err(errno) => {
                code.forget_thread(context);
                return Err(errno);
            }
        };
        self.records.of_mut(thread).threads += 1;
        self.filters.enter(thread.record, own_id(), &thread.seccomp);
        self.filters.enter(thread.record, tid, &seccomp);
        // The host's C library has just made it its own, as the guest's had before.
        self.with_signals(thread, ctx, code, |signals| signals.reinstall(SIGSETXID));
        // The kernel ignores what it can't write here.
        for (flag, at) in [
            (libc::CLONE_PARENT_SETTID, request.parent_tid),
            (libc::CLONE_CHILD_SETTID, request.child_tid),
        ] {
            if request.has(flag) {
                let _ = self.put(at, &tid.to_le_bytes(), code);
            }
        }
        Ok(tid as u64)
    }
}

fn own_id() -> i32 {
    // SAFETY: asks only.
    unsafe { libc::gettid() }
}
