//! The ways in which Temper executes an instruction, each compared with the bare CPU.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use temper::addr::GuestAddr;
use temper::decode::Decoder;
use temper::guest::{Access, CpuMode, GuestMemory, GuestTrap, Width};
use temper::interp::{self, Machine};
use temper::native::{Addressing, IdentityMemory, StubCache, install_test_handler};

use crate::machine::{Case, INSTRUCTION_AT, Outcome, State, WRITABLE_BYTES, place, take_memory};
use crate::software::SoftwareEngine;
use crate::tier1::TranslationBlocks;

pub trait Executor {
    fn name(&self) -> &'static str;

    /// Executes the case's one instruction, which the bare CPU ended as in `bare`. `None` when
    /// it isn't this executor's business.
    fn run(&mut self, case: &Case, bare: &Outcome) -> Option<Outcome>;

    /// Flags that the manual leaves undefined are compared too: the same CPU sets them.
    fn undefined_flags_match(&self) -> bool;
}

/// All executors, in the order in which they are reported. A further tier joins here; the
/// engine comes last, because its signal handlers replace the test's.
pub fn all() -> Vec<Box<dyn Executor>> {
    install_test_handler();
    vec![
        Box::new(Stubs::new()),
        Box::new(Interpreter::new("interpreter", IdentityMemory, false)),
        Box::new(Interpreter::new(
            "interpreter, bounced",
            Bounced(IdentityMemory),
            true,
        )),
        Box::new(SoftwareEngine::new()),
        Box::new(TranslationBlocks::new()),
    ]
}

/// The one-instruction stubs alone.
struct Stubs {
    cache: StubCache,
}

impl Stubs {
    fn new() -> Stubs {
        Stubs {
            cache: StubCache::new().expect("executable memory"),
        }
    }
}

impl Executor for Stubs {
    fn name(&self) -> &'static str {
        "stubs"
    }

    fn run(&mut self, case: &Case, _: &Outcome) -> Option<Outcome> {
        let id = self.cache.stub(&case.instruction).ok()?;
        let memory = match self.cache.memory_operand(id) {
            Some(operand) if operand.addressing == Addressing::Pointer => {
                effective_address(&case.instruction, &case.state)
            }
            _ => 0,
        };
        Some(execute(case, |state| {
            let (cpu, vector) = (&mut state.cpu, &mut state.vector);
            // SAFETY: the operand lies in the test's pages, or where the bare CPU faults too.
            let result = unsafe { self.cache.run(id, cpu, vector, memory as *mut u8) };
            if result.is_ok() {
                cpu.rip = case.instruction.next_ip();
            }
            result
        }))
    }

    fn undefined_flags_match(&self) -> bool {
        true
    }
}

/// Tier 0, one instruction at a time.
struct Interpreter<M> {
    name: &'static str,
    cache: StubCache,
    memory: M,
    /// The memory grants no pointers.
    bounced: bool,
    decoder: Decoder,
}

impl<M> Interpreter<M> {
    fn new(name: &'static str, memory: M, bounced: bool) -> Interpreter<M> {
        Interpreter {
            name,
            cache: StubCache::new().expect("executable memory"),
            memory,
            bounced,
            decoder: Decoder::new(CpuMode::Bits64),
        }
    }
}

impl<M: GuestMemory> Executor for Interpreter<M> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, case: &Case, bare: &Outcome) -> Option<Outcome> {
        if self.bounced && faults_in_part(&case.instruction, bare) {
            return None;
        }
        let outcome = execute(case, |state| {
            let mut machine = Machine::new(
                &mut state.cpu,
                &mut state.vector,
                &mut self.memory,
                &mut self.cache,
            );
            interp::step_one(&mut machine, &self.decoder, GuestAddr(INSTRUCTION_AT))
        });
        (outcome.trap != Some(GuestTrap::Unsupported)).then_some(outcome)
    }

    fn undefined_flags_match(&self) -> bool {
        false
    }
}

/// Copying an operand before or after the instruction faults in other ways than the
/// instruction itself, above all where it touches the operand only in part.
fn faults_in_part(instruction: &Instruction, bare: &Outcome) -> bool {
    bare.trap.is_some()
        || instruction.has_op_mask()
        || instruction.is_save_restore_instruction()
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Vmaskmovps
                | Mnemonic::Vmaskmovpd
                | Mnemonic::Vpmaskmovd
                | Mnemonic::Vpmaskmovq
        )
}

/// Memory that grants no pointers, as behind an MMU: stubs work on copies of their operands.
struct Bounced(IdentityMemory);

impl GuestMemory for Bounced {
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        self.0.load(addr, width)
    }

    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        self.0.store(addr, width, value)
    }

    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap> {
        self.0.compare_exchange(addr, width, expected, new)
    }

    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap> {
        self.0.compare_exchange_16(addr, expected, new)
    }

    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        self.0.read_bytes(addr, buffer)
    }

    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        self.0.write_bytes(addr, bytes)
    }

    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        self.0.fetch(addr, buffer)
    }

    fn direct(&mut self, _: GuestAddr, _: usize, _: Access) -> Option<*mut u8> {
        None
    }
}

/// Runs `step` on the case's state, pages and x87 registers.
pub fn execute(case: &Case, step: impl FnOnce(&mut State) -> Result<(), GuestTrap>) -> Outcome {
    let mut state = case.state.clone();
    let mut memory = Box::new([0; WRITABLE_BYTES]);
    let mut x87 = X87::of(&state.vector.area);
    // SAFETY: the pages are this thread's while no batch runs; no code of the test's uses x87.
    let result = unsafe {
        place(&case.bytes, &case.memory);
        x87.load();
        let result = step(&mut state);
        x87.save();
        take_memory(&mut memory);
        result
    };
    let area = &mut state.vector.area;
    area[..24].copy_from_slice(&x87.0[..24]);
    area[32..160].copy_from_slice(&x87.0[32..160]);
    Outcome {
        state,
        memory,
        trap: result.err(),
    }
}

pub fn effective_address(instruction: &Instruction, state: &State) -> u64 {
    let operand = (0..instruction.op_count())
        .find(|&i| instruction.op_kind(i) == OpKind::Memory)
        .expect("a stub with a memory operand");
    instruction
        .virtual_address(operand, 0, |register, _, _| {
            Some(match register {
                Register::FS => state.cpu.fs_base,
                Register::GS => state.cpu.gs_base,
                r if r.is_segment_register() => 0,
                r => {
                    let full = state.cpu.gpr[r.full_register().number()];
                    match r.size() {
                        1 => full & 0xff,
                        4 => full & 0xffff_ffff,
                        _ => full,
                    }
                }
            })
        })
        .expect("every register has a value")
}

/// x87 state on its way into the CPU and back, as an XSAVE area with that component alone.
#[repr(align(64))]
pub struct X87([u8; 1024]);

impl X87 {
    pub fn of(area: &[u8]) -> X87 {
        let mut x87 = X87([0; 1024]);
        x87.0[..24].copy_from_slice(&area[..24]);
        x87.0[32..160].copy_from_slice(&area[32..160]);
        x87.0[512] = 1;
        x87
    }

    /// # Safety
    /// Until [`X87::save`], nothing else on this thread uses x87.
    pub unsafe fn load(&mut self) {
        // SAFETY: a valid area; only the x87 component is asked for.
        unsafe { asm!("xrstor [{}]", in(reg) self.0.as_ptr(), in("eax") 1, in("edx") 0) };
    }

    /// # Safety
    /// After [`X87::load`].
    pub unsafe fn save(&mut self) {
        // SAFETY: as above; leaves x87 as the ABI wants it.
        unsafe {
            asm!("xsave [{}]", "fninit", in(reg) self.0.as_mut_ptr(), in("eax") 1, in("edx") 0);
        }
    }
}
