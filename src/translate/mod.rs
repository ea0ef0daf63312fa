//! Tier 1: same-ISA copy translation. Guest instructions are copied into the code cache
//! unchanged; guest registers stay in the same host registers. Rewritten are only control
//! transfers, RIP-relative operands, and what touches the gs segment (left to the
//! interpreter). So the guest state is exact at every instruction boundary, each guest
//! instruction's place in a fragment is a valid entry, and [`recovery`] can name the guest
//! state for every host address in between.
//!
//! A fragment follows the guest's control flow from its head through blocks that were seen
//! to run ([`Plan`] decides), so that hot code falls through. Upstream: the engine's
//! promotion. Does not install, link or look anything up.

mod emit;
mod fragment;
pub mod recovery;
mod saved;

pub use fragment::{Plan, Settings, TranslateError, Translation, Translator};
pub use saved::{Saved, save};

use iced_x86::Register;

use crate::addr::{GuestAddr, HostAddr};
use crate::guest::{HostRoutine, offsets};

/// Code for an indirect entry made after its block: reloads r11 and jumps on.
pub fn late_indirect_entry(at: HostAddr, target: HostAddr) -> Vec<u8> {
    let mut code = emit::Emitter::new(at);
    code.load_r11();
    code.jump_to(target);
    code.finish()
}

/// Code for an exit to `target`: leaves generated code, the guest's state being exact.
pub fn exit_stub(target: GuestAddr) -> Vec<u8> {
    let mut code = emit::Emitter::new(HostAddr(0));
    code.store_rip(target);
    code.jump_to_routine(HostRoutine::Leave);
    code.finish()
}

/// Code that leaves because the counter of `head` ran out, the guest's state being exact.
pub fn counter_stub(head: GuestAddr) -> Vec<u8> {
    let mut code = emit::Emitter::new(HostAddr(0));
    code.spill(Register::RCX, offsets::SPILL);
    code.store_rip(head);
    code.jump_to_routine(HostRoutine::Counter);
    code.finish()
}
