//! Memory maps and the break: arguments to [`AddressSpace`] operations.
//!
//! [`AddressSpace`]: crate::process::address_space::AddressSpace

use ::syscalls::Sysno;

use super::Call;
use crate::addr::GuestAddr;
use crate::guest::CodeControl;
use crate::host::syscall::{Errno, SyscallResult};
use crate::process::Process;
use crate::process::address_space::MapRequest;

impl Process {
    pub(super) fn memory_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let space = &mut self.memory.space;
        let [a, b, c, d, e, f] = call.args;
        match sysno {
            Sysno::mmap => space.mmap(
                MapRequest {
                    addr: GuestAddr(a),
                    bytes: b,
                    prot: c,
                    flags: d,
                    // The kernel takes an int.
                    fd: e as u32 as u64,
                    offset: f,
                },
                code,
            ),
            Sysno::munmap => space.munmap(a, b, code),
            Sysno::mprotect => space.mprotect(a, b, c, None, code),
            Sysno::pkey_mprotect if d as i32 == -1 => space.mprotect(a, b, c, None, code),
            Sysno::pkey_mprotect => space.mprotect(a, b, c, Some(d), code),
            Sysno::mremap => space.mremap([a, b, c, d, e], code),
            Sysno::madvise => space.madvise(a, b, c, code),
            Sysno::mincore
            | Sysno::msync
            | Sysno::mlock2
            | Sysno::mlock
            | Sysno::munlock
            | Sysno::mseal => space.on_range(sysno, a, b, c),
            Sysno::mlockall => space.mlockall(a),
            Sysno::munlockall => space.munlockall(),
            Sysno::brk => Ok(space.set_break(GuestAddr(a), code)),
            Sysno::shmat => space.shmat(a, b, c, code),
            Sysno::shmdt => space.shmdt(a, code),
            // Advice on other processes' memory, or hints on our own.
            Sysno::process_madvise => call.pass(call.args),
            // Deprecated, emulated by every kernel since 4.0, unused since long before.
            _ => Err(Errno(libc::ENOSYS)),
        }
    }
}
