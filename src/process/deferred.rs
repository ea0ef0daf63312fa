//! Code control before there is an engine: nothing was translated yet, and executable
//! memory is announced from the memory map once the engine stands.

use std::ops::Range;
use std::path::Path;

use crate::addr::GuestAddr;
use crate::guest::{CodeControl, ThreadContext};

pub struct Deferred;

impl CodeControl for Deferred {
    fn invalidate(&mut self, _: Range<GuestAddr>) {}

    fn require_exact_indirect(&mut self) {}

    fn executable_mapped(&mut self, _: Range<GuestAddr>) {}

    fn module_mapped(&mut self, _: Range<GuestAddr>, _: &Path, _: u64) {}

    fn finish_workers(&mut self) {}

    fn keep_learned(&mut self) {}

    fn stop_world(&mut self) {}

    fn add_thread(&mut self, _: &mut ThreadContext) -> bool {
        false
    }

    fn forget_thread(&mut self, _: *const ThreadContext) {}

    fn set_pass_through(&mut self, _: [u64; 8]) {}
}
