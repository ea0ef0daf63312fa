//! Which system calls Temper carries out itself, by family. All others pass through.

use syscalls::Sysno;

use crate::process::address_space::CodeExposure;

/// Numbers below this have a bit in the pass-through mask.
const MASK_BITS: usize = 512;

/// Who carries a call out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// The kernel, on the guest's own memory.
    PassThrough,
    /// The kernel; it never writes to guest memory, so not even watched pages matter.
    PassThroughSilent,
    /// The kernel; it changes a file's content, which may be mapped as code.
    FileWrites,
    /// Memory maps and the break.
    Memory,
    /// Calls with a path that may lead to /proc files about this process.
    Paths,
    /// Actions, masks, waits with a mask.
    Signals,
    /// Threads, children, other programs.
    Children,
    /// The end of the thread or process, and what is remembered until then.
    Lifetime,
    /// prctl and its kin: the CPU's and the process's modes.
    Modes,
    /// Resource limits.
    Limits,
    /// Which descriptors are open: Temper's own is not.
    Descriptors,
    /// Credentials, namespaces, the root folder: a thread's own to the kernel.
    Credentials,
    /// Looking into other processes, and having others look into this one.
    Tracing,
}

/// The family of a call that this build knows by name.
pub fn family(call: Sysno) -> Family {
    match call {
        Sysno::mmap
        | Sysno::munmap
        | Sysno::mprotect
        | Sysno::pkey_mprotect
        | Sysno::mremap
        | Sysno::madvise
        | Sysno::process_madvise
        | Sysno::mincore
        | Sysno::msync
        | Sysno::mlock
        | Sysno::mlock2
        | Sysno::munlock
        | Sysno::mlockall
        | Sysno::munlockall
        | Sysno::mseal
        | Sysno::brk
        | Sysno::shmat
        | Sysno::shmdt
        | Sysno::remap_file_pages => Family::Memory,
        Sysno::open
        | Sysno::openat
        | Sysno::openat2
        | Sysno::readlink
        | Sysno::readlinkat
        | Sysno::stat
        | Sysno::newfstatat
        | Sysno::statx
        | Sysno::access
        | Sysno::faccessat
        | Sysno::faccessat2 => Family::Paths,
        Sysno::rt_sigaction
        | Sysno::rt_sigprocmask
        | Sysno::rt_sigpending
        | Sysno::sigaltstack
        | Sysno::rt_sigreturn
        | Sysno::rt_sigsuspend
        | Sysno::pause
        | Sysno::rt_sigtimedwait
        | Sysno::ppoll
        | Sysno::pselect6
        | Sysno::epoll_pwait
        | Sysno::epoll_pwait2
        | Sysno::io_pgetevents => Family::Signals,
        Sysno::fork
        | Sysno::vfork
        | Sysno::clone
        | Sysno::clone3
        | Sysno::execve
        | Sysno::execveat => Family::Children,
        Sysno::exit | Sysno::exit_group | Sysno::set_tid_address | Sysno::set_robust_list => {
            Family::Lifetime
        }
        Sysno::prctl
        | Sysno::arch_prctl
        | Sysno::personality
        | Sysno::rseq
        | Sysno::seccomp
        | Sysno::map_shadow_stack => Family::Modes,
        Sysno::getrlimit | Sysno::setrlimit | Sysno::prlimit64 => Family::Limits,
        Sysno::close
        | Sysno::close_range
        | Sysno::dup
        | Sysno::dup2
        | Sysno::dup3
        | Sysno::fcntl => Family::Descriptors,
        Sysno::unshare
        | Sysno::setns
        | Sysno::setuid
        | Sysno::setgid
        | Sysno::setreuid
        | Sysno::setregid
        | Sysno::setresuid
        | Sysno::setresgid
        | Sysno::setfsuid
        | Sysno::setfsgid
        | Sysno::setgroups
        | Sysno::capset
        | Sysno::chroot
        | Sysno::pivot_root
        | Sysno::landlock_restrict_self => Family::Credentials,
        Sysno::ptrace | Sysno::userfaultfd => Family::Tracing,
        Sysno::write
        | Sysno::pwrite64
        | Sysno::writev
        | Sysno::pwritev
        | Sysno::pwritev2
        | Sysno::truncate
        | Sysno::ftruncate
        | Sysno::fallocate
        | Sysno::sendfile
        | Sysno::splice
        | Sysno::copy_file_range => Family::FileWrites,
        Sysno::sendto
        | Sysno::sendmsg
        | Sysno::lseek
        | Sysno::getpid
        | Sysno::gettid
        | Sysno::getppid
        | Sysno::getuid
        | Sysno::geteuid
        | Sysno::getgid
        | Sysno::getegid
        | Sysno::sched_yield
        | Sysno::unlink
        | Sysno::fsync => Family::PassThroughSilent,
        _ => Family::PassThrough,
    }
}

/// A bit for each call that may go out from assembly. While code can change by stores, calls
/// that may write to guest memory don't: the pages they write to may be protected. While it
/// can change through files, calls that write to files don't either.
/// While Temper holds a descriptor of its own, calls that could tell don't.
pub fn pass_through_mask(exposure: CodeExposure, own_descriptor: bool) -> [u64; MASK_BITS / 64] {
    let mut mask = [0; MASK_BITS / 64];
    for number in 0..MASK_BITS {
        let passes = Sysno::new(number).is_some_and(|call| match family(call) {
            Family::PassThroughSilent => true,
            Family::PassThrough => !exposure.writable,
            // Some of these write an offset back.
            Family::FileWrites => !exposure.shared_file && !exposure.writable,
            Family::Descriptors => !own_descriptor && !exposure.writable,
            Family::Memory
            | Family::Paths
            | Family::Signals
            | Family::Children
            | Family::Lifetime
            | Family::Modes
            | Family::Limits
            | Family::Credentials
            | Family::Tracing => false,
        });
        if passes {
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(mask: &[u64], call: Sysno) -> bool {
        let number = call.id() as usize;
        mask[number / 64] & (1 << (number % 64)) != 0
    }

    const SAFE: CodeExposure = CodeExposure {
        writable: false,
        shared_file: false,
    };

    #[test]
    fn owned_calls_never_go_out_from_assembly() {
        for writable in [false, true] {
            let mask = pass_through_mask(CodeExposure { writable, ..SAFE }, false);
            for call in [
                Sysno::mmap,
                Sysno::brk,
                Sysno::rt_sigreturn,
                Sysno::exit_group,
            ] {
                assert!(!passes(&mask, call), "{call:?}");
            }
            assert!(passes(&mask, Sysno::getpid));
        }
    }

    #[test]
    fn calls_that_could_find_tempers_descriptor_go_through_rust() {
        for call in [Sysno::close, Sysno::close_range, Sysno::dup2, Sysno::fcntl] {
            assert!(passes(&pass_through_mask(SAFE, false), call), "{call:?}");
            assert!(!passes(&pass_through_mask(SAFE, true), call), "{call:?}");
        }
    }

    #[test]
    fn calls_that_could_change_code_go_through_rust_while_there_is_such_code() {
        let mask = pass_through_mask(SAFE, false);
        assert!(passes(&mask, Sysno::read) && passes(&mask, Sysno::write));
        let writable = pass_through_mask(
            CodeExposure {
                writable: true,
                ..SAFE
            },
            false,
        );
        assert!(!passes(&writable, Sysno::read));
        let shared = pass_through_mask(
            CodeExposure {
                shared_file: true,
                ..SAFE
            },
            false,
        );
        assert!(passes(&shared, Sysno::read) && !passes(&shared, Sysno::write));
    }
}
