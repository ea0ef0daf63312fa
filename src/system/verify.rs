//! Two engines, one image: runs both side by side and compares their states. Time is counted
//! in device accesses, so that interrupts come at the same instruction on both; what differs
//! by nature (the time-stamp counter) isn't compared.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::board::Backends;
use super::boot::Image;
use super::clock::TimeBase;
use super::engine::EngineKind;
use super::kvm::host::Abilities;
use super::machine::{Machine, MachineError, Pause, Settings, Until};
use super::memory::GuestRam;
use super::state::{Segment, SegmentRegister, VcpuState, XsaveArea};
use crate::addr::PAGE_SIZE;

/// Memory is compared at every so many comparisons, and at the end.
const MEMORY_EVERY: u64 = 64;

/// Those that 64-bit code doesn't use, but for the bases of FS and GS.
const DATA_SEGMENTS: [SegmentRegister; 5] = [
    SegmentRegister::Es,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// What a comparison found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub comparisons: u64,
    pub accesses: u64,
    /// How both ended; `None` when the limit came first.
    pub ending: Option<Pause>,
    /// Each thing that differs, in words; empty when the engines agree.
    pub differences: Vec<String>,
}

/// The guest's output, kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn bytes(&self) -> Vec<u8> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Two machines in step.
pub struct Pair {
    machines: [Machine; 2],
    /// Data segments of 64-bit code are compared too.
    all_segments: bool,
    outputs: [Kept; 2],
}

impl Pair {
    /// The same image on the software engine and on KVM. `settings.engine` and `.time` are
    /// set here.
    ///
    /// # Errors
    /// The image can't be booted, or there is no KVM.
    pub fn new(settings: Settings, image: &Image) -> Result<Pair, MachineError> {
        let outputs = [Kept::default(), Kept::default()];
        let machine = |engine, output: &Kept| {
            let settings = Settings {
                engine,
                time: TimeBase::Accesses,
                ..settings
            };
            let backends = Backends {
                output: Box::new(output.clone()),
                disk: None,
            };
            let machine = Machine::boot(settings, image, backends)?;
            machine.control().end_typing();
            Ok::<_, MachineError>(machine)
        };
        let software = machine(EngineKind::Software, &outputs[0])?;
        let kvm = machine(EngineKind::Kvm, &outputs[1])?;
        let abilities = Abilities::probe();
        let abilities = abilities.map_err(|error| MachineError::Engine(EngineKind::Kvm, error))?;
        Ok(Pair {
            machines: [software, kvm],
            all_segments: abilities.nulls_segments(),
            outputs,
        })
    }

    /// What the guest has printed on the software engine.
    pub fn output(&self) -> Vec<u8> {
        self.outputs[0].bytes()
    }

    /// Asks both to stop, from a thread of its own.
    pub fn controls(&self) -> [Arc<super::control::Control>; 2] {
        [self.machines[0].control(), self.machines[1].control()]
    }

    /// Runs both, comparing at every `interval` device accesses and at the end, for at most
    /// `limit` accesses.
    ///
    /// # Errors
    /// An engine fails.
    pub fn compare(&mut self, interval: u64, limit: u64) -> Result<Verdict, MachineError> {
        let mut verdict = Verdict {
            comparisons: 0,
            accesses: 0,
            ending: None,
            differences: Vec::new(),
        };
        loop {
            let until = Until {
                accesses: Some(interval),
                instructions: None,
            };
            let first = self.machines[0].run(until)?;
            let second = self.machines[1].run(until)?;
            verdict.comparisons += 1;
            verdict.accesses = self.machines[0].stats().devices.accesses();
            let over = first != Pause::Reached || verdict.accesses >= limit;
            let with_memory = over || verdict.comparisons.is_multiple_of(MEMORY_EVERY);
            if first != second {
                let text = format!("software: {first:?}, KVM: {second:?}");
                verdict.differences.push(text);
            }
            self.differences(with_memory, &mut verdict.differences)?;
            if over || !verdict.differences.is_empty() {
                verdict.ending = (first != Pause::Reached).then_some(first);
                return Ok(verdict);
            }
        }
    }

    fn differences(
        &mut self,
        with_memory: bool,
        found: &mut Vec<String>,
    ) -> Result<(), MachineError> {
        let software = self.machines[0].state()?;
        let mut kvm = self.machines[1].state()?;
        if !self.all_segments && software.segment(SegmentRegister::Cs).has(Segment::L) {
            for register in DATA_SEGMENTS {
                *kvm.segment_mut(register) = *software.segment(register);
            }
        }
        compare_states(&software, &kvm, found);
        let counts = [0, 1].map(|index| self.machines[index].stats().devices);
        if counts[0] != counts[1] {
            found.push(format!("devices: {:?} and {:?}", counts[0], counts[1]));
        }
        if self.outputs[0].bytes() != self.outputs[1].bytes() {
            found.push("the guest's output".into());
        }
        if with_memory && let Some(at) = first_difference(&self.machines) {
            found.push(format!("memory from {at:#x} on"));
        }
        Ok(())
    }
}

fn first_difference(machines: &[Machine; 2]) -> Option<u64> {
    let mut pages = [[0; PAGE_SIZE as usize]; 2];
    let rams: [&GuestRam; 2] = [machines[0].ram(), machines[1].ram()];
    for region in rams[0].iter() {
        let start = region.start_addr().0;
        for at in (start..start + region.len()).step_by(PAGE_SIZE as usize) {
            for (ram, page) in rams.iter().zip(&mut pages) {
                ram.read_slice(page, GuestAddress(at)).ok()?;
            }
            let [ours, kvms] = &pages;
            let differ = |&i: &usize| ours[i] != kvms[i] && !is_resume_flag(i, ours[i], kvms[i]);
            if let Some(offset) = (0..PAGE_SIZE as usize).find(differ) {
                return Some(at + offset as u64);
            }
        }
    }
    None
}

/// RF in the RFLAGS that a fault's frame holds: hardware sets it (Intel SDM volume 3, section
/// 18.3.1.1), and so does the software engine; a KVM that emulates, and QEMU's CPU, don't.
fn is_resume_flag(offset: usize, software: u8, kvm: u8) -> bool {
    offset % 4 == 2 && software ^ kvm == 1
}

/// Names what differs between two CPUs.
pub fn compare_states(software: &VcpuState, kvm: &VcpuState, found: &mut Vec<String>) {
    let mut value = |name: &str, a: u64, b: u64| {
        if a != b {
            found.push(format!("{name}: software {a:#x}, KVM {b:#x}"));
        }
    };
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    for (index, name) in NAMES.iter().enumerate() {
        value(name, software.gpr[index], kvm.gpr[index]);
    }
    for (name, a, b) in [
        ("rip", software.rip, kvm.rip),
        ("rflags", software.rflags, kvm.rflags),
        ("cr0", software.cr0, kvm.cr0),
        ("cr2", software.cr2, kvm.cr2),
        ("cr3", software.cr3, kvm.cr3),
        ("cr4", software.cr4, kvm.cr4),
        ("cr8", software.cr8, kvm.cr8),
        ("xcr0", software.xcr0, kvm.xcr0),
        ("dr7", software.dr7, kvm.dr7),
        ("efer", software.efer, kvm.efer),
        ("star", software.star, kvm.star),
        ("lstar", software.lstar, kvm.lstar),
        ("cstar", software.cstar, kvm.cstar),
        ("sfmask", software.sfmask, kvm.sfmask),
        (
            "kernel_gs_base",
            software.kernel_gs_base,
            kvm.kernel_gs_base,
        ),
        ("sysenter_cs", software.sysenter_cs, kvm.sysenter_cs),
        ("sysenter_esp", software.sysenter_esp, kvm.sysenter_esp),
        ("sysenter_eip", software.sysenter_eip, kvm.sysenter_eip),
        ("gdtr base", software.gdtr.base, kvm.gdtr.base),
        ("idtr base", software.idtr.base, kvm.idtr.base),
        ("halted", software.halted.into(), kvm.halted.into()),
    ] {
        value(name, a, b);
    }
    const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
    let segments = SEGMENTS.iter().zip(&software.segments).zip(&kvm.segments);
    for ((name, a), b) in segments {
        compare_segments(name, a, b, found);
    }
    compare_segments("tr", &software.tr, &kvm.tr, found);
    compare_segments("ldtr", &software.ldtr, &kvm.ldtr, found);
    for (name, range) in [
        ("x87 control", 0..5),
        ("mxcsr", 24..28),
        ("x87 registers", 32..160),
        ("xmm registers", 160..416),
        ("ymm registers", 576..832),
    ] {
        if initialized(&software.xsave)[range.clone()] != initialized(&kvm.xsave)[range] {
            found.push(name.to_owned());
        }
    }
}

fn compare_segments(name: &str, a: &Segment, b: &Segment, found: &mut Vec<String>) {
    // What a register without a segment hides differs between CPUs.
    let empty = |segment: &Segment| segment.unusable || segment.attributes == 0;
    let same = a.selector == b.selector
        && (empty(a) && empty(b)
            || (a.base, a.limit, a.attributes, a.unusable)
                == (b.base, b.limit, b.attributes, b.unusable));
    if !same {
        found.push(format!("{name}: software {a:x?}, KVM {b:x?}"));
    }
}

/// An XSAVE image in which components that it leaves out have their initial values.
fn initialized(area: &XsaveArea) -> Vec<u8> {
    let mut bytes = area.0.to_vec();
    let initial = XsaveArea::default();
    for (bit, range) in [(0, 0..24), (0, 32..160), (1, 160..416), (2, 576..832)] {
        if area.0[512] & 1 << bit == 0 {
            bytes[range.clone()].copy_from_slice(&initial.0[range]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_states_have_no_differences_and_others_are_named() {
        let state = VcpuState::default();
        let mut found = Vec::new();
        compare_states(&state, &state, &mut found);
        assert!(found.is_empty());
        let mut other = state.clone();
        other.gpr[3] = 5;
        other.xsave.0[512] = 7;
        other.xsave.0[160] = 1;
        compare_states(&state, &other, &mut found);
        assert_eq!(found, ["rbx: software 0x0, KVM 0x5", "xmm registers"]);
    }
}
