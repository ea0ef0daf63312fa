//! The guest as a Linux process.

pub mod signals;
