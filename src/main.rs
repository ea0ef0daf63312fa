//! The `temper` program: hands over to [`temper::cli`].
//!
//! It has a C `main` of its own because Rust's start-up changes what a guest must find as
//! it was: it ignores SIGPIPE, opens closed standard descriptors and installs a handler
//! for SIGSEGV.
#![no_main]

use std::ffi::{c_char, c_int};

#[global_allocator]
static HEAP: temper::host::Heap = temper::host::Heap::new();

/// Called by the C start-up code; `std::env` has the arguments already.
// SAFETY: the one symbol `main` of this binary.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    // Not a return: this flushes standard output, which Rust's own start-up would do.
    std::process::exit(temper::cli::main())
}
