//! A Linux process as the guest's surroundings: loads a program, keeps its address space,
//! answers or passes on its system calls, turns traps into signals. Upstream: the command
//! line. Downstream: the engine, which sees a [`Process`] as its [`GuestEnv`] and knows
//! nothing of Linux.
//!
//! Its state is of three kinds: what all share that run in this address space ([`Process`]
//! itself), what belongs to one process among them ([`ProcessRecord`]), and what belongs to
//! one thread ([`ThreadState`]). The calling thread's comes to every method as `thread`.
//!
//! Programs that the guest executes ([`exec`]) and its children ([`fork`], [`share`]) run
//! under Temper too.
//!
//! [`GuestEnv`]: crate::guest::GuestEnv

pub mod address_space;
mod auxv;
mod deferred;
mod descriptors;
pub mod elf;
mod env;
pub mod exec;
mod fork;
mod host_signals;
mod identity;
mod load;
mod memory;
mod notice;
mod procfs;
mod record;
pub mod seccomp;
mod share;
pub mod signals;
mod stack;
#[cfg(test)]
mod stack_tests;
mod syscalls;
mod thread;
mod thread_exit;
mod threads;
mod vdso;
mod vsyscall;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use address_space::FileKey;
pub use load::{LoadOptions, Loaded, Start};
pub use memory::ProcessMemory;
use record::{ProcessRecord, Records};
use seccomp::Filters;
pub use thread::ThreadState;
use threads::{Ahead, Home};
pub use threads::{Closing, run};

use crate::addr::GuestAddr;
use crate::decode::{CodeAlias, Decoder};
use crate::guest::{CodeControl, CpuMode};

/// The guest: an address space, and the processes and threads that run in it.
#[derive(Debug)]
pub struct Process {
    memory: ProcessMemory,
    vdso: Option<CodeAlias>,
    counts: Counts,
    records: Records,
    filters: Filters,
    home: Option<Home>,
    closing: Ahead,
}

/// What happened to a process that only it can tell.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Synchronous faults of the guest's own making.
    pub faults: u64,
    /// Write faults on pages that are protected because they hold translated code.
    pub protection_faults: u64,
    /// System calls whose number has no name here.
    pub unknown_calls: u64,
}

/// Executable memory that comes from a file: what profiles name code by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeFile {
    pub range: Range<GuestAddr>,
    /// The offset in the file of the range's first byte.
    pub offset: u64,
    pub key: FileKey,
    pub path: PathBuf,
}

impl Process {
    /// A guest of one process.
    fn new(memory: ProcessMemory, vdso: Option<CodeAlias>, record: ProcessRecord) -> Process {
        Process {
            memory,
            vdso,
            counts: Counts::default(),
            records: Records::new(record),
            filters: Filters::default(),
            home: None,
            closing: Ahead::default(),
        }
    }

    /// The decoder for this process's code.
    pub fn decoder(&self) -> Decoder {
        Decoder {
            alias: self.vdso,
            ..Decoder::new(CpuMode::Bits64)
        }
    }

    /// Tells a fresh engine of all executable memory. Call once, before the guest runs.
    pub fn announce_code(&self, code: &mut dyn CodeControl) {
        self.memory.space.announce(code);
    }

    /// The executable mappings of files, in address order.
    pub fn code_files(&self) -> Vec<CodeFile> {
        let map = self.memory.space.map();
        map.iter_ref()
            .filter_map(|(range, a)| code_file(range, a))
            .collect()
    }

    /// The executable file mapping that holds `addr`.
    pub fn code_file_at(&self, addr: GuestAddr) -> Option<CodeFile> {
        let (range, attributes) = self.memory.space.map().peek(addr)?;
        code_file(range, attributes)
    }

    /// The path of the program that a thread's process runs (of a script: its interpreter's).
    pub fn executable(&self, thread: &ThreadState) -> PathBuf {
        path_from(&self.records.of(thread).identity.exe)
    }

    /// The descriptor that was given to [`Process::load`], wherever it is now.
    pub fn own_descriptor(&self, thread: &ThreadState) -> Option<BorrowedFd<'_>> {
        self.records.of(thread).own_descriptor.borrow()
    }

    /// Whether the thread's process is a child of the one that was started.
    pub fn is_child(&self, thread: &ThreadState) -> bool {
        self.records.of(thread).is_child
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The guest has ended: gives back what outlives it in the host.
    pub fn finish(&self) {
        tracing::debug!(
            target: "temper::process",
            mapped_pages = self.memory.space.mapped_pages(|_| true),
            "guest ended"
        );
    }
}

fn code_file(range: Range<GuestAddr>, attributes: &address_space::Attributes) -> Option<CodeFile> {
    let backing = attributes.backing.as_ref()?;
    let path = backing.path.as_ref()?;
    attributes.prot.executable().then(|| CodeFile {
        range,
        offset: backing.offset,
        key: backing.key,
        path: path_from(path),
    })
}

fn path_from(path: &std::ffi::CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()))
}
