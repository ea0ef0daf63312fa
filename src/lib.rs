//! Temper, a dynamic binary optimizer.

pub mod addr;
pub mod cli;
pub mod codecache;
pub mod decode;
pub mod engine;
pub mod guest;
pub mod host;
pub mod interp;
pub mod native;
pub mod process;
pub mod profile;
pub mod translate;
