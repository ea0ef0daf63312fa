//! A Linux process as the guest's surroundings: loads a program, keeps its address space,
//! answers or passes on its system calls, turns traps into signals. Upstream: the command
//! line. Downstream: the engine, which sees a [`Process`] as its [`GuestEnv`] and knows
//! nothing of Linux.
//!
//! Not here yet: threads and child processes (their calls fail with a notice). State that
//! belongs to one thread is in [`ThreadState`], so that there can be several.
//!
//! [`GuestEnv`]: crate::guest::GuestEnv

pub mod address_space;
mod auxv;
mod deferred;
mod descriptors;
pub mod elf;
mod env;
mod host_signals;
mod identity;
mod load;
mod memory;
mod notice;
mod procfs;
pub mod seccomp;
pub mod signals;
mod stack;
#[cfg(test)]
mod stack_tests;
mod syscalls;
mod vdso;
mod vsyscall;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use self::syscalls::MemoryLimits;
use address_space::FileKey;
use descriptors::OwnDescriptor;
use identity::Identity;
pub use load::{LoadOptions, Start};
pub use memory::ProcessMemory;
use notice::Notices;
use seccomp::Seccomp;
use signals::{Dispositions, Inherited, ThreadSignals};

use crate::addr::GuestAddr;
use crate::decode::{CodeAlias, Decoder};
use crate::guest::{CodeControl, CpuMode};

/// One guest process.
#[derive(Debug)]
pub struct Process {
    memory: ProcessMemory,
    identity: Identity,
    dispositions: Dispositions,
    thread: ThreadState,
    memory_limits: MemoryLimits,
    notices: Notices,
    vdso: Option<CodeAlias>,
    counts: Counts,
    own_descriptor: OwnDescriptor,
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

/// What belongs to one guest thread beyond its registers.
#[derive(Debug)]
struct ThreadState {
    signals: ThreadSignals,
    /// set_tid_address(2): cleared and woken when the thread ends.
    clear_child_tid: GuestAddr,
    /// set_robust_list(2).
    robust_list: GuestAddr,
    seccomp: Seccomp,
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
    fn new(
        memory: ProcessMemory,
        identity: Identity,
        vdso: Option<CodeAlias>,
        own_descriptor: OwnDescriptor,
    ) -> Process {
        let inherited = Inherited::read();
        Process {
            memory,
            identity,
            dispositions: Dispositions::inherited(inherited.ignored),
            thread: ThreadState {
                signals: ThreadSignals::new(inherited.mask),
                clear_child_tid: GuestAddr(0),
                robust_list: GuestAddr(0),
                seccomp: Seccomp::default(),
            },
            memory_limits: MemoryLimits::default(),
            notices: Notices::default(),
            vdso,
            counts: Counts::default(),
            own_descriptor,
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

    /// The path of the program that runs (of a script: its interpreter's).
    pub fn executable(&self) -> PathBuf {
        path_from(&self.identity.exe)
    }

    /// The descriptor that was given to [`Process::load`], wherever it is now.
    pub fn own_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.own_descriptor.borrow()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The guest has ended: gives back what outlives it in the host.
    pub fn finish(self) {
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
