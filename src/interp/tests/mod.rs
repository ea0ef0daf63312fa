//! The interpreter against the bare CPU: the same bytes run natively on the same state, and
//! every register, flag and byte of memory must agree.

mod control;
mod families;
mod native_run;
mod random;

mod speed;
mod strings;
mod system;
mod traps;

use crate::addr::GuestAddr;
use crate::decode::Decoder;
use crate::guest::{CpuMode, CpuState, GuestTrap, VectorState};
use crate::interp::{Machine, PredecodedBlock, step_one};
use crate::native::{IdentityMemory, StubCache, install_test_handler};

use native_run::{Bench, DATA_BYTES};

/// A small generator (xorshift64*): reproducible from the seed that a failure prints.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    /// Operands near the edges more often than chance would have them.
    fn operand(&mut self) -> u64 {
        const EDGES: [u64; 12] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0x7fff_ffff,
            0x8000_0000,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
        ];
        match self.below(4) {
            0 => EDGES[self.below(12) as usize],
            1 => EDGES[self.below(12) as usize].wrapping_neg(),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}

/// What a run left behind.
struct Outcome {
    gpr: [u64; 16],
    rflags: u64,
    data: Vec<u8>,
}

/// RFLAGS bits that are compared: the arithmetic ones and DF.
const COMPARED: u64 = 0xcd5;

/// Runs straight-line `code` in the interpreter on `cpu` over the bench's data.
fn interpret(bench: &mut Bench, code: &[u8], cpu: &mut CpuState) -> Result<(), GuestTrap> {
    install_test_handler();
    let at = bench.place(code);
    let mut vector = VectorState::default();
    let mut memory = IdentityMemory;
    let stubs = bench
        .stubs
        .get_or_insert_with(|| StubCache::new().expect("stubs"));
    let mut machine = Machine::new(cpu, &mut vector, &mut memory, stubs);
    let decoder = Decoder::new(CpuMode::Bits64);
    let end = at.offset(code.len() as i64);
    let mut next = at;
    while next != end {
        step_one(&mut machine, &decoder, next)?;
        next = machine.cpu.pc();
    }
    Ok(())
}

/// What comparing the two runs came to.
enum Verdict {
    Agree,
    /// The interpreter trapped, so the CPU wasn't asked.
    Trapped(GuestTrap),
    Differ(String),
}

/// Runs `code` both ways from the same state.
fn compare(bench: &mut Bench, code: &[u8], cpu: &CpuState) -> Verdict {
    let before = bench.data().to_vec();
    let mut interpreted = cpu.clone();
    let result = interpret(bench, code, &mut interpreted);
    if let Err(trap) = result {
        bench.data_mut().copy_from_slice(&before);
        return Verdict::Trapped(trap);
    }
    let ours = Outcome {
        gpr: interpreted.gpr,
        rflags: interpreted.rflags & COMPARED,
        data: bench.data().to_vec(),
    };
    bench.data_mut().copy_from_slice(&before);
    // A crash of the native run shows what it was.
    if std::env::var_os("TEMPER_TEST_TRACE").is_some() {
        eprintln!("{code:02x?}");
    }
    let (gpr, rflags) = bench.run_natively(code, cpu);
    let theirs = Outcome {
        gpr,
        rflags: rflags & COMPARED,
        data: bench.data().to_vec(),
    };
    bench.data_mut().copy_from_slice(&before);
    match differences(cpu, &ours, &theirs) {
        None => Verdict::Agree,
        Some(text) => Verdict::Differ(format!("{code:02x?}\n{text}")),
    }
}

/// The first few differences, for people.
fn differences(before: &CpuState, ours: &Outcome, theirs: &Outcome) -> Option<String> {
    let mut text = String::new();
    for (number, name) in REGISTERS.iter().enumerate() {
        let (a, b) = (ours.gpr[number], theirs.gpr[number]);
        if a != b {
            text += &format!("  {name}: interpreted {a:#x}, native {b:#x}\n");
        }
    }
    if ours.rflags != theirs.rflags {
        text += &format!(
            "  flags: interpreted {:#x}, native {:#x}\n",
            ours.rflags, theirs.rflags
        );
    }
    if let Some(at) = (0..ours.data.len()).find(|&at| ours.data[at] != theirs.data[at]) {
        text += &format!(
            "  data+{at:#x}: interpreted {:02x?}, native {:02x?}\n",
            &ours.data[at..(at + 8).min(ours.data.len())],
            &theirs.data[at..(at + 8).min(theirs.data.len())]
        );
    }
    if text.is_empty() {
        return None;
    }
    text += &format!("  before: flags {:#x}", before.rflags & COMPARED);
    for (number, name) in REGISTERS.iter().enumerate() {
        text += &format!(" {name} {:#x}", before.gpr[number]);
    }
    Some(text)
}

const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// A state with random registers and flags and a stack in the middle of the data.
fn random_state(bench: &Bench, random: &mut Random) -> CpuState {
    let mut cpu = CpuState::default();
    for register in &mut cpu.gpr {
        *register = random.operand();
    }
    cpu.gpr[4] = bench.data_addr().0 + DATA_BYTES as u64 / 2;
    cpu.rflags |= random.next() & COMPARED & !0x400;
    cpu
}

/// Assembles and compares a snippet on `cases` random states. Registers r14 and r15 point
/// into the data.
fn agree(
    cases: usize,
    assemble: impl Fn(&mut iced_x86::code_asm::CodeAssembler) -> Result<(), iced_x86::IcedError>,
) {
    let mut bench = Bench::new();
    let mut assembler = iced_x86::code_asm::CodeAssembler::new(64).expect("assembler");
    assemble(&mut assembler).expect("a valid snippet");
    let code = assembler
        .assemble(bench.code_addr().0)
        .expect("an encodable snippet");
    let seed = 0x7e3d_0001;
    let mut random = Random::new(seed);
    for case in 0..cases {
        let mut cpu = random_state(&bench, &mut random);
        cpu.gpr[14] = bench.data_addr().0 + random.below(DATA_BYTES as u64 / 2);
        cpu.gpr[15] = bench.data_addr().0 + random.below(DATA_BYTES as u64 / 2);
        bench.fill(&mut random);
        match compare(&mut bench, &code, &cpu) {
            Verdict::Agree | Verdict::Trapped(GuestTrap::DivideError) => {}
            Verdict::Trapped(trap) => panic!("seed {seed:#x} case {case}: {trap:?}"),
            Verdict::Differ(text) => panic!("seed {seed:#x} case {case}: {text}"),
        }
    }
}

/// Runs `code` as one predecoded block from `cpu`.
fn run_block(
    bench: &mut Bench,
    code: &[u8],
    cpu: &mut CpuState,
) -> (GuestAddr, Result<(), GuestTrap>) {
    install_test_handler();
    let at = bench.place(code);
    let mut vector = VectorState::default();
    let mut memory = IdentityMemory;
    let stubs = bench
        .stubs
        .get_or_insert_with(|| StubCache::new().expect("stubs"));
    let block = Decoder::new(CpuMode::Bits64)
        .block(&mut memory, at)
        .expect("decodable");
    let block = PredecodedBlock::new(&block, stubs);
    let mut machine = Machine::new(cpu, &mut vector, &mut memory, stubs);
    let result = block.run(&mut machine);
    (at, result)
}

/// Runs a one-byte instruction of 32-bit code on AX; AX and the flags afterwards.
fn adjust(opcode: u8, ax: u64, rflags: u64) -> (u64, u64) {
    install_test_handler();
    let mut bench = Bench::new();
    let at = bench.place(&[opcode]);
    let mut cpu = CpuState::default();
    cpu.gpr[0] = ax;
    cpu.rflags |= rflags;
    let (mut vector, mut memory) = (VectorState::default(), IdentityMemory);
    let mut stubs = StubCache::new().expect("stubs");
    let mut machine = Machine::new(&mut cpu, &mut vector, &mut memory, &mut stubs);
    let decoder = Decoder::new(CpuMode::Bits32);
    step_one(&mut machine, &decoder, at).expect("no trap");
    assert_eq!(cpu.pc(), at.offset(1));
    (cpu.gpr[0], cpu.rflags)
}
