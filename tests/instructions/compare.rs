//! What must be equal after an instruction, and what an architecture lets differ.

use iced_x86::{Instruction, Mnemonic, RflagsBits};
use temper::guest::{GuestTrap, flags};
use temper::host::Features;

use crate::machine::{Case, Outcome, WRITABLE};

/// Every difference between the bare CPU's outcome and Temper's, in words.
pub fn differences(
    case: &Case,
    bare: &Outcome,
    ours: &Outcome,
    undefined_too: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    if !same_trap(&case.instruction, bare.trap, ours.trap) {
        found.push(format!("trap: {:?}, not {:?}", ours.trap, bare.trap));
        return found;
    }
    let (want, got) = (&bare.state.cpu, &ours.state.cpu);
    for (n, (want, got)) in want.gpr.iter().zip(&got.gpr).enumerate() {
        if want != got {
            found.push(format!("gpr {n}: {got:#x}, not {want:#x}"));
        }
    }
    if want.rip != got.rip {
        found.push(format!("rip: {:#x}, not {:#x}", got.rip, want.rip));
    }
    for (name, want, got) in [
        ("fs base", want.fs_base, got.fs_base),
        ("gs base", want.gs_base, got.gs_base),
    ] {
        // Without the instructions the oracle's bases are its own.
        if want != got && Features::get().fsgsbase {
            found.push(format!("{name}: {got:#x}, not {want:#x}"));
        }
    }
    let mut mask = flags::USER;
    if !undefined_too {
        mask &= !undefined_flags(&case.instruction);
    }
    if (want.rflags ^ got.rflags) & mask != 0 {
        found.push(format!(
            "rflags: {:#x}, not {:#x} (before: {:#x})",
            got.rflags & mask,
            want.rflags & mask,
            case.state.cpu.rflags & mask
        ));
    }
    compare_vectors(case, bare, ours, &mut found);
    compare_x87(&bare.state.vector.area, &ours.state.vector.area, &mut found);
    compare_memory(case, bare, ours, &mut found);
    found
}

/// A fault's kind and address count, not which of two names a #GP has. A privileged
/// instruction that the CPU lacks is #UD there, #GP for an interpreter that knows it.
fn same_trap(instruction: &Instruction, bare: Option<GuestTrap>, ours: Option<GuestTrap>) -> bool {
    match (bare, ours) {
        (Some(GuestTrap::Memory(a)), Some(GuestTrap::Memory(b))) => {
            a.trap_number == b.trap_number
                && a.signal == b.signal
                && a.addr == b.addr
                // Whether it was a write; the rest says whether the page was there.
                && (a.error_code ^ b.error_code) & 2 == 0
        }
        (Some(GuestTrap::Memory(a)), Some(GuestTrap::GeneralProtection)) => a.trap_number == 13,
        (Some(GuestTrap::InvalidOpcode), Some(GuestTrap::GeneralProtection)) => {
            instruction.is_privileged()
        }
        (a, b) => a == b,
    }
}

/// Gathers may keep the elements that they had when a fault came (Intel SDM volume 2,
/// VGATHERDPS); Temper starts over instead. Scatters likewise in memory.
fn may_stop_half_way(instruction: &Instruction) -> bool {
    instruction.is_vsib()
}

fn compare_vectors(case: &Case, bare: &Outcome, ours: &Outcome, found: &mut Vec<String>) {
    let (want, got) = (&bare.state.vector, &ours.state.vector);
    if want.mxcsr() != got.mxcsr() {
        found.push(format!(
            "mxcsr: {:#x}, not {:#x} (before: {:#x})",
            got.mxcsr(),
            want.mxcsr(),
            case.state.vector.mxcsr()
        ));
    }
    if bare.trap.is_some() && may_stop_half_way(&case.instruction) {
        return;
    }
    for n in 0..32 {
        let (want, got) = (want.register(n), got.register(n));
        if want != got {
            found.push(format!("zmm{n}: {}, not {}", hex(&got), hex(&want)));
        }
    }
    for n in 0..8 {
        if want.mask(n) != got.mask(n) {
            found.push(format!("k{n}: {:#x}, not {:#x}", got.mask(n), want.mask(n)));
        }
    }
}

/// Control, status and tag words and the registers. Not FIP, FDP and FOP: a stub's
/// instruction has another address.
fn compare_x87(want: &[u8], got: &[u8], found: &mut Vec<String>) {
    for (name, range) in [("fcw", 0..2), ("fsw", 2..4), ("ftw", 4..5)] {
        if want[range.clone()] != got[range.clone()] {
            found.push(format!(
                "{name}: {}, not {}",
                hex(&got[range.clone()]),
                hex(&want[range])
            ));
        }
    }
    for n in 0..8 {
        let range = 32 + n * 16..42 + n * 16;
        if want[range.clone()] != got[range.clone()] {
            found.push(format!(
                "st{n}: {}, not {}",
                hex(&got[range.clone()]),
                hex(&want[range])
            ));
        }
    }
}

/// Bytes of memory that hold FIP, FDP and FOP after a save of x87 state, and are no part of
/// the comparison.
fn x87_pointers(case: &Case) -> std::ops::Range<u64> {
    let (first, last) = match case.instruction.mnemonic() {
        Mnemonic::Fnsave | Mnemonic::Fnstenv => match case.instruction.memory_size().size() {
            14 | 94 => (6, 14),
            _ => (12, 28),
        },
        Mnemonic::Fxsave
        | Mnemonic::Fxsave64
        | Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64 => (6, 24),
        _ => return 0..0,
    };
    let at = crate::executors::effective_address(&case.instruction, &case.state);
    at.wrapping_add(first)..at.wrapping_add(last)
}

fn compare_memory(case: &Case, bare: &Outcome, ours: &Outcome, found: &mut Vec<String>) {
    let half_way =
        may_stop_half_way(&case.instruction) || case.instruction.is_save_restore_instruction();
    if bare.memory == ours.memory || bare.trap.is_some() && half_way {
        return;
    }
    let ignored = x87_pointers(case);
    let mut shown = 0;
    for (i, (want, got)) in bare.memory.iter().zip(ours.memory.iter()).enumerate() {
        let addr = WRITABLE + i as u64;
        if want != got && !ignored.contains(&addr) && shown < 16 {
            shown += 1;
            found.push(format!("[{addr:#x}]: {got:#04x}, not {want:#04x}"));
        }
    }
}

/// RFLAGS bits that the manual leaves undefined after the instruction.
fn undefined_flags(instruction: &Instruction) -> u64 {
    let bits = instruction.rflags_undefined();
    [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |sum, (_, flag)| sum | flag)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}
