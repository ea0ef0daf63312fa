//! Resource limits. The kernel keeps them, with two exceptions: a raised stack limit lets
//! the guest's stack grow, and limits on memory count the guest's mappings alone, not
//! Temper's reservations: the host's limit is the guest's plus what is Temper's.

use ::syscalls::Sysno;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{GuestMemory, Width};
use crate::host::syscall::{Errno, SyscallResult, call as host_call};
use crate::process::Process;
use crate::process::thread::ThreadState;

const INFINITY: u64 = u64::MAX;

/// A limit on memory that the host applies to Temper and the guest together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MemoryLimit {
    AddressSpace,
    Data,
}

impl MemoryLimit {
    fn number(self) -> u64 {
        match self {
            MemoryLimit::AddressSpace => libc::RLIMIT_AS as u64,
            MemoryLimit::Data => libc::RLIMIT_DATA as u64,
        }
    }

    /// The column of /proc/self/statm that counts what the limit limits, in pages.
    fn column(self) -> usize {
        match self {
            MemoryLimit::AddressSpace => 0,
            MemoryLimit::Data => 5,
        }
    }
}

/// Memory limits as the guest set them, soft and hard.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct MemoryLimits {
    address_space: Option<[u64; 2]>,
    data: Option<[u64; 2]>,
}

impl MemoryLimits {
    fn of(&mut self, limit: MemoryLimit) -> &mut Option<[u64; 2]> {
        match limit {
            MemoryLimit::AddressSpace => &mut self.address_space,
            MemoryLimit::Data => &mut self.data,
        }
    }
}

impl Process {
    pub(super) fn limit_call(
        &mut self,
        sysno: Sysno,
        call: Call,
        thread: &ThreadState,
    ) -> SyscallResult {
        let [a, b, c, d, ..] = call.args;
        // Which limit, where the new one is, where the old one goes; another process's are
        // not ours to change.
        let (resource, new, old) = match sysno {
            Sysno::getrlimit => (a, 0, b),
            Sysno::setrlimit => (a, b, 0),
            _ if a as i32 == 0 || a as u32 == std::process::id() => (b, c, d),
            _ => return call.pass(call.args),
        };
        match resource as u32 {
            libc::RLIMIT_AS => self.memory_limit_call(MemoryLimit::AddressSpace, new, old, thread),
            libc::RLIMIT_DATA => self.memory_limit_call(MemoryLimit::Data, new, old, thread),
            libc::RLIMIT_STACK => {
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

    fn memory_limit_call(
        &mut self,
        limit: MemoryLimit,
        new: u64,
        old: u64,
        thread: &ThreadState,
    ) -> SyscallResult {
        let before = match *self.records.of_mut(thread).memory_limits.of(limit) {
            Some(pair) => pair,
            None => host_limit(limit, None)?,
        };
        if new != 0 {
            let wanted = self.read_limit(new)?;
            if wanted[0] > wanted[1] {
                return Err(Errno(libc::EINVAL));
            }
            let own = self.own_pages(limit) * PAGE_SIZE;
            let with_own = |value: u64| match value {
                INFINITY => INFINITY,
                value => value.saturating_add(own).min(INFINITY - 1),
            };
            let hard = if wanted[1] == before[1] {
                // What the guest leaves alone must not look like a raise to the host.
                host_limit(limit, None)?[1]
            } else {
                with_own(wanted[1])
            };
            host_limit(limit, Some([with_own(wanted[0]).min(hard), hard]))?;
            *self.records.of_mut(thread).memory_limits.of(limit) = Some(wanted);
        }
        if old != 0 {
            let bytes: Vec<u8> = before.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.memory
                .write_bytes(GuestAddr(old), &bytes)
                .map_err(|_| Errno(libc::EFAULT))?;
        }
        Ok(0)
    }

    /// Pages that count on the host but aren't the guest's.
    fn own_pages(&self, limit: MemoryLimit) -> u64 {
        let guest = match limit {
            MemoryLimit::AddressSpace => self.memory.space.mapped_pages(|_| true),
            MemoryLimit::Data => self
                .memory
                .space
                .mapped_pages(|a| a.prot.writable() && !a.shared),
        };
        std::fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|text| text.split(' ').nth(limit.column())?.parse::<u64>().ok())
            .unwrap_or(0)
            .saturating_sub(guest)
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

/// The host's limit, soft and hard; sets it if `new` is given.
fn host_limit(limit: MemoryLimit, new: Option<[u64; 2]>) -> Result<[u64; 2], Errno> {
    let mut old = [0u64; 2];
    let new = new.as_ref().map_or(0, |pair| pair.as_ptr() as u64);
    let args = [0, limit.number(), new, old.as_mut_ptr() as u64, 0, 0];
    // SAFETY: the kernel reads and writes our own two pairs of words.
    unsafe { host_call(Sysno::prlimit64, args) }?;
    Ok(old)
}
