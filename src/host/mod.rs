//! What Temper needs of the host below any guest notion: CPU features and the XSAVE
//! layout, executable memory mapped twice (never writable and executable at one address),
//! raw system calls, threads of its own. Knows nothing of guests.

mod build;
mod clone;
pub mod dispositions;
mod dual_map;
mod environment;
mod features;
mod heap;
mod lock;
pub mod probe;
pub mod syscall;
mod worker;

pub use build::build_id;
pub use clone::{Stack, clone_onto};
pub use dispositions::{Ignored, keep_c_heap_off_the_break};
pub use dual_map::{DualMap, DualMapCopy};
pub use environment::environment;
pub use features::{Component, Features, XsaveLayout, cpu_name};
pub use heap::Heap;
pub use lock::Lock;
pub use worker::Worker;
