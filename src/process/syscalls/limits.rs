//! Resource limits. The kernel keeps them, with two exceptions: a raised stack limit lets
//! the guest's stack grow, and a limit on the address space counts the guest's mappings
//! alone, not Temper's reservations.

use ::syscalls::Sysno;

use super::Call;
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{GuestMemory, Width};
use crate::host::syscall::{Errno, SyscallResult, call as host_call};
use crate::process::Process;

const INFINITY: u64 = u64::MAX;
const RLIMIT_AS: u64 = libc::RLIMIT_AS as u64;
const RLIMIT_STACK: u64 = libc::RLIMIT_STACK as u64;

impl Process {
    pub(super) fn limit_call(&mut self, sysno: Sysno, call: Call) -> SyscallResult {
        let [a, b, c, d, ..] = call.args;
        // Which limit, where the new one is, where the old one goes; another process's are
        // not ours to change.
        let (resource, new, old) = match sysno {
            Sysno::getrlimit => (a, 0, b),
            Sysno::setrlimit => (a, b, 0),
            _ if a as i32 == 0 || a as u32 == std::process::id() => (b, c, d),
            _ => return call.pass(call.args),
        };
        match resource & 0xffff_ffff {
            RLIMIT_AS => self.address_limit_call(new, old),
            RLIMIT_STACK => {
                let result = call.pass(call.args)?;
                if new != 0
                    && let Ok([soft, _]) = self.read_limit(new)
                {
                    self.memory.space.grow_stack(soft);
                }
                Ok(result)
            }
            _ => call.pass(call.args),
        }
    }

    fn address_limit_call(&mut self, new: u64, old: u64) -> SyscallResult {
        let before = match self.address_limit {
            Some(limit) => limit,
            None => host_address_limit(None)?,
        };
        if new != 0 {
            let wanted = self.read_limit(new)?;
            let [soft, hard] = wanted;
            if soft > hard {
                return Err(Errno(libc::EINVAL));
            }
            let own = self.own_pages() * PAGE_SIZE;
            let with_own = |limit: u64| match limit {
                INFINITY => INFINITY,
                limit => limit.saturating_add(own).min(INFINITY - 1),
            };
            host_address_limit(Some([with_own(soft), with_own(hard)]))?;
            self.address_limit = Some(wanted);
        }
        if old != 0 {
            let bytes: Vec<u8> = before.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.memory
                .write_bytes(GuestAddr(old), &bytes)
                .map_err(|_| Errno(libc::EFAULT))?;
        }
        Ok(0)
    }

    /// Pages that are mapped on the host but not the guest's.
    fn own_pages(&self) -> u64 {
        std::fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
            .saturating_sub(self.memory.space.mapped_pages())
    }

    fn read_limit(&mut self, at: u64) -> Result<[u64; 2], Errno> {
        let at = GuestAddr(at);
        let mut load = |at| {
            self.memory
                .load(at, Width::B8)
                .map_err(|_| Errno(libc::EFAULT))
        };
        Ok([load(at)?, load(at.offset(8))?])
    }
}

/// The host's RLIMIT_AS; sets it if `new` is given.
fn host_address_limit(new: Option<[u64; 2]>) -> Result<[u64; 2], Errno> {
    let mut old = [0u64; 2];
    let new = new.as_ref().map_or(0, |limit| limit.as_ptr() as u64);
    let args = [0, RLIMIT_AS, new, old.as_mut_ptr() as u64, 0, 0];
    // SAFETY: the kernel reads and writes our own two pairs of words.
    unsafe { host_call(Sysno::prlimit64, args) }?;
    Ok(old)
}
