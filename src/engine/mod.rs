//! (in the making)

pub mod stats;
