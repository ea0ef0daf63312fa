//! The ways in which Temper executes an instruction, each compared with the bare CPU.

use std::arch::asm;

use iced_x86::{Instruction, OpKind, Register};
use temper::guest::GuestTrap;
use temper::native::{Addressing, StubCache, install_test_handler};

use crate::machine::{Case, Outcome, State, WRITABLE_BYTES, place, take_memory};

pub trait Executor {
    fn name(&self) -> &'static str;

    /// Executes the case's one instruction; `None` when it isn't this executor's business.
    fn run(&mut self, case: &Case) -> Option<Outcome>;

    /// Flags that the manual leaves undefined are compared too: the same CPU sets them.
    fn undefined_flags_match(&self) -> bool;
}

/// All executors, in the order in which they are reported.
pub fn all() -> Vec<Box<dyn Executor>> {
    vec![Box::new(Stubs::new())]
}

/// The one-instruction stubs.
struct Stubs {
    cache: StubCache,
}

impl Stubs {
    fn new() -> Stubs {
        install_test_handler();
        Stubs {
            cache: StubCache::new().expect("executable memory"),
        }
    }
}

impl Executor for Stubs {
    fn name(&self) -> &'static str {
        "stubs"
    }

    fn run(&mut self, case: &Case) -> Option<Outcome> {
        let id = self.cache.stub(&case.instruction).ok()?;
        let memory = match self.cache.memory_operand(id) {
            Some(operand) if operand.addressing == Addressing::Pointer => {
                effective_address(&case.instruction, &case.state)
            }
            _ => 0,
        };
        let mut state = case.state.clone();
        let (cpu, vector) = (&mut state.cpu, &mut state.vector);
        // SAFETY: the pages are this thread's while no batch runs; the operand lies there, or
        // where the bare CPU faults too.
        let result = unsafe {
            place(&case.bytes, &case.memory);
            let mut x87 = X87::of(&vector.area);
            x87.load();
            let result = self.cache.run(id, cpu, vector, memory as *mut u8);
            x87.save();
            vector.area[..24].copy_from_slice(&x87.0[..24]);
            vector.area[32..160].copy_from_slice(&x87.0[32..160]);
            result
        };
        Some(outcome(case, state, result))
    }

    fn undefined_flags_match(&self) -> bool {
        true
    }
}

fn outcome(case: &Case, mut state: State, result: Result<(), GuestTrap>) -> Outcome {
    if result.is_ok() {
        state.cpu.rip = case.instruction.next_ip();
    }
    let mut memory = Box::new([0; WRITABLE_BYTES]);
    // SAFETY: as in `run`.
    unsafe { take_memory(&mut memory) };
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
