//! Blocks in their order, what joins them, the entry and the exits.

use iced_x86::{Code, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, Register};

use super::emit::{Code64, Label, gpr, xmm};
use super::form::{Class, STACK_SHIFT, stores_anywhere};
use super::frame::{Frame, Saved};
use super::operand::is_vector_move;
use super::rewrite::{Cold, RBP, RCX, RSP, Rewriter};
use super::slots::{Plan, below, exact_slot};
use super::state::State;
use crate::region::{
    BlockIndex, CounterCode, Exit, Next, OptimizedCode, Refusal, RegionEnd, RegionInput,
    StatePoint, Summary,
};

/// Builds the code of a region, and says which temporaries that took.
///
/// # Errors
/// The region can't be rebuilt.
pub(super) fn build(region: &RegionInput, plan: &Plan) -> Result<(OptimizedCode, u16), Refusal> {
    let head = region.blocks[0].start;
    let mut code = Code64::new();
    let labels: Vec<Label> = region.blocks.iter().map(|_| code.label()).collect();
    let mut flow = Flow {
        inherits: inherits(region, plan),
        edges: vec![None; region.blocks.len()],
        labels,
        rewriter: Rewriter {
            region,
            plan,
            code,
            state: State::exact(0, &plan.temporaries),
            at: head,
            cold: Vec::new(),
            pinned: Vec::new(),
            factory: InstructionInfoFactory::new(),
            guards: 0,
            used: 0,
        },
    };
    let borrowed_from = flow.entry()?;
    let head_label = flow.labels[0];
    flow.rewriter.code.place(head_label);
    let detour_at = match region.cell {
        Some(_) => flow.rewriter.code.detour(),
        None => 0,
    };
    for index in 0..region.blocks.len() {
        if plan.frames[index].is_some() {
            flow.block(index)?;
        }
    }
    flow.rewriter.code.flush_islands();
    while let Some(cold) = flow.rewriter.cold.pop() {
        flow.rewriter.code.place(cold.label);
        flow.rewriter.state = cold.state;
        flow.leave(cold.target, cold.lower)?;
    }
    let counter = match region.cell {
        Some(cell) => Some(flow.counter(cell, detour_at)?),
        None => None,
    };
    let mut rewriter = flow.rewriter;
    rewriter.code.resolve()?;
    let count = |class| plan.slots.iter().filter(|slot| slot.class == class).count() as u32;
    let summary = Summary {
        guest_instructions: region
            .blocks
            .iter()
            .map(|block| block.instructions.len() as u32)
            .sum(),
        host_instructions: rewriter.code.instructions,
        renamed: count(Class::General),
        renamed_vector: count(Class::Vector),
        guards: rewriter.guards,
        inlined_calls: region
            .blocks
            .iter()
            .filter(|block| matches!(block.end, RegionEnd::Call { .. }))
            .count() as u32,
    };
    let used = rewriter.used;
    let code = OptimizedCode {
        bytes: rewriter.code.bytes,
        counter,
        relocations: rewriter.code.relocations,
        exits: rewriter.code.exits,
        borrowed: plan.borrowed.clone(),
        borrowed_vectors: plan.borrowed_vectors.clone(),
        borrowed_from,
        states: rewriter.code.states,
        summary,
    };
    Ok((code, used))
}

/// Blocks that go on with what their only predecessor, laid out before them, knows.
fn inherits(region: &RegionInput, plan: &Plan) -> Vec<bool> {
    let mut predecessors: Vec<Vec<BlockIndex>> = vec![Vec::new(); region.blocks.len()];
    for (index, block) in region.blocks.iter().enumerate() {
        if plan.frames[index].is_none() {
            continue;
        }
        for next in block.end.successors() {
            if let Next::Block(to) = next {
                predecessors[to].push(index);
            }
        }
    }
    predecessors
        .iter()
        .enumerate()
        .map(|(index, from)| index != 0 && matches!(from.as_slice(), [only] if *only < index))
        .collect()
}

struct Flow<'a> {
    rewriter: Rewriter<'a>,
    labels: Vec<Label>,
    inherits: Vec<bool>,
    /// What is known at the start of blocks that inherit it.
    edges: Vec<Option<State>>,
}

impl Flow<'_> {
    /// Saves what is borrowed, checks what is assumed, loads slots. Returns where borrowed
    /// registers begin to hold other values.
    fn entry(&mut self) -> Result<u32, Refusal> {
        let rewriter = &mut self.rewriter;
        let region = rewriter.region;
        let plan = rewriter.plan;
        rewriter.note();
        for &register in &plan.borrowed {
            let slot = context(region.layout.registers + 8 * u32::from(register));
            rewriter
                .code
                .store(Code::Mov_rm64_r64, slot, gpr(register))?;
        }
        for &register in &plan.borrowed_vectors {
            let slot = context(region.layout.vectors + 16 * u32::from(register));
            rewriter
                .code
                .store(Code::Movups_xmmm128_xmm, slot, xmm(register))?;
        }
        let borrowed_from = rewriter.code.here();
        if !plan.relies_on_frames {
            return Ok(borrowed_from);
        }
        // Frames are where they were when the region was formed.
        let delta = i32::try_from(region.frame_delta).ok();
        let mut instructions = region.blocks.iter().flat_map(|block| &block.instructions);
        let checks_frame = instructions.any(|instruction| {
            let info = rewriter.factory.info(instruction);
            let mut used = info.used_registers().iter();
            used.any(|used| used.register().full_register() == Register::RBP)
        });
        if let Some(delta) = delta.filter(|_| checks_frame) {
            self.check_distance(delta, region.blocks[0].start)?;
        }
        let rewriter = &mut self.rewriter;
        if plan.checks_stack {
            let at = region.blocks[0].start;
            let piece = i32::try_from(region.stack >> STACK_SHIFT)
                .map_err(|_| Refusal::StackPointer { at })?;
            // rorx then movzx would lose bits; a shift by a register keeps the flags.
            let count = rewriter.temporary()?;
            rewriter.pinned.push(count);
            rewriter.free_rcx()?;
            rewriter.note();
            rewriter.code.constant(count, STACK_SHIFT);
            let shift =
                Instruction::with3(Code::VEX_Shrx_r64_rm64_r64, gpr(RCX), gpr(RSP), gpr(count))
                    .map_err(|_| Refusal::Encoding { at })?;
            if !region.has_bmi2 {
                return Err(Refusal::Registers);
            }
            rewriter.code.emit(&shift)?;
            let difference = MemoryOperand::with_base_displ(gpr(RCX), -i64::from(piece));
            rewriter.code.load(Code::Lea_r64_m, gpr(RCX), difference)?;
            self.unless_zero_leave(at);
            self.rewriter.pinned.clear();
        }
        let rewriter = &mut self.rewriter;
        for (index, slot) in plan.slots.iter().enumerate() {
            if slot.own {
                let address = MemoryOperand::with_base_displ(Register::RSP, i64::from(slot.at));
                rewriter.load_slot(index, address)?;
            }
        }
        if let Some(guard) = plan.guard {
            // -(rsp + at), without changing flags.
            rewriter.note();
            let below = MemoryOperand::with_base_displ(Register::RSP, i64::from(guard.at) - 1);
            rewriter
                .code
                .load(Code::Lea_r64_m, gpr(plan.guard_base), below)?;
            let not = Instruction::with1(Code::Not_rm64, gpr(plan.guard_base))
                .map_err(|_| Refusal::Encoding { at: 0 })?;
            rewriter.code.emit(&not)?;
            rewriter
                .code
                .constant(plan.guard_shift, u32::from(guard.shift));
        }
        rewriter.materialize(RCX)?;
        rewriter.note();
        Ok(borrowed_from)
    }

    /// Leaves for `target` unless RBP - RSP is `delta`.
    fn check_distance(&mut self, delta: i32, target: u64) -> Result<(), Refusal> {
        let rewriter = &mut self.rewriter;
        rewriter.free_rcx()?;
        rewriter.note();
        rewriter
            .code
            .registers(Code::Mov_r64_rm64, gpr(RCX), gpr(RSP))?;
        let not = Instruction::with1(Code::Not_rm64, gpr(RCX))
            .map_err(|_| Refusal::Encoding { at: target })?;
        rewriter.code.emit(&not)?;
        let difference = MemoryOperand::with_base_index_scale_displ_size(
            gpr(RBP),
            gpr(RCX),
            1,
            1 - i64::from(delta),
            1,
        );
        rewriter.code.load(Code::Lea_r64_m, gpr(RCX), difference)?;
        self.unless_zero_leave(target);
        Ok(())
    }

    fn unless_zero_leave(&mut self, target: u64) {
        let rewriter = &mut self.rewriter;
        let label = rewriter.code.label();
        rewriter.cold.push(Cold {
            label,
            target,
            lower: true,
            state: rewriter.state.clone(),
        });
        rewriter.code.unless_rcx_zero(|code| code.jump_out(label));
    }

    fn block(&mut self, index: BlockIndex) -> Result<(), Refusal> {
        let region = self.rewriter.region;
        let plan = self.rewriter.plan;
        let block = &region.blocks[index];
        let mut frame = plan.frames[index].clone().expect("a reached block");
        self.rewriter.state = match self.edges[index].take() {
            Some(state) => state,
            None => State::exact(plan.loaded[index], &plan.temporaries),
        };
        self.rewriter.at = block.start;
        if index != 0 {
            let label = self.labels[index];
            self.rewriter.code.place(label);
        }
        self.rewriter.note();

        let transfers = match block.end {
            RegionEnd::Goto(_) | RegionEnd::Leave { .. } => block
                .instructions
                .last()
                .is_some_and(|last| last.flow_control() != iced_x86::FlowControl::Next),
            RegionEnd::Branch { .. } | RegionEnd::Call { .. } | RegionEnd::Return { .. } => true,
        };
        let body = block.instructions.len() - usize::from(transfers);
        for instruction in &block.instructions[..body] {
            self.rewriter.instruction(instruction, &frame)?;
            let word = frame.rsp().and_then(|rsp| match instruction.mnemonic() {
                Mnemonic::Leave => frame.rbp().and_then(|rbp| frame.word(rbp)),
                Mnemonic::Pop if instruction.op0_register() == Register::RBP => frame.word(rsp),
                _ => None,
            });
            let info = self.rewriter.factory.info(instruction).clone();
            let anywhere = stores_anywhere(&frame, instruction, &info, region.stack);
            frame.step(instruction, anywhere);
            self.rewriter.at = instruction.next_ip();
            if self.rewriter.code.has_far_islands() {
                self.rewriter.note();
                self.rewriter.code.jump_over_islands();
            }
            // A frame pointer from memory that a store may have changed.
            if let Some(word) = word
                && plan.relies_on_frames
                && word.doubtful
                && let (Some(rbp), Some(rsp)) = (frame.rbp(), frame.rsp())
            {
                self.rewriter.pinned.clear();
                self.check_distance(rbp - rsp, instruction.next_ip())?;
            }
        }
        self.rewriter.pinned.clear();
        let last = block.instructions.last();
        if let Some(last) = last.filter(|_| transfers) {
            self.rewriter.at = last.ip();
        } else {
            self.rewriter.at = last.map_or(block.start, Instruction::next_ip);
        }
        match block.end {
            RegionEnd::Goto(next) => self.go(next, index),
            RegionEnd::Leave { at } => self.go(Next::Exit(at), index),
            RegionEnd::Branch { taken, next } => {
                let last = last.expect("a branch");
                self.branch(last, taken, next, index)
            }
            RegionEnd::Call { callee } => {
                let last = last.expect("a call");
                self.call(last, callee, &frame, index)
            }
            RegionEnd::Return { to } => {
                let last = last.expect("a return");
                self.ret(last, to, &frame, index)
            }
        }
    }

    fn go(&mut self, next: Next, from: BlockIndex) -> Result<(), Refusal> {
        match next {
            Next::Exit(target) => self.leave_here(target),
            Next::Block(to) => {
                self.settle(to)?;
                self.rewriter.at = self.rewriter.region.blocks[to].start;
                if !self.falls_into(from, to) {
                    self.rewriter.note();
                    let label = self.labels[to];
                    self.rewriter.code.jump(label);
                }
                Ok(())
            }
        }
    }

    fn falls_into(&self, from: BlockIndex, to: BlockIndex) -> bool {
        let frames = &self.rewriter.plan.frames;
        let following = (from + 1..frames.len()).find(|&index| frames[index].is_some());
        following == Some(to)
    }

    /// Makes the state what block `to` expects.
    fn settle(&mut self, to: BlockIndex) -> Result<(), Refusal> {
        if self.inherits[to] {
            self.edges[to] = Some(self.rewriter.state.clone());
            return Ok(());
        }
        let plan = self.rewriter.plan;
        let (general, vectors) = self.redefined(to);
        self.rewriter.pinned.clear();
        for register in 0..16u8 {
            if general & 1 << register == 0 {
                self.rewriter.materialize(register)?;
            }
            if vectors & 1 << register == 0 {
                self.rewriter.materialize_vector(register)?;
            }
        }
        self.rewriter.materialize_flags(&[])?;
        debug_assert_eq!(
            self.rewriter.state.loaded & plan.loaded[to],
            plan.loaded[to]
        );
        Ok(())
    }

    /// Registers that a block gives new values before anything of it runs.
    fn redefined(&self, block: BlockIndex) -> (u16, u16) {
        let rewriter = &self.rewriter;
        let (region, plan) = (rewriter.region, rewriter.plan);
        let (mut general, mut vectors) = (0u16, 0u16);
        // The head's counter runs before its first instruction does, even when it is off.
        let has_counter = block == 0 && region.cell.is_some();
        if !region.steps.fold || has_counter {
            return (0, 0);
        }
        let Some(frame) = &plan.frames[block] else {
            return (0, 0);
        };
        let mut factory = InstructionInfoFactory::new();
        for instruction in &region.blocks[block].instructions {
            let info = factory.info(instruction);
            let slot = frame
                .access(instruction)
                .zip(super::form::substitutable(instruction, info))
                .and_then(|(access, form)| exact_slot(&plan.slots, access, form.class));
            let loaded = slot.filter(|(index, _)| plan.loaded[block] & 1 << index != 0);
            let class = loaded.map(|(_, slot)| slot.class);
            let to = instruction.op0_register();
            let is_general = matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_r32_rm32)
                && ![Register::RSP, Register::RBP].contains(&to.full_register());
            let is_vector = is_vector_move(instruction) && to.is_xmm();
            if class == Some(Class::General) && is_general {
                general |= 1 << to.full_register().number();
            } else if class == Some(Class::Vector) && is_vector {
                vectors |= 1 << to.number();
            } else {
                break;
            }
        }
        (general, vectors)
    }

    fn branch(
        &mut self,
        last: &Instruction,
        taken: Next,
        next: Next,
        from: BlockIndex,
    ) -> Result<(), Refusal> {
        let condition = last.condition_code() as u8 - 1;
        self.rewriter.materialize_flags(&[])?;
        for way in [taken, next] {
            if let Next::Block(to) = way {
                self.settle_for_branch(to)?;
            }
        }
        for way in [taken, next] {
            if let Next::Block(to) = way
                && self.inherits[to]
            {
                self.edges[to] = Some(self.rewriter.state.clone());
            }
        }
        self.rewriter.note();
        let follows = |way: Next| matches!(way, Next::Block(to) if self.falls_into(from, to));
        let (condition, away, on) = if follows(taken) && !follows(next) {
            (condition ^ 1, next, taken)
        } else {
            (condition, taken, next)
        };
        let label = self.way(away);
        self.rewriter.code.branch(condition, label);
        match on {
            Next::Block(to) if self.falls_into(from, to) => {
                self.rewriter.at = self.rewriter.region.blocks[to].start;
            }
            Next::Block(to) => {
                self.rewriter.at = self.rewriter.region.blocks[to].start;
                self.rewriter.note();
                let label = self.labels[to];
                self.rewriter.code.jump(label);
            }
            Next::Exit(target) => self.leave_here(target)?,
        }
        Ok(())
    }

    /// As [`Flow::settle`], before a branch that may go there.
    fn settle_for_branch(&mut self, to: BlockIndex) -> Result<(), Refusal> {
        if self.inherits[to] {
            return Ok(());
        }
        let (general, vectors) = self.redefined(to);
        for register in 0..16u8 {
            if general & 1 << register == 0 {
                self.rewriter.materialize(register)?;
            }
            if vectors & 1 << register == 0 {
                self.rewriter.materialize_vector(register)?;
            }
        }
        Ok(())
    }

    /// The label of a way out of a branch; what goes along with it is kept.
    fn way(&mut self, way: Next) -> Label {
        let rewriter = &mut self.rewriter;
        match way {
            Next::Block(to) => self.labels[to],
            Next::Exit(target) => {
                let label = rewriter.code.label();
                rewriter.cold.push(Cold {
                    label,
                    target,
                    lower: false,
                    state: rewriter.state.clone(),
                });
                label
            }
        }
    }

    fn call(
        &mut self,
        last: &Instruction,
        callee: BlockIndex,
        frame: &Frame,
        from: BlockIndex,
    ) -> Result<(), Refusal> {
        let return_to = last.next_ip();
        let value = i32::try_from(return_to).map_err(|_| Refusal::Instruction { at: last.ip() })?;
        let rewriter = &mut self.rewriter;
        rewriter.before_write(RSP, true)?;
        let push = Instruction::with1(Code::Pushq_imm32, value)
            .map_err(|_| Refusal::Encoding { at: last.ip() })?;
        rewriter.emit(&push)?;
        let rsp = frame.rsp().ok_or(Refusal::StackPointer { at: last.ip() })? - 8;
        let slots = &rewriter.plan.slots;
        let overwritten = slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.overlaps(super::frame::FrameAccess { at: rsp, bytes: 8 }));
        for (index, slot) in overwritten {
            if slot.own {
                return Err(Refusal::StackPointer { at: last.ip() });
            }
            rewriter.state.loaded &= !(1 << index);
        }
        rewriter.state.loaded &= !below(slots, rsp);
        rewriter.at = rewriter.region.blocks[callee].start;
        self.go(Next::Block(callee), from)
    }

    fn ret(
        &mut self,
        last: &Instruction,
        to: BlockIndex,
        frame: &Frame,
        from: BlockIndex,
    ) -> Result<(), Refusal> {
        let expected = self.rewriter.region.blocks[to].start;
        let rsp = frame.rsp().ok_or(Refusal::StackPointer { at: last.ip() })?;
        let word = frame.word(rsp);
        let known = word.filter(|word| word.saved == Saved::ReturnTo(expected));
        let Some(word) = known else {
            return Err(Refusal::StackPointer { at: last.ip() });
        };
        let rewriter = &mut self.rewriter;
        rewriter.before_write(RSP, true)?;
        if word.doubtful {
            let negative = i32::try_from(expected)
                .map(|expected| -i64::from(expected))
                .map_err(|_| Refusal::Instruction { at: last.ip() })?;
            rewriter.free_rcx()?;
            rewriter.note();
            let top = MemoryOperand::with_base(Register::RSP);
            rewriter.code.load(Code::Mov_r64_rm64, gpr(RCX), top)?;
            let difference = MemoryOperand::with_base_displ(gpr(RCX), negative);
            rewriter.code.load(Code::Lea_r64_m, gpr(RCX), difference)?;
            self.unless_zero_leave(last.ip());
        }
        let rewriter = &mut self.rewriter;
        rewriter.note();
        let bytes = i64::from(last.stack_pointer_increment());
        let drop = MemoryOperand::with_base_displ(Register::RSP, bytes);
        rewriter.code.load(Code::Lea_r64_m, Register::RSP, drop)?;
        rewriter.at = expected;
        self.go(Next::Block(to), from)
    }

    /// The code that counts passes down, and leaves when there are none left.
    fn counter(&mut self, cell: u32, detour_at: u32) -> Result<CounterCode, Refusal> {
        let rewriter = &mut self.rewriter;
        let (region, plan) = (rewriter.region, rewriter.plan);
        let spill = context(region.layout.spill);
        rewriter.state = State::exact(plan.loaded[0], &plan.temporaries);
        rewriter.at = region.blocks[0].start;
        rewriter.note();
        let code_at = rewriter.code.here();
        let borrows_rcx = plan.borrowed.contains(&RCX);
        if !borrows_rcx {
            rewriter.code.store(Code::Mov_rm64_r64, spill, gpr(RCX))?;
            let point = StatePoint {
                spilled: true,
                ..rewriter.state.point(rewriter.at)
            };
            rewriter.code.state(point);
        }
        let [a, b, c, d] = cell.to_le_bytes();
        // mov cell,%ecx
        rewriter.code.raw(&[0x8b, 0x0c, 0x25, a, b, c, d]);
        let back = detour_at + 4;
        let mut failed = None;
        rewriter.code.unless_rcx_zero(|code| {
            // lea -1(%rcx),%ecx; mov %ecx,cell
            code.raw(&[0x8d, 0x49, 0xff]);
            code.raw(&[0x89, 0x0c, 0x25, a, b, c, d]);
            if !borrows_rcx {
                failed = code.load(Code::Mov_r64_rm64, gpr(RCX), spill).err();
            }
            code.jump_back(back);
        });
        if let Some(refusal) = failed {
            return Err(refusal);
        }
        if !borrows_rcx {
            rewriter.code.load(Code::Mov_r64_rm64, gpr(RCX), spill)?;
        }
        let exit_at = self.give_back()?;
        Ok(CounterCode {
            detour_at,
            code_at,
            exit_at,
        })
    }

    /// Leaves in line, unless short jumps wait: what leaves is long.
    fn leave_here(&mut self, target: u64) -> Result<(), Refusal> {
        if !self.rewriter.code.has_islands() {
            return self.leave(target, false);
        }
        let label = self.way(Next::Exit(target));
        self.rewriter.at = target;
        self.rewriter.note();
        self.rewriter.code.jump(label);
        Ok(())
    }

    /// Computes what is pending, gives back what is borrowed, and leaves.
    fn leave(&mut self, target: u64, lower: bool) -> Result<(), Refusal> {
        let rewriter = &mut self.rewriter;
        let plan = rewriter.plan;
        rewriter.at = target;
        rewriter.pinned.clear();
        for register in 0..16 {
            rewriter.materialize(register)?;
            rewriter.materialize_vector(register)?;
        }
        rewriter.materialize_flags(&plan.borrowed)?;
        let patch_at = self.give_back()?;
        self.rewriter.code.exits.push(Exit {
            patch_at,
            target,
            lower,
        });
        Ok(())
    }

    /// Restores what is borrowed, and jumps away. Returns the offset of the jump's
    /// displacement.
    fn give_back(&mut self) -> Result<u32, Refusal> {
        let rewriter = &mut self.rewriter;
        let (region, plan) = (rewriter.region, rewriter.plan);
        rewriter.note();
        for &register in &plan.borrowed_vectors {
            let slot = context(region.layout.vectors + 16 * u32::from(register));
            rewriter
                .code
                .load(Code::Movups_xmm_xmmm128, xmm(register), slot)?;
        }
        for &register in &plan.borrowed {
            let slot = context(region.layout.registers + 8 * u32::from(register));
            rewriter
                .code
                .load(Code::Mov_r64_rm64, gpr(register), slot)?;
        }
        Ok(rewriter.code.patchable_jump())
    }
}

/// A word of the context, through the gs base.
fn context(offset: u32) -> MemoryOperand {
    MemoryOperand::new(
        Register::None,
        Register::None,
        1,
        i64::from(offset),
        8,
        false,
        Register::GS,
    )
}

/// The state that holds at a host offset.
pub fn state_at(code: &OptimizedCode, host: u32) -> Option<&StatePoint> {
    let after = code.states.partition_point(|point| point.host <= host);
    after.checked_sub(1).map(|index| &code.states[index])
}
