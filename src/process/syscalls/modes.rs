//! prctl, arch_prctl, personality and what else changes how the CPU or the process behaves.

use ::syscalls::Sysno;

use super::Call;
use super::credentials::{self, is_credential_option};
use super::seccomp;
use crate::guest::{CodeControl, ThreadContext};
use crate::host::syscall::{Errno, SyscallResult};
use crate::process::Process;
use crate::process::load::READ_IMPLIES_EXEC;
use crate::process::thread::ThreadState;

/// arch_prctl codes (arch/x86/include/uapi/asm/prctl.h).
mod arch {
    pub const SET_GS: u64 = 0x1001;
    pub const SET_FS: u64 = 0x1002;
    pub const GET_FS: u64 = 0x1003;
    pub const GET_GS: u64 = 0x1004;
    pub const GET_XCOMP_SUPP: u64 = 0x1021;
    pub const GET_XCOMP_PERM: u64 = 0x1022;
    pub const REQ_XCOMP_PERM: u64 = 0x1023;
    pub const REQ_XCOMP_GUEST_PERM: u64 = 0x1025;
    pub const ENABLE_TAGGED_ADDR: u64 = 0x4002;
    pub const GET_MAX_TAG_BITS: u64 = 0x4003;
    /// Shadow stacks: 0x5001 to 0x5005.
    pub const SHADOW_STACK_FIRST: u64 = 0x5001;
    pub const SHADOW_STACK_LAST: u64 = 0x5005;
}

/// prctl options that the C library's bindings lack.
const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
const PR_SET_MDWE: u64 = 65;
const PR_SET_VMA: u64 = 0x5356_4d41;

/// XTILECFG and XTILEDATA (Intel SDM volume 1, section 13.1).
const AMX: u64 = 3 << 17;
/// One past the last user address.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
const QUERY: u64 = 0xffff_ffff;

impl Process {
    pub(super) fn mode_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &mut ThreadState,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        match sysno {
            Sysno::arch_prctl => self.arch_prctl(call, ctx, code),
            Sysno::personality => self.set_personality(call, thread),
            Sysno::prctl => self.prctl(call, thread, code),
            Sysno::seccomp => self.seccomp_call(call, thread, code),
            // rseq and map_shadow_stack: as on a kernel without them.
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn arch_prctl(
        &mut self,
        call: Call,
        ctx: &mut ThreadContext,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let [option, value, ..] = call.args;
        match option {
            arch::SET_FS | arch::SET_GS if value >= TASK_SIZE => Err(Errno(libc::EPERM)),
            arch::SET_FS => {
                ctx.cpu.fs_base = value;
                Ok(0)
            }
            arch::SET_GS => {
                ctx.cpu.gs_base = value;
                Ok(0)
            }
            arch::GET_FS => {
                self.put(value, &ctx.cpu.fs_base.to_le_bytes(), code)?;
                Ok(0)
            }
            arch::GET_GS => {
                self.put(value, &ctx.cpu.gs_base.to_le_bytes(), code)?;
                Ok(0)
            }
            // Tiles aren't among the state that Temper saves.
            arch::GET_XCOMP_SUPP | arch::GET_XCOMP_PERM => {
                let mut bits = 0u64;
                call.pass([option, (&raw mut bits) as u64, 0, 0, 0, 0])?;
                self.put(value, &(bits & !AMX).to_le_bytes(), code)?;
                Ok(0)
            }
            arch::REQ_XCOMP_PERM | arch::REQ_XCOMP_GUEST_PERM => Err(Errno(libc::EOPNOTSUPP)),
            arch::ENABLE_TAGGED_ADDR => Err(Errno(libc::ENODEV)),
            arch::GET_MAX_TAG_BITS => {
                self.put(value, &0u64.to_le_bytes(), code)?;
                Ok(0)
            }
            arch::SHADOW_STACK_FIRST..=arch::SHADOW_STACK_LAST => Err(Errno(libc::EINVAL)),
            _ => call.pass(call.args),
        }
    }

    fn prctl(
        &mut self,
        call: Call,
        thread: &mut ThreadState,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let [option, first, second, third, ..] = call.args;
        match option as u32 as u64 {
            PR_SET_SYSCALL_USER_DISPATCH => Err(Errno(libc::EINVAL)),
            // Faulting time-stamp reads would hit Temper too; writable code is Temper's trade.
            PR_SET_MDWE => Err(Errno(libc::EINVAL)),
            PR_SET_VMA if !self.memory.space.is_guests(second, third) => Err(Errno(libc::ENOMEM)),
            option => match i32::try_from(option) {
                Ok(libc::PR_SET_SECCOMP) => self.seccomp_prctl(first, second, thread, code),
                Ok(libc::PR_GET_SECCOMP) => seccomp::mode(thread),
                // The host thread's own belongs to Temper's C library.
                Ok(libc::PR_GET_TID_ADDRESS) => {
                    self.put(first, &thread.clear_child_tid.0.to_le_bytes(), code)?;
                    Ok(0)
                }
                Ok(libc::PR_SET_TSC) if first != libc::PR_TSC_ENABLE as u64 => {
                    Err(Errno(libc::EINVAL))
                }
                Ok(libc::PR_SET_MM) => match first as i32 {
                    libc::PR_SET_MM_ARG_START
                    | libc::PR_SET_MM_ARG_END
                    | libc::PR_SET_MM_ENV_START
                    | libc::PR_SET_MM_ENV_END
                    | libc::PR_SET_MM_MAP_SIZE => call.pass(call.args),
                    // The break, the code and the file are Temper's to the kernel.
                    _ => Err(Errno(libc::EPERM)),
                },
                Ok(option) if is_credential_option(option) => credentials::carry_out(call, code),
                _ => call.pass(call.args),
            },
        }
    }

    /// READ_IMPLIES_EXEC stays Temper's matter: the host's mappings aren't executable.
    fn set_personality(&mut self, call: Call, thread: &ThreadState) -> SyscallResult {
        let wanted = call.args[0] & QUERY;
        let identity = &mut self.records.of_mut(thread).identity;
        let before = identity.personality;
        if wanted != QUERY {
            call.pass([wanted & !READ_IMPLIES_EXEC, 0, 0, 0, 0, 0])?;
            identity.personality = wanted;
            self.memory.space.read_implies_exec = wanted & READ_IMPLIES_EXEC != 0;
        }
        Ok(before)
    }
}
