//! Makes KVM_RUN return: a flag that KVM looks at before it enters the guest, and a signal
//! for a thread that is inside already.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::system::vcpu::Kick;

/// Who is to be woken, while there is somebody.
struct Target {
    /// `kvm_run.immediate_exit`, in the mapping that the vCPU owns.
    immediate_exit: *const AtomicU8,
    /// The thread that is in `run`, 0 before the first.
    thread: libc::pid_t,
}

// SAFETY: the pointer is used only under the mutex below, which the vCPU takes to remove it
// before its mapping goes; the byte is accessed atomically.
unsafe impl Send for Target {}

/// See the module documentation.
pub struct KvmKick {
    kicked: AtomicBool,
    target: Mutex<Option<Target>>,
}

/// A real-time signal that nothing else here uses.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// A handler that does nothing: the signal only has to interrupt KVM_RUN.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid; the handler does nothing at all.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
        }
    });
}

impl KvmKick {
    /// `immediate_exit` must stay valid until [`KvmKick::detach`].
    pub(super) fn new(immediate_exit: *mut u8) -> KvmKick {
        install_handler();
        KvmKick {
            kicked: AtomicBool::new(false),
            target: Mutex::new(Some(Target {
                immediate_exit: immediate_exit.cast(),
                thread: 0,
            })),
        }
    }

    /// The calling thread is the one to wake from now on.
    pub(super) fn attach(&self) {
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = target.as_mut() {
            // SAFETY: gettid has no preconditions.
            target.thread = unsafe { libc::gettid() };
        }
    }

    /// The vCPU goes away.
    pub(super) fn detach(&self) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether there was a kick since the last call.
    pub(super) fn take(&self) -> bool {
        let kicked = self.kicked.swap(false, Ordering::SeqCst);
        if kicked {
            self.store_immediate_exit(0);
        }
        kicked
    }

    fn store_immediate_exit(&self, value: u8) -> libc::pid_t {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(target) = target.as_ref() else {
            return 0;
        };
        // SAFETY: valid until `detach`, which waits for the lock that is held here.
        unsafe { &*target.immediate_exit }.store(value, Ordering::SeqCst);
        target.thread
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        let thread = self.store_immediate_exit(1);
        // SAFETY: gettid and tgkill have no preconditions; a thread that is gone is an error
        // that means nothing. The flag is enough for a kick by the thread itself.
        unsafe {
            if thread != 0 && thread != libc::gettid() {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal());
            }
        }
    }
}
