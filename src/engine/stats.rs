//! What happened in one run, as plain numbers: counted by the engine and its surroundings,
//! shown by `--stats`, written by `--stats-json`. Field names are the JSON's and stay
//! stable. Does not format anything.

use serde::Serialize;

/// One run. All times are in seconds of real time, all sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// From Temper's start to the guest's end.
    pub seconds: f64,
    pub interpreter: InterpreterStats,
    pub blocks: BlockStats,
    pub superblocks: SuperblockStats,
    pub cache: CacheStats,
    pub exits: ExitStats,
    pub signals: SignalStats,
    pub syscalls: SyscallStats,
    pub profile: ProfileStats,
    pub reuse: ReuseStats,
    pub memory: MemoryStats,
}

/// Tier 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct InterpreterStats {
    /// Blocks that were predecoded.
    pub blocks: u64,
    /// Times a predecoded block was begun.
    pub entries: u64,
    /// Guest instructions executed.
    pub instructions: u64,
    /// Instructions that ran as the real instruction in a stub; with `--verify`, those of
    /// the runs that generated code is compared with are among them.
    pub native_instructions: u64,
    /// Spent interpreting, predecoding included.
    pub seconds: f64,
}

/// Tier 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlockStats {
    /// Translation blocks that were made; a block made again counts again.
    pub translated: u64,
    /// Of those, blocks made without being interpreted first, because an earlier run's
    /// profile knew them as hot.
    pub translated_from_profile: u64,
    /// Guest instructions in them.
    pub guest_instructions: u64,
    /// Bytes of guest code in them.
    pub guest_bytes: u64,
    /// Bytes of generated code, exits included.
    pub code_bytes: u64,
    /// Entries of generated code by the dispatcher (chained transfers aren't counted).
    pub entries: u64,
    /// Entries whose result was compared with the interpreter's (`--verify`).
    pub verified: u64,
    /// Links made between translation blocks.
    pub links: u64,
    /// Spent translating and installing.
    pub translation_seconds: f64,
    /// Spent in generated code, pass-through system calls included.
    pub seconds: f64,
}

/// Tier 2.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SuperblockStats {
    /// Superblocks that were made.
    pub formed: u64,
    /// Heads for which none could be made, or none with a gain.
    pub refused: u64,
    /// Superblocks that were faster in their trial.
    pub kept: u64,
    /// Superblocks that weren't.
    pub rejected: u64,
    /// Guest instructions in all that were made.
    pub guest_instructions: u64,
    /// Instructions of their code, exits included.
    pub host_instructions: u64,
    /// Bytes of their code, exits included.
    pub code_bytes: u64,
    /// Frame slots that were given a register.
    pub renamed: u64,
    /// Stores that are checked against them.
    pub guards: u64,
    pub inlined_calls: u64,
}

/// The code cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CacheStats {
    /// The bound.
    pub capacity_bytes: u64,
    /// Filled at the end, in all generations.
    pub used_bytes: u64,
    /// The most ever filled.
    pub peak_bytes: u64,
    /// Resident pages of the map that takes indirect branches from guest to host addresses.
    pub indirect_map_bytes: u64,
    /// Generations retired because the cache was full, or by TEMPER_FLUSH_EVERY.
    pub evictions: u64,
    /// Fragments dropped because guest code changed.
    pub invalidated: u64,
}

/// Times generated code left to the engine, by the kind of exit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExitStats {
    /// A direct exit that wasn't linked yet.
    pub direct: u64,
    /// An indirect branch or return whose target wasn't in the shadow map.
    pub indirect: u64,
    /// A system call that Temper handles.
    pub syscall: u64,
    /// An instruction for the interpreter.
    pub interpret: u64,
    /// A profile counter that ran out.
    pub counter: u64,
    /// A synchronous fault.
    pub fault: u64,
    /// An asynchronous signal.
    pub interrupted: u64,
}

/// Signals.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SignalStats {
    /// Delivered to handlers of the guest.
    pub delivered: u64,
    /// Synchronous faults of the guest's own making.
    pub faults: u64,
    /// Write faults on pages that Temper protects because they hold translated code.
    pub protection_faults: u64,
}

/// System calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SyscallStats {
    /// Went straight to the kernel.
    pub passed: u64,
    /// Handled by Temper, which may have asked the kernel.
    pub handled: u64,
    /// Passed to the kernel although Temper doesn't know their number.
    pub unknown: u64,
}

/// The profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProfileStats {
    /// Modules (files of code) whose profile was found.
    pub modules_loaded: u64,
    /// Records read.
    pub records_loaded: u64,
    pub modules_saved: u64,
    /// Records written.
    pub records_saved: u64,
    /// Spent identifying files of code and reading what is known of them.
    pub load_seconds: f64,
    pub save_seconds: f64,
}

/// Translated code of earlier runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReuseStats {
    /// Fragments installed, each of many that an earlier run made.
    pub pieces: u64,
    /// Blocks in them.
    pub blocks: u64,
    /// Bytes of generated code, exits included.
    pub code_bytes: u64,
    /// Spent looking for them, checking and installing them.
    pub load_seconds: f64,
    /// Bytes of the files that this run wrote.
    pub bytes_saved: u64,
    pub save_seconds: f64,
}

/// Memory of the whole process: the guest's and Temper's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryStats {
    /// The largest resident set (getrusage).
    pub peak_bytes: u64,
}

impl ExitStats {
    /// All exits.
    pub fn total(&self) -> u64 {
        let ExitStats {
            direct,
            indirect,
            syscall,
            interpret,
            counter,
            fault,
            interrupted,
        } = self;
        direct + indirect + syscall + interpret + counter + fault + interrupted
    }
}
