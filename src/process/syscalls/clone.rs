//! fork(2), vfork(2), clone(2) and clone3(2): what the guest asks for, in one form, and new
//! threads. Other children: [`super::children`].

use ::syscalls::Sysno;

use std::ops::Range;

use super::{Call, Ending};
use crate::addr::{GuestAddr, HostAddr};
use crate::guest::{CodeControl, Gpr, GuestMemory, HostCall, ThreadContext};
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
    pub pidfd: u64,
    /// Where chosen ids are, and how many.
    pub set_tid: [u64; 2],
    form: Form,
}

/// How the guest asked, because that is how the kernel is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// clone's flags as they were.
    Clone { flags: u64 },
    /// clone3's structure.
    Clone3 { words: [u64; WORDS] },
}

impl Default for Form {
    fn default() -> Form {
        Form::Clone { flags: 0 }
    }
}

/// Flags of a child process whose work is Temper's: the kernel's would be on the host's state.
const TEMPERS: u64 = bits(libc::CLONE_SETTLS) | CLEAR_SIGHAND;
/// CLONE_CLEAR_SIGHAND, which only clone3 has.
pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;

impl CloneRequest {
    /// What the kernel isn't asked, it can't refuse.
    fn check(&self) -> Result<(), Errno> {
        let sighand = self.has(libc::CLONE_SIGHAND);
        if self.has(libc::CLONE_THREAD) && !sighand
            || sighand && (!self.has(libc::CLONE_VM) || self.flags & CLEAR_SIGHAND != 0)
        {
            return Err(Errno(libc::EINVAL));
        }
        if self.has(libc::CLONE_SETTLS) && self.tls >= TASK_SIZE {
            return Err(Errno(libc::EPERM));
        }
        Ok(())
    }

    pub fn has(&self, flag: i32) -> bool {
        self.flags & bits(flag) != 0
    }

    /// fork(2).
    pub fn fork() -> CloneRequest {
        CloneRequest::from_clone([libc::SIGCHLD as u64, 0, 0, 0, 0, 0])
    }

    /// vfork(2).
    pub fn vfork() -> CloneRequest {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        CloneRequest::from_clone([bits(flags), 0, 0, 0, 0, 0])
    }

    /// The words that the kernel writes for a child process.
    pub fn outputs(&self) -> impl Iterator<Item = GuestAddr> {
        [
            (libc::CLONE_PARENT_SETTID, self.parent_tid),
            (libc::CLONE_CHILD_SETTID, self.child_tid),
            (libc::CLONE_PIDFD, self.pidfd),
        ]
        .into_iter()
        .filter(|(flag, _)| self.has(*flag))
        .map(|(_, at)| GuestAddr(at))
    }

    /// The kernel's part of making a child process: on that stack of Temper's, else on a copy
    /// of the caller's. The call refers to `self`.
    pub fn host_call(&mut self, stack: Option<Range<HostAddr>>) -> HostCall {
        let (start, end) = stack.map_or((0, 0), |stack| (stack.start.0, stack.end.0));
        match &mut self.form {
            Form::Clone { flags } => HostCall {
                number: Sysno::clone.id() as u64,
                args: [
                    *flags & !TEMPERS,
                    end,
                    self.parent_tid,
                    self.child_tid,
                    0,
                    0,
                ],
            },
            Form::Clone3 { words } => {
                words[0] &= !TEMPERS;
                // Stack, its size, TLS.
                words[5..8].copy_from_slice(&[start, end - start, 0]);
                HostCall {
                    number: Sysno::clone3.id() as u64,
                    args: [words.as_ptr() as u64, size_of_val(words) as u64, 0, 0, 0, 0],
                }
            }
        }
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
            pidfd: parent_tid,
            set_tid: [0; 2],
            form: Form::Clone { flags },
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
            pidfd,
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
            pidfd,
            set_tid: [ids, id_count],
            form: Form::Clone3 { words },
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
    ) -> Ending {
        let request = if sysno == Sysno::clone {
            Ok(CloneRequest::from_clone(call.args))
        } else {
            let (memory, _) = self.memory.parts();
            CloneRequest::from_clone3(memory, call.args[0], call.args[1])
        };
        match request.and_then(|request| request.check().map(|()| request)) {
            Ok(request) if request.has(libc::CLONE_THREAD) => {
                self.clone_thread(request, thread, ctx, code).into()
            }
            Ok(request) => self.make_child(request, thread, ctx, code),
            Err(errno) => Err(errno).into(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{IdentityMemory, install_test_handler};

    fn clone3(words: &[u64], size: u64) -> Result<CloneRequest, Errno> {
        install_test_handler();
        CloneRequest::from_clone3(&mut IdentityMemory, words.as_ptr() as u64, size)
    }

    #[test]
    fn the_kernel_sees_neither_the_guests_stack_nor_its_tls() {
        let flags = bits(libc::CLONE_SETTLS | libc::CLONE_CHILD_SETTID);
        let mut request = CloneRequest::from_clone([flags | 17, 0x1000, 1, 2, 3, 0]);
        assert_eq!((request.stack, request.tls), (0x1000, 3));
        let told = bits(libc::CLONE_CHILD_SETTID | 17);
        assert_eq!(request.host_call(None).args, [told, 0, 1, 2, 0, 0]);
        let stack = HostAddr(0x5000)..HostAddr(0x6000);
        assert_eq!(request.host_call(Some(stack)).args[1], 0x6000);
        let outputs: Vec<GuestAddr> = request.outputs().collect();
        assert_eq!(outputs, [GuestAddr(2)]);
    }

    #[test]
    fn clone3_is_read_as_the_kernel_reads_it() {
        let words = [CLEAR_SIGHAND, 1, 2, 3, 17, 0x1000, 0x100, 7, 0, 0, 0, 0];
        let mut request = clone3(&words, 88).expect("a request");
        assert_eq!(request.stack, 0x1100);
        let tids = (request.pidfd, request.child_tid, request.parent_tid);
        assert_eq!(tids, (1, 2, 3));
        let call = request.host_call(None);
        // SAFETY: the call points to the request's words.
        let seen = unsafe { std::slice::from_raw_parts(call.args[0] as *const u64, WORDS) };
        assert_eq!(seen, [0, 1, 2, 3, 17, 0, 0, 0, 0, 0, 0]);
        assert_eq!(clone3(&words, 63).err(), Some(Errno(libc::EINVAL)));
        assert_eq!(clone3(&words, 5000).err(), Some(Errno(libc::E2BIG)));
        let mut more = words;
        more[11] = 1;
        assert_eq!(clone3(&more, 96).err(), Some(Errno(libc::E2BIG)));
        let mut stack = words;
        stack[6] = 0;
        assert_eq!(clone3(&stack, 88).err(), Some(Errno(libc::EINVAL)));
    }
}
