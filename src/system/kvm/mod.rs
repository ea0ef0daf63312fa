//! The KVM engine: a virtual CPU on the host's own virtualization. Interrupt controllers and
//! timers stay in the [`super::Board`], so that a machine can move to the software engine and
//! back; KVM is given RAM, a CPU and one interrupt at a time.

pub mod host;

mod kick;
mod registers;
mod vcpu;

pub use vcpu::Vcpu;
