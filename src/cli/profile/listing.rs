//! The code of a hot path: the blocks that it runs through, found by following its branches'
//! outcomes through the module's file.

use profile_db::PathRecord;
use serde::Serialize;

use super::code::{Code, text};
use super::image::Image;
use crate::decode::BlockEnd;

/// The most instructions of one path.
const LONGEST: usize = 200;

/// One instruction of a path.
#[derive(Serialize)]
pub(super) struct ListedInstruction {
    pub address: u64,
    pub text: String,
    /// Of a conditional branch: whether the path takes it.
    pub taken: Option<bool>,
    /// Where a block starts: the source line, if there is debug information.
    pub source: Option<String>,
}

/// The instructions of `path`; none when the file isn't at hand. A path ends in the file
/// where it can't be followed: at an indirect branch, or in another module.
pub(super) fn of_path(
    path: &PathRecord,
    image: &Image,
    code: Option<&Code>,
) -> Vec<ListedInstruction> {
    let mut listed = Vec::new();
    let Some(code) = code else {
        return listed;
    };
    let mut at = image.address(path.head);
    let mut outcomes = (0..path.len).map(|place| path.outcomes >> place & 1 == 1);
    let mut last_source = None;
    loop {
        let Some(block) = code.block(at) else {
            return listed;
        };
        let first = listed.len();
        listed.extend(block.instructions.iter().map(|instruction| {
            let line = code.line(instruction.ip());
            let shown = line.map(|line| {
                let name = line.file.rsplit('/').next().unwrap_or(&line.file);
                format!("{name}:{}", line.line)
            });
            let source = shown.filter(|shown| last_source.as_ref() != Some(shown));
            if source.is_some() {
                last_source.clone_from(&source);
            }
            ListedInstruction {
                address: instruction.ip(),
                text: text(instruction),
                taken: None,
                source,
            }
        }));
        if listed.len() > LONGEST || listed.len() == first {
            return listed;
        }
        at = match block.end {
            BlockEnd::Branch { taken, next } => {
                let Some(outcome) = outcomes.next() else {
                    return listed;
                };
                if let Some(branch) = listed.last_mut() {
                    branch.taken = Some(outcome);
                }
                // After the last branch there is nothing more of the path.
                if outcomes.len() == 0 {
                    return listed;
                }
                if outcome { taken.0 } else { next.0 }
            }
            BlockEnd::Jump { target } => target.0,
            BlockEnd::Next { at } => at.0,
            BlockEnd::Syscall { next, .. } => next.0,
            BlockEnd::Call { .. }
            | BlockEnd::IndirectCall { .. }
            | BlockEnd::IndirectJump
            | BlockEnd::Return { .. }
            | BlockEnd::InterpretOne { .. } => return listed,
        };
    }
}
