//! One block through every tier, as text: the guest's instructions with how the interpreter
//! executes each, then the generated code beside the guest instruction that each part is
//! of, then what its exits do.

use std::fmt::Write as _;

use iced_x86::{Formatter, GasFormatter, Instruction, Register};

use super::file::Symbols;
use crate::addr::{GuestAddr, HostAddr};
use crate::codecache::{ARENA_BASE, NewFragment};
use crate::decode::{Block, BlockEnd, Decoder, FileCode, InterpretReason, MAX_BLOCK_INSTRUCTIONS};
use crate::guest::{GuestMemory, HostRoutine, offsets};
use crate::interp::{Handling, handling};
use crate::native::StubCache;
use crate::translate::recovery::{Fix, points};
use crate::translate::{Plan, Settings, TranslateError, Translator};

/// Where stubs end in a cache of the usual size: code grows up from the arena's base, stubs
/// grow down from here.
const STUBS_END: HostAddr = HostAddr(ARENA_BASE.0 + (16 << 20));
/// The most that one block's code and stubs may take.
const MAX_BYTES: usize = 64 << 10;
/// The column of what stands beside generated code.
const BESIDE: usize = 46;

/// Shows blocks one after the other, with generated code where a fresh cache would have it.
pub(super) struct Tiers<'a, 'data> {
    code: &'a mut FileCode<'data>,
    symbols: &'a Symbols<'data>,
    decoder: Decoder,
    /// `None`: this host gives no executable memory, so nothing can be said of stubs.
    stubs: Option<StubCache>,
    translator: Translator,
    formatter: GasFormatter,
    code_at: HostAddr,
    stubs_end: HostAddr,
}

/// One block by itself, without what an engine would know of it.
struct Single<'a, 'data> {
    code: &'a mut FileCode<'data>,
    decoder: Decoder,
}

impl Plan for Single<'_, '_> {
    fn block(&mut self, addr: GuestAddr, into: &mut Block) -> bool {
        self.decoder
            .block_into(self.code, addr, MAX_BLOCK_INSTRUCTIONS, into)
            .is_ok()
    }

    fn wants(&mut self, _: GuestAddr) -> bool {
        false
    }

    fn usually_taken(&mut self, _: GuestAddr) -> bool {
        false
    }

    fn reached_indirectly(&mut self, _: GuestAddr) -> bool {
        false
    }

    fn counter(&mut self, _: GuestAddr) -> Option<u32> {
        None
    }
}

impl<'a, 'data> Tiers<'a, 'data> {
    pub(super) fn new(
        code: &'a mut FileCode<'data>,
        symbols: &'a Symbols<'data>,
        decoder: Decoder,
    ) -> Tiers<'a, 'data> {
        Tiers {
            code,
            symbols,
            decoder,
            stubs: StubCache::new().ok(),
            translator: Translator::default(),
            formatter: GasFormatter::new(),
            code_at: ARENA_BASE,
            stubs_end: STUBS_END,
        }
    }

    /// Appends one block.
    pub(super) fn describe(&mut self, text: &mut String, block: &Block) {
        let _ = writeln!(
            text,
            "\nblock {}: {} instructions, {} bytes",
            self.symbols.describe(block.start.0),
            block.instructions.len(),
            block.bytes.len()
        );
        let mut listed = block.instructions.clone();
        listed.extend(self.left_out(block));
        self.decoded(text, block, &listed);
        let _ = writeln!(text, "  then {}", ending(&block.end, self.symbols));
        self.translated(text, block, &listed);
    }

    /// The instruction before which the block ends, if it ends so.
    fn left_out(&mut self, block: &Block) -> Option<Instruction> {
        match block.end {
            BlockEnd::Syscall { at, .. } | BlockEnd::InterpretOne { at, .. } => {
                self.decoder.instruction(self.code, at).ok()
            }
            BlockEnd::Jump { .. }
            | BlockEnd::Branch { .. }
            | BlockEnd::Call { .. }
            | BlockEnd::IndirectJump
            | BlockEnd::IndirectCall { .. }
            | BlockEnd::Return { .. }
            | BlockEnd::Next { .. } => None,
        }
    }

    fn decoded(&mut self, text: &mut String, block: &Block, listed: &[Instruction]) {
        text.push_str("  decoded; [own]: the interpreter's own handler, [stub]: runs as the real instruction\n");
        for instruction in listed {
            let mut bytes = [0; 15];
            let bytes = &mut bytes[..instruction.len()];
            let fetched = self.code.fetch(GuestAddr(instruction.ip()), bytes);
            debug_assert_eq!(fetched, Ok(instruction.len()));
            let _ = writeln!(
                text,
                "  {:>10x}  {:<32} {:<40} [{}]",
                instruction.ip(),
                hexadecimal(bytes),
                self.assembly(instruction),
                self.interpreted(instruction, &block.end)
            );
        }
    }

    fn interpreted(&mut self, instruction: &Instruction, end: &BlockEnd) -> &'static str {
        if let BlockEnd::Syscall { at, .. } = *end
            && at.0 == instruction.ip()
        {
            return "the system call layer's";
        }
        let Some(stubs) = &mut self.stubs else {
            return "unknown: no executable memory here";
        };
        match handling(instruction, stubs) {
            Handling::Own => "own",
            Handling::Stub => "stub",
            Handling::Undefined => "undefined on this CPU",
            Handling::Unsupported => "not supported",
        }
    }

    fn translated(&mut self, text: &mut String, block: &Block, listed: &[Instruction]) {
        let settings = Settings {
            code_base: self.code_at,
            stubs_end: self.stubs_end,
            max_bytes: MAX_BYTES,
            max_blocks: 1,
            exact_indirect: false,
        };
        let mut plan = Single {
            code: &mut *self.code,
            decoder: self.decoder,
        };
        let fragment = match self.translator.translate(block.start, &mut plan, settings) {
            Ok(translation) => translation.fragment,
            Err(TranslateError::Untranslatable) => {
                text.push_str("  not translated: its first instruction is the interpreter's\n");
                return;
            }
            Err(TranslateError::Encoding { at }) => {
                let _ = writeln!(text, "  not translated: {at} can't be encoded elsewhere");
                return;
            }
        };
        let _ = writeln!(
            text,
            "  translated, {} bytes and {} of stubs",
            fragment.code.len(),
            fragment.stubs.len()
        );
        let ends_in_jump = matches!(block.end, BlockEnd::Jump { .. });
        let mut beside = Beside::new(listed, ends_in_jump, self.symbols);
        let map: Vec<(u32, GuestAddr, Fix)> = points(&fragment.recovery, block.start).collect();
        for host in disassembled(self.code_at, &fragment.code) {
            let offset = (host.ip() - self.code_at.0) as u32;
            let point = map.iter().rev().find(|(from, _, _)| *from <= offset);
            let notes = point.map(|&(_, guest, fix)| beside.next(&mut self.formatter, guest, fix));
            let (skipped, note) = notes.unwrap_or_default();
            for guest in skipped {
                let _ = writeln!(text, "  {:>10}  {:<BESIDE$} | {guest}", "", "(no code)");
            }
            let assembly = assembly(&mut self.formatter, &host);
            let line = format!("  {:>10x}  {assembly:<BESIDE$} | {note}", host.ip());
            let _ = writeln!(text, "{}", line.trim_end_matches(['|', ' ']));
        }
        for guest in beside.rest(&mut self.formatter) {
            let _ = writeln!(text, "  {:>10}  {:<BESIDE$} | {guest}", "", "(no code)");
        }
        exits(text, &mut self.formatter, fragment, settings, self.symbols);
        let stub_bytes = fragment.stubs.len() as i64;
        self.code_at = HostAddr((self.code_at.0 + fragment.code.len() as u64).next_multiple_of(16));
        self.stubs_end = self.stubs_end.offset(-stub_bytes);
    }

    fn assembly(&mut self, instruction: &Instruction) -> String {
        assembly(&mut self.formatter, instruction)
    }
}

/// Says which guest instruction each piece of generated code is of.
struct Beside<'a> {
    guest: &'a [Instruction],
    /// Instructions that were shown.
    shown: usize,
    /// The last instruction is done by an exit alone.
    ends_in_jump: bool,
    last: Option<(GuestAddr, Fix)>,
    symbols: &'a Symbols<'a>,
}

impl<'a> Beside<'a> {
    fn new(guest: &'a [Instruction], ends_in_jump: bool, symbols: &'a Symbols<'_>) -> Beside<'a> {
        Beside {
            guest,
            shown: 0,
            ends_in_jump,
            last: None,
            symbols,
        }
    }

    /// For a host instruction during which the guest is at `at` with `fix`: guest
    /// instructions that were passed without code, and what to say beside it.
    fn next(
        &mut self,
        formatter: &mut GasFormatter,
        at: GuestAddr,
        fix: Fix,
    ) -> (Vec<String>, String) {
        let before = self.last.replace((at, fix));
        let mut note = String::new();
        let mut skipped = Vec::new();
        if before.is_none_or(|(guest, _)| guest != at) {
            let rest = &self.guest[self.shown..];
            let begun = rest
                .iter()
                .position(|i| i.ip() == at.0)
                .or_else(|| (self.ends_in_jump && !rest.is_empty()).then(|| rest.len() - 1));
            match begun {
                Some(index) => {
                    let passed = &rest[..index];
                    skipped.extend(passed.iter().map(|i| listed(formatter, i)));
                    note = listed(formatter, &rest[index]);
                    self.shown += index + 1;
                }
                None if !matches!(fix, Fix::Jumping { .. }) => {
                    note = format!("on to {}", self.symbols.describe(at.0));
                }
                None => {}
            }
        }
        if before.is_none_or(|(_, old)| old != fix) {
            let state = state(fix);
            if !note.is_empty() && !state.is_empty() {
                note.push_str("; ");
            }
            note.push_str(&state);
        }
        (skipped, note)
    }

    fn rest(&mut self, formatter: &mut GasFormatter) -> Vec<String> {
        let rest = &self.guest[self.shown..];
        rest.iter().map(|i| listed(formatter, i)).collect()
    }
}

fn listed(formatter: &mut GasFormatter, instruction: &Instruction) -> String {
    let assembly = assembly(formatter, instruction);
    format!("{:x}  {assembly}", instruction.ip())
}

/// How the CPU's registers differ from the guest's.
fn state(fix: Fix) -> String {
    match fix {
        Fix::Exact => String::new(),
        Fix::R11InSlot => "guest r11 in its slot".into(),
        Fix::Jumping { pop: 0, .. } => "r11: the target; guest r11 in its slot".into(),
        Fix::Jumping { pop, .. } => {
            format!("r11: the target; guest r11 in its slot; {pop} bytes to drop")
        }
        Fix::Spilled(register) => format!("guest {register:?} in a spill slot").to_lowercase(),
    }
}

fn disassembled(at: HostAddr, bytes: &[u8]) -> Vec<Instruction> {
    iced_x86::Decoder::with_ip(64, bytes, at.0, 0)
        .into_iter()
        .collect()
}

/// Where each patchable jump leads until its target is translated.
fn exits(
    text: &mut String,
    formatter: &mut GasFormatter,
    fragment: &NewFragment,
    settings: Settings,
    symbols: &Symbols<'_>,
) {
    let stubs_at = settings.stubs_end.offset(-(fragment.stubs.len() as i64));
    for (index, exit) in fragment.exits.iter().enumerate() {
        let _ = writeln!(
            text,
            "  exit to {}, by the displacement at {:x}; until it is linked:",
            symbols.describe(exit.target.0),
            settings.code_base.offset(i64::from(exit.patch_at)).0
        );
        let end = fragment
            .exits
            .get(index + 1)
            .map_or(fragment.stubs.len(), |next| next.stub_at as usize);
        let start = exit.stub_at as usize;
        let at = stubs_at.offset(i64::from(exit.stub_at));
        for host in disassembled(at, &fragment.stubs[start..end]) {
            let assembly = assembly(formatter, &host);
            let line = format!("  {:>10x}  {assembly}", host.ip());
            let _ = writeln!(text, "{line}");
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for byte in bytes {
        let _ = write!(text, "{byte:02x} ");
    }
    text
}

/// The instruction, with what it addresses in the thread's context named.
fn assembly(formatter: &mut GasFormatter, instruction: &Instruction) -> String {
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    if instruction.segment_prefix() == Register::GS
        && let Some(name) = context_field(instruction.memory_displacement64() as usize)
    {
        let _ = write!(text, "  ({name})");
    }
    text
}

fn context_field(offset: usize) -> Option<&'static str> {
    let routine = |routine: HostRoutine| offsets::ROUTINES + 8 * routine as usize;
    match offset {
        offsets::R11_SLOT => Some("r11's slot"),
        offsets::SPILL => Some("spill slot"),
        offsets::RIP => Some("guest rip"),
        _ if offset == routine(HostRoutine::Leave) => Some("leave"),
        _ if offset == routine(HostRoutine::Syscall) => Some("system call"),
        _ if offset == routine(HostRoutine::ExactIndirect) => Some("exact indirect"),
        _ if offset == routine(HostRoutine::Counter) => Some("counter"),
        _ => None,
    }
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
        InterpretReason::PrefixedSyscall => "it is a system call with prefixes",
        InterpretReason::System => "it concerns a machine's system state",
        InterpretReason::UnitDisabled => "it needs a unit that is disabled",
        InterpretReason::Invalid => "its bytes are no instruction",
    }
}
