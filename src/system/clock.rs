//! The machine's time, which all devices share. The host's for people; counted for runs
//! that must come out the same every time.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::devices::Nanos;

/// What moves the machine's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TimeBase {
    /// The host's monotonic clock.
    Host,
    /// A nanosecond an instruction, in the steps in which the machine asks for instructions,
    /// and [`ACCESS`] for each device access.
    Instructions,
    /// [`ACCESS`] for each device access and nothing else: the same on every engine.
    Accesses,
}

/// What one device access takes in counted time: about what it takes on a real bus.
pub const ACCESS: Nanos = 1000;

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Clock {
    base: TimeBase,
    /// Time that was counted, or that had passed when `since` was taken.
    counted: Nanos,
    since: Instant,
}

impl Clock {
    pub fn new(base: TimeBase, now: Nanos) -> Clock {
        Clock {
            base,
            counted: now,
            since: Instant::now(),
        }
    }

    pub fn base(&self) -> TimeBase {
        self.base
    }

    pub fn now(&self) -> Nanos {
        match self.base {
            TimeBase::Host => self.counted + self.since.elapsed().as_nanos() as Nanos,
            TimeBase::Instructions | TimeBase::Accesses => self.counted,
        }
    }

    /// A device was accessed.
    pub fn access(&mut self) {
        match self.base {
            TimeBase::Host => {}
            TimeBase::Instructions | TimeBase::Accesses => self.counted += ACCESS,
        }
    }

    /// Instructions ran.
    pub fn instructions(&mut self, count: u64) {
        if self.base == TimeBase::Instructions {
            self.counted += count;
        }
    }

    /// Nothing happens until `at`: counted time goes there at once.
    pub fn skip_to(&mut self, at: Nanos) {
        match self.base {
            TimeBase::Host => {}
            TimeBase::Instructions | TimeBase::Accesses => self.counted = self.counted.max(at),
        }
    }

    /// When the host's clock will say `at`; `None` when it isn't the host's clock that counts.
    pub fn host_time_of(&self, at: Nanos) -> Option<Instant> {
        match self.base {
            TimeBase::Host => {
                Some(self.since + Duration::from_nanos(at.saturating_sub(self.counted)))
            }
            TimeBase::Instructions | TimeBase::Accesses => None,
        }
    }
}
