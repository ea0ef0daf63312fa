//! System V shared memory: shmat and shmdt.

use syscalls::Sysno;

use super::vma::{Attributes, Backing, FileKey, Prot, Role};
use super::{AddressSpace, page_range};
use crate::addr::GuestAddr;
use crate::guest::CodeControl;
use crate::host::syscall::{Errno, SyscallResult, call};

const SHM_RDONLY: u64 = 0o10000;
const SHM_RND: u64 = 0o20000;
const SHM_REMAP: u64 = 0o40000;
const SHM_EXEC: u64 = 0o100000;
/// SHMLBA on x86-64: the page size.
const ALIGN: u64 = 4096;

impl AddressSpace {
    /// shmat(2).
    ///
    /// # Errors
    /// The kernel's; EINVAL where the range is Temper's.
    pub fn shmat(
        &mut self,
        id: u64,
        addr: u64,
        flags: u64,
        code: &mut dyn CodeControl,
    ) -> SyscallResult {
        let size = segment_size(id)?;
        let mut addr = addr;
        if flags & SHM_RND != 0 {
            addr &= !(ALIGN - 1);
        }
        let mut claim = None;
        if flags & SHM_REMAP != 0 && addr != 0 {
            let range = page_range(addr, size, libc::EINVAL)?;
            claim = Some(self.claim(&range).map_err(|_| Errno(libc::EINVAL))?);
            self.code_changes(range, code);
        }
        // Executable only to the guest: the host mapping is read, never run.
        // SAFETY: maps a new range, or with SHM_REMAP over the guest's own.
        let at = unsafe { call(Sysno::shmat, [id, addr, flags & !SHM_EXEC, 0, 0, 0]) };
        let at = match (at, claim) {
            (Ok(at), _) => at,
            (Err(error), Some(claim)) => {
                claim.undo();
                return Err(error);
            }
            (Err(error), None) => return Err(error),
        };
        let range = page_range(at, size, libc::EINVAL)?;
        let mut prot = if flags & SHM_RDONLY != 0 {
            Prot::READ
        } else {
            Prot::READ_WRITE
        };
        if flags & SHM_EXEC != 0 {
            prot = prot.with_exec();
        }
        self.record(
            range.clone(),
            Attributes {
                prot,
                shared: true,
                grows_down: false,
                role: Role::Plain,
                backing: Some(Backing {
                    key: FileKey {
                        dev: FileKey::DEV_SYSV,
                        inode: id,
                    },
                    offset: 0,
                    path: None,
                }),
            },
        );
        if prot.executable() {
            self.announce_range(&range, code);
        }
        self.alias_appears(range.clone(), code);
        self.attached_segments.push(range);
        Ok(at)
    }

    /// shmdt(2).
    ///
    /// # Errors
    /// The kernel's.
    pub fn shmdt(&mut self, addr: u64, code: &mut dyn CodeControl) -> SyscallResult {
        let index = self
            .attached_segments
            .iter()
            .position(|range| range.start == GuestAddr(addr))
            .ok_or(Errno(libc::EINVAL))?;
        let range = self.attached_segments[index].clone();
        // Watched pages split the mapping; shmdt removes every piece all the same.
        // SAFETY: the segment was attached by the guest.
        let result = unsafe { call(Sysno::shmdt, [addr, 0, 0, 0, 0, 0]) }?;
        self.attached_segments.swap_remove(index);
        for vma in self.map.within(range) {
            let segment = vma
                .attributes
                .backing
                .as_ref()
                .is_some_and(|b| b.key.dev == FileKey::DEV_SYSV);
            if segment {
                self.code_changes(vma.range.clone(), code);
                self.map.remove(vma.range);
            }
        }
        Ok(result)
    }
}

fn segment_size(id: u64) -> Result<u64, Errno> {
    // SAFETY: an all-zero shmid_ds is a valid value.
    let mut info: libc::shmid_ds = unsafe { std::mem::zeroed() };
    let buffer = (&raw mut info) as u64;
    // SAFETY: the kernel writes one shmid_ds into ours.
    unsafe { call(Sysno::shmctl, [id, libc::IPC_STAT as u64, buffer, 0, 0, 0]) }?;
    Ok(info.shm_segsz as u64)
}
