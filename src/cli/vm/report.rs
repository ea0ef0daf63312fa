//! How a machine's run ended, in words, and as an exit status.

use crate::cli::failure::Failure;
use crate::system::control::Stop;
use crate::system::devices::Ending;
use crate::system::engine::EngineKind;
use crate::system::machine::{Machine, MachineStats, Pause};
use crate::system::state::{SegmentRegister, VcpuState};

/// `--timeout` ran out, as timeout(1) says it.
const STATUS_TIMEOUT: i32 = 124;
const STATUS_TRIPLE_FAULT: i32 = 128;

/// Says what there is to say about the end; the exit status.
///
/// # Errors
/// The engine can't say its state.
pub fn conclude(machine: &mut Machine, pause: Pause) -> Result<i32, Failure> {
    Ok(match pause {
        Pause::Ended(Ending::PowerOff | Ending::Reset | Ending::Halted) => 0,
        Pause::Ended(Ending::DebugExit(value)) => i32::from(value << 1 | 1),
        Pause::Ended(Ending::TripleFault) => {
            let state = machine
                .state()
                .map_err(|error| Failure::own(error.to_string()))?;
            eprintln!(
                "temper: the guest's CPU shut down by a triple fault at {:#x}; its state:\n{}",
                state.rip,
                registers(&state)
            );
            STATUS_TRIPLE_FAULT
        }
        Pause::Stopped(Stop::Timeout) => {
            eprintln!("temper: the guest was stopped after --timeout");
            STATUS_TIMEOUT
        }
        Pause::Stopped(Stop::Signal(number)) => 128 + number,
        Pause::Stopped(Stop::Quit | Stop::Snapshot | Stop::Debugger)
        | Pause::Reached
        | Pause::Debug => 0,
    })
}

/// A CPU's registers, for people.
pub fn registers(state: &VcpuState) -> String {
    use std::fmt::Write as _;
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let mut text = String::new();
    for (index, name) in NAMES.iter().enumerate() {
        let end = if index % 4 == 3 { '\n' } else { ' ' };
        let _ = write!(text, "  {name} {:016x}{end}", state.gpr[index]);
    }
    let _ = writeln!(
        text,
        "  rip {:016x}   rflags {:08x}   efer {:x}",
        state.rip, state.rflags, state.efer
    );
    let _ = writeln!(
        text,
        "  cr0 {:08x}   cr2 {:016x}   cr3 {:016x}   cr4 {:08x}",
        state.cr0, state.cr2, state.cr3, state.cr4
    );
    for register in SegmentRegister::ALL {
        let segment = state.segment(register);
        let _ = writeln!(
            text,
            "  {:?} {:04x} base {:016x} limit {:08x} attributes {:04x}",
            register, segment.selector, segment.base, segment.limit, segment.attributes
        );
    }
    let _ = write!(
        text,
        "  gdt {:x} limit {:x}   idt {:x} limit {:x}   tr {:04x}",
        state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit, state.tr.selector
    );
    text
}

/// `--stats`.
pub fn stats(engine: EngineKind, stats: &MachineStats, seconds: f64) -> String {
    let mut lines = vec![format!("engine at the end        {engine}")];
    let mut count = |name: &str, value: u64| {
        if value != 0 {
            lines.push(format!("{name:<24} {value}"));
        }
    };
    count("software instructions", stats.instructions);
    count("KVM entries", stats.kvm_entries);
    count("executed for KVM", stats.lent_instructions);
    count("engine switches", stats.switches);
    count("port accesses", stats.devices.port_accesses);
    count("device memory accesses", stats.devices.memory_accesses);
    count("interrupts", stats.devices.interrupts);
    lines.push(format!("{:<24} {seconds:.3}", "seconds"));
    if stats.instructions != 0 && seconds > 0.0 && stats.kvm_entries == 0 {
        let rate = stats.instructions as f64 / seconds / 1e6;
        lines.push(format!("{:<24} {rate:.1}", "million a second"));
    }
    lines.join("\n")
}
