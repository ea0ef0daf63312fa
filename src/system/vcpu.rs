//! What an engine offers to a machine ([`Vcpu`]) and what it asks of it ([`Bus`]).
//!
//! Devices are called from within `run`, so an instruction with several device accesses
//! needs no bookkeeping outside the engine. What `run` returns is only what ends running.

use std::fmt;
use std::sync::Arc;

use super::state::VcpuState;

/// Why a virtual CPU stopped running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuExit {
    /// HLT with interrupts enabled or an NMI possible; `run` again once
    /// [`Bus::interrupt_pending`] may have changed. The CPU stays halted until then.
    Halted,
    /// HLT with interrupts disabled: nothing but an NMI or a reset will wake it.
    HaltedForever,
    /// Somebody called [`Kick::kick`].
    Interrupted,
    /// A triple fault. The state is as at the last fault.
    Shutdown,
    /// A breakpoint or step that the machine asked for.
    Debug,
    /// As many instructions as were asked for have run.
    LimitReached,
    /// The engine can't execute the instruction at RIP; another engine may.
    EmulationFailure { bytes: [u8; 15], len: u8 },
}

/// An error of the engine or the host, never the guest's doing alone.
#[derive(Debug)]
pub enum VcpuError {
    Io(std::io::Error),
    /// The guest asked for something that the engine refuses, in words.
    Unsupported(String),
    /// A state that no CPU can be in, in words.
    InvalidState(String),
}

impl fmt::Display for VcpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VcpuError::Io(error) => error.fmt(f),
            VcpuError::Unsupported(what) | VcpuError::InvalidState(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for VcpuError {}

impl From<std::io::Error> for VcpuError {
    fn from(error: std::io::Error) -> Self {
        VcpuError::Io(error)
    }
}

/// The machine around a CPU: devices and the interrupt controller. Called on the thread that
/// runs the CPU.
pub trait Bus {
    /// IN: 1, 2 or 4 bytes, little-endian. A port without a device reads as all ones.
    fn port_read(&mut self, port: u16, data: &mut [u8]);

    /// OUT: 1, 2 or 4 bytes.
    fn port_write(&mut self, port: u16, data: &[u8]);

    /// A read of physical memory that is no RAM: 1 to 8 bytes.
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]);

    /// A write to physical memory that is no RAM: 1 to 8 bytes.
    fn mmio_write(&mut self, addr: u64, data: &[u8]);

    /// So many instructions ran since the last call: called before every other method, and
    /// when running ends, by engines that count.
    fn instructions_ran(&mut self, _count: u64) {}

    /// Whether an interrupt awaits that the controller would hand out now.
    fn interrupt_pending(&mut self) -> bool;

    /// The interrupt acknowledge cycle: the vector, which is in service from now on.
    /// Called only when the CPU takes the interrupt. `None`: it went away meanwhile.
    fn acknowledge_interrupt(&mut self) -> Option<u8>;

    /// RDMSR of an MSR that belongs to a device (the local APIC's base, x2APIC registers,
    /// the TSC deadline). `None`: there is no such MSR.
    fn msr_read(&mut self, index: u32) -> Option<u64>;

    /// WRMSR of a device's MSR. `None`: there is no such MSR, or the value is refused (#GP).
    fn msr_write(&mut self, index: u32, value: u64) -> Option<()>;

    /// MOV to CR8: the local APIC's task priority, bits 4 to 7 of its register.
    fn set_task_priority(&mut self, cr8: u64);

    /// MOV from CR8.
    fn task_priority(&mut self) -> u64;
}

/// Makes a CPU's `run` return soon, from any thread.
pub trait Kick: Send + Sync {
    fn kick(&self);
}

pub type Kicker = Arc<dyn Kick>;

/// One virtual CPU.
pub trait Vcpu {
    /// Runs until something else than a device access happens. Takes interrupts from `bus`
    /// by itself, at instruction boundaries with RFLAGS.IF set; looks for them on entry,
    /// after a device access, when they become possible, and after a kick (on which it
    /// returns [`VcpuExit::Interrupted`]): a device that raises an interrupt from another
    /// thread kicks.
    ///
    /// # Errors
    /// The engine's or the host's; the state is then still readable.
    fn run(&mut self, bus: &mut dyn Bus) -> Result<VcpuExit, VcpuError>;

    /// The state between two instructions.
    ///
    /// # Errors
    /// The host's.
    fn state(&mut self) -> Result<VcpuState, VcpuError>;

    /// Replaces the whole state.
    ///
    /// # Errors
    /// The host's, or `InvalidState`.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError>;

    /// A non-maskable interrupt, taken at the next boundary that allows one.
    ///
    /// # Errors
    /// The host's.
    fn inject_nmi(&mut self) -> Result<(), VcpuError>;

    /// A handle that makes `run` return.
    fn kicker(&self) -> Kicker;
}
