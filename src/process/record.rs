//! What belongs to one process. Usually a guest is one process; a child that shares its
//! address space (vfork, CLONE_VM without CLONE_THREAD) has a record of its own beside it.

use super::descriptors::OwnDescriptor;
use super::exec::Relaunch;
use super::identity::Identity;
use super::notice::Notices;
use super::signals::Dispositions;
use super::syscalls::MemoryLimits;
use super::thread::ThreadState;

/// One process's state, shared by its threads.
#[derive(Debug)]
pub struct ProcessRecord {
    pub identity: Identity,
    pub dispositions: Dispositions,
    pub memory_limits: MemoryLimits,
    pub notices: Notices,
    pub own_descriptor: OwnDescriptor,
    pub relaunch: Relaunch,
    /// It is not the process that was started: what that one is asked to show isn't its.
    pub is_child: bool,
    /// Its memory is another process's, whose profile this is.
    pub shares_memory: bool,
    /// Threads that haven't ended.
    pub threads: usize,
}

/// Names a process among those of one address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordId(usize);

/// The records of all processes that share the address space.
#[derive(Debug)]
pub struct Records {
    slots: Vec<Option<ProcessRecord>>,
}

impl RecordId {
    /// The process that the guest began as.
    pub const FIRST: RecordId = RecordId(0);
}

impl Records {
    pub fn new(first: ProcessRecord) -> Records {
        Records {
            slots: vec![Some(first)],
        }
    }

    /// Adds a process that shares the address space.
    pub fn add(&mut self, record: ProcessRecord) -> RecordId {
        let free = self.slots.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(record);
        RecordId(index)
    }

    /// Forgets a process that has left the address space.
    pub fn remove(&mut self, id: RecordId) {
        self.slots[id.0] = None;
    }

    /// In a forked child: forgets all processes but that of `thread`.
    pub fn keep_only(&mut self, thread: &ThreadState) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if index != thread.record.0
                && let Some(mut other) = slot.take()
            {
                // Its number isn't open here: a child that shared memory has closed it.
                other.own_descriptor.give_up(true);
            }
        }
    }

    /// Temper's descriptors of all processes but that of `thread`.
    pub fn own_descriptors_of_others(&self, thread: &ThreadState) -> impl Iterator<Item = u32> {
        let own = thread.record.0;
        let others = self.slots.iter().enumerate();
        others
            .filter(move |(index, _)| *index != own)
            .filter_map(|(_, slot)| slot.as_ref()?.own_descriptor.number())
    }

    /// The record of the process that `thread` belongs to.
    pub fn of(&self, thread: &ThreadState) -> &ProcessRecord {
        self.slots[thread.record.0]
            .as_ref()
            .expect("a live process")
    }

    /// Whether more than one thread runs in the address space.
    pub fn many_threads(&self) -> bool {
        let records = self.slots.iter().flatten();
        records.map(|record| record.threads).sum::<usize>() > 1
    }

    /// Whether a descriptor of Temper's is open in any of the processes.
    pub fn any_own_descriptor(&self) -> bool {
        let mut records = self.slots.iter().flatten();
        records.any(|record| record.own_descriptor.is_held())
    }

    /// As [`Records::of`], to change it.
    pub fn of_mut(&mut self, thread: &ThreadState) -> &mut ProcessRecord {
        self.slots[thread.record.0]
            .as_mut()
            .expect("a live process")
    }
}
