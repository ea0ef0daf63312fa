//! One-instruction stubs: the instruction itself, between code that loads what it reads and
//! stores what it writes. For everything that the interpreter doesn't compute in Rust.
//!
//! A stub loads only the registers that the instruction names, guest flags only if it reads
//! them, and MXCSR only if it is floating point. x87 and MMX state isn't touched: it is the
//! guest's and lives in the CPU at all times. After a fault the guest state is as before the
//! instruction (an x87 or SIMD exception leaves its status flags, as the CPU does).
//!
//! Known differences from the bare CPU: the x87 instruction pointer (FIP) is the stub's, and
//! alignment checks (RFLAGS.AC) are off.

mod build;
mod enter;
mod plan;
mod special;
#[cfg(test)]
mod tests;

use std::io;

use hashbrown::HashMap;
use iced_x86::{Code, Encoder, Instruction, InstructionInfoFactory};

pub(super) use enter::landing_address;

use self::build::{Emitter, HostVectors};
use self::enter::enter;
use self::special::InRust;
use super::fault::{ARENA_BYTES, forget_arena, register_arena, trap_from_fault};
use crate::guest::{Access, CpuState, GuestTrap, VectorState};
use crate::host::{DualMap, DualMapCopy, Features};

/// Arenas of one cache. Nothing but registers and 8-bit immediates tells stubs apart, so
/// real programs stay far below one.
const MAX_ARENAS: usize = 16;

/// The host's MXCSR value lies at the start of each arena; stubs follow.
const FIRST_STUB: usize = 64;

/// No stub is longer: at most 8 vector registers with 3 parts, twice, and 15-byte instructions.
const MAX_STUB_BYTES: usize = 1024;

/// Names a stub of one [`StubCache`], for the cache's life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StubId(u32);

/// How a stub finds its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addressing {
    /// `run` gets a host pointer to the operand.
    Pointer,
    /// The stub addresses memory with the guest's own registers (gathers, scatters,
    /// MASKMOVDQU): only for identity mapped memory. `run`'s pointer is unused.
    AsWritten,
}

/// A stub's memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StubMemory {
    /// How much the instruction may touch; 0 for a hint that never faults (prefetches).
    /// With [`Addressing::AsWritten`]: one element.
    pub bytes: usize,
    pub access: Access,
    pub addressing: Addressing,
}

/// Why there is no stub for an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhyUnsupported {
    ControlTransfer,
    /// Ring 0, or segment, control and debug registers.
    Privileged,
    /// Changes the direction flag or another that Rust code depends on.
    ControlFlags,
    /// Uses the stack implicitly.
    Stack,
    /// String instructions, bit strings, LEA: the operand doesn't say where memory is touched.
    Addressing,
    /// AMX tiles, which the process must first ask the kernel for.
    TileState,
    /// The host has no XSAVE.
    NoXsave,
    NotEncodable,
    /// All arenas are full, or no further one can be mapped.
    Full,
}

/// An instruction that the stubs can't run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnsupportedInstruction {
    pub code: Code,
    pub why: WhyUnsupported,
}

impl std::fmt::Display for UnsupportedInstruction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no stub for {:?}: {:?}", self.code, self.why)
    }
}

impl std::error::Error for UnsupportedInstruction {}

#[derive(Clone, Copy, Debug)]
enum Body {
    Code(u64),
    /// As `Code`, with the whole vector state in the CPU.
    WholeState(u64),
    InRust(InRust),
}

#[derive(Clone, Copy, Debug)]
struct Stub {
    body: Body,
    memory: Option<StubMemory>,
}

/// An arena, announced to the signal handler while it exists.
#[derive(Debug)]
struct Arena {
    map: DualMap,
    used: usize,
}

impl Arena {
    fn new() -> io::Result<Arena> {
        let mut map = DualMap::new(ARENA_BYTES, None)?;
        map.write_at(0, &0x1f80u32.to_le_bytes());
        if !register_arena(map.exec_addr(0).0) {
            return Err(io::Error::other("too many stub arenas"));
        }
        Ok(Arena {
            map,
            used: FIRST_STUB,
        })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        forget_arena(self.map.exec_addr(0).0);
    }
}

/// Builds stubs and keeps them.
pub struct StubCache {
    ids: HashMap<Instruction, StubId>,
    stubs: Vec<Stub>,
    arenas: Vec<Arena>,
    encoder: Encoder,
    factory: InstructionInfoFactory,
    vectors: HostVectors,
    runs: u64,
}

impl std::fmt::Debug for StubCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StubCache")
            .field("stubs", &self.stubs.len())
            .field("arenas", &self.arenas.len())
            .finish_non_exhaustive()
    }
}

impl StubCache {
    /// An empty cache with its first arena.
    ///
    /// # Errors
    /// The kernel's, when executable memory can't be had.
    pub fn new() -> io::Result<StubCache> {
        Ok(StubCache {
            ids: HashMap::new(),
            stubs: Vec::new(),
            arenas: vec![Arena::new()?],
            encoder: Encoder::new(64),
            factory: InstructionInfoFactory::new(),
            vectors: HostVectors::detect(),
            runs: 0,
        })
    }

    /// The stub for `instruction`, built at its first use. Instructions that differ in
    /// nothing but how they address memory share one.
    pub fn stub(&mut self, instruction: &Instruction) -> Result<StubId, UnsupportedInstruction> {
        let (key, addressing) = plan::normalize(instruction);
        if let Some(&id) = self.ids.get(&key) {
            return Ok(id);
        }
        let stub = self.build(&key, addressing)?;
        let id = StubId(self.stubs.len() as u32);
        self.stubs.push(stub);
        self.ids.insert(key, id);
        Ok(id)
    }

    /// The memory operand that `run` must be given, if there is one.
    pub fn memory_operand(&self, id: StubId) -> Option<StubMemory> {
        self.stubs[id.0 as usize].memory
    }

    /// All stubs, for a forked child.
    ///
    /// # Errors
    /// The kernel's: no memory.
    pub fn copy(&self) -> io::Result<Vec<DualMapCopy>> {
        let arenas = self.arenas.iter();
        arenas
            .map(|arena| arena.map.copy(std::slice::from_ref(&(0..arena.used))))
            .collect()
    }

    /// From now on the stubs are in `copies`, which were made of this cache.
    ///
    /// # Errors
    /// The kernel's; the stubs may be gone then.
    pub fn show(&mut self, copies: Vec<DualMapCopy>) -> io::Result<()> {
        for (arena, copy) in self.arenas.iter_mut().zip(copies) {
            arena.map.show(copy)?;
        }
        Ok(())
    }

    /// How often stubs were run.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Executes the stub on the guest's state. RIP stays as it is.
    ///
    /// # Errors
    /// The instruction's fault, with registers and memory as before it.
    ///
    /// # Safety
    /// With [`Addressing::Pointer`], `memory` is the operand's address in the guest's memory
    /// (it may be unmapped) or a buffer of the operand's size. With [`Addressing::AsWritten`],
    /// guest memory is identity mapped. A signal handler resumes at [`super::fix_up`].
    pub unsafe fn run(
        &mut self,
        id: StubId,
        cpu: &mut CpuState,
        vector: &mut VectorState,
        memory: *mut u8,
    ) -> Result<(), GuestTrap> {
        self.runs += 1;
        vector.materialize();
        let code = match self.stubs[id.0 as usize].body {
            Body::Code(code) => code,
            Body::WholeState(code) => {
                special::mark_initial(vector);
                code
            }
            Body::InRust(action) => return action.run(cpu, vector),
        };
        let mut mxcsr = 0;
        // SAFETY: `code` is a complete stub in an arena of ours, never overwritten; by
        // contract, `memory` is what it needs.
        let landed = unsafe { enter(cpu, vector, memory, code, &mut mxcsr) };
        if landed.fault == 0 {
            return Ok(());
        }
        let trap = trap_from_fault(landed.fault, landed.addr);
        if trap == GuestTrap::SimdFloatingPoint {
            // The flags that name the exception; the stub had loaded the guest's MXCSR.
            vector.set_mxcsr(mxcsr);
        }
        Err(trap)
    }

    fn build(
        &mut self,
        key: &Instruction,
        addressing: Addressing,
    ) -> Result<Stub, UnsupportedInstruction> {
        let refuse = |why| UnsupportedInstruction {
            code: key.code(),
            why,
        };
        if let Some(action) = special::in_rust(key) {
            return Ok(Stub {
                body: Body::InRust(action),
                memory: None,
            });
        }
        if let Some(memory) = special::whole_state(key) {
            if !Features::get().xsave {
                return Err(refuse(WhyUnsupported::NoXsave));
            }
            let base = special::base_register(key);
            let mut instruction = *key;
            if memory.is_some() {
                instruction.set_memory_base(base);
            }
            let code = self.emit(key, |emitter| emitter.whole_state_stub(&instruction, base))?;
            return Ok(Stub {
                body: Body::WholeState(code),
                memory: memory.map(|(bytes, access)| StubMemory {
                    bytes,
                    access,
                    addressing: Addressing::Pointer,
                }),
            });
        }
        let plan = plan::plan(key, addressing, &mut self.factory)?;
        let code = self.emit(key, |emitter| emitter.stub(&plan))?;
        Ok(Stub {
            body: Body::Code(code),
            memory: plan.memory,
        })
    }

    /// Runs `emit` and installs what it emitted; its address.
    fn emit(
        &mut self,
        key: &Instruction,
        emit: impl FnOnce(&mut Emitter) -> Result<(), iced_x86::IcedError>,
    ) -> Result<u64, UnsupportedInstruction> {
        let refuse = |why| UnsupportedInstruction {
            code: key.code(),
            why,
        };
        let full = |a: &Arena| ARENA_BYTES - a.used < MAX_STUB_BYTES;
        if self.arenas.last().is_none_or(full) {
            if self.arenas.len() == MAX_ARENAS {
                return Err(refuse(WhyUnsupported::Full));
            }
            self.arenas
                .push(Arena::new().map_err(|_| refuse(WhyUnsupported::Full))?);
        }
        let arena = self.arenas.last_mut().expect("pushed if there was none");
        let start = arena.map.exec_addr(arena.used).0;
        let mut emitter = Emitter {
            encoder: &mut self.encoder,
            vectors: self.vectors,
            rip: start,
            host_mxcsr: arena.map.exec_addr(0).0,
        };
        let emitted = emit(&mut emitter);
        let mut bytes = self.encoder.take_buffer();
        let result = match emitted {
            Ok(()) if bytes.len() <= MAX_STUB_BYTES => {
                arena.map.write_at(arena.used, &bytes);
                arena.used = (arena.used + bytes.len()).next_multiple_of(16);
                Ok(start)
            }
            _ => Err(refuse(WhyUnsupported::NotEncodable)),
        };
        // The buffer's capacity serves the next stub.
        bytes.clear();
        self.encoder.set_buffer(bytes);
        result
    }
}
