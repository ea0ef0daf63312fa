//! Saves while the run goes on, so that a kill loses seconds, not the run. A visit to the
//! engine after the time has come takes the counts out, which is quick; a thread that lives
//! for this one save merges them into the database. Between saves there is no such thread:
//! nothing for the guest to find, nothing to park when it forks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use profile_db::{Durability, Error};

use super::Profile;
use super::save::{Occasion, SaveBatch, SaveReport};
use crate::host::Worker;

/// When to save.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaveTimes {
    /// After the start. Shorter runs save at their end only.
    pub first: Duration,
    /// After a save.
    pub every: Duration,
}

impl Default for SaveTimes {
    fn default() -> SaveTimes {
        SaveTimes {
            first: Duration::from_secs(3),
            every: Duration::from_secs(10),
        }
    }
}

/// A batch on its way. Still there after its worker has ended: it wasn't merged.
type Slot = Arc<Mutex<Option<SaveBatch>>>;

/// The state of saving from time to time.
pub(super) struct TimedSaves {
    times: SaveTimes,
    due: Instant,
    under_way: Option<(Slot, Worker<SaveReport>)>,
    /// What no worker could be had for: saved at the end.
    left_over: Vec<SaveBatch>,
    /// How many have asked for no saves for a while.
    suspended: u32,
    /// No more until the end: there are no workers, or something is wrong with the directory.
    given_up: bool,
}

impl Profile {
    /// From now on [`Profile::save_if_due`] saves at these times, if there is a store.
    pub fn save_at(&mut self, times: SaveTimes) {
        if self.store.is_some() {
            self.timed = Some(TimedSaves {
                times,
                due: Instant::now() + times.first,
                under_way: None,
                left_over: Vec::new(),
                suspended: 0,
                given_up: false,
            });
        }
    }

    /// Starts a save if it is time for one. Call now and then.
    pub fn save_if_due(&mut self) {
        let Some(timed) = &mut self.timed else {
            return;
        };
        let now = Instant::now();
        if now < timed.due || timed.given_up || timed.suspended > 0 {
            return;
        }
        timed.due = now + timed.times.every;
        if timed
            .under_way
            .as_ref()
            .is_some_and(|(_, worker)| !worker.is_finished())
        {
            return;
        }
        self.finish_timed_save();
        let Some(batch) = self.collect(Occasion::Meanwhile) else {
            return;
        };
        if let Some(timed) = &mut self.timed
            && !batch.is_empty()
        {
            timed.start(batch);
        }
    }

    /// Waits for the save under way, if there is one: then its thread is gone.
    pub fn finish_timed_save(&mut self) {
        let Some(timed) = &mut self.timed else {
            return;
        };
        let Some((slot, worker)) = timed.under_way.take() else {
            return;
        };
        let report = worker.finish();
        timed.keep(&slot);
        if let Some(report) = report {
            self.count_saved(&report);
            let (over, lasting): (Vec<_>, Vec<_>) = report
                .errors
                .into_iter()
                .partition(|error| matches!(error, Error::Damaged { aside: Some(_), .. }));
            // The end of the run will meet the others too, and say so.
            if let Some(timed) = &mut self.timed {
                timed.given_up |= !lasting.is_empty();
            }
            self.warn(over);
        }
    }

    /// No timed save is under way from here on, until
    /// [`Profile::resume_timed_saves`] was called as often as this.
    pub fn suspend_timed_saves(&mut self) {
        self.finish_timed_save();
        if let Some(timed) = &mut self.timed {
            timed.suspended += 1;
        }
    }

    pub fn resume_timed_saves(&mut self) {
        if let Some(timed) = &mut self.timed {
            timed.suspended = timed.suspended.saturating_sub(1);
        }
    }

    /// What saves from time to time left to be saved.
    pub(super) fn take_left_over(&mut self) -> Vec<SaveBatch> {
        self.finish_timed_save();
        let timed = self.timed.as_mut();
        timed.map_or_else(Vec::new, |timed| std::mem::take(&mut timed.left_over))
    }

    /// As for a new process: nothing is under way or left over.
    pub(super) fn restart_timed_saves(&mut self) {
        if let Some(timed) = self.timed.take() {
            debug_assert!(timed.under_way.is_none(), "a save was under way at fork");
            self.save_at(timed.times);
        }
    }
}

impl TimedSaves {
    fn start(&mut self, batch: SaveBatch) {
        let slot: Slot = Arc::new(Mutex::new(Some(batch)));
        let mine = Arc::clone(&slot);
        let started = Worker::start("temper-save", move || {
            let batch = mine.lock().unwrap_or_else(PoisonError::into_inner).take();
            batch.map_or_else(SaveReport::default, |batch| {
                batch.merge(Durability::Routine)
            })
        });
        match started {
            Ok(worker) => self.under_way = Some((slot, worker)),
            Err(error) => {
                tracing::debug!(target: "temper::profile", %error, "no thread to save");
                self.keep(&slot);
            }
        }
    }

    /// Keeps a batch that wasn't merged.
    fn keep(&mut self, slot: &Slot) {
        let batch = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(batch) = batch {
            self.left_over.push(batch);
            self.given_up = true;
        }
    }
}
