//! What fork, vfork, clone and clone3 ask for, in one form.

use std::ops::Range;

use syscalls::Sysno;

use crate::addr::{GuestAddr, HostAddr};
use crate::guest::{GuestMemory, HostCall};
use crate::host::syscall::Errno;

/// Bits of the flags (include/uapi/linux/sched.h), those that Temper acts on.
pub mod flag {
    pub const VM: u64 = 0x100;
    pub const FILES: u64 = 0x400;
    pub const PIDFD: u64 = 0x1000;
    pub const VFORK: u64 = 0x4000;
    pub const THREAD: u64 = 0x1_0000;
    pub const SETTLS: u64 = 0x8_0000;
    pub const PARENT_SETTID: u64 = 0x10_0000;
    pub const CHILD_CLEARTID: u64 = 0x20_0000;
    pub const CHILD_SETTID: u64 = 0x100_0000;
    /// clone3 alone.
    pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
}

/// Flags whose work is Temper's: the kernel would change the host's state.
const TEMPERS: u64 = flag::SETTLS | flag::CLEAR_SIGHAND;
/// The exit signal in clone's flags (CSIGNAL).
const EXIT_SIGNAL: u64 = 0xff;

/// One past the last address that a user can have.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// Sizes of struct clone_args: the first version's and today's.
const ARGS_MIN: usize = 64;
const ARGS: usize = 88;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CloneRequest {
    /// Without the exit signal.
    pub flags: u64,
    pub parent_tid: u64,
    pub child_tid: u64,
    pub pidfd: u64,
    /// The child's RSP; 0: as its parent's.
    pub stack_top: u64,
    pub tls: u64,
    form: Form,
}

/// How the guest asked, because that is how the kernel is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Form {
    /// With the exit signal.
    Clone { signal: u64 },
    /// struct clone_args, with the parts that the kernel may not see removed.
    Clone3 { args: [u64; ARGS / 8] },
}

impl CloneRequest {
    /// fork(2).
    pub fn fork() -> CloneRequest {
        CloneRequest::clone([libc::SIGCHLD as u64, 0, 0, 0, 0, 0])
    }

    /// vfork(2).
    pub fn vfork() -> CloneRequest {
        let flags = flag::VM | flag::VFORK | libc::SIGCHLD as u64;
        CloneRequest::clone([flags, 0, 0, 0, 0, 0])
    }

    /// clone(2) with these arguments.
    pub fn clone(args: [u64; 6]) -> CloneRequest {
        let [flags, stack_top, parent_tid, child_tid, tls, _] = args;
        // The kernel takes 32 bits of it.
        let flags = flags & 0xffff_ffff;
        CloneRequest {
            flags: flags & !EXIT_SIGNAL,
            parent_tid,
            child_tid,
            pidfd: parent_tid,
            stack_top,
            tls,
            form: Form::Clone {
                signal: flags & EXIT_SIGNAL,
            },
        }
    }

    /// clone3(2): the structure at `at`, of `size` bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clone3(
        memory: &mut impl GuestMemory,
        at: u64,
        size: u64,
    ) -> Result<CloneRequest, Errno> {
        if size > crate::addr::PAGE_SIZE {
            return Err(Errno(libc::E2BIG));
        }
        let size = size as usize;
        if size < ARGS_MIN {
            return Err(Errno(libc::EINVAL));
        }
        let mut bytes = vec![0; size];
        memory
            .read_bytes(GuestAddr(at), &mut bytes)
            .map_err(|_| Errno(libc::EFAULT))?;
        if bytes.iter().skip(ARGS).any(|byte| *byte != 0) {
            return Err(Errno(libc::E2BIG));
        }
        bytes.resize(ARGS, 0);
        let mut args = [0; ARGS / 8];
        for (word, bytes) in args.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [
            flags,
            pidfd,
            child_tid,
            parent_tid,
            _,
            stack,
            stack_bytes,
            tls,
            ..,
        ] = args;
        if (stack == 0) != (stack_bytes == 0) || stack.saturating_add(stack_bytes) > TASK_SIZE {
            return Err(Errno(libc::EINVAL));
        }
        Ok(CloneRequest {
            flags,
            parent_tid,
            child_tid,
            pidfd,
            stack_top: stack.wrapping_add(stack_bytes),
            tls,
            form: Form::Clone3 { args },
        })
    }

    /// Whether the kernel would refuse what it isn't asked.
    ///
    /// # Errors
    /// EPERM: no address that FS could have.
    pub fn check(&self) -> Result<(), Errno> {
        if self.flags & flag::SETTLS != 0 && self.tls >= TASK_SIZE {
            return Err(Errno(libc::EPERM));
        }
        Ok(())
    }

    /// The addresses of the words that the kernel writes.
    pub fn outputs(&self) -> impl Iterator<Item = GuestAddr> {
        let outputs = [
            (flag::PARENT_SETTID, self.parent_tid),
            (flag::CHILD_SETTID, self.child_tid),
            (flag::PIDFD, self.pidfd),
        ];
        let flags = self.flags;
        outputs
            .into_iter()
            .filter(move |(flag, _)| flags & flag != 0)
            .map(|(_, at)| GuestAddr(at))
    }

    /// The kernel's part of it: a child on that stack of Temper's, else on a copy of the
    /// caller's. The call refers to `self`.
    pub fn host_call(&mut self, stack: Option<Range<HostAddr>>) -> HostCall {
        let (start, end) = stack.map_or((0, 0), |stack| (stack.start.0, stack.end.0));
        match &mut self.form {
            Form::Clone { signal } => HostCall {
                number: Sysno::clone.id() as u64,
                args: [
                    self.flags & !TEMPERS | *signal,
                    end,
                    self.parent_tid,
                    self.child_tid,
                    0,
                    0,
                ],
            },
            Form::Clone3 { args } => {
                args[0] &= !TEMPERS;
                // Stack, its size, TLS.
                args[5..8].copy_from_slice(&[start, end - start, 0]);
                HostCall {
                    number: Sysno::clone3.id() as u64,
                    args: [args.as_ptr() as u64, ARGS as u64, 0, 0, 0, 0],
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{IdentityMemory, install_test_handler};

    fn clone3(words: &[u64], size: u64) -> Result<CloneRequest, Errno> {
        install_test_handler();
        CloneRequest::clone3(&mut IdentityMemory, words.as_ptr() as u64, size)
    }

    #[test]
    fn the_kernel_sees_neither_stack_nor_tls() {
        let flags = flag::SETTLS | flag::CHILD_SETTID;
        let mut request = CloneRequest::clone([flags | 17, 0x1000, 1, 2, 3, 0]);
        assert_eq!((request.stack_top, request.tls), (0x1000, 3));
        let call = request.host_call(None);
        assert_eq!(call.args, [flag::CHILD_SETTID | 17, 0, 1, 2, 0, 0]);
        let stack = HostAddr(0x5000)..HostAddr(0x6000);
        assert_eq!(request.host_call(Some(stack)).args[1], 0x6000);
        let outputs: Vec<GuestAddr> = request.outputs().collect();
        assert_eq!(outputs, [GuestAddr(2)]);
    }

    #[test]
    fn clone3_is_read_as_the_kernel_reads_it() {
        let words = [
            flag::CLEAR_SIGHAND,
            1,
            2,
            3,
            17,
            0x1000,
            0x100,
            7,
            0,
            0,
            0,
            0,
        ];
        let mut request = clone3(&words, 88).expect("a request");
        assert_eq!(request.stack_top, 0x1100);
        assert_eq!(
            (request.pidfd, request.child_tid, request.parent_tid),
            (1, 2, 3)
        );
        let call = request.host_call(None);
        // SAFETY: the call points to the request's words.
        let seen = unsafe { std::slice::from_raw_parts(call.args[0] as *const u64, 11) };
        assert_eq!(seen, [0, 1, 2, 3, 17, 0, 0, 0, 0, 0, 0]);
        assert_eq!(clone3(&words, 63), Err(Errno(libc::EINVAL)));
        assert_eq!(clone3(&words, 5000), Err(Errno(libc::E2BIG)));
        let mut more = words;
        more[11] = 1;
        assert_eq!(clone3(&more, 96), Err(Errno(libc::E2BIG)));
        let mut stack = words;
        stack[6] = 0;
        assert_eq!(clone3(&stack, 88), Err(Errno(libc::EINVAL)));
    }
}
