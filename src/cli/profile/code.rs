//! A module's code from its file: instructions, and the source lines they come from where
//! there is debug information.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use addr2line::Loader;
use iced_x86::{Formatter, GasFormatter, Instruction};
use object::{Object, ObjectSegment, SegmentFlags};
use profile_db::ModuleId;
use profile_db::export::Line;

use super::image::identify;
use crate::addr::GuestAddr;
use crate::decode::{BlockEnd, Decoder, FileCode, MAX_BLOCK_INSTRUCTIONS};
use crate::guest::CpuMode;

/// A module's code, at the file's own addresses.
pub(super) struct Code {
    path: PathBuf,
    data: Vec<u8>,
    /// Executable segments: address, and where in the file.
    segments: Vec<(u64, std::ops::Range<usize>)>,
    mode: CpuMode,
    lines: OnceCell<Option<Loader>>,
}

/// A block as it stands in the file.
pub(super) struct Decoded {
    pub instructions: Vec<Instruction>,
    pub end: BlockEnd,
}

impl Code {
    /// The code of the file at `path`, if it is still the module `id`.
    pub fn of_module(path: &Path, id: &ModuleId) -> Option<Code> {
        if identify(path).ok()? != *id {
            return None;
        }
        let data = std::fs::read(path).ok()?;
        let file = object::File::parse(data.as_slice()).ok()?;
        let mode = match file.architecture() {
            object::Architecture::X86_64 => CpuMode::Bits64,
            object::Architecture::I386 => CpuMode::Bits32,
            _ => return None,
        };
        let is_executable = |flags| match flags {
            SegmentFlags::Elf { p_flags, .. } => p_flags.contains(object::elf::PF_X),
            _ => false,
        };
        let segments = file
            .segments()
            .filter(|segment| is_executable(segment.flags()))
            .filter_map(|segment| {
                let (offset, len) = segment.file_range();
                let start = usize::try_from(offset).ok()?;
                let end = start.checked_add(usize::try_from(len).ok()?)?;
                (end <= data.len()).then_some((segment.address(), start..end))
            })
            .collect();
        Some(Code {
            path: path.into(),
            segments,
            mode,
            lines: OnceCell::new(),
            data,
        })
    }

    /// The block at an address.
    pub fn block(&self, address: u64) -> Option<Decoded> {
        let segments = self.segments.iter();
        let mut memory =
            FileCode::new(segments.map(|(start, range)| (*start, &self.data[range.clone()])));
        let block = Decoder::new(self.mode)
            .block_limited(&mut memory, GuestAddr(address), MAX_BLOCK_INSTRUCTIONS)
            .ok()?;
        Some(Decoded {
            instructions: block.instructions,
            end: block.end,
        })
    }

    /// The source line of an instruction.
    pub fn line(&self, address: u64) -> Option<Line> {
        let loader = self.lines.get_or_init(|| Loader::new(&self.path).ok());
        let location = loader.as_ref()?.find_location(address).ok()??;
        Some(Line {
            file: location.file?.to_owned(),
            line: location.line.unwrap_or(0),
        })
    }

    /// The executable segment at an address: its address, length and offset.
    pub fn segment(&self) -> Option<(u64, u64, u64)> {
        let (address, range) = self.segments.first()?;
        Some((*address, range.len() as u64, range.start as u64))
    }
}

/// An instruction as GNU tools show it.
pub(super) fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    let mut formatter = GasFormatter::new();
    formatter.options_mut().set_branch_leading_zeros(false);
    formatter.options_mut().set_uppercase_hex(false);
    formatter.format(instruction, &mut text);
    text
}
