//! A module's file: what function lies at a file offset. Functions come from the symbol
//! tables; where those say nothing, from the call frame information, which stripped files
//! keep, as address ranges; where that says nothing too, from the section.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use addr2line::gimli::{
    BaseAddresses, CieOrFde, EhFrame, EndianSlice, RunTimeEndian, UnwindSection,
};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SectionKind, SymbolKind};
use profile_db::ModuleId;
use profile_db::export::Symbol;

use crate::profile::Identities;

/// A stretch of code, in the file's own addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Function {
    pub start: u64,
    pub end: u64,
    pub name: String,
    pub symbol: Option<Symbol>,
}

struct Segment {
    offset: u64,
    len: u64,
    address: u64,
}

/// What a file says about its code.
#[derive(Default)]
pub(super) struct Image {
    segments: Vec<Segment>,
    /// Sorted, without overlaps.
    functions: Vec<Function>,
}

/// The identity of the file at `path`.
///
/// # Errors
/// It can't be read.
pub(super) fn identify(path: &Path) -> io::Result<ModuleId> {
    let file = File::open(path)?;
    Ok(Identities::new().identify(&file)?.id)
}

impl Image {
    /// Reads the file at `path`, if it is still the module `id`; else nothing is known.
    pub fn of_module(path: &Path, id: &ModuleId) -> Option<Image> {
        if identify(path).ok()? != *id {
            return None;
        }
        Image::parse(&std::fs::read(path).ok()?)
    }

    fn parse(data: &[u8]) -> Option<Image> {
        let file = object::File::parse(data).ok()?;
        let segments = file
            .segments()
            .map(|segment| {
                let (offset, len) = segment.file_range();
                Segment {
                    offset,
                    len,
                    address: segment.address(),
                }
            })
            .collect();
        // What comes first wins where ranges overlap.
        let mut ranges = symbols(&file);
        // A linkage table has one frame for all of it; its name says more.
        let (tables, other): (Vec<_>, Vec<_>) = sections(&file)
            .into_iter()
            .partition(|section| section.name.starts_with(".plt"));
        ranges.extend(tables);
        ranges.extend(frames(&file));
        ranges.extend(other);
        Some(Image {
            segments,
            functions: without_overlaps(ranges),
        })
    }

    /// The address that a file offset is meant to be mapped at; the offset itself where no
    /// segment says.
    pub fn address(&self, offset: u64) -> u64 {
        self.segments
            .iter()
            .find(|s| offset.checked_sub(s.offset).is_some_and(|at| at < s.len))
            .map_or(offset, |s| s.address.wrapping_add(offset - s.offset))
    }

    /// The function at an address.
    pub fn function(&self, address: u64) -> Option<&Function> {
        let after = self.functions.partition_point(|f| f.start <= address);
        self.functions[..after].last().filter(|f| address < f.end)
    }

    /// Whether functions have names.
    pub fn has_symbols(&self) -> bool {
        self.functions.iter().any(|f| f.symbol.is_some())
    }

    /// An address as `function+0x10`, or as a number.
    pub fn place(&self, address: u64) -> String {
        match self.function(address) {
            Some(function) if function.start == address => function.name.clone(),
            Some(function) => format!("{}+{:#x}", function.name, address - function.start),
            None => format!("{address:#x}"),
        }
    }
}

fn symbols(file: &object::File) -> Vec<Function> {
    let mut found: Vec<(u64, u64, bool, String, u64)> = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            // `name@@VERSION` in dynamic tables.
            let name = name.split('@').next().unwrap_or(name);
            Some((
                symbol.address(),
                symbol.size(),
                !symbol.is_global(),
                name.into(),
                section_end(file, &symbol),
            ))
        })
        .collect();
    // Of aliases the shortest global name, which is usually the public one.
    found.sort_by(|a, b| {
        (a.0, a.1 == 0, a.2, a.3.len(), &a.3).cmp(&(b.0, b.1 == 0, b.2, b.3.len(), &b.3))
    });
    found.dedup_by_key(|symbol| symbol.0);
    // Local symbols of one name are told apart by their number.
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut functions = Vec::with_capacity(found.len());
    for (index, (start, size, is_local, name, section_end)) in found.iter().enumerate() {
        // Assembly often leaves out the size: such code reaches to the next symbol, but
        // not far and not out of its section.
        let next = found.get(index + 1).map_or(u64::MAX, |next| next.0);
        let size = if *size == 0 {
            let end = next.min(*section_end);
            end.saturating_sub(*start).min(4096)
        } else {
            *size
        };
        let local = is_local.then(|| {
            let number = numbers.entry(name).or_default();
            *number += 1;
            *number
        });
        functions.push(Function {
            start: *start,
            end: start.saturating_add(size),
            name: addr2line::demangle_auto(name.as_str().into(), None).into_owned(),
            symbol: Some(Symbol {
                name: name.clone(),
                local,
            }),
        });
    }
    functions
}

/// Where the section that a symbol is defined in ends.
fn section_end<'data>(file: &object::File<'data>, symbol: &impl ObjectSymbol<'data>) -> u64 {
    let section = symbol.section_index();
    section
        .and_then(|index| file.section_by_index(index).ok())
        .map_or(u64::MAX, |section| {
            section.address().saturating_add(section.size())
        })
}

/// Address ranges of functions, from .eh_frame.
fn frames(file: &object::File) -> Vec<Function> {
    let endian = if file.is_little_endian() {
        RunTimeEndian::Little
    } else {
        RunTimeEndian::Big
    };
    let mut functions = Vec::new();
    let Some(section) = file.section_by_name(".eh_frame") else {
        return functions;
    };
    let Ok(data) = section.uncompressed_data() else {
        return functions;
    };
    let mut frame = EhFrame::from(EndianSlice::new(&data, endian));
    frame.set_address_size(if file.is_64() { 8 } else { 4 });
    let address = |name| file.section_by_name(name).map_or(0, |s| s.address());
    let bases = BaseAddresses::default()
        .set_eh_frame(section.address())
        .set_text(address(".text"))
        .set_got(address(".got"));
    let mut entries = frame.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
        {
            let start = fde.initial_address();
            let end = start.saturating_add(fde.len());
            functions.push(Function {
                start,
                end,
                name: format!("{start:#x}..{end:#x}"),
                symbol: None,
            });
        }
    }
    functions
}

fn sections(file: &object::File) -> Vec<Function> {
    file.sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .map(|section| Function {
            start: section.address(),
            end: section.address().saturating_add(section.size()),
            name: section.name().unwrap_or("?").into(),
            symbol: None,
        })
        .collect()
}

/// Cuts ranges so that each address belongs to the first of `ranges` that covers it. A
/// range that is cut keeps its parts.
fn without_overlaps(ranges: Vec<Function>) -> Vec<Function> {
    let mut kept: Vec<Function> = Vec::with_capacity(ranges.len());
    // Earlier ranges of one source are sorted and seldom overlap; so is each source.
    for range in ranges {
        let mut parts = Vec::new();
        let mut start = range.start;
        let first = kept.partition_point(|k| k.end <= range.start);
        let mut at = first;
        while at < kept.len() && kept[at].start < range.end {
            if start < kept[at].start {
                parts.push((start, kept[at].start));
            }
            start = start.max(kept[at].end);
            at += 1;
        }
        if start < range.end {
            parts.push((start, range.end));
        }
        for (start, end) in parts {
            let place = kept.partition_point(|k| k.start < start);
            let part = Function {
                start,
                end,
                name: range.name.clone(),
                // A part of a function isn't what its symbol names.
                symbol: range.symbol.clone().filter(|_| start == range.start),
            };
            kept.insert(place, part);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(start: u64, end: u64, name: &str) -> Function {
        Function {
            start,
            end,
            name: name.into(),
            symbol: None,
        }
    }

    #[test]
    fn earlier_ranges_win_and_later_ones_fill_the_gaps() {
        let kept = without_overlaps(vec![
            function(20, 30, "a"),
            function(40, 50, "b"),
            function(10, 45, "frame"),
            function(0, 60, ".text"),
        ]);
        let shown: Vec<_> = kept
            .iter()
            .map(|f| (f.start, f.end, f.name.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (0, 10, ".text"),
                (10, 20, "frame"),
                (20, 30, "a"),
                (30, 40, "frame"),
                (40, 50, "b"),
                (50, 60, ".text")
            ]
        );
    }

    #[test]
    fn functions_of_this_very_program_have_names() {
        let path = std::env::current_exe().unwrap();
        let id = identify(&path).unwrap();
        let image = Image::of_module(&path, &id).unwrap();
        let here = image
            .functions
            .iter()
            .find(|f| f.name.contains("functions_of_this_very_program_have_names"))
            .expect("the test's own symbol");
        assert!(here.start < here.end);
        assert_eq!(image.place(here.start), here.name);
        assert_eq!(image.place(here.start + 1), format!("{}+0x1", here.name));
        assert!(image.functions.is_sorted_by(|a, b| a.end <= b.start));
        // Another identity: the file isn't believed.
        assert!(Image::of_module(&path, &ModuleId::Content([0; 16])).is_none());
    }

    #[test]
    fn a_stripped_program_has_functions_by_range() {
        let path = Path::new("/bin/true");
        let Ok(id) = identify(path) else {
            println!("skipped: no /bin/true");
            return;
        };
        let image = Image::of_module(path, &id).unwrap();
        let ranges = image
            .functions
            .iter()
            .filter(|f| f.name.contains(".."))
            .count();
        assert!(ranges > 10, "{ranges}");
        assert!(image.functions.iter().any(|f| f.name.starts_with(".plt")));
    }

    #[test]
    fn cut_and_mutated_files_are_read_without_harm() {
        let Ok(data) = std::fs::read("/bin/true") else {
            println!("skipped: no /bin/true");
            return;
        };
        for len in (0..data.len()).step_by(509) {
            Image::parse(&data[..len]);
        }
        let mut mutated = data.clone();
        for at in (0..data.len()).step_by(61) {
            mutated[at] ^= 0x81;
            Image::parse(&mutated);
            mutated[at] = data[at];
        }
    }
}
