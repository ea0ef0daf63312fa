//! What reaches a running machine from outside its CPU's thread: typed input, requests to
//! stop, and the alarm that makes the CPU look at its timers.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use super::vcpu::Kicker;

/// Why somebody outside wants the machine to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// A person asked for it.
    Quit,
    /// A signal that ends programs.
    Signal(i32),
    Timeout,
    /// To be saved.
    Snapshot,
    /// The debugger has something to say.
    Debugger,
}

#[derive(Default)]
struct Shared {
    typed: Vec<u8>,
    /// Nothing will be typed any more.
    typing_ended: bool,
    stop: Option<Stop>,
    alarm: Option<Instant>,
    /// When the alarm's thread will look again; `None` while it waits for an alarm.
    watching: Option<Instant>,
    kicker: Option<Kicker>,
}

/// See the module documentation.
pub struct Control {
    shared: Mutex<Shared>,
    /// Something for a CPU that waits in HLT.
    for_cpu: Condvar,
    /// An alarm that comes earlier than the one that is waited for.
    for_alarm: Condvar,
}

impl Control {
    pub fn new() -> Arc<Control> {
        let control = Arc::new(Control {
            shared: Mutex::default(),
            for_cpu: Condvar::new(),
            for_alarm: Condvar::new(),
        });
        let watched = Arc::downgrade(&control);
        thread::spawn(move || watch_alarm(&watched));
        control
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes for the guest's serial port.
    pub fn type_in(&self, bytes: &[u8]) {
        self.change(|shared| shared.typed.extend_from_slice(bytes));
    }

    /// Nothing will be typed any more: a CPU that halts without a timer halts for good.
    pub fn end_typing(&self) {
        self.change(|shared| shared.typing_ended = true);
    }

    pub fn stop(&self, why: Stop) {
        self.change(|shared| shared.stop = Some(why));
    }

    fn change(&self, change: impl FnOnce(&mut Shared)) {
        let mut shared = self.lock();
        change(&mut shared);
        self.for_cpu.notify_all();
        if let Some(kicker) = shared.kicker.clone() {
            drop(shared);
            kicker.kick();
        }
    }

    /// Takes a request to stop back, if nothing else was asked for since.
    pub(super) fn forget(&self, why: Stop) {
        let mut shared = self.lock();
        if shared.stop == Some(why) {
            shared.stop = None;
        }
    }

    pub(super) fn take_typed(&self) -> Vec<u8> {
        std::mem::take(&mut self.lock().typed)
    }

    pub(super) fn take_stop(&self) -> Option<Stop> {
        self.lock().stop.take()
    }

    pub(super) fn set_kicker(&self, kicker: Option<Kicker>) {
        self.lock().kicker = kicker;
    }

    /// Kick the CPU at this time, and at no other that was set before.
    pub(super) fn set_alarm(&self, at: Option<Instant>) {
        let mut shared = self.lock();
        shared.alarm = at;
        if let Some(at) = at
            && shared.watching.is_none_or(|watching| at < watching)
        {
            self.for_alarm.notify_all();
        }
    }

    /// Waits in HLT until something comes from outside or it is `until`. False: nothing
    /// will ever come.
    pub(super) fn wait(&self, until: Option<Instant>) -> bool {
        let mut shared = self.lock();
        loop {
            if shared.stop.is_some() || !shared.typed.is_empty() {
                return true;
            }
            shared = match until {
                None if shared.typing_ended => return false,
                None => self
                    .for_cpu
                    .wait(shared)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let now = Instant::now();
                    if now >= until {
                        return true;
                    }
                    let waited = self.for_cpu.wait_timeout(shared, until - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.for_alarm.notify_all();
    }
}

/// How often the alarm's thread looks whether its machine is gone.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);

fn watch_alarm(control: &Weak<Control>) {
    while let Some(control) = control.upgrade() {
        let mut shared = control.lock();
        let now = Instant::now();
        if shared.alarm.is_some_and(|at| at <= now) {
            shared.alarm = None;
            if let Some(kicker) = shared.kicker.clone() {
                drop(shared);
                kicker.kick();
            }
            continue;
        }
        let until = shared.alarm.map_or(now + LOOK, |at| at.min(now + LOOK));
        shared.watching = Some(until);
        let waited = control.for_alarm.wait_timeout(shared, until - now);
        waited.unwrap_or_else(PoisonError::into_inner).0.watching = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Kick;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Kick for Counter {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_earlier_alarm_replaces_a_later_one() {
        let control = Control::new();
        let counter = Arc::new(Counter::default());
        control.set_kicker(Some(counter.clone()));
        control.set_alarm(Some(Instant::now() + Duration::from_secs(600)));
        control.set_alarm(Some(Instant::now() + Duration::from_millis(5)));
        while counter.0.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_halted_cpu_without_input_or_timer_waits_for_nothing() {
        let control = Control::new();
        control.end_typing();
        assert!(!control.wait(None));
        control.type_in(b"x");
        assert!(control.wait(None));
        assert_eq!(control.take_typed(), b"x");
    }
}
