//! A module's file as the database wants to know it: what blocks look like, so that their
//! records outlive a rebuild, and which blocks there are. Read and decoded when something is
//! saved, so a start pays nothing for it and live blocks carry nothing: a module's hot
//! blocks are decoded once more when they are first saved, all its code once after a rebuild.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use iced_x86::{DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use object::{Object, ObjectSection, ObjectSegment, SectionKind, SegmentFlags};
use profile_db::{Code, CodeBlock, Exit, Likeness, ModuleId, content_hash};

use super::identity::Identities;
use crate::addr::GuestAddr;
use crate::decode::{Block, BlockEnd, Decoder, FileCode, MAX_BLOCK_INSTRUCTIONS};
use crate::guest::CpuMode;

/// Larger files aren't read: decoding all their code would hold up a program's end.
const MAX_FILE: u64 = 64 << 20;

/// See the module documentation. Nothing is read before it is asked for.
pub struct ModuleCode {
    path: PathBuf,
    id: ModuleId,
    file: Option<CodeFile>,
    block: Block,
}

/// The content of a file, empty when it can't be read, and where its code is.
#[derive(Default)]
struct CodeFile {
    data: Vec<u8>,
    /// Executable segments and, in them, what is known to be code, as ranges of offsets.
    segments: Vec<std::ops::Range<usize>>,
    sections: Vec<std::ops::Range<usize>>,
    mode: Option<CpuMode>,
}

impl ModuleCode {
    /// The code of the module `id`, if the file at `path` is that one.
    pub fn new(path: &Path, id: &ModuleId) -> ModuleCode {
        ModuleCode {
            path: path.into(),
            id: id.clone(),
            file: None,
            block: Block::default(),
        }
    }
}

impl CodeFile {
    fn read(path: &Path, id: &ModuleId) -> Option<CodeFile> {
        let file = std::fs::File::open(path).ok()?;
        let identity = Identities::new().identify(&file).ok()?;
        if identity.id != *id || identity.size > MAX_FILE {
            return None;
        }
        let data = std::fs::read(path).ok()?;
        let (segments, sections, mode) = layout(&data)?;
        Some(CodeFile {
            data,
            segments,
            sections,
            mode: Some(mode),
        })
    }

    /// Decodes the block at an offset.
    fn decode(&self, offset: u64, block: &mut Block) -> Option<()> {
        let decoder = Decoder::new(self.mode?);
        let segments = self.segments.iter();
        let mut memory = FileCode::new(segments.map(|s| (s.start as u64, &self.data[s.clone()])));
        let start = GuestAddr(offset);
        decoder
            .block_into(&mut memory, start, MAX_BLOCK_INSTRUCTIONS, block)
            .ok()
    }

    /// Where blocks start, as far as a look at all instructions tells: after whatever ends a
    /// block, at the targets of direct transfers, and after padding.
    fn starts(&self) -> Vec<u64> {
        let mut starts = Vec::new();
        let Some(mode) = self.mode else {
            return starts;
        };
        let mut instruction = Instruction::default();
        for section in &self.sections {
            let code = &self.data[section.clone()];
            let base = section.start as u64;
            let mut decoder =
                iced_x86::Decoder::with_ip(mode.bits(), code, base, DecoderOptions::NONE);
            let mut is_start = true;
            while decoder.can_decode() {
                decoder.decode_out(&mut instruction);
                if instruction.is_invalid() {
                    is_start = true;
                    continue;
                }
                let is_padding = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
                if is_start && !is_padding || instruction.mnemonic() == Mnemonic::Endbr64 {
                    starts.push(instruction.ip());
                    is_start = false;
                }
                if instruction.flow_control() != FlowControl::Next {
                    // Calls come back to padding too.
                    starts.push(instruction.next_ip());
                    is_start = true;
                    if matches!(
                        instruction.op0_kind(),
                        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
                    ) {
                        starts.push(instruction.near_branch_target());
                    }
                }
            }
        }
        starts.retain(|&start| {
            let inside = |section: &std::ops::Range<usize>| {
                (section.start as u64..section.end as u64).contains(&start)
            };
            self.sections.iter().any(inside)
        });
        starts.sort_unstable();
        starts.dedup();
        starts
    }
}

type Layout = (
    Vec<std::ops::Range<usize>>,
    Vec<std::ops::Range<usize>>,
    CpuMode,
);

fn layout(data: &[u8]) -> Option<Layout> {
    let file = object::File::parse(data).ok()?;
    let mode = match file.architecture() {
        object::Architecture::X86_64 => CpuMode::Bits64,
        object::Architecture::I386 => CpuMode::Bits32,
        _ => return None,
    };
    let range = |(offset, len): (u64, u64)| {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (start < end && end <= data.len()).then_some(start..end)
    };
    let is_executable = |flags| match flags {
        SegmentFlags::Elf { p_flags, .. } => p_flags.contains(object::elf::PF_X),
        _ => false,
    };
    let segments: Vec<_> = file
        .segments()
        .filter(|segment| is_executable(segment.flags()))
        .filter_map(|segment| range(segment.file_range()))
        .collect();
    let sections: Vec<_> = file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .filter_map(|section| range(section.file_range()?))
        .collect();
    let sections = if sections.is_empty() {
        segments.clone()
    } else {
        sections
    };
    Some((segments, sections, mode))
}

impl Code for ModuleCode {
    fn likeness(&mut self, offset: u64, len: u32, hash: u64) -> Option<Likeness> {
        let file = self
            .file
            .get_or_insert_with(|| CodeFile::read(&self.path, &self.id).unwrap_or_default());
        file.decode(offset, &mut self.block)?;
        let block = &self.block;
        (block.len == len && content_hash(&block.bytes) == hash).then(|| likeness(block))
    }

    fn blocks(&mut self) -> Vec<CodeBlock> {
        let file = self
            .file
            .get_or_insert_with(|| CodeFile::read(&self.path, &self.id).unwrap_or_default());
        let mut blocks = BTreeMap::new();
        let mut waiting = file.starts();
        while let Some(offset) = waiting.pop() {
            if blocks.contains_key(&offset) || file.decode(offset, &mut self.block).is_none() {
                continue;
            }
            let block = &self.block;
            let exit = exit(block);
            match (exit, block.end) {
                // A block that was split goes on where no transfer leads.
                (Exit::Next(next), _) => waiting.push(next),
                (_, BlockEnd::InterpretOne { .. }) if block.len > 0 => {
                    waiting.push(offset + u64::from(block.len));
                }
                _ => {}
            }
            let found = CodeBlock {
                offset,
                len: block.len,
                hash: content_hash(&block.bytes),
                likeness: likeness(block),
                exit,
            };
            blocks.insert(offset, found);
        }
        blocks.into_values().collect()
    }
}

fn exit(block: &Block) -> Exit {
    match block.end {
        BlockEnd::Jump { target } => Exit::Jump(target.0),
        BlockEnd::Branch { taken, next } => Exit::Branch {
            taken: taken.0,
            next: next.0,
        },
        BlockEnd::Call { target, return_to } => Exit::Call {
            target: target.0,
            return_to: return_to.0,
        },
        BlockEnd::IndirectCall { return_to } => Exit::IndirectCall {
            return_to: return_to.0,
        },
        BlockEnd::IndirectJump => Exit::IndirectJump,
        BlockEnd::Return { .. } => Exit::Return,
        BlockEnd::Syscall { next, .. } => Exit::Next(next.0),
        BlockEnd::Next { at } => Exit::Next(at.0),
        BlockEnd::InterpretOne { .. } => Exit::End,
    }
}

/// What a block looks like when registers, numbers and addresses are left out. Part of the
/// profile format: other hashes would find nothing again.
fn likeness(block: &Block) -> Likeness {
    let mut opcodes = Vec::with_capacity(block.instructions.len() * 4);
    let mut instructions = 0u32;
    for instruction in &block.instructions {
        // Padding depends on where the code lies.
        if instruction.mnemonic() == Mnemonic::Nop {
            continue;
        }
        instructions += 1;
        opcodes.extend_from_slice(&(instruction.mnemonic() as u16).to_le_bytes());
        let kinds = (0..instruction.op_count()).fold(1u16, |kinds, operand| {
            let kind = match instruction.op_kind(operand) {
                OpKind::Register => 0,
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => 1,
                OpKind::FarBranch16 | OpKind::FarBranch32 => 1,
                OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64 => 2,
                _ => 3,
            };
            kinds << 2 | kind
        });
        opcodes.extend_from_slice(&kinds.to_le_bytes());
    }
    let (end, target) = match block.end {
        BlockEnd::Jump { target } => (1, Some(target)),
        BlockEnd::Branch { taken, .. } => (2, Some(taken)),
        BlockEnd::Call { .. } => (3, None),
        BlockEnd::IndirectJump => (4, None),
        BlockEnd::IndirectCall { .. } => (5, None),
        BlockEnd::Return { .. } => (6, None),
        BlockEnd::Syscall { .. } => (7, None),
        BlockEnd::InterpretOne { .. } => (8, None),
        BlockEnd::Next { .. } => (9, None),
    };
    opcodes.push(end);
    let backward = target.is_some_and(|target| target <= block.start);
    // Nearly the same number of instructions.
    let size = u16::try_from(instructions.checked_ilog2().unwrap_or(0)).unwrap_or(0);
    Likeness {
        opcodes: (content_hash(&opcodes) as u32).max(1),
        shape: u16::from(end) << 5 | u16::from(backward) << 4 | size,
    }
}

#[cfg(test)]
mod tests;
