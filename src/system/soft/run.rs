//! The loop: interrupts at boundaries, blocks one after another, and what ends them.

use std::sync::atomic::Ordering;

use super::super::vcpu::{VcpuError, VcpuExit};
use super::blocks::{Key, KnownBlock, Left, Link, Mode};
use super::control::DR6_BS;
use super::exceptions::{Event, Exception, Fault, Outcome, Source};
use super::registers::{cr0, rflags, vector};
use super::{Attention, Vcpu};
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::decode::{BlockEnd, Decoder, MAX_BLOCK_INSTRUCTIONS, MachineCode};
use crate::guest::flags;
use crate::interp::{Machine, PredecodedBlock, step_one};
use crate::profile::Outcome as Way;
use iced_x86::{Instruction, Mnemonic};

/// Instructions between two looks at the interrupt lines without a call (some 50 us): a
/// thread that should call may be starved by this very loop.
const POLL_EVERY: u64 = 4096;

impl Vcpu {
    /// Makes the next boundary look for interrupts.
    pub(super) fn look(&self) {
        self.attention.raise(Attention::LOOK);
    }

    /// Follows a change of anything that blocks depend on.
    pub(super) fn follow_mode(&mut self) {
        self.mmu.select(self.cpu.rflags);
        self.mode = Mode {
            code: self.mmu.code_mode(),
            stack: self.mmu.stack_mode(),
            units: self.units(),
            user: self.mmu.cpl == 3,
        };
        let checked =
            self.mode.user && self.mmu.sys.cr0 & cr0::AM != 0 && self.cpu.rflags & flags::AC != 0;
        let stepping = self.cpu.rflags & flags::TF != 0;
        let debugged = self.debug.step || !self.debug.breakpoints.is_empty();
        self.careful = checked || stepping || debugged || self.mmu.sys.dr7 & 0xff != 0;
    }

    pub(super) fn run_loop(&mut self) -> Result<VcpuExit, VcpuError> {
        self.follow_mode();
        loop {
            if self.mmu.physical.executed >= self.poll_at {
                self.poll_at = self.mmu.physical.executed.saturating_add(POLL_EVERY);
                self.pause_at = self.near_stop.min(self.poll_at);
                self.look();
            }
            if self.attention.any() || self.mmu.physical.executed >= self.stop_at || self.halted {
                if let Some(exit) = self.boundary()? {
                    return Ok(exit);
                }
                if self.shadow && self.attention.any() {
                    // One instruction, and the interrupt.
                    if let Some(exit) = self.step()? {
                        return Ok(exit);
                    }
                    continue;
                }
            }
            if self.careful || self.mmu.physical.executed >= self.near_stop {
                let resuming = std::mem::take(&mut self.debug.resuming);
                if !resuming && self.at_debuggers_breakpoint() {
                    return Ok(VcpuExit::Debug);
                }
                if let Some(exit) = self.step()? {
                    return Ok(exit);
                }
                if self.debug.step {
                    return Ok(VcpuExit::Debug);
                }
                continue;
            }
            if let Err(fault) = self.run_blocks()
                && let Some(exit) = self.take(fault)?
            {
                return Ok(exit);
            }
        }
    }

    fn at_debuggers_breakpoint(&self) -> bool {
        let wanted = &self.debug.breakpoints;
        let linear = self.mmu.code_linear(self.cpu.rip);
        linear.is_ok_and(|linear| wanted.contains(&linear))
    }

    /// Turns a fault into the first instruction of its handler.
    fn take(&mut self, fault: Fault) -> Result<Option<VcpuExit>, VcpuError> {
        let exit = match fault {
            Fault::Exception(exception) => self.raise(exception)?,
            Fault::CodeChanges { physical, len } => {
                self.forget_changing(physical, len);
                // Once without a block, which might hold the changed bytes itself.
                self.step()?
            }
            Fault::Exit(VcpuExit::EmulationFailure { len: 0, .. }) => Some(self.failure()),
            Fault::Exit(exit) => Some(exit),
            Fault::Refused(what) => return Err(VcpuError::Unsupported(what)),
        };
        self.follow_mode();
        Ok(exit)
    }

    /// The exit for an instruction that the interpreter can't execute.
    fn failure(&mut self) -> VcpuExit {
        use crate::guest::GuestMemory;
        let mut bytes = [0; 15];
        let at = GuestAddr(self.cpu.rip);
        let len = self.mmu.fetch(at, &mut bytes).unwrap_or(0);
        let mut decoder = iced_x86::Decoder::with_ip(
            self.mode.code.bits(),
            &bytes[..len],
            self.cpu.rip,
            iced_x86::DecoderOptions::NONE,
        );
        let len = decoder.decode().len() as u8;
        VcpuExit::EmulationFailure { bytes, len }
    }

    /// Between two instructions: kicks, devices' changes to code, NMIs, interrupts.
    fn boundary(&mut self) -> Result<Option<VcpuExit>, VcpuError> {
        let bits = self.attention.take();
        for page in self.mmu.physical.take_changed_code() {
            self.forget_code(page, PAGE_SIZE);
        }
        if bits & Attention::KICK != 0 {
            self.look();
            return Ok(Some(VcpuExit::Interrupted));
        }
        if self.mmu.physical.executed >= self.stop_at {
            self.look();
            return Ok(Some(VcpuExit::LimitReached));
        }
        if self.shadow {
            self.look();
            return Ok(None);
        }
        let event = |vector| Event {
            vector,
            code: None,
            source: Source::Hardware,
            return_to: self.cpu.rip,
        };
        if self.nmi_pending && !self.nmi_blocked {
            let event = event(vector::NMI);
            self.nmi_pending = false;
            self.nmi_blocked = true;
            let exit = self.enter_handler(event)?;
            self.follow_mode();
            return Ok(exit);
        }
        if self.cpu.rflags & flags::IF != 0 && self.mmu.physical.bus().interrupt_pending() {
            if let Some(vector) = self.mmu.physical.bus().acknowledge_interrupt() {
                let event = event(vector);
                self.stats.interrupts += 1;
                let exit = self.enter_handler(event)?;
                self.follow_mode();
                // Another may await behind it.
                self.look();
                return Ok(exit);
            }
        }
        if self.halted {
            let exit = if self.cpu.rflags & flags::IF != 0 {
                VcpuExit::Halted
            } else {
                VcpuExit::HaltedForever
            };
            return Ok(Some(exit));
        }
        Ok(None)
    }

    /// Runs blocks until something must be looked at.
    fn run_blocks(&mut self) -> Outcome {
        let mut number = self.block_here()?;
        loop {
            self.shadow = false;
            let block = self.blocks.at(number);
            let len = block.ops.len() as u64;
            self.mmu.physical.executed += len;
            self.stats.blocks += 1;
            if let (Some(profile), Some(id)) = (&mut self.profile, block.id) {
                profile.enter(id);
            }
            let mut machine = Machine::new(
                &mut self.cpu,
                &mut self.vector,
                &mut self.mmu,
                &mut self.stubs,
            );
            if let Err(trap) = block.ops.run(&mut machine) {
                let done = block.ops.position(self.cpu.rip) as u64;
                self.mmu.physical.executed -= len - done;
                return Err(trap.into());
            }
            match &block.left {
                Left::Nothing => {}
                Left::Instruction(instruction) => {
                    let instruction = *instruction;
                    self.mmu.physical.executed += 1;
                    return self.execute(&instruction);
                }
                Left::Disabled(instruction) => {
                    let instruction = *instruction;
                    return self.run_disabled(&instruction);
                }
                Left::Invalid => return Err(super::exceptions::invalid_opcode()),
            }
            if self.attention.any() || self.mmu.physical.executed >= self.pause_at {
                return Ok(());
            }
            let rip = self.cpu.rip;
            let epoch = self.mmu.epoch;
            let linked = |link: &&Link| link.rip == rip && link.epoch == epoch;
            let from = number;
            number = match block.links.iter().find(linked) {
                Some(link) => link.to,
                None => {
                    let to = self.block_here()?;
                    self.link(from, rip, to);
                    to
                }
            };
            if self.profile.is_some() {
                self.count_edge(from, number);
            }
        }
    }

    /// Counts how control went from one block to another.
    fn count_edge(&mut self, from: u32, to: u32) {
        let target = self.blocks.at(to).key.physical;
        let rip = self.cpu.rip;
        let block = self.blocks.at(from);
        let (Some(profile), Some(id)) = (&mut self.profile, block.id) else {
            return;
        };
        match block.ops.end() {
            BlockEnd::Branch { taken, .. } => {
                let way = if rip == taken.0 {
                    Way::Taken
                } else {
                    Way::Next
                };
                profile.edge(id, way);
            }
            BlockEnd::IndirectJump | BlockEnd::IndirectCall { .. } | BlockEnd::Return { .. } => {
                profile.indirect(id, GuestAddr(target));
            }
            BlockEnd::Jump { .. }
            | BlockEnd::Call { .. }
            | BlockEnd::Syscall { .. }
            | BlockEnd::InterpretOne { .. }
            | BlockEnd::Next { .. } => {}
        }
    }

    /// Remembers that block `from` goes on at `rip`, in block `to`.
    fn link(&mut self, from: u32, rip: u64, to: u32) {
        let epoch = self.mmu.epoch;
        let block = self.blocks.at(from);
        let stale = block.links.iter().position(|link| link.epoch != epoch);
        let place = stale.unwrap_or_else(|| {
            block.oldest ^= 1;
            usize::from(block.oldest)
        });
        block.links[place] = Link { rip, epoch, to };
    }

    /// The block at RIP, decoded if it isn't known.
    fn block_here(&mut self) -> Outcome<u32> {
        let rip = self.cpu.rip;
        if let Some(number) = self.blocks.recent(rip, self.mmu.epoch, self.mode) {
            return Ok(number);
        }
        let linear = self.mmu.code_linear(rip)?;
        let physical = self.mmu.code_physical(linear)?;
        let key = Key {
            physical,
            rip,
            mode: self.mode,
        };
        if let Some(number) = self.blocks.find(&key) {
            let second = self.blocks.at(number).second;
            let still = match second {
                None => true,
                Some(page) => {
                    let next = (linear | (PAGE_SIZE - 1)).wrapping_add(1);
                    self.mmu.code_physical(next)? == page
                }
            };
            if still {
                self.blocks.remember(rip, self.mmu.epoch, self.mode, number);
                return Ok(number);
            }
            self.forget_block(number);
        }
        let number = self.decode(key, linear)?;
        self.blocks.remember(rip, self.mmu.epoch, self.mode, number);
        Ok(number)
    }

    /// How code is decoded here and now.
    fn decoder(&self) -> Decoder {
        let base = match self.mode.code {
            crate::guest::CpuMode::Bits64 => 0,
            _ => self.mmu.segment(super::super::SegmentRegister::Cs).base,
        };
        Decoder {
            stack: self.mode.stack,
            machine: Some(MachineCode {
                units: self.mode.units,
                code_base: base,
            }),
            ..Decoder::new(self.mode.code)
        }
    }

    fn decode(&mut self, key: Key, linear: u64) -> Outcome<u32> {
        if self.blocks.is_full() {
            self.forget_all_blocks();
        }
        let decoder = self.decoder();
        let start = GuestAddr(key.rip);
        let mut block = std::mem::take(&mut self.scratch);
        let decoded = decoder.block_into(&mut self.mmu, start, MAX_BLOCK_INSTRUCTIONS, &mut block);
        if let Err(trap) = decoded {
            self.scratch = block;
            return Err(trap.into());
        }
        let ops = PredecodedBlock::new(&block, &mut self.stubs);
        let left = Left::new(block.end, block.left);
        let id = self.profile.as_mut().map(|profile| {
            // Counted by physical address: virtual ones mean something else in each process.
            let by = key.physical.wrapping_sub(key.rip) as i64;
            block.start = block.start.offset(by);
            block.end = block.end.moved(by);
            profile.block_id(&block)
        });
        let within = key.physical % PAGE_SIZE;
        let end = within + u64::from(block.len.max(1));
        self.scratch = block;
        let second = if end > PAGE_SIZE {
            let next = (linear | (PAGE_SIZE - 1)).wrapping_add(1);
            self.mmu.code_physical(next).ok()
        } else {
            None
        };
        self.stats.decoded += 1;
        let number = self
            .blocks
            .insert(KnownBlock::new(key, second, ops, left, id));
        let page = key.physical - within;
        if self.mmu.code.add(page, number, within, end.min(PAGE_SIZE)) {
            self.mmu.watch_code(page);
        }
        if let Some(second) = second
            && self.mmu.code.add(second, number, 0, end - PAGE_SIZE)
        {
            self.mmu.watch_code(second);
        }
        Ok(number)
    }

    /// Forgets the blocks made from `len` bytes at `physical`, which lie in one page.
    pub(super) fn forget_code(&mut self, physical: u64, len: u64) {
        for number in self.mmu.code.blocks(physical, len) {
            self.forget_block(number);
        }
    }

    /// Forgets the code that a store is about to change. What lies elsewhere than the store
    /// itself is taken to be a page that is used for something else now, and goes whole.
    fn forget_changing(&mut self, physical: u64, len: u64) {
        let linear = self.mmu.code_linear(self.cpu.rip);
        let here = linear.and_then(|linear| self.mmu.code_physical(linear));
        let page = physical & !(PAGE_SIZE - 1);
        if here.is_ok_and(|here| here & !(PAGE_SIZE - 1) == page) {
            self.forget_code(physical, len);
        } else {
            self.forget_code(page, PAGE_SIZE);
        }
    }

    fn forget_block(&mut self, number: u32) {
        self.mmu.epoch += 1;
        self.stats.forgotten += 1;
        let Some(block) = self.blocks.remove(number) else {
            return;
        };
        let page = block.key.physical & !(PAGE_SIZE - 1);
        for page in std::iter::once(page).chain(block.second) {
            if self.mmu.code.remove(page, number) {
                self.mmu.unwatch_code(page);
            }
        }
    }

    pub(super) fn forget_all_blocks(&mut self) {
        self.mmu.epoch += 1;
        self.blocks.clear();
        for page in self.mmu.code.clear() {
            self.mmu.unwatch_code(page);
        }
    }

    /// An instruction of a disabled unit; WAIT has rules of its own.
    fn run_disabled(&mut self, instruction: &Instruction) -> Outcome {
        if instruction.mnemonic() == Mnemonic::Wait && self.wait_is_allowed() {
            self.mmu.physical.executed += 1;
            return self.run_plainly(instruction);
        }
        Err(self.disabled_unit(instruction))
    }

    /// Executes an instruction that needs nothing of the engine's, by itself.
    pub(super) fn run_plainly(&mut self, instruction: &Instruction) -> Outcome {
        let decoder = Decoder {
            machine: None,
            ..self.decoder()
        };
        let at = GuestAddr(instruction.ip());
        let mut block = crate::decode::Block::default();
        decoder.block_into(&mut self.mmu, at, 1, &mut block)?;
        let ops = PredecodedBlock::new(&block, &mut self.stubs);
        let mut machine = Machine::new(
            &mut self.cpu,
            &mut self.vector,
            &mut self.mmu,
            &mut self.stubs,
        );
        // The caller reports a single step.
        let stepping = machine.cpu.rflags & flags::TF;
        machine.cpu.rflags &= !flags::TF;
        let result = ops.run(&mut machine);
        self.cpu.rflags |= stepping;
        Ok(result?)
    }

    /// Executes exactly one instruction, with breakpoints, single-step traps and alignment
    /// checks.
    fn step(&mut self) -> Result<Option<VcpuExit>, VcpuError> {
        self.follow_mode();
        let stepping = self.cpu.rflags & flags::TF != 0;
        let resuming = self.cpu.rflags & rflags::RF != 0;
        self.shadow = false;
        self.mmu.hits = 0;
        if let Some(hits) = self.breakpoint_here().filter(|_| !resuming) {
            self.mmu.sys.dr6 |= hits;
            let exit = self.raise(Exception::plain(vector::DEBUG))?;
            self.follow_mode();
            return Ok(exit);
        }
        self.cpu.rflags &= !rflags::RF;
        let result = loop {
            match self.step_instruction() {
                // The same instruction goes through once no block is left of what it changes.
                Err(Fault::CodeChanges { physical, len }) => self.forget_code(physical, len),
                other => break other,
            }
        };
        if let Err(fault) = result {
            return self.take(fault);
        }
        self.follow_mode();
        let still_stepping = stepping && self.cpu.rflags & flags::TF != 0;
        let hits = std::mem::take(&mut self.mmu.hits);
        if still_stepping || hits != 0 {
            self.mmu.sys.dr6 |= hits | if still_stepping { DR6_BS } else { 0 };
            let exit = self.raise(Exception::plain(vector::DEBUG))?;
            self.follow_mode();
            return Ok(exit);
        }
        Ok(None)
    }

    /// DR6 bits of the instruction breakpoints at RIP.
    fn breakpoint_here(&self) -> Option<u64> {
        let dr7 = self.mmu.sys.dr7;
        if dr7 & 0xff == 0 {
            return None;
        }
        let linear = self.mmu.code_linear(self.cpu.rip).ok()?;
        let hit = |&n: &usize| {
            let enabled = dr7 >> (2 * n) & 3 != 0;
            let on_execution = dr7 >> (16 + 4 * n) & 3 == 0;
            enabled && on_execution && self.mmu.sys.breakpoints[n] == linear
        };
        let hits = (0..4).filter(hit).fold(0, |sum, n| sum | 1 << n);
        (hits != 0).then_some(hits)
    }

    fn step_instruction(&mut self) -> Outcome {
        let decoder = self.decoder();
        let at = GuestAddr(self.cpu.rip);
        let mut block = std::mem::take(&mut self.scratch);
        let decoded = decoder.block_into(&mut self.mmu, at, 1, &mut block);
        let (end, left) = (block.end, block.left);
        let ops = if block.instructions.is_empty() {
            None
        } else {
            self.single.refill(&block, &mut self.stubs);
            Some(())
        };
        self.scratch = block;
        decoded?;
        self.mmu.physical.executed += 1;
        if ops.is_none() {
            return match Left::new(end, left) {
                Left::Instruction(instruction) => self.execute(&instruction),
                Left::Disabled(instruction) => {
                    self.mmu.physical.executed -= 1;
                    self.run_disabled(&instruction)
                }
                Left::Nothing | Left::Invalid => Err(super::exceptions::invalid_opcode()),
            };
        }
        let checked =
            self.mode.user && self.mmu.sys.cr0 & cr0::AM != 0 && self.cpu.rflags & flags::AC != 0;
        let stepping = self.cpu.rflags & flags::TF;
        let mut machine = Machine::new(
            &mut self.cpu,
            &mut self.vector,
            &mut self.mmu,
            &mut self.stubs,
        );
        let result = if checked {
            machine.cpu.rflags &= !flags::TF;
            let result = step_one(&mut machine, &decoder, at);
            self.cpu.rflags |= stepping;
            result
        } else {
            // Reports a step by itself, behind one iteration of a repeated instruction too.
            match self.single.run(&mut machine) {
                Err(crate::guest::GuestTrap::Debug) if stepping != 0 => Ok(()),
                other => other,
            }
        };
        if result.is_err() {
            self.mmu.physical.executed -= 1;
        }
        Ok(result?)
    }

    /// What [`Attention`] says, for tests and statistics.
    pub(super) fn kicked(&self) -> bool {
        self.attention.0.load(Ordering::Relaxed) & Attention::KICK != 0
    }
}
