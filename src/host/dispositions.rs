//! The host's settings that Temper changes for itself: what a signal does for a while, and
//! where the C library's heap comes from.

use std::mem::MaybeUninit;

/// A signal that the host ignores as long as this lives; then its action is as before.
#[derive(Debug)]
pub struct Ignored {
    signo: i32,
    before: Option<Action>,
}

struct Action(libc::sigaction);

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "handler {:#x}", self.0.sa_sigaction)
    }
}

impl Ignored {
    pub fn new(signo: i32) -> Ignored {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a zeroed action is one with an empty mask; the kernel's answer fills
        // `before` when the call succeeds.
        let before = unsafe {
            let mut ignore: libc::sigaction = MaybeUninit::zeroed().assume_init();
            ignore.sa_sigaction = libc::SIG_IGN;
            let done = libc::sigaction(signo, &raw const ignore, before.as_mut_ptr()) == 0;
            done.then(|| Action(before.assume_init()))
        };
        Ignored { signo, before }
    }
}

impl Drop for Ignored {
    fn drop(&mut self) {
        if let Some(Action(before)) = &self.before {
            // SAFETY: the action that was there before.
            unsafe { libc::sigaction(self.signo, before, std::ptr::null_mut()) };
        }
    }
}

/// From now on the C library's allocator maps each piece it needs, so that C code in Temper
/// (zstd) leaves the break alone.
pub fn keep_c_heap_off_the_break() {
    // SAFETY: sets tunables of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 0);
        // An arena for each thread would reserve 64 MiB.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_harmless_and_then_as_before() {
        // SAFETY: asks only; raises a signal that is ignored.
        let action = || unsafe {
            let mut now: libc::sigaction = MaybeUninit::zeroed().assume_init();
            libc::sigaction(libc::SIGXFSZ, std::ptr::null(), &raw mut now);
            now.sa_sigaction
        };
        let before = action();
        let ignored = Ignored::new(libc::SIGXFSZ);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::raise(libc::SIGXFSZ) }, 0);
        assert_eq!(action(), libc::SIG_IGN);
        drop(ignored);
        assert_eq!(action(), before);
    }
}
