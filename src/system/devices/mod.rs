//! A PC's devices, each a plain model: registers in, registers out, time as an argument.
//! None of them knows a bus, an engine or another device; [`super::Board`] wires them up.

pub mod cmos;
pub mod ioapic;
pub mod lapic;
pub mod pic;
pub mod pit;
pub mod power;
pub mod serial;

/// Nanoseconds of the machine's time since it was switched on.
pub type Nanos = u64;

/// How a machine came to its end by what its guest did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Through ACPI.
    PowerOff,
    /// The keyboard controller, port 0x92 or port 0xcf9. The machine isn't started again.
    Reset,
    /// HLT with nothing left that could wake the CPU.
    Halted,
    /// A byte written to the debug exit port.
    DebugExit(u8),
    /// An exception while delivering a double fault.
    TripleFault,
}
