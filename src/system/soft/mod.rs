//! The software engine: a virtual CPU without any help of the host's virtualization.

use std::sync::Arc;

use super::memory::GuestRam;

/// How the software engine works.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// Instructions after which `run` returns `LimitReached`; `None` is never.
    pub limit: Option<u64>,
}

/// What `soft::Vcpu::new` is made from.
#[derive(Debug)]
pub struct Parts {
    pub ram: Arc<GuestRam>,
    pub settings: Settings,
}
