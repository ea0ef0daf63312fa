//! One guest thread's context: what generated code addresses through the gs base, so its
//! layout is fixed. The first bytes are scratch slots (shortest to explain in generated
//! code: `mov %r11,%gs:0`), then the integer state, then what entering and leaving
//! generated code needs, then vector state at rest.
//!
//! While guest code runs, the guest's registers are in the CPU and the copies here are
//! stale; they are exact whenever Rust code of the engine runs.
//!
//! A few words are read or written by other threads and by the thread's own signal handler:
//! those are atomic. All else belongs to the thread, and to whoever holds the world's lock
//! while the thread waits for it.

use std::marker::PhantomPinned;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cpu::CpuState;
use super::env::HostCall;
use super::vector::VectorState;

/// Why generated code left. Written by exit stubs and by the signal handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum ExitKind {
    /// Control reached a guest address that has no generated code (yet); it is in `cpu.rip`.
    Untranslated = 0,
    /// An indirect branch without a map entry; the target is in `cpu.rip`.
    Indirect = 1,
    /// A SYSCALL for the surroundings; `cpu.rip` is the address after it.
    Syscall = 2,
    /// A synchronous fault in generated code; `fault` says which.
    Fault = 3,
    /// An asynchronous signal interrupted generated code; `fault.host_pc` says where.
    Interrupted = 4,
    /// An asynchronous signal came before generated code was entered.
    NotEntered = 5,
    /// A path head's counter ran out; the head is in `cpu.rip`.
    Counter = 6,
}

/// A fault's particulars, as the signal handler found them.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct FaultRecord {
    /// Where in the code cache the CPU was.
    pub host_pc: u64,
    pub addr: u64,
    pub signal: u64,
    pub si_code: u64,
    pub trap_number: u64,
    pub error_code: u64,
}

/// Routines that exit stubs jump to through the context, by index in `routines`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum HostRoutine {
    /// Leaves generated code for an address that isn't translated; `cpu.rip` is stored already.
    Leave = 0,
    /// A SYSCALL: passes through or leaves.
    Syscall = 1,
    /// An indirect branch, target in r11, guest r11 in its slot, to anywhere.
    ExactIndirect = 2,
    /// A path head's counter ran out; `cpu.rip` is stored already, RCX is in the first spill
    /// slot.
    Counter = 3,
}

/// See the module documentation. Reached through the gs base while guest code runs.
#[repr(C, align(64))]
pub struct ThreadContext {
    /// Guest r11 while r11 holds an indirect target; also the first spill slot.
    pub r11_slot: u64,
    /// Spill slots for rewritten instructions, and values of the entry/exit code.
    pub spill: [u64; 7],
    pub cpu: CpuState,
    pub exit_kind: u64,
    pub host_rsp: u64,
    pub host_fs_base: u64,
    pub host_mxcsr: u64,
    /// Components that transitions save and restore.
    pub xsave_mask: u64,
    /// Address of this context (for `mov %gs:self`).
    pub self_ptr: u64,
    /// Where entering jumps to.
    pub entry: u64,
    pub routines: [u64; 8],
    /// Nonzero: something asynchronous awaits ([`pending`]); checked before generated code
    /// is entered and before a system call goes out.
    pub pending: AtomicU64,
    /// System calls that go out from assembly: a bit each, numbers 0 to 511.
    pub pass_through: [AtomicU64; 8],
    /// One of [`presence`].
    pub presence: AtomicU64,
    /// Nonzero while `call` is under way, or about to be. From assembly, the thread won't touch
    /// generated code after it before it has looked at `pending`.
    pub in_syscall: AtomicU64,
    /// The system call under way: its number, its arguments.
    pub call: HostCall,
    /// Counts down pass-through system calls; at 0 one goes through Rust.
    pub syscall_budget: u64,
    pub syscalls_passed: u64,
    pub fault: FaultRecord,
    /// The siginfo_t of the asynchronous signal that `pending` announces; its first word is
    /// zero when there is none.
    pub signal_info: [u64; 16],
    /// The same for synchronous signals that somebody sent, one of each kind: they can't be
    /// blocked in the host, so one may come while another awaits delivery.
    pub sent_synchronous: [[u64; 16]; SYNCHRONOUS.len()],
    /// Guest registers that a superblock borrows, while it runs.
    pub borrowed: [u64; 16],
    pub borrowed_vectors: [[u8; 16]; 16],
    /// Indirect targets beyond the flat map, direct-mapped by [`far_index`].
    pub far_targets: [FarTarget; FAR_TARGETS],
    pub vector: VectorState,
    /// Others reach into a context while its thread holds it: it isn't the thread's alone.
    pub shared: PhantomPinned,
}

/// Bits of `ThreadContext::pending`.
pub mod pending {
    /// A signal awaits delivery.
    pub const SIGNAL: u64 = 1;
    /// Another thread wants this one out of generated code.
    pub const LEAVE: u64 = 2;
}

/// Values of `ThreadContext::presence`: where the thread is. It changes to [`INSIDE`] only
/// under the world's lock, so whoever holds that knows who can be in generated code.
///
/// [`INSIDE`]: presence::INSIDE
pub mod presence {
    /// In Rust code; the last exit has been dealt with.
    pub const OUTSIDE: u64 = 0;
    /// In generated code, or about to be, or about to leave.
    pub const INSIDE: u64 = 1;
    /// It left; its exit hasn't been dealt with.
    pub const LEFT: u64 = 2;
}

/// The numbers of the signals that faulting instructions raise (SIGILL, SIGTRAP, SIGBUS,
/// SIGFPE, SIGSEGV). Temper's own code faults too, so they are never blocked in the host.
pub const SYNCHRONOUS: [i32; 5] = [4, 5, 7, 8, 11];

/// Where an indirect branch to a guest address goes. Guest 0 is an empty entry.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct FarTarget {
    pub guest: u64,
    pub host: u64,
}

/// Entries of `far_targets`; a power of two.
pub const FAR_TARGETS: usize = 256;

/// Where `far_targets` holds a guest address. Assembly computes the same.
pub fn far_index(target: u64) -> usize {
    (target >> 2) as usize % FAR_TARGETS
}

impl Default for ThreadContext {
    fn default() -> Self {
        ThreadContext {
            r11_slot: 0,
            spill: [0; 7],
            cpu: CpuState::default(),
            exit_kind: 0,
            host_rsp: 0,
            host_fs_base: 0,
            host_mxcsr: 0x1f80,
            xsave_mask: crate::host::XsaveLayout::get().vector_mask,
            self_ptr: 0,
            entry: 0,
            routines: [0; 8],
            pending: AtomicU64::new(0),
            pass_through: Default::default(),
            presence: AtomicU64::new(presence::OUTSIDE),
            in_syscall: AtomicU64::new(0),
            call: HostCall::default(),
            syscall_budget: 0,
            syscalls_passed: 0,
            fault: FaultRecord::default(),
            signal_info: [0; 16],
            sent_synchronous: [[0; 16]; SYNCHRONOUS.len()],
            borrowed: [0; 16],
            borrowed_vectors: [[0; 16]; 16],
            far_targets: [FarTarget::default(); FAR_TARGETS],
            vector: VectorState::default(),
            shared: PhantomPinned,
        }
    }
}

impl ThreadContext {
    /// The context of a thread that this one creates: the same registers.
    pub fn for_child(&self) -> ThreadContext {
        let child = ThreadContext {
            cpu: self.cpu.clone(),
            vector: self.vector.clone(),
            ..ThreadContext::default()
        };
        for (word, own) in child.pass_through.iter().zip(&self.pass_through) {
            word.store(own.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        child
    }

    /// Whether a signal awaits delivery.
    #[inline]
    pub fn is_signal_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) & pending::SIGNAL != 0
    }

    /// Says whether a signal awaits delivery.
    pub fn set_signal_pending(&self, awaits: bool) {
        if awaits {
            self.pending.fetch_or(pending::SIGNAL, Ordering::Relaxed);
        } else {
            self.pending.fetch_and(!pending::SIGNAL, Ordering::Relaxed);
        }
    }

    /// Sets which system calls go out from assembly; false if they did already.
    pub fn set_pass_through(&self, mask: [u64; 8]) -> bool {
        let words = self.pass_through.iter().zip(mask);
        words.fold(false, |changed, (word, value)| {
            word.swap(value, Ordering::Relaxed) != value || changed
        })
    }
}

/// Byte offsets from the gs base, for generated code and assembly.
pub mod offsets {
    use super::ThreadContext;
    use std::mem::offset_of;

    pub const R11_SLOT: usize = offset_of!(ThreadContext, r11_slot);
    pub const SPILL: usize = offset_of!(ThreadContext, spill);
    pub const GPR: usize = offset_of!(ThreadContext, cpu.gpr);
    pub const RIP: usize = offset_of!(ThreadContext, cpu.rip);
    pub const RFLAGS: usize = offset_of!(ThreadContext, cpu.rflags);
    pub const FS_BASE: usize = offset_of!(ThreadContext, cpu.fs_base);
    pub const GS_BASE: usize = offset_of!(ThreadContext, cpu.gs_base);
    pub const EXIT_KIND: usize = offset_of!(ThreadContext, exit_kind);
    pub const HOST_RSP: usize = offset_of!(ThreadContext, host_rsp);
    pub const HOST_FS_BASE: usize = offset_of!(ThreadContext, host_fs_base);
    pub const HOST_MXCSR: usize = offset_of!(ThreadContext, host_mxcsr);
    pub const XSAVE_MASK: usize = offset_of!(ThreadContext, xsave_mask);
    pub const SELF_PTR: usize = offset_of!(ThreadContext, self_ptr);
    pub const ENTRY: usize = offset_of!(ThreadContext, entry);
    pub const ROUTINES: usize = offset_of!(ThreadContext, routines);
    pub const PENDING: usize = offset_of!(ThreadContext, pending);
    pub const PASS_THROUGH: usize = offset_of!(ThreadContext, pass_through);
    pub const IN_SYSCALL: usize = offset_of!(ThreadContext, in_syscall);
    pub const CALL_NUMBER: usize = offset_of!(ThreadContext, call.number);
    pub const CALL_ARGS: usize = offset_of!(ThreadContext, call.args);
    pub const SYSCALL_BUDGET: usize = offset_of!(ThreadContext, syscall_budget);
    pub const SYSCALLS_PASSED: usize = offset_of!(ThreadContext, syscalls_passed);
    pub const FAULT: usize = offset_of!(ThreadContext, fault);
    pub const BORROWED: usize = offset_of!(ThreadContext, borrowed);
    pub const BORROWED_VECTORS: usize = offset_of!(ThreadContext, borrowed_vectors);
    pub const FAR_TARGETS: usize = offset_of!(ThreadContext, far_targets);
    pub const VECTOR: usize = offset_of!(ThreadContext, vector);
}
