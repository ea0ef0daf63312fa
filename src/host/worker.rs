//! Threads of Temper's own, beside the guest's. They take no signals, and they share no
//! descriptors: what they open is nothing that the guest could find, close, or get a number
//! after, and they keep none of the guest's open.

use std::io;
use std::thread::{Builder, JoinHandle};

use syscalls::Sysno;

use super::syscall::{Errno, call};

/// A thread that does one thing.
#[derive(Debug)]
pub struct Worker<T> {
    thread: JoinHandle<Option<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// # Errors
    /// The kernel's, where it grants no thread.
    pub fn start(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Worker<T>> {
        // The thread starts with its creator's mask: so nothing reaches it, from the start. But
        // the C library takes its own signal 32 out of it.
        let before = set_mask(u64::MAX)?;
        let setxid = SignalAction::of(SIGSETXID);
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            set_mask(u64::MAX).ok()?;
            leave_descriptors().is_ok().then(work)
        });
        if let Some(action) = setxid {
            action.restore(SIGSETXID);
        }
        set_mask(before)?;
        thread.map(|thread| Worker { thread })
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. `None`: it could not begin (a kernel that doesn't give it
    /// descriptors of its own), or it panicked.
    pub fn finish(self) -> Option<T> {
        self.thread.join().ok().flatten()
    }
}

/// The signal by which the C library changes all threads' credentials. Its handler comes
/// with the first thread that it makes; but the signal's action is the guest's.
const SIGSETXID: u64 = 33;

/// What the kernel does for a signal: handler, flags, restorer and mask.
struct SignalAction([u64; 4]);

impl SignalAction {
    fn of(signo: u64) -> Option<SignalAction> {
        let mut action = SignalAction([0; 4]);
        let at = action.0.as_mut_ptr() as u64;
        // SAFETY: the kernel writes the four words.
        unsafe {
            call(
                Sysno::rt_sigaction,
                [signo, 0, at, size_of::<u64>() as u64, 0, 0],
            )
        }
        .ok()?;
        Some(action)
    }

    fn restore(self, signo: u64) {
        let at = self.0.as_ptr() as u64;
        // SAFETY: the action that there was before.
        let _ = unsafe {
            call(
                Sysno::rt_sigaction,
                [signo, at, 0, size_of::<u64>() as u64, 0, 0],
            )
        };
    }
}

fn set_mask(mask: u64) -> io::Result<u64> {
    let mut before = 0u64;
    let args = [
        libc::SIG_SETMASK as u64,
        (&raw const mask) as u64,
        (&raw mut before) as u64,
        size_of::<u64>() as u64,
        0,
        0,
    ];
    // SAFETY: the kernel reads and writes the two words.
    unsafe { call(Sysno::rt_sigprocmask, args) }
        .map(|_| before)
        .map_err(|Errno(number)| io::Error::from_raw_os_error(number))
}

/// Gives the calling thread a table of descriptors of its own, an empty one. The kernel
/// copies none of the old ones, so no file of the guest's stays open because of it.
fn leave_descriptors() -> Result<(), Errno> {
    let unshare = u64::from(libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: this thread has opened nothing.
    unsafe {
        call(
            Sysno::close_range,
            [0, u64::from(u32::MAX), unshare, 0, 0, 0],
        )
    }
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        u64::from_str_radix(line.expect("a mask").trim(), 16).expect("hexadecimal")
    }

    #[test]
    fn the_action_of_the_c_librarys_signal_survives() {
        let before = SignalAction::of(SIGSETXID).expect("an action").0;
        let worker = Worker::start("worker", || ()).expect("a thread");
        assert_eq!(worker.finish(), Some(()));
        assert_eq!(SignalAction::of(SIGSETXID).expect("an action").0, before);
    }

    #[test]
    fn a_worker_takes_no_signals_and_has_its_own_descriptors() {
        let mine = File::open("/dev/null").expect("/dev/null");
        let before = blocked();
        let worker = Worker::start("worker", move || {
            let first = File::open("/dev/null").expect("/dev/null").as_raw_fd();
            let seen = std::fs::metadata(format!("/proc/thread-self/fd/{}", mine.as_raw_fd()));
            // Its number is another file's here, or nobody's.
            std::mem::forget(mine);
            (blocked(), first, seen.is_err())
        });
        let found = worker.expect("a thread").finish();
        // All but SIGKILL and SIGSTOP, which can't be.
        let all = !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1));
        assert_eq!(found, Some((all, 0, true)));
        assert_eq!(blocked(), before);
    }
}
