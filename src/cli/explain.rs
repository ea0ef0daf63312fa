//! `temper explain`: one piece of a program's code, read from its file, block by block as
//! the decoder cuts it. Addresses are the file's own, as disassemblers show them; nothing
//! is loaded or run.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use clap::Args;
use iced_x86::{Formatter, GasFormatter, Instruction};
use object::{Object, ObjectSegment, ObjectSymbol, SegmentFlags};

use super::failure::Failure;
use super::lookup;
use crate::addr::GuestAddr;
use crate::decode::{Block, BlockEnd, Decoder, InterpretReason};
use crate::guest::{Access, CpuMode, GuestMemory, GuestTrap, Width};

/// The arguments of `temper explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The address of an instruction, as in the file (hexadecimal with 0x)
    #[arg(long, value_name = "ADDR", value_parser = address, required_unless_present = "symbol",
          conflicts_with = "symbol")]
    pc: Option<u64>,

    /// The name of a function
    #[arg(long, value_name = "NAME")]
    symbol: Option<String>,

    /// The program or library; a name without a slash is looked for in PATH
    #[arg(value_hint = clap::ValueHint::FilePath)]
    program: OsString,
}

fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "give a number like 0x401136".into())
}

/// Prints the block at an address, or all blocks of a function.
///
/// # Errors
/// The file can't be read as x86-64 ELF, or has no such symbol or code.
pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let path = file_path(&args.program)?;
    let shown = path.display();
    let data = fs::read(&path).map_err(|error| {
        Failure::not_executable(format!(
            "{shown}: can't be read ({error}); check its permissions"
        ))
    })?;
    let file = object::File::parse(data.as_slice()).map_err(|error| {
        Failure::not_executable(format!("{shown}: is not an ELF file ({error})"))
    })?;
    if file.architecture() != object::Architecture::X86_64 {
        return Err(Failure::not_executable(format!(
            "{shown}: holds code for {:?}; only x86-64 is supported",
            file.architecture()
        )));
    }
    let mut code = FileCode::new(&file);
    let symbols = Symbols::new(&file);
    let (start, end) = match (&args.symbol, args.pc) {
        (Some(name), _) => {
            let (start, size) = symbols.find(name).ok_or_else(|| {
                Failure::own(format!(
                    "{shown}: has no function `{name}` in its symbols; use --pc ADDR"
                ))
            })?;
            (start, start + size.max(1))
        }
        (None, Some(pc)) => (pc, pc + 1),
        (None, None) => unreachable!("the parser requires one of them"),
    };
    let blocks = reachable(&mut code, GuestAddr(start), GuestAddr(end));
    if blocks.is_empty() {
        return Err(Failure::own(format!(
            "{shown}: has no code at {start:#x}; addresses are the file's own, as in `objdump -d`"
        )));
    }
    let mut text = format!("{shown}, {}", symbols.describe(start));
    text.push('\n');
    for block in blocks.values() {
        describe(&mut text, block, &symbols);
    }
    print!("{text}");
    Ok(())
}

/// A library needs no execute permission to be explained, so only plain names are looked up.
fn file_path(name: &OsString) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(name);
    if path.is_file() {
        Ok(path)
    } else {
        lookup::program(name)
    }
}

/// The blocks that direct control flow reaches from `start` without leaving `start..end`.
fn reachable(
    code: &mut FileCode<'_>,
    start: GuestAddr,
    end: GuestAddr,
) -> BTreeMap<GuestAddr, Block> {
    let decoder = Decoder::new(CpuMode::Bits64);
    let mut found = BTreeMap::new();
    let mut waiting = BTreeSet::from([start]);
    while let Some(at) = waiting.pop_first() {
        if found.contains_key(&at) || !(start..end).contains(&at) {
            continue;
        }
        if let Ok(block) = decoder.block(code, at) {
            waiting.extend(successors(&block.end));
            found.insert(at, block);
        }
    }
    found
}

fn successors(end: &BlockEnd) -> Vec<GuestAddr> {
    match *end {
        BlockEnd::Jump { target } => vec![target],
        BlockEnd::Branch { taken, next } => vec![taken, next],
        BlockEnd::Call { target, return_to } => vec![target, return_to],
        BlockEnd::IndirectCall { return_to } => vec![return_to],
        BlockEnd::IndirectJump | BlockEnd::Return { .. } => Vec::new(),
        BlockEnd::Syscall { next, .. } => vec![next],
        BlockEnd::InterpretOne { .. } => Vec::new(),
        BlockEnd::Next { at } => vec![at],
    }
}

fn describe(text: &mut String, block: &Block, symbols: &Symbols<'_>) {
    let _ = writeln!(
        text,
        "\nblock {}: {} instructions, {} bytes",
        symbols.describe(block.start.0),
        block.instructions.len(),
        block.bytes.len()
    );
    let mut offset = 0;
    let mut formatter = GasFormatter::new();
    for instruction in &block.instructions {
        let bytes = &block.bytes[offset..offset + instruction.len()];
        offset += instruction.len();
        let _ = writeln!(
            text,
            "  {:>10x}  {:<32} {}",
            instruction.ip(),
            hexadecimal(bytes),
            assembly(&mut formatter, instruction)
        );
    }
    let _ = writeln!(text, "  then {}", ending(&block.end, symbols));
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for byte in bytes {
        let _ = write!(text, "{byte:02x} ");
    }
    text
}

fn assembly(formatter: &mut GasFormatter, instruction: &Instruction) -> String {
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

fn ending(end: &BlockEnd, symbols: &Symbols<'_>) -> String {
    let at = |addr: GuestAddr| symbols.describe(addr.0);
    match *end {
        BlockEnd::Jump { target } => format!("jumps to {}", at(target)),
        BlockEnd::Branch { taken, next } => {
            format!("branches to {}, else goes on at {}", at(taken), at(next))
        }
        BlockEnd::Call { target, return_to } => {
            format!("calls {}, which returns to {}", at(target), at(return_to))
        }
        BlockEnd::IndirectJump => "jumps where a register or memory says".into(),
        BlockEnd::IndirectCall { return_to } => format!(
            "calls where a register or memory says; returns to {}",
            at(return_to)
        ),
        BlockEnd::Return { pop: 0 } => "returns".into(),
        BlockEnd::Return { pop } => format!("returns, dropping {pop} bytes of arguments"),
        BlockEnd::Syscall { at: call, next } => {
            format!("system call at {}, goes on at {}", at(call), at(next))
        }
        BlockEnd::InterpretOne { at: one, why } => {
            format!(
                "the interpreter executes the instruction at {}: {}",
                at(one),
                reason(why)
            )
        }
        BlockEnd::Next { at: next } => format!("goes on at {} (split here)", at(next)),
    }
}

fn reason(why: InterpretReason) -> &'static str {
    match why {
        InterpretReason::Traps => "it traps, or may",
        InterpretReason::GsSegment => "it uses the gs segment",
        InterpretReason::FarTransfer => "it is a far transfer",
        InterpretReason::Transaction => "it begins a hardware transaction",
        InterpretReason::LoadsFlags => "it may turn single-stepping on",
        InterpretReason::Invalid => "its bytes are no instruction",
    }
}

/// Functions by address and name.
struct Symbols<'data> {
    /// Start to (size, name).
    by_address: BTreeMap<u64, (u64, &'data str)>,
}

impl<'data> Symbols<'data> {
    fn new(file: &object::File<'data>) -> Symbols<'data> {
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

    fn find(&self, wanted: &str) -> Option<(u64, u64)> {
        self.by_address
            .iter()
            .find(|(_, (_, name))| *name == wanted)
            .map(|(&start, &(size, _))| (start, size))
    }

    /// `0x1234`, or `0x1234 <name+0x10>` inside a function.
    fn describe(&self, addr: u64) -> String {
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
struct FileCode<'data> {
    segments: Vec<(u64, &'data [u8])>,
}

impl<'data> FileCode<'data> {
    fn new(file: &object::File<'data>) -> FileCode<'data> {
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
