//! A program's file: its functions by name, and its code as memory that can be fetched.

use std::collections::BTreeMap;

use object::{Object, ObjectSegment, ObjectSymbol, SegmentFlags};

use crate::addr::GuestAddr;
use crate::guest::{Access, GuestMemory, GuestTrap, Width};

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

/// A file's executable segments as memory: it can be fetched from, and nothing else.
pub(super) struct FileCode<'data> {
    segments: Vec<(u64, &'data [u8])>,
}

impl<'data> FileCode<'data> {
    pub(super) fn new(file: &object::File<'data>) -> FileCode<'data> {
        let executable = |flags| match flags {
            SegmentFlags::Elf { p_flags, .. } => p_flags.contains(object::elf::PF_X),
            _ => false,
        };
        let segments = file
            .segments()
            .filter(|segment| executable(segment.flags()))
            .filter_map(|segment| Some((segment.address(), segment.data().ok()?)))
            .collect();
        FileCode { segments }
    }
}

/// What every access but a fetch gets.
const NOT_DATA: GuestTrap = GuestTrap::GeneralProtection;

impl GuestMemory for FileCode<'_> {
    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        let rest = self.segments.iter().find_map(|(start, data)| {
            let offset = usize::try_from(addr.0.checked_sub(*start)?).ok()?;
            data.get(offset..).filter(|rest| !rest.is_empty())
        });
        let rest = rest.ok_or(NOT_DATA)?;
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn load(&mut self, _: GuestAddr, _: Width) -> Result<u64, GuestTrap> {
        Err(NOT_DATA)
    }

    fn store(&mut self, _: GuestAddr, _: Width, _: u64) -> Result<(), GuestTrap> {
        Err(NOT_DATA)
    }

    fn compare_exchange(
        &mut self,
        _: GuestAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, GuestTrap> {
        Err(NOT_DATA)
    }

    fn compare_exchange_16(&mut self, _: GuestAddr, _: u128, _: u128) -> Result<u128, GuestTrap> {
        Err(NOT_DATA)
    }

    fn read_bytes(&mut self, _: GuestAddr, _: &mut [u8]) -> Result<(), GuestTrap> {
        Err(NOT_DATA)
    }

    fn write_bytes(&mut self, _: GuestAddr, _: &[u8]) -> Result<(), GuestTrap> {
        Err(NOT_DATA)
    }

    fn direct(&mut self, _: GuestAddr, _: usize, _: Access) -> Option<*mut u8> {
        None
    }
}
