//! System mode's software engine: ring 3 of a machine in long mode, whose page tables map
//! the test's pages where the bare CPU's process has them.

use std::sync::Arc;

use iced_x86::{EncodingKind, Mnemonic, OpKind};
use temper::addr::GuestAddr;
use temper::guest::{GuestTrap, MemoryFault, flags};
use temper::host::XsaveLayout;
use temper::system::soft::Vcpu;
use temper::system::{
    Bus, GuestRam, Segment, SegmentRegister, TableRegister, Vcpu as _, VcpuExit, VcpuState,
    XsaveArea,
};
use vm_memory::{Bytes, GuestAddress};

use crate::executors::Executor;
use crate::machine::{
    CODE, Case, INSTRUCTION_AT, Memory, NO_ACCESS, Outcome, PAGE, READ_ONLY, WRITABLE,
    WRITABLE_BYTES,
};

/// Physical addresses.
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const HANDLERS: u64 = 0x8000;
const KERNEL_STACK: u64 = 0xa000;
const PAGES: u64 = 0x1_0000;
/// Where the kernel's things are in the linear address space: out of every case's way.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// Nothing is connected: ring 3 reaches no port anyway.
struct NoDevices;

impl Bus for NoDevices {
    fn port_read(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&mut self, _: u16, _: &[u8]) {}

    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&mut self, _: u64, _: &[u8]) {}

    fn interrupt_pending(&mut self) -> bool {
        false
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }

    fn msr_read(&mut self, _: u32) -> Option<u64> {
        None
    }

    fn msr_write(&mut self, _: u32, _: u64) -> Option<()> {
        None
    }

    fn set_task_priority(&mut self, _: u64) {}

    fn task_priority(&mut self) -> u64 {
        0
    }
}

pub struct SoftwareEngine {
    ram: Arc<GuestRam>,
    vcpu: Vcpu,
    template: VcpuState,
}

impl SoftwareEngine {
    pub fn new() -> SoftwareEngine {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let ram = Arc::new(ram);
        let vcpu = Vcpu::new(Arc::clone(&ram)).expect("a CPU");
        let engine = SoftwareEngine {
            template: template(),
            ram,
            vcpu,
        };
        engine.write_tables();
        engine
    }

    fn write(&self, at: u64, value: u64) {
        self.ram.write_obj(value, GuestAddress(at)).expect("RAM");
    }

    fn read(&self, at: u64) -> u64 {
        self.ram.read_obj(GuestAddress(at)).expect("RAM")
    }

    fn write_tables(&self) {
        const USER: u64 = 7;
        // The kernel: a large page at the upper half's start.
        self.write(TABLES + 0x100 * 8, (TABLES + 0x1000) | 3);
        self.write(TABLES + 0x1000, (TABLES + 0x2000) | 3);
        self.write(TABLES + 0x2000, 0x83);
        // The test's pages, all within 2 MiB steps of one gigabyte.
        let directory = TABLES + 0x3000;
        self.write(TABLES, 0xb000 | USER);
        self.write(0xb000 + (CODE >> 30) * 8, directory | USER);
        let table = |at: u64| 0xc000 + ((at >> 21) - (CODE >> 21)) * 0x1000;
        for at in [CODE, WRITABLE] {
            self.write(directory + (at >> 21 & 0x1ff) * 8, table(at) | USER);
        }
        let map = |at: u64, physical: u64, rights: u64| {
            self.write(table(at) + (at >> 12 & 0x1ff) * 8, physical | rights);
        };
        map(CODE, PAGES, USER);
        for page in 0..WRITABLE_BYTES as u64 / PAGE {
            map(WRITABLE + page * PAGE, PAGES + (1 + page) * PAGE, USER);
        }
        map(READ_ONLY, PAGES + 8 * PAGE, 5);
        for i in 0..PAGE {
            let byte = (i * 7 + i / 256) as u8;
            let at = GuestAddress(PAGES + 8 * PAGE + i);
            self.ram.write_obj(byte, at).expect("RAM");
        }
        const { assert!(NO_ACCESS >> 21 == WRITABLE >> 21) };
        self.write(GDT + 8, 0x00af_9b00_0000_ffff);
        self.write(GDT + 0x10, 0x00cf_9300_0000_ffff);
        self.write(GDT + 0x28, 0x00cf_f300_0000_ffff);
        self.write(GDT + 0x30, 0x00af_fb00_0000_ffff);
        for vector in 0..256 {
            let handler = KERNEL + HANDLERS + vector * 16;
            let low = handler & 0xffff | 8 << 16 | 0xee00 << 32 | (handler >> 16 & 0xffff) << 48;
            self.write(IDT + vector * 16, low);
            self.write(IDT + vector * 16 + 8, handler >> 32);
            self.write(HANDLERS + vector * 16, 0xf4);
        }
        self.write(TSS + 4, KERNEL + KERNEL_STACK + PAGE);
        // The bitmap of ports lies beyond the limit: none is open.
        self.write(TSS + 0x60, 0x68 << 48);
    }
}

fn template() -> VcpuState {
    let flat = |selector: u16, attributes: u16| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
        unusable: false,
    };
    let null = Segment {
        unusable: true,
        ..Segment::default()
    };
    let mut state = VcpuState {
        segments: [null; 6],
        tr: Segment {
            selector: 0x40,
            base: KERNEL + TSS,
            limit: 0x67,
            attributes: 0x8b,
            unusable: false,
        },
        gdtr: TableRegister {
            base: KERNEL + GDT,
            limit: 0x37,
        },
        idtr: TableRegister {
            base: KERNEL + IDT,
            limit: 0xfff,
        },
        // As Linux sets them: PE MP ET NE WP AM PG; PAE PGE OSFXSR OSXMMEXCPT UMIP FSGSBASE
        // OSXSAVE.
        cr0: 0x8005_0033,
        cr3: TABLES,
        cr4: 0x5_0ea0,
        efer: 0xd01,
        xcr0: 1 | XsaveLayout::get().vector_mask & 6,
        ..VcpuState::default()
    };
    *state.segment_mut(SegmentRegister::Cs) = flat(0x33, 0xa0fb);
    *state.segment_mut(SegmentRegister::Ss) = flat(0x2b, 0xc0f3);
    state
}

/// What the engine's CPUID doesn't announce, or where its XCR0 differs from the host's.
fn is_left_out(case: &Case) -> bool {
    let instruction = &case.instruction;
    let mask_register = (0..instruction.op_count())
        .any(|i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_k());
    instruction.encoding() == EncodingKind::EVEX
        || mask_register
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Xgetbv
                | Mnemonic::Xsave
                | Mnemonic::Xsave64
                | Mnemonic::Xsavec
                | Mnemonic::Xsavec64
                | Mnemonic::Xsaveopt
                | Mnemonic::Xsaveopt64
                | Mnemonic::Xrstor
                | Mnemonic::Xrstor64
                | Mnemonic::Xsaves
                | Mnemonic::Xsaves64
                | Mnemonic::Xrstors
                | Mnemonic::Xrstors64
                | Mnemonic::Monitorx
                | Mnemonic::Clzero
                | Mnemonic::Rdpkru
                | Mnemonic::Movdir64b
                // Descriptors of a table that the host has and this machine has not.
                | Mnemonic::Lar
                | Mnemonic::Lsl
                | Mnemonic::Verr
                | Mnemonic::Verw
        )
}

/// An operand that can't be accessed in place is copied, so its page fault comes before what
/// the real instruction itself finds: that the CPU lacks it, that the operand is misaligned.
/// Where in a page a long operand faults is the CPU's own business. And instructions that only ring 0 has don't exist where CPUID doesn't announce them.
fn checks_in_another_order(case: &Case, bare: Option<GuestTrap>, ours: GuestTrap) -> bool {
    match (bare, ours) {
        (Some(GuestTrap::InvalidOpcode), GuestTrap::Memory(_)) => true,
        (Some(GuestTrap::Memory(a)), GuestTrap::Memory(b)) => {
            let size = case.instruction.memory_size().size();
            let long = size > 16
                || !size.is_power_of_two()
                || case.instruction.is_save_restore_instruction();
            let same_page = a.trap_number == b.trap_number && a.addr.page() == b.addr.page();
            a.trap_number == 13 && matches!(b.trap_number, 12 | 14) || long && same_page
        }
        (Some(GuestTrap::Memory(a)), GuestTrap::InvalidOpcode) => {
            a.trap_number == 13 && case.instruction.is_privileged()
        }
        _ => false,
    }
}

impl Executor for SoftwareEngine {
    fn name(&self) -> &'static str {
        "software engine"
    }

    fn run(&mut self, case: &Case, bare: &Outcome) -> Option<Outcome> {
        // Whether bytes that its mask leaves out may fault is up to the CPU.
        let masked = matches!(
            case.instruction.mnemonic(),
            Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
        );
        if is_left_out(case) || masked && bare.trap.is_some() {
            return None;
        }
        let mut page = [0xcc; PAGE as usize];
        let at = (INSTRUCTION_AT - CODE) as usize;
        page[at..at + case.bytes.len()].copy_from_slice(&case.bytes);
        self.ram
            .write_slice(&page, GuestAddress(PAGES))
            .expect("RAM");
        self.ram
            .write_slice(&case.memory[..], GuestAddress(PAGES + PAGE))
            .expect("RAM");
        let before = &case.state;
        let mut state = self.template.clone();
        state.gpr = before.cpu.gpr;
        state.rip = before.cpu.rip;
        state.rflags = before.cpu.rflags & flags::USER | flags::FIXED | flags::IF;
        state.segment_mut(SegmentRegister::Fs).base = before.cpu.fs_base;
        state.segment_mut(SegmentRegister::Gs).base = before.cpu.gs_base;
        *state.xsave = image(&before.vector.area);
        self.vcpu.set_state(&state).expect("a state");
        self.vcpu.set_limit(Some(1));
        let exit = self.vcpu.run(&mut NoDevices).expect("no refusal");
        let mut state = self.vcpu.state().expect("a state");
        let mut trap = None;
        match exit {
            VcpuExit::LimitReached => {}
            VcpuExit::EmulationFailure { .. } => return None,
            other => panic!("{:?}: {other:?}", case.instruction),
        }
        if state.rip >= KERNEL {
            // The one instruction was that whose exception led here.
            let vector = (state.rip - KERNEL - HANDLERS) / 16;
            let ours = self.undo_exception(&mut state, vector as u8, bare.trap);
            if checks_in_another_order(case, bare.trap, ours) {
                return None;
            }
            trap = Some(ours);
        }
        let mut outcome = bare.clone();
        outcome.trap = trap;
        outcome.state.cpu.gpr = state.gpr;
        outcome.state.cpu.rip = state.rip;
        outcome.state.cpu.rflags = state.rflags & !(1 << 16);
        outcome.state.cpu.fs_base = state.segment(SegmentRegister::Fs).base;
        outcome.state.cpu.gs_base = state.segment(SegmentRegister::Gs).base;
        take_image(&state.xsave, &mut outcome.state.vector.area);
        let memory: &mut Memory = &mut outcome.memory;
        self.ram
            .read_slice(&mut memory[..], GuestAddress(PAGES + PAGE))
            .expect("RAM");
        Some(outcome)
    }

    fn undefined_flags_match(&self) -> bool {
        false
    }
}

impl SoftwareEngine {
    /// Takes the state from before the exception out of its frame; the trap in the words of
    /// a process.
    fn undo_exception(
        &self,
        state: &mut VcpuState,
        vector: u8,
        bare: Option<GuestTrap>,
    ) -> GuestTrap {
        let mut at = state.gpr[4] - KERNEL;
        let mut code = 0;
        if matches!(vector, 8 | 10..=14 | 17) {
            code = self.read(at) as u32;
            at += 8;
        }
        state.rip = self.read(at);
        state.rflags = self.read(at + 16);
        state.gpr[4] = self.read(at + 24);
        if matches!(vector, 3 | 4) {
            // A process is told the instruction's address.
            state.rip = INSTRUCTION_AT;
        }
        match vector {
            0 => GuestTrap::DivideError,
            1 => GuestTrap::Debug,
            3 => GuestTrap::Breakpoint,
            4 => GuestTrap::Overflow,
            5 => GuestTrap::BoundRange,
            6 => GuestTrap::InvalidOpcode,
            16 => GuestTrap::X87FloatingPoint,
            17 => GuestTrap::AlignmentCheck,
            19 => GuestTrap::SimdFloatingPoint,
            12..=14 => match bare {
                // How the kernel calls it isn't the CPU's doing.
                Some(GuestTrap::Memory(fault))
                    if fault.trap_number == vector
                        && (vector != 14 || fault.addr.0 == state.cr2)
                        && (fault.error_code ^ code) & 2 == 0 =>
                {
                    GuestTrap::Memory(fault)
                }
                Some(GuestTrap::GeneralProtection) if vector == 13 => GuestTrap::GeneralProtection,
                _ => GuestTrap::Memory(MemoryFault {
                    addr: GuestAddr(state.cr2),
                    error_code: code,
                    trap_number: vector,
                    signal: 0,
                    si_code: 0,
                }),
            },
            _ => GuestTrap::SoftwareInterrupt(vector),
        }
    }
}

/// The state of the case as an XSAVE image.
fn image(area: &[u8]) -> XsaveArea {
    let mut image = XsaveArea::default();
    image.0[..416].copy_from_slice(&area[..416]);
    let mut present = 3;
    for component in &XsaveLayout::get().components {
        let range = component.offset..component.offset + component.bytes;
        if component.bit == 4 {
            image.0[range.clone()].copy_from_slice(&area[range]);
            present |= 4;
        }
    }
    image.0[512] = present;
    image
}

/// Components that the engine doesn't keep stay as the bare CPU left them.
fn take_image(image: &XsaveArea, area: &mut [u8]) {
    area[..416].copy_from_slice(&image.0[..416]);
    for component in &XsaveLayout::get().components {
        let range = component.offset..component.offset + component.bytes;
        if component.bit == 4 {
            area[range.clone()].copy_from_slice(&image.0[range]);
        }
    }
}
