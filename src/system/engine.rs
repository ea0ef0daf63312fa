//! The two engines as one closed choice, and what they have in common beyond [`Vcpu`].

use std::fmt;
use std::sync::Arc;

use super::kvm;
use super::memory::GuestRam;
use super::soft;
use super::vcpu::{Vcpu, VcpuError};

/// Which engine runs a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineKind {
    Kvm,
    Software,
}

impl EngineKind {
    pub fn other(self) -> EngineKind {
        match self {
            EngineKind::Kvm => EngineKind::Software,
            EngineKind::Software => EngineKind::Kvm,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Kvm => "KVM",
            EngineKind::Software => "the software engine",
        })
    }
}

/// A virtual CPU on one of the engines.
pub enum Engine {
    Kvm(Box<kvm::Vcpu>),
    Software(Box<soft::Vcpu>),
}

impl Engine {
    /// A CPU after reset.
    ///
    /// # Errors
    /// The host lacks what the engine needs.
    pub fn new(kind: EngineKind, ram: &Arc<GuestRam>) -> Result<Engine, VcpuError> {
        let ram = Arc::clone(ram);
        Ok(match kind {
            EngineKind::Kvm => Engine::Kvm(Box::new(kvm::Vcpu::new(ram)?)),
            EngineKind::Software => Engine::Software(Box::new(soft::Vcpu::new(ram)?)),
        })
    }

    pub fn kind(&self) -> EngineKind {
        match self {
            Engine::Kvm(_) => EngineKind::Kvm,
            Engine::Software(_) => EngineKind::Software,
        }
    }

    pub fn vcpu(&mut self) -> &mut dyn Vcpu {
        match self {
            Engine::Kvm(vcpu) => vcpu.as_mut(),
            Engine::Software(vcpu) => vcpu.as_mut(),
        }
    }

    /// Stops with `Debug` after each instruction, or before those at `breakpoints`, which
    /// are linear addresses.
    ///
    /// # Errors
    /// The engine can't.
    pub fn set_debug(&mut self, step: bool, breakpoints: &[u64]) -> Result<(), VcpuError> {
        match self {
            Engine::Kvm(vcpu) => vcpu.set_debug(step, breakpoints),
            Engine::Software(vcpu) => {
                vcpu.set_debug(step, breakpoints);
                Ok(())
            }
        }
    }
}
