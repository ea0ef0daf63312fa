//! `--verify`: each block runs twice. First the interpreter runs it over a memory that keeps
//! its writes to itself; then generated code runs it for real; then registers, flags, vector
//! state and the bytes that the interpreter would have written are compared.
//!
//! Not compared: blocks whose result differs from run to run by nature (time stamps, random
//! numbers, the vdso's clock), those whose instructions address memory by themselves inside a
//! stub, and those in which generated code faulted. A block that writes memory and reads it
//! back through another mapping of the same bytes differs falsely.

use std::fmt::Write as _;

use hashbrown::HashMap;
use iced_x86::{Instruction, Mnemonic};

use crate::addr::GuestAddr;
use crate::decode::{Block, BlockEnd, Decoder};
use crate::guest::{
    Access, CpuState, GuestMemory, GuestTrap, ThreadContext, VectorState, Width, flags,
};
use crate::interp::{Machine, PredecodedBlock};
use crate::native::{IdentityMemory, StubCache};

/// Where vector registers begin in an XSAVE area.
const XMM: usize = 160;

/// The process's memory with writes held back.
#[derive(Default)]
pub(super) struct WriteBuffer {
    inner: IdentityMemory,
    written: HashMap<u64, u8>,
}

impl WriteBuffer {
    fn overlay(&self, addr: GuestAddr, bytes: &mut [u8]) {
        if self.written.is_empty() {
            return;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            if let Some(&own) = self.written.get(&addr.0.wrapping_add(i as u64)) {
                *byte = own;
            }
        }
    }

    fn keep(&mut self, addr: GuestAddr, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            self.written.insert(addr.0.wrapping_add(i as u64), byte);
        }
    }

    /// A write must fault where the real one would.
    fn probe(&mut self, addr: GuestAddr, len: u64) -> Result<(), GuestTrap> {
        // An unchanged byte stored back: the guest has one thread while it is verified.
        for at in [addr, addr.offset(len as i64 - 1)] {
            let byte = self.inner.load(at, Width::B1)?;
            self.inner.compare_exchange(at, Width::B1, byte, byte)?;
        }
        Ok(())
    }
}

impl GuestMemory for WriteBuffer {
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        let mut bytes = self.inner.load(addr, width)?.to_le_bytes();
        self.overlay(addr, &mut bytes[..width.bytes() as usize]);
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        self.probe(addr, width.bytes())?;
        self.keep(addr, &value.to_le_bytes()[..width.bytes() as usize]);
        Ok(())
    }

    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap> {
        self.probe(addr, width.bytes())?;
        let old = self.load(addr, width)?;
        if old == expected & width.mask() {
            self.keep(addr, &new.to_le_bytes()[..width.bytes() as usize]);
        }
        Ok(old)
    }

    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap> {
        if !addr.0.is_multiple_of(16) {
            return Err(GuestTrap::GeneralProtection);
        }
        self.probe(addr, 16)?;
        let mut bytes = [0; 16];
        self.read_bytes(addr, &mut bytes)?;
        let old = u128::from_le_bytes(bytes);
        if old == expected {
            self.keep(addr, &new.to_le_bytes());
        }
        Ok(old)
    }

    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        self.inner.read_bytes(addr, buffer)?;
        self.overlay(addr, buffer);
        Ok(())
    }

    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        if !bytes.is_empty() {
            self.probe(addr, bytes.len() as u64)?;
        }
        self.keep(addr, bytes);
        Ok(())
    }

    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        self.inner.fetch(addr, buffer)
    }

    fn direct(&mut self, addr: GuestAddr, len: usize, access: Access) -> Option<*mut u8> {
        let clean = (0..len as u64).all(|i| !self.written.contains_key(&addr.0.wrapping_add(i)));
        if access == Access::Read && clean {
            self.inner.direct(addr, len, access)
        } else {
            None
        }
    }
}

/// What the interpreter made of a block.
pub(super) struct Expected {
    cpu: CpuState,
    vector: VectorState,
    memory: WriteBuffer,
}

/// A block ready for its comparison.
pub(super) struct Prepared {
    pub block: Block,
    pub comparable: bool,
    ops: PredecodedBlock<WriteBuffer>,
}

impl Prepared {
    pub fn new(block: Block, decoder: &Decoder, stubs: &mut StubCache) -> Prepared {
        // The vdso reads what the kernel writes at any moment.
        let vdso = decoder
            .alias
            .is_some_and(|alias| (alias.start..alias.end).contains(&block.start));
        Prepared {
            comparable: !vdso && comparable(&block),
            ops: PredecodedBlock::new(&block, stubs),
            block,
        }
    }
}

/// Whether a block's two runs can be compared.
fn comparable(block: &Block) -> bool {
    !block.instructions.is_empty()
        && !matches!(block.end, BlockEnd::InterpretOne { .. })
        && block.instructions.iter().all(repeatable)
}

fn repeatable(instruction: &Instruction) -> bool {
    use Mnemonic::{
        Clzero, Cpuid, Enqcmd, Fxrstor, Fxrstor64, Fxsave, Fxsave64, Maskmovdqu, Maskmovq,
        Movdir64b, Rdpid, Rdpmc, Rdpru, Rdrand, Rdseed, Rdtsc, Rdtscp, Vmaskmovdqu, Xgetbv, Xrstor,
        Xrstor64, Xsave, Xsave64, Xsavec, Xsavec64, Xsaveopt, Xsaveopt64,
    };
    !instruction.is_vsib()
        && !matches!(
            instruction.mnemonic(),
            Clzero
                | Cpuid
                | Enqcmd
                | Fxrstor
                | Fxrstor64
                | Fxsave
                | Fxsave64
                | Maskmovdqu
                | Maskmovq
                | Movdir64b
                | Rdpid
                | Rdpmc
                | Rdpru
                | Rdrand
                | Rdseed
                | Rdtsc
                | Rdtscp
                | Vmaskmovdqu
                | Xgetbv
                | Xrstor
                | Xrstor64
                | Xsave
                | Xsave64
                | Xsavec
                | Xsavec64
                | Xsaveopt
                | Xsaveopt64
        )
}

/// Runs the block in the interpreter without consequences. `None` when it traps: the
/// generated code's trap is then the one that counts.
pub(super) fn expect(
    ctx: &mut ThreadContext,
    stubs: &mut StubCache,
    prepared: &Prepared,
) -> Option<Expected> {
    let mut expected = Expected {
        cpu: ctx.cpu.clone(),
        vector: ctx.vector.clone(),
        memory: WriteBuffer::default(),
    };
    let x87 = X87State::save();
    let mut machine = Machine::new(
        &mut expected.cpu,
        &mut expected.vector,
        &mut expected.memory,
        stubs,
    );
    let result = prepared.ops.run(&mut machine);
    x87.restore();
    if let BlockEnd::Syscall { next, .. } = prepared.block.end {
        expected.cpu.rip = next.0;
    }
    result.ok().map(|()| expected)
}

/// Compares; describes the difference if there is one.
pub(super) fn compare(
    ctx: &mut ThreadContext,
    expected: &mut Expected,
    block: &Block,
) -> Result<(), String> {
    let mut text = String::new();
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    for (i, name) in NAMES.iter().enumerate() {
        if ctx.cpu.gpr[i] != expected.cpu.gpr[i] {
            let (is, was) = (ctx.cpu.gpr[i], expected.cpu.gpr[i]);
            let _ = writeln!(text, "  {name}: {is:#x}, interpreter {was:#x}");
        }
    }
    if ctx.cpu.rip != expected.cpu.rip {
        let _ = writeln!(
            text,
            "  rip: {:#x}, interpreter {:#x}",
            ctx.cpu.rip, expected.cpu.rip
        );
    }
    let mask = flags::ARITHMETIC | flags::DF;
    if (ctx.cpu.rflags ^ expected.cpu.rflags) & mask != 0 {
        let (is, was) = (ctx.cpu.rflags & mask, expected.cpu.rflags & mask);
        let _ = writeln!(text, "  flags: {is:#x}, interpreter {was:#x}");
    }
    ctx.vector.materialize();
    expected.vector.materialize();
    // Most blocks leave all of it alike, and asking register by register is slow.
    let alike = ctx.vector.area[XMM..] == expected.vector.area[XMM..];
    for i in (0..32).filter(|_| !alike) {
        let (is, was) = (ctx.vector.register(i), expected.vector.register(i));
        if is != was {
            let _ = writeln!(text, "  zmm{i}: {is:02x?}\n   interpreter {was:02x?}");
        }
    }
    for i in (0..8).filter(|_| !alike) {
        let (is, was) = (ctx.vector.mask(i), expected.vector.mask(i));
        if is != was {
            let _ = writeln!(text, "  k{i}: {is:#x}, interpreter {was:#x}");
        }
    }
    if ctx.vector.mxcsr() != expected.vector.mxcsr() {
        let (is, was) = (ctx.vector.mxcsr(), expected.vector.mxcsr());
        let _ = writeln!(text, "  mxcsr: {is:#x}, interpreter {was:#x}");
    }
    let mut memory = IdentityMemory;
    for (&addr, &was) in &expected.memory.written {
        match memory.load(GuestAddr(addr), Width::B1) {
            Ok(is) if is == u64::from(was) => {}
            is => {
                let _ = writeln!(text, "  byte at {addr:#x}: {is:?}, interpreter {was:#x}");
            }
        }
    }
    if text.is_empty() {
        Ok(())
    } else {
        Err(format!("{}\n{text}", super::promote::describe(block)))
    }
}

/// x87 state, which stays live in the CPU.
#[repr(C, align(64))]
struct X87State([u8; 576]);

impl X87State {
    fn save() -> X87State {
        let mut state = X87State([0; 576]);
        // SAFETY: XSAVE with the x87 bit alone writes the legacy region and the header.
        unsafe {
            std::arch::asm!(
                "xsave64 [{}]",
                in(reg) &raw mut state,
                in("eax") 1, in("edx") 0,
                options(nostack)
            );
        }
        state
    }

    fn restore(&self) {
        // SAFETY: an area that XSAVE wrote; only x87 state changes, which Rust doesn't use.
        unsafe {
            std::arch::asm!(
                "xrstor64 [{}]",
                in(reg) self,
                in("eax") 1, in("edx") 0,
                options(nostack, readonly)
            );
        }
    }
}
