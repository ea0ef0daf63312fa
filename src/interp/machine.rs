//! What handlers work on: one guest CPU at rest, its memory, and the stubs that run what
//! the interpreter doesn't itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::GuestAddr;
use crate::guest::{CpuState, Gpr, GuestMemory, GuestTrap, VectorState, Width, segmented};
use crate::native::StubCache;

use super::scalar::Scalar;

/// A handler ended the block: with the trap in [`Machine`], or, when there is none, because
/// what comes next must be looked at first. Kept empty so that a handler's result is
/// one byte in a register.
#[derive(Debug)]
pub(super) struct Stop;

pub(super) type Step<T = ()> = Result<T, Stop>;

/// One guest CPU and its memory. Vector state is at rest (materialized by whoever needs
/// single registers); x87 state is live in the host's CPU.
pub struct Machine<'a, M> {
    pub cpu: &'a mut CpuState,
    pub vector: &'a mut VectorState,
    pub memory: &'a mut M,
    pub stubs: &'a mut StubCache,
    pub(super) trap: Option<GuestTrap>,
    /// The instruction that ended the block isn't done.
    pub(super) unfinished: bool,
    /// Nonzero when something asynchronous awaits: a repeated instruction stops then.
    pending: Option<&'a AtomicU64>,
}

impl<'a, M: GuestMemory> Machine<'a, M> {
    pub fn new(
        cpu: &'a mut CpuState,
        vector: &'a mut VectorState,
        memory: &'a mut M,
        stubs: &'a mut StubCache,
    ) -> Machine<'a, M> {
        Machine {
            cpu,
            vector,
            memory,
            stubs,
            trap: None,
            unfinished: false,
            pending: None,
        }
    }

    /// Repeated instructions stop between two iterations while `pending` is nonzero.
    pub fn interruptible(self, pending: &'a AtomicU64) -> Machine<'a, M> {
        Machine {
            pending: Some(pending),
            ..self
        }
    }

    #[inline(always)]
    pub(super) fn is_interrupted(&self) -> bool {
        self.pending
            .is_some_and(|pending| pending.load(Ordering::Relaxed) != 0)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn stop(&mut self, trap: GuestTrap) -> Stop {
        self.trap = Some(trap);
        Stop
    }

    #[inline(always)]
    pub(super) fn load<W: Scalar>(&mut self, addr: GuestAddr) -> Step<u64> {
        match self.memory.load(addr, W::WIDTH) {
            Ok(value) => Ok(value),
            Err(trap) => Err(self.stop(trap)),
        }
    }

    /// The load of a read-modify-write instruction: the CPU asks for write access at once,
    /// so its page fault says "write".
    #[inline(always)]
    pub(super) fn load_to_modify<W: Scalar>(&mut self, addr: GuestAddr) -> Step<u64> {
        match self.memory.load(addr, W::WIDTH) {
            Ok(value) => Ok(value),
            Err(trap) => Err(self.stop_modifying(addr, trap)),
        }
    }

    /// The CPU looks for a write fault on the first page of an operand before it looks at
    /// the second at all.
    #[cold]
    #[inline(never)]
    fn stop_modifying(&mut self, addr: GuestAddr, trap: GuestTrap) -> Stop {
        let mut trap = as_write(trap);
        if let GuestTrap::Memory(fault) = trap
            && fault.addr.page() != addr.page()
            && let Ok(byte) = self.memory.load(addr, Width::B1)
            && let Err(first) = self.memory.compare_exchange(addr, Width::B1, byte, byte)
        {
            trap = first;
        }
        self.stop(trap)
    }

    #[inline(always)]
    pub(super) fn store<W: Scalar>(&mut self, addr: GuestAddr, value: u64) -> Step {
        match self.memory.store(addr, W::WIDTH, value) {
            Ok(()) => Ok(()),
            Err(trap) => Err(self.stop(trap)),
        }
    }

    /// Replaces the value at `addr` by `change(old)` in one atomic step; returns the old one
    /// and whatever `change` computed with the new one.
    #[inline(always)]
    pub(super) fn update<W: Scalar, T>(
        &mut self,
        addr: GuestAddr,
        mut change: impl FnMut(&CpuState, u64) -> (u64, T),
    ) -> Step<(u64, T)> {
        let mut old = self.load_to_modify::<W>(addr)?;
        loop {
            let (new, extra) = change(self.cpu, old);
            match self
                .memory
                .compare_exchange(addr, W::WIDTH, old, new & W::MASK)
            {
                Ok(held) if held == old => return Ok((old, extra)),
                Ok(held) => old = held,
                Err(trap) => return Err(self.stop(trap)),
            }
        }
    }

    pub(super) fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Step {
        match self.memory.write_bytes(addr, bytes) {
            Ok(()) => Ok(()),
            Err(trap) => Err(self.stop(trap)),
        }
    }

    /// The target of an indirect branch that lies outside the address space faults at the
    /// branch, not behind it.
    #[inline(always)]
    pub(super) fn check_target(&mut self, target: u64) -> Step {
        if is_canonical(target) {
            Ok(())
        } else {
            Err(self.stop(GuestTrap::GeneralProtection))
        }
    }

    /// The address of `offset` on a stack of this address size.
    #[inline(always)]
    pub(super) fn stack_place(mask: u64, offset: u64) -> GuestAddr {
        const SS: u8 = 2;
        if M::SEGMENTED && mask != u64::MAX {
            segmented(SS, offset)
        } else {
            GuestAddr(offset)
        }
    }

    /// The stack pointer moved by `by` within the stack's address size.
    #[inline(always)]
    pub(super) fn stack_at(&self, mask: u64, by: i64) -> u64 {
        self.cpu.get(Gpr::Rsp).wrapping_add_signed(by) & mask
    }

    #[inline(always)]
    pub(super) fn set_stack(&mut self, mask: u64, value: u64) {
        let kept = self.cpu.get(Gpr::Rsp) & !mask;
        self.cpu.set(Gpr::Rsp, kept | value & mask);
    }

    #[inline(always)]
    pub(super) fn push<W: Scalar>(&mut self, mask: u64, value: u64) -> Step {
        let top = self.stack_at(mask, -(W::BYTES as i64));
        if let Err(trap) = self
            .memory
            .store(Self::stack_place(mask, top), W::WIDTH, value)
        {
            return Err(self.stop(through_stack_segment(trap)));
        }
        self.set_stack(mask, top);
        Ok(())
    }

    /// Reads the stack `by` bytes above its top.
    #[inline(always)]
    pub(super) fn peek<W: Scalar>(&mut self, mask: u64, by: u64) -> Step<u64> {
        let at = Self::stack_place(mask, self.stack_at(mask, by as i64));
        match self.memory.load(at, W::WIDTH) {
            Ok(value) => Ok(value),
            Err(trap) => Err(self.stop(through_stack_segment(trap))),
        }
    }

    #[inline(always)]
    pub(super) fn pop<W: Scalar>(&mut self, mask: u64) -> Step<u64> {
        let value = self.peek::<W>(mask, 0)?;
        let above = self.stack_at(mask, W::BYTES as i64);
        self.set_stack(mask, above);
        Ok(value)
    }
}

/// A page fault's error code with "caused by a write" set (Intel SDM volume 3, section 4.7).
fn as_write(trap: GuestTrap) -> GuestTrap {
    match trap {
        GuestTrap::Memory(mut fault) if fault.trap_number == 14 => {
            fault.error_code |= 2;
            GuestTrap::Memory(fault)
        }
        other => other,
    }
}

/// A non-canonical address raises #SS instead of #GP when it goes through the stack segment
/// (Intel SDM volume 3, interrupt 12). Linux makes SIGBUS of it.
pub(super) fn through_stack_segment(trap: GuestTrap) -> GuestTrap {
    const STACK_FAULT: u8 = 12;
    const GENERAL_PROTECTION: u8 = 13;
    match trap {
        GuestTrap::Memory(mut fault) if fault.trap_number == GENERAL_PROTECTION => {
            fault.trap_number = STACK_FAULT;
            fault.signal = libc::SIGBUS as u8;
            GuestTrap::Memory(fault)
        }
        other => other,
    }
}

/// Whether an address is sign-extended from bit 47 (56 with five-level paging, which no
/// program gets without asking for such addresses).
#[inline(always)]
pub(super) fn is_canonical(addr: u64) -> bool {
    ((addr << 16) as i64 >> 16) as u64 == addr
}
