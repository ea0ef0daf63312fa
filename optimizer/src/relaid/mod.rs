//! Superblocks from the guest's own instructions: in hot-path order, with calls inlined, hot
//! frame slots in registers that the region doesn't use (memory is written through), and
//! copies and address arithmetic folded into what uses them.
//!
//! [`slots`] chooses what lives where, after [`frame`] has followed the stack; [`flow`] lays
//! out blocks, the entry and the exits; [`rewrite`] and [`fold`] turn one instruction after
//! the other into code, with what [`state`] knows at that point. Everything that is added
//! leaves the flags alone, so that they are the guest's at every instruction.

mod emit;
mod flow;
mod fold;
mod form;
mod frame;
mod rewrite;
mod slots;
mod state;
mod value;

pub use flow::state_at;
pub use form::is_relayable;

use crate::region::{OptimizedCode, Refusal, RegionInput};

/// Rebuilds a region.
///
/// # Errors
/// Why it stays as it is.
pub fn relay(region: &RegionInput) -> Result<OptimizedCode, Refusal> {
    let plan = slots::plan(region)?;
    flow::build(region, &plan)
}
