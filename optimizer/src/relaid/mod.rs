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
mod operand;
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
    let mut plan = slots::plan(region)?;
    let (code, used) = flow::build(region, &plan)?;
    // What wasn't needed needn't be saved.
    let needed = |register: &u8| used & 1 << register != 0;
    if plan.temporaries.iter().all(needed) {
        return Ok(code);
    }
    let temporaries = plan.temporaries.clone();
    plan.borrowed
        .retain(|register| !temporaries.contains(register) || needed(register));
    plan.temporaries.retain(needed);
    Ok(flow::build(region, &plan).map_or(code, |(code, _)| code))
}
