//! A program's file: its functions by name, and its code.

use std::collections::BTreeMap;

use object::{Object, ObjectSegment, ObjectSymbol, SegmentFlags};

use crate::decode::FileCode;

/// Functions by address and name.
pub(super) struct Symbols<'data> {
    /// Start to (size, name).
    by_address: BTreeMap<u64, (u64, &'data str)>,
}

impl<'data> Symbols<'data> {
    pub(super) fn new(file: &object::File<'data>) -> Symbols<'data> {
        let mut by_address = BTreeMap::new();
        for symbol in file.dynamic_symbols().chain(file.symbols()) {
            let is_code = symbol.is_definition() && symbol.kind() == object::SymbolKind::Text;
            match symbol.name() {
                Ok(name) if is_code && !name.is_empty() => {
                    by_address
                        .entry(symbol.address())
                        .or_insert((symbol.size(), name));
                }
                _ => {}
            }
        }
        Symbols { by_address }
    }

    pub(super) fn find(&self, wanted: &str) -> Option<(u64, u64)> {
        self.by_address
            .iter()
            .find(|(_, (_, name))| *name == wanted)
            .map(|(&start, &(size, _))| (start, size))
    }

    /// `0x1234`, or `0x1234 <name+0x10>` inside a function.
    pub(super) fn describe(&self, addr: u64) -> String {
        match self.by_address.range(..=addr).next_back() {
            Some((&start, &(size, name))) if addr < start + size.max(1) => match addr - start {
                0 => format!("{addr:#x} <{name}>"),
                offset => format!("{addr:#x} <{name}+{offset:#x}>"),
            },
            _ => format!("{addr:#x}"),
        }
    }
}

/// A file's executable segments, at the file's own addresses.
pub(super) fn code<'data>(file: &object::File<'data>) -> FileCode<'data> {
    let executable = |flags| match flags {
        SegmentFlags::Elf { p_flags, .. } => p_flags.contains(object::elf::PF_X),
        _ => false,
    };
    let segments = file
        .segments()
        .filter(|segment| executable(segment.flags()))
        .filter_map(|segment| Some((segment.address(), segment.data().ok()?)));
    FileCode::new(segments)
}
