//! Predecoded blocks and how they run.

use crate::addr::GuestAddr;
use crate::decode::{Block, BlockEnd, Decoder};
use crate::guest::{CpuState, GuestMemory, GuestTrap, flags};
use crate::native::StubCache;

use super::alignment::AlignmentChecked;
use super::machine::{Machine, through_stack_segment};
use super::op::Op;
use super::predecode::predecode;

/// A block ready to run. Stub numbers in it belong to the [`StubCache`] it was made with.
pub struct PredecodedBlock<M: GuestMemory> {
    ops: Vec<Op<M>>,
    start: GuestAddr,
    end: BlockEnd,
    /// Where the guest goes on unless the last instruction says otherwise.
    next: GuestAddr,
}

impl<M: GuestMemory> Default for PredecodedBlock<M> {
    fn default() -> Self {
        let nowhere = GuestAddr(0);
        PredecodedBlock {
            ops: Vec::new(),
            start: nowhere,
            end: BlockEnd::Next { at: nowhere },
            next: nowhere,
        }
    }
}

impl<M: GuestMemory> PredecodedBlock<M> {
    /// Predecodes `block`. Instructions that can't be executed trap when they are reached.
    pub fn new(block: &Block, stubs: &mut StubCache) -> PredecodedBlock<M> {
        let mut predecoded = PredecodedBlock::default();
        predecoded.ops.reserve_exact(block.instructions.len());
        predecoded.refill(block, stubs);
        predecoded
    }

    /// Becomes `block`, in the same memory.
    pub fn refill(&mut self, block: &Block, stubs: &mut StubCache) {
        self.ops.clear();
        for instruction in &block.instructions {
            self.ops.push(predecode(instruction, block.stack, stubs));
        }
        self.start = block.start;
        self.end = block.end;
        self.next = match block.end {
            BlockEnd::Branch { next, .. } => next,
            BlockEnd::Syscall { at, .. }
            | BlockEnd::InterpretOne { at, .. }
            | BlockEnd::Next { at } => at,
            // Always written by the last instruction.
            BlockEnd::Jump { target } | BlockEnd::Call { target, .. } => target,
            BlockEnd::IndirectJump | BlockEnd::IndirectCall { .. } | BlockEnd::Return { .. } => {
                block.start
            }
        };
    }

    /// The address of the block's first instruction.
    pub fn start(&self) -> GuestAddr {
        self.start
    }

    /// How control leaves the block.
    pub fn end(&self) -> BlockEnd {
        self.end
    }

    /// Instructions in the block, without a SYSCALL or InterpretOne at its end.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// How many instructions lie before the one at `rip`; all of them if it isn't among them.
    pub fn position(&self, rip: u64) -> usize {
        let at = self.ops.iter().position(|op| op.ip == rip);
        at.unwrap_or(self.ops.len())
    }

    /// Whether the block consists of its end alone.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of heap memory that the block holds.
    pub fn heap_bytes(&self) -> usize {
        size_of_val(&*self.ops)
    }

    /// Runs the block from its top and leaves `cpu.rip` where the guest goes on: with a
    /// SYSCALL or InterpretOne end at that instruction, which is the caller's to execute. An
    /// instruction that sets RFLAGS.TF or AC ends the run behind itself, a repeated one that
    /// is interrupted at itself; with TF set, one
    /// instruction runs and the result is `Err(Debug)`.
    ///
    /// # Errors
    /// The trap of an instruction; `cpu.rip` is at it, for `Debug` behind it.
    #[inline]
    pub fn run(&self, machine: &mut Machine<'_, M>) -> Result<(), GuestTrap> {
        machine.cpu.rip = self.next.0;
        if machine.cpu.rflags & flags::TF != 0 {
            return self.run_first(machine);
        }
        for op in &self.ops {
            if (op.run)(op, machine).is_err() {
                return stopped(op, machine);
            }
        }
        Ok(())
    }

    /// As [`run`](Self::run), and calls `before` before each instruction, with its address.
    ///
    /// # Errors
    /// As `run`.
    pub fn run_watched(
        &self,
        machine: &mut Machine<'_, M>,
        mut before: impl FnMut(u64, &CpuState, &mut M),
    ) -> Result<(), GuestTrap> {
        machine.cpu.rip = self.next.0;
        if machine.cpu.rflags & flags::TF != 0 {
            return self.run_first(machine);
        }
        for op in &self.ops {
            before(op.ip, machine.cpu, machine.memory);
            if (op.run)(op, machine).is_err() {
                return stopped(op, machine);
            }
        }
        Ok(())
    }

    #[cold]
    fn run_first(&self, machine: &mut Machine<'_, M>) -> Result<(), GuestTrap> {
        match self.ops.first() {
            None => Ok(()),
            Some(op) => {
                if self.ops.len() > 1 {
                    machine.cpu.rip = op.next_ip();
                }
                run_alone(op, machine)
            }
        }
    }
}

/// Decodes and executes the one instruction at `at`, of any kind but SYSCALL (which is the
/// caller's; `Unsupported`). For what the block decoder leaves out
/// ([`BlockEnd::InterpretOne`]), for single steps, and under RFLAGS.AC, which nothing else
/// here enforces. Leaves `cpu.rip` where the guest goes on.
///
/// # Errors
/// As [`PredecodedBlock::run`]; or the trap of fetching or decoding the instruction.
pub fn step_one<M: GuestMemory>(
    machine: &mut Machine<'_, M>,
    decoder: &Decoder,
    at: GuestAddr,
) -> Result<(), GuestTrap> {
    machine.cpu.rip = at.0;
    let instruction = decoder.instruction(machine.memory, at)?;
    if machine.cpu.rflags & flags::AC != 0 {
        let mut memory = AlignmentChecked(&mut *machine.memory);
        let (cpu, vector) = (&mut *machine.cpu, &mut *machine.vector);
        let mut machine = Machine::new(cpu, vector, &mut memory, machine.stubs);
        let op = predecode(&instruction, decoder.stack, machine.stubs);
        machine.cpu.rip = op.next_ip();
        return run_alone(&op, &mut machine);
    }
    let op = predecode(&instruction, decoder.stack, machine.stubs);
    machine.cpu.rip = op.next_ip();
    run_alone(&op, machine)
}

/// Runs one instruction, with the single-step trap behind it if TF was set before it.
fn run_alone<M: GuestMemory>(op: &Op<M>, machine: &mut Machine<'_, M>) -> Result<(), GuestTrap> {
    let stepping = machine.cpu.rflags & flags::TF != 0;
    if (op.run)(op, machine).is_err() {
        stopped(op, machine)?;
    }
    if stepping {
        return Err(GuestTrap::Debug);
    }
    Ok(())
}

/// Why a handler stopped the block, with RIP set to match.
#[cold]
#[inline(never)]
fn stopped<M: GuestMemory>(op: &Op<M>, machine: &mut Machine<'_, M>) -> Result<(), GuestTrap> {
    let Some(trap) = machine.trap.take() else {
        // Nothing wrong: what comes next must be looked at first.
        machine.cpu.rip = if machine.unfinished {
            op.ip
        } else {
            op.next_ip()
        };
        return Ok(());
    };
    machine.cpu.rip = match trap {
        GuestTrap::Debug => op.next_ip(),
        _ => op.ip,
    };
    // A stub's trap is the CPU's own already.
    Err(if op.stub.is_none() && op.is_in_stack_segment() {
        through_stack_segment(trap)
    } else {
        trap
    })
}
