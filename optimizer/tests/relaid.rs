//! Regions as text, and the code that they become: `fixtures/*.in` and `fixtures/*.out`.
//! `TEMPER_BLESS=1 cargo test -p optimizer --test relaid` writes what comes out.
//!
//! A line of a region is one of
//!
//! ```text
//! frame N                RBP - RSP at the head
//! cell ADDRESS           passes are counted there
//! steps BITS             1 slots to general registers, 2 to vector registers, 4 folding
//! block ADDRESS COUNT    a block, followed by its bytes, then by how it ends:
//! goto WAY | branch WAY WAY | call BLOCK | return BLOCK | leave ADDRESS
//! ```
//!
//! where a way is a block's number or `exit ADDRESS`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};
use optimizer::region::{
    ContextLayout, Next, OptimizedCode, RegionBlock, RegionEnd, RegionInput, Steps,
};
use optimizer::relaid::relay;

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).expect("a number"),
        None => text.parse().expect("a number"),
    }
}

fn way<'a>(words: &mut impl Iterator<Item = &'a str>) -> Next {
    match words.next().expect("a way") {
        "exit" => Next::Exit(number(words.next().expect("an address"))),
        block => Next::Block(number(block) as usize),
    }
}

fn parse(text: &str) -> RegionInput {
    let mut region = RegionInput {
        blocks: Vec::new(),
        frame_delta: 0,
        stack: 0x7fff_0000_0000,
        layout: ContextLayout {
            registers: 0x100,
            vectors: 0x200,
            spill: 0x80,
        },
        cell: None,
        has_bmi2: true,
        steps: Steps::ALL,
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("");
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let mut argument = || number(words.next().expect("an argument"));
        match first {
            "frame" => region.frame_delta = argument() as i64,
            "cell" => region.cell = Some(argument() as u32),
            "steps" => {
                let bits = argument();
                region.steps = Steps {
                    rename: bits & 1 != 0,
                    rename_vector: bits & 2 != 0,
                    fold: bits & 4 != 0,
                };
            }
            "block" => region.blocks.push(RegionBlock {
                start: argument(),
                count: argument(),
                instructions: Vec::new(),
                end: RegionEnd::Leave { at: 0 },
            }),
            _ => {
                let block = region.blocks.last_mut().expect("a block");
                match first {
                    "goto" => block.end = RegionEnd::Goto(way(&mut words)),
                    "branch" => {
                        block.end = RegionEnd::Branch {
                            taken: way(&mut words),
                            next: way(&mut words),
                        };
                    }
                    "call" => {
                        let callee = argument() as usize;
                        block.end = RegionEnd::Call { callee };
                    }
                    "return" => {
                        let to = argument() as usize;
                        block.end = RegionEnd::Return { to };
                    }
                    "leave" => block.end = RegionEnd::Leave { at: argument() },
                    bytes => {
                        let byte = |text| u8::from_str_radix(text, 16).expect("a byte");
                        let code: Vec<u8> = std::iter::once(bytes).chain(words).map(byte).collect();
                        let at = block
                            .instructions
                            .last()
                            .map_or(block.start, iced_x86::Instruction::next_ip);
                        let decoder = Decoder::with_ip(64, &code, at, DecoderOptions::NONE);
                        block.instructions.extend(decoder);
                    }
                }
            }
        }
    }
    region
}

fn describe(region: &RegionInput, code: &OptimizedCode) -> String {
    let mut text = String::new();
    for (index, block) in region.blocks.iter().enumerate() {
        let _ = writeln!(text, "block {index}: {:?}", block.end);
        for instruction in &block.instructions {
            let _ = writeln!(text, "    {:x}  {instruction}", instruction.ip());
        }
    }
    let _ = writeln!(text, "{:?}", code.summary);
    let _ = writeln!(
        text,
        "borrowed {:?} and {:?} from {:x} on, counter {:?}",
        code.borrowed, code.borrowed_vectors, code.borrowed_from, code.counter
    );
    let mut points = code.states.iter().peekable();
    for instruction in Decoder::with_ip(64, &code.bytes, 0, DecoderOptions::NONE) {
        while let Some(point) = points.next_if(|point| u64::from(point.host) <= instruction.ip()) {
            let _ = write!(text, "  at {:x}", point.guest);
            for (register, value) in &point.registers {
                let _ = write!(text, "; r{register} = {value:?}");
            }
            for (register, from) in &point.vectors {
                let _ = write!(text, "; xmm{register} = xmm{from}");
            }
            if let Some(flags) = point.flags {
                let _ = write!(text, "; {flags:?}");
            }
            if let Some(store) = point.store {
                let _ = write!(text, "; {store:?}");
            }
            if point.spilled {
                text.push_str("; rcx is spilled");
            }
            text.push('\n');
        }
        let _ = writeln!(text, "    {:3x}  {instruction}", instruction.ip());
    }
    for exit in &code.exits {
        let lower = if exit.lower { ", one tier down" } else { "" };
        let _ = writeln!(text, "exit {:x} to {:x}{lower}", exit.patch_at, exit.target);
    }
    for relocation in &code.relocations {
        let _ = writeln!(text, "{relocation:x?}");
    }
    text
}

#[test]
fn regions_become_this_code() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let bless = std::env::var_os("TEMPER_BLESS").is_some();
    let mut different = Vec::new();
    let mut seen = 0;
    for entry in fs::read_dir(&dir).expect("fixtures") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "in") {
            continue;
        }
        seen += 1;
        let region = parse(&fs::read_to_string(&path).expect("text"));
        let out = match relay(&region) {
            Ok(code) => describe(&region, &code),
            Err(refusal) => format!("refused: {refusal}\n"),
        };
        let golden = path.with_extension("out");
        if bless {
            fs::write(&golden, &out).expect("written");
        } else if fs::read_to_string(&golden).unwrap_or_default() != out {
            different.push(format!("{}:\n{out}", path.display()));
        }
    }
    assert!(seen > 0, "fixtures are there");
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// What a rewritten instruction keeps of its destination has to be there: pending values are
/// computed before whatever reads them, as the decoder's tables say.
#[test]
fn what_keeps_a_part_of_its_destination_reads_it() {
    // With memory: movlps, movlpd, movhps, movhpd; of registers: movlhps, movhlps, movss,
    // movsd, cvtsi2ss, cvtsi2sd, cvtss2sd, cvtsd2ss, sqrtss, sqrtsd, rcpss, rsqrtss, roundss,
    // roundsd, pinsrd, pinsrw, insertps, cvtpi2ps.
    let all: &[&[u8]] = &[
        &[0x0f, 0x12, 0x00],
        &[0x66, 0x0f, 0x12, 0x00],
        &[0x0f, 0x16, 0x00],
        &[0x66, 0x0f, 0x16, 0x00],
        &[0x0f, 0x16, 0xc1],
        &[0x0f, 0x12, 0xc1],
        &[0xf3, 0x0f, 0x10, 0xc1],
        &[0xf2, 0x0f, 0x10, 0xc1],
        &[0xf3, 0x0f, 0x2a, 0xc1],
        &[0xf2, 0x0f, 0x2a, 0xc1],
        &[0xf3, 0x0f, 0x5a, 0xc1],
        &[0xf2, 0x0f, 0x5a, 0xc1],
        &[0xf3, 0x0f, 0x51, 0xc1],
        &[0xf2, 0x0f, 0x51, 0xc1],
        &[0xf3, 0x0f, 0x53, 0xc1],
        &[0xf3, 0x0f, 0x52, 0xc1],
        &[0x66, 0x0f, 0x3a, 0x0a, 0xc1, 0],
        &[0x66, 0x0f, 0x3a, 0x0b, 0xc1, 0],
        &[0x66, 0x0f, 0x3a, 0x22, 0xc1, 0],
        &[0x66, 0x0f, 0xc4, 0xc1, 0],
        &[0x66, 0x0f, 0x3a, 0x21, 0xc1, 0],
        &[0x0f, 0x2a, 0xc1],
    ];
    let mut factory = InstructionInfoFactory::new();
    let mut wrong = Vec::new();
    for code in all {
        let instruction = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
        let info = factory.info(&instruction);
        let reads = info.used_registers().iter().any(|used| {
            used.register() == Register::XMM0
                && matches!(used.access(), OpAccess::ReadWrite | OpAccess::Read)
        });
        if !reads {
            wrong.push(instruction.to_string());
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
