//! Small guests, assembled here: each states what the manual says.

mod code;
mod exceptions;
mod interrupts;
mod long_mode;
mod paging;
mod privilege;
mod protected_mode;
mod real_mode;
mod speed;

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use vm_memory::{Bytes, GuestAddress};

use super::super::memory::GuestRam;
use super::super::state::{Segment, SegmentRegister, TableRegister, VcpuState};
use super::super::vcpu::{Bus, Vcpu as _, VcpuExit};
use super::Vcpu;
use super::registers::{cr0, cr4, efer};

/// Devices that remember: ports by number, one interrupt line.
#[derive(Default)]
pub struct Devices {
    pub written: Vec<(u16, u32)>,
    pub mmio: Vec<(u64, u64)>,
    pub vectors: Vec<u8>,
    pub tpr: u64,
}

fn little_endian(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}

impl Bus for Devices {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        let value = (u32::from(port) + 1).to_le_bytes();
        data.copy_from_slice(&value[..data.len()]);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.written.push((port, little_endian(data) as u32));
    }

    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        let value = addr.wrapping_mul(3).to_le_bytes();
        data.copy_from_slice(&value[..data.len()]);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.mmio.push((addr, little_endian(data)));
    }

    fn interrupt_pending(&mut self) -> bool {
        !self.vectors.is_empty()
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.vectors.pop()
    }

    fn msr_read(&mut self, _: u32) -> Option<u64> {
        None
    }

    fn msr_write(&mut self, _: u32, _: u64) -> Option<()> {
        None
    }

    fn set_task_priority(&mut self, cr8: u64) {
        self.tpr = cr8;
    }

    fn task_priority(&mut self) -> u64 {
        self.tpr
    }
}

/// A machine of 16 MiB.
pub struct Guest {
    pub ram: Arc<GuestRam>,
    pub vcpu: Vcpu,
    pub devices: Devices,
    pub state: VcpuState,
}

pub const CODE: u64 = 0x10_0000;
pub const STACK: u64 = 0x20_0000;
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const PML4: u64 = 0x4000;
/// Every exception's handler is one HLT here, 16 bytes apart.
pub const HANDLERS: u64 = 0x8000;
pub const KERNEL_CS: u16 = 0x08;
pub const KERNEL_SS: u16 = 0x10;
pub const USER_SS: u16 = 0x2b;
pub const USER_CS: u16 = 0x33;
pub const TASK: u16 = 0x40;

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const RING3: u64 = 3 << 45;

impl Guest {
    /// Real mode at 0:CODE_16, all segments at 0, SP 7C00.
    pub fn real() -> Guest {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("memory");
        let ram = Arc::new(ram);
        let vcpu = Vcpu::new(Arc::clone(&ram)).expect("a CPU");
        let mut state = VcpuState::default();
        *state.segment_mut(SegmentRegister::Cs) = Segment::real_mode(0);
        state.rip = 0x7c00;
        state.gpr[4] = 0x7000;
        Guest {
            ram,
            vcpu,
            devices: Devices::default(),
            state,
        }
    }

    /// Long mode, ring 0, the first 16 MiB mapped for all, a GDT, IDT and TSS.
    pub fn long() -> Guest {
        let mut guest = Guest::real();
        guest.write(PML4, &[(PML4 + 0x1000) | 7]);
        guest.write(PML4 + 0x1000, &[(PML4 + 0x2000) | 7]);
        for page in 0..8 {
            guest.write(PML4 + 0x2000 + page * 8, &[page << 21 | 0x87]);
        }
        let tss = 0x0000_8900_0000_0067 | TSS << 16;
        guest.write(
            GDT,
            &[
                0,
                CODE64,
                DATA,
                CODE32,
                CODE32 | RING3,
                DATA | RING3,
                CODE64 | RING3,
                0,
                tss,
                0,
            ],
        );
        for vector in 0..256 {
            let handler = HANDLERS + vector * 16;
            let gate =
                handler & 0xffff | u64::from(KERNEL_CS) << 16 | 0xee00 << 32 | handler >> 16 << 48;
            guest.write(IDT + vector * 16, &[gate, 0]);
            guest.bytes(handler, &[0xf4]);
        }
        // RSP0, and the first of the interrupt stack table.
        guest.bytes(TSS + 4, &(STACK + 0x8000).to_le_bytes());
        guest.bytes(TSS + 0x24, &(STACK + 0x9000).to_le_bytes());
        let state = &mut guest.state;
        state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET | cr0::AM | cr0::MP;
        state.cr3 = PML4;
        state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE;
        state.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        state.gdtr = TableRegister {
            base: GDT,
            limit: 0x4f,
        };
        state.idtr = TableRegister {
            base: IDT,
            limit: 0xfff,
        };
        let flat = |selector: u16, attributes: u16| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            attributes,
            unusable: false,
        };
        state.segments = [flat(KERNEL_SS, 0xc093); 6];
        *state.segment_mut(SegmentRegister::Cs) = flat(KERNEL_CS, 0xa09b);
        state.tr = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            attributes: 0x8b,
            unusable: false,
        };
        state.rip = CODE;
        state.gpr[4] = STACK;
        guest
    }

    /// As [`Guest::long`], in ring 3.
    pub fn user() -> Guest {
        let mut guest = Guest::long();
        let cs = guest.state.segment_mut(SegmentRegister::Cs);
        cs.selector = USER_CS;
        cs.attributes = 0xa0fb;
        let ss = guest.state.segment_mut(SegmentRegister::Ss);
        ss.selector = USER_SS;
        ss.attributes = 0xc0f3;
        guest
    }

    pub fn bytes(&mut self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).expect("RAM");
    }

    pub fn write(&mut self, at: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.bytes(at + index as u64 * 8, &word.to_le_bytes());
        }
    }

    pub fn word(&self, at: u64) -> u64 {
        self.ram.read_obj(GuestAddress(at)).expect("RAM")
    }

    /// Places code at the state's RIP.
    pub fn code(
        &mut self,
        bits: u32,
        build: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let mut assembler = CodeAssembler::new(bits).expect("a width");
        build(&mut assembler).expect("valid code");
        let bytes = assembler.assemble(self.state.rip).expect("valid code");
        let rip = self.state.rip;
        self.bytes(rip, &bytes);
    }

    /// Runs to the next exit, at most a million instructions.
    pub fn run(&mut self) -> VcpuExit {
        self.vcpu.set_state(&self.state).expect("a state");
        self.go_on()
    }

    pub fn go_on(&mut self) -> VcpuExit {
        self.vcpu.set_limit(Some(1_000_000));
        let exit = self.vcpu.run(&mut self.devices).expect("no refusal");
        self.state = self.vcpu.state().expect("a state");
        if exit == VcpuExit::Shutdown {
            let raised = self.vcpu.stats().exceptions;
            let raised: Vec<_> = (0..256).filter(|&v| raised[v] > 0).collect();
            println!("raised {raised:?}, {:#x?}", self.state);
        }
        exit
    }

    /// Runs to the handler of an exception; which one, and the topmost stack values.
    pub fn run_to_handler(&mut self) -> (u64, [u64; 6]) {
        let exit = self.run();
        assert_eq!(exit, VcpuExit::HaltedForever, "at {:#x}", self.state.rip);
        let vector = (self.state.rip - HANDLERS) / 16;
        assert!(vector < 256, "halted at {:#x}", self.state.rip);
        let rsp = self.state.gpr[4];
        (
            vector,
            std::array::from_fn(|i| self.word(rsp + i as u64 * 8)),
        )
    }
}

/// 32-bit protected mode without paging, ring 0, all exceptions to their HLT.
pub fn protected() -> Guest {
    let mut guest = Guest::long();
    for vector in 0..256 {
        let handler = HANDLERS + vector * 16;
        let gate = handler & 0xffff | 0x18 << 16 | 0xee00 << 32 | handler >> 16 << 48;
        guest.write(IDT + vector * 8, &[gate]);
    }
    let state = &mut guest.state;
    state.cr0 = cr0::PE | cr0::NE | cr0::ET | cr0::WP;
    state.cr3 = 0;
    state.cr4 = 0;
    state.efer = 0;
    state.idtr.limit = 0x7ff;
    let cs = state.segment_mut(SegmentRegister::Cs);
    cs.selector = 0x18;
    cs.attributes = 0xc09b;
    guest
}

impl Guest {
    /// As [`Guest::run_to_handler`], with a 32-bit frame.
    pub fn run_to_handler32(&mut self) -> (u64, [u32; 8]) {
        let exit = self.run();
        assert_eq!(exit, VcpuExit::HaltedForever, "at {:#x}", self.state.rip);
        let vector = (self.state.rip - HANDLERS) / 16;
        assert!(vector < 256, "halted at {:#x}", self.state.rip);
        let rsp = self.state.gpr[4];
        (
            vector,
            std::array::from_fn(|i| self.word(rsp + i as u64 * 4) as u32),
        )
    }
}
