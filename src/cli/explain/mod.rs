//! `temper explain`: one piece of a program's code through every tier, block by block as the
//! decoder cuts it, read from the program's file; nothing is loaded or run. Addresses are
//! the file's own, as disassemblers show them, and each block is translated as if it were
//! loaded there, alone.

mod file;
mod tiers;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use clap::Args;
use file::Symbols;
use object::Object;
use tiers::Tiers;

use super::failure::Failure;
use super::lookup;
use crate::addr::GuestAddr;
use crate::codecache::ARENA_BASE;
use crate::decode::{Block, BlockEnd, Decoder, FileCode};
use crate::guest::CpuMode;

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
    let mut code = file::code(&file);
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
    let decoder = Decoder::new(CpuMode::Bits64);
    let blocks = reachable(&decoder, &mut code, GuestAddr(start), GuestAddr(end));
    if blocks.is_empty() {
        return Err(Failure::own(format!(
            "{shown}: has no code at {start:#x}; addresses are the file's own, as in `objdump -d`"
        )));
    }
    let mut text = format!(
        "{shown}, {}\ntranslated as if loaded at the file's own addresses, each block alone; \
         generated code as at {ARENA_BASE} in an empty cache\n",
        symbols.describe(start)
    );
    let mut tiers = Tiers::new(&mut code, &symbols, decoder);
    for block in blocks.values() {
        tiers.describe(&mut text, block);
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
    decoder: &Decoder,
    code: &mut FileCode<'_>,
    start: GuestAddr,
    end: GuestAddr,
) -> BTreeMap<GuestAddr, Block> {
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
