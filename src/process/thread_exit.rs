//! What the kernel does for a thread that ends, done for the guest's: its robust futexes are
//! marked and woken (exit_robust_list of linux/kernel/futex/core.c), its id is cleared where
//! it asked for that (mm_release of linux/kernel/fork.c). A death of the whole process is
//! left to the kernel, which knows the list too.

use syscalls::Sysno;

use super::{Process, ThreadState};
use crate::addr::GuestAddr;
use crate::guest::{CodeControl, EnvAction, GuestMemory, Width};
use crate::host::syscall::raw;

/// The most entries that the kernel follows (ROBUST_LIST_LIMIT).
const LIST_LIMIT: usize = 2048;
/// Bytes of a struct robust_list_head.
pub(super) const LIST_HEAD_BYTES: u64 = 24;

/// Bits of a futex word (include/uapi/linux/futex.h).
const WAITERS: u64 = 0x8000_0000;
const OWNER_DIED: u64 = 0x4000_0000;
const TID_MASK: u64 = 0x3fff_ffff;

impl Process {
    /// exit(2): the thread ends, and with the last one of all the guest.
    pub(super) fn thread_exits(
        &mut self,
        thread: &mut ThreadState,
        status: i32,
        code: &mut dyn CodeControl,
    ) -> EnvAction {
        let record = self.records.of_mut(thread);
        record.threads -= 1;
        if record.threads == 0 {
            // A process has the status of the thread that ends last (since Linux 6.0).
            return EnvAction::Exit(status);
        }
        self.release_robust_futexes(thread, code);
        let at = thread.clear_child_tid;
        if at != GuestAddr(0) && self.put(at.0, &[0; 4], code).is_ok() {
            wake_one(at);
        }
        EnvAction::ExitThread(status)
    }

    fn release_robust_futexes(&mut self, thread: &mut ThreadState, code: &mut dyn CodeControl) {
        let head = thread.robust_list;
        if head == GuestAddr(0) {
            return;
        }
        // The kernel isn't to follow it again at the host thread's end, when the memory may
        // be somebody else's.
        // SAFETY: takes the kernel's reference away.
        unsafe {
            raw(
                Sysno::set_robust_list.id() as u64,
                [0, LIST_HEAD_BYTES, 0, 0, 0, 0],
            )
        };
        // A list that can't be read ends where it can't.
        let _ = self.walk_robust_list(head, code);
    }

    fn walk_robust_list(&mut self, head: GuestAddr, code: &mut dyn CodeControl) -> Option<()> {
        // SAFETY: asks only.
        let tid = unsafe { raw(Sysno::gettid.id() as u64, [0; 6]) } as u64;
        let mut word = |at: GuestAddr| self.memory.load(at, Width::B8).ok();
        let mut entry = word(head)?;
        let offset = word(head.offset(8))?;
        let pending = word(head.offset(16))?;
        let futex = |entry: u64| GuestAddr((entry & !1).wrapping_add(offset));
        for _ in 0..LIST_LIMIT {
            if entry & !1 == head.0 {
                break;
            }
            let next = self.memory.load(GuestAddr(entry & !1), Width::B8).ok();
            // A pending operation's entry may be on the list already; it comes last.
            if entry & !1 != pending & !1 {
                self.owner_dies(futex(entry), entry & 1 != 0, false, tid, code)?;
            }
            entry = next?;
        }
        if pending & !1 != 0 {
            self.owner_dies(futex(pending), pending & 1 != 0, true, tid, code)?;
        }
        Some(())
    }

    /// handle_futex_death. `None`: the word can't be accessed.
    fn owner_dies(
        &mut self,
        futex: GuestAddr,
        priority_inheriting: bool,
        is_pending: bool,
        tid: u64,
        code: &mut dyn CodeControl,
    ) -> Option<()> {
        if !futex.0.is_multiple_of(4) {
            return None;
        }
        self.memory
            .space
            .prepare_write(futex..futex.offset(4), code);
        let mut value = self.memory.load(futex, Width::B4).ok()?;
        loop {
            // It was released, but the wake-up was still to come.
            if is_pending && !priority_inheriting && value == 0 {
                wake_one(futex);
                return Some(());
            }
            if value & TID_MASK != tid {
                return Some(());
            }
            let new = value & WAITERS | OWNER_DIED;
            let held = self
                .memory
                .compare_exchange(futex, Width::B4, value, new)
                .ok()?;
            if held == value {
                break;
            }
            value = held;
        }
        // The kernel itself passes on those with priority inheritance.
        if !priority_inheriting && value & WAITERS != 0 {
            wake_one(futex);
        }
        Some(())
    }
}

fn wake_one(futex: GuestAddr) {
    let args = [futex.0, libc::FUTEX_WAKE as u64, 1, 0, 0, 0];
    // SAFETY: wakes whoever waits; the guest's memory isn't changed.
    unsafe { raw(Sysno::futex.id() as u64, args) };
}
