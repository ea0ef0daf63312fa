//! Random instruction bytes: whatever iced decodes and the interpreter does itself.

use iced_x86::{DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::guest::{CpuState, GuestTrap};
use crate::interp::predecode::is_own;

use super::native_run::{Bench, DATA_BYTES};
use super::{Random, Verdict, compare, random_state};

/// Random prefixes, map, opcode and operands.
fn random_bytes(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.below(6) == 0 {
        bytes.push(0x66);
    }
    if random.below(10) == 0 {
        bytes.push(0x67);
    }
    match random.below(12) {
        0 => bytes.push(0xf3),
        1 => bytes.push(0xf2),
        2 => bytes.push(0xf0),
        _ => {}
    }
    let vex = random.below(8) == 0;
    if vex {
        bytes.clear();
        bytes.extend([
            0xc4,
            (random.next() as u8 & 0xe0) | [1, 2, 3][random.below(3) as usize],
            random.next() as u8 & !4,
        ]);
    } else {
        if random.below(2) == 0 {
            bytes.push(0x40 | random.next() as u8 & 15);
        }
        match random.below(8) {
            0..=3 => {}
            4..=6 => bytes.push(0x0f),
            _ => bytes.extend([0x0f, [0x38, 0x3a][random.below(2) as usize]]),
        }
    }
    bytes.push(random.next() as u8);
    for _ in 0..10 {
        bytes.push(random.next() as u8);
    }
    bytes
}

/// What differs between two runs or leaves the sandbox.
fn is_excluded(instruction: &Instruction) -> bool {
    instruction.flow_control() != FlowControl::Next
        || instruction.is_privileged()
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Rdtsc
                | Mnemonic::Rdtscp
                | Mnemonic::Rdrand
                | Mnemonic::Rdseed
                | Mnemonic::Rdfsbase
                | Mnemonic::Rdgsbase
                | Mnemonic::Wrfsbase
                | Mnemonic::Wrgsbase
                | Mnemonic::Cpuid
                | Mnemonic::Rdpmc
                | Mnemonic::Xgetbv
                | Mnemonic::Enter
                | Mnemonic::Popf
                | Mnemonic::Popfq
                | Mnemonic::Mwaitx
                | Mnemonic::Mwait
                | Mnemonic::Monitor
                | Mnemonic::Clzero
        )
        || matches!(instruction.segment_prefix(), Register::FS | Register::GS)
        || (0..instruction.op_count()).any(|i| {
            instruction.op_kind(i) == OpKind::Register && {
                let register = instruction.op_register(i);
                register.is_segment_register() || register.is_cr() || register.is_dr()
            }
        })
}

/// Aims a memory operand into the data by its base register; false where that can't be done.
fn aim(instruction: &Instruction, cpu: &mut CpuState, bench: &Bench, random: &mut Random) -> bool {
    let data = bench.data_addr().0;
    let spot = |random: &mut Random| data + 1024 + random.below(DATA_BYTES as u64 - 2048);
    let mut string = false;
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::Memory => {
                if instruction.mnemonic() == Mnemonic::Lea {
                    return true;
                }
                let base = instruction.memory_base();
                let index = instruction.memory_index();
                if base == Register::None || base.full_register() == index.full_register() {
                    return false;
                }
                if base == Register::RIP || base == Register::EIP {
                    return false;
                }
                // Bit strings reach far with a large index.
                if instruction.op1_kind() == OpKind::Register
                    && matches!(
                        instruction.mnemonic(),
                        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                    )
                {
                    let number = instruction.op1_register().full_register().number();
                    if instruction.op1_register().full_register() == base.full_register() {
                        return false;
                    }
                    cpu.gpr[number] = random.below(16384).wrapping_sub(8192);
                }
                let narrow = base.size() == 4;
                let mut offset = instruction.memory_displacement64();
                if index != Register::None {
                    let value = cpu.gpr[index.full_register().number()];
                    offset = offset
                        .wrapping_add(value.wrapping_mul(instruction.memory_index_scale().into()));
                }
                let mut value = spot(random).wrapping_sub(offset);
                if narrow {
                    value = value & 0xffff_ffff | random.next() << 32;
                }
                // Alignment matters to CMPXCHG16B alone.
                if instruction.mnemonic() == Mnemonic::Cmpxchg16b {
                    value = value.wrapping_sub(value.wrapping_add(offset) & 15);
                }
                cpu.gpr[base.full_register().number()] = value;
            }
            OpKind::MemorySegESI
            | OpKind::MemoryESEDI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESRDI => string = true,
            _ => {}
        }
    }
    if string || instruction.mnemonic() == Mnemonic::Xlatb {
        cpu.gpr[3] = spot(random);
        cpu.gpr[6] = spot(random);
        cpu.gpr[7] = spot(random);
        cpu.gpr[1] = random.below(100);
    }
    true
}

/// Reads the seed and the number of cases from the environment, for longer runs.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

#[test]
fn random_integer_instructions_agree_with_the_cpu() {
    let seed = setting("TEMPER_TEST_SEED", 20_261_120);
    let wanted = setting("TEMPER_TEST_CASES", 30_000);
    let mut random = Random::new(seed);
    let mut bench = Bench::new();
    bench.fill(&mut random);
    let (mut compared, mut trapped) = (0, 0);
    let mut failures = std::collections::BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    while compared < wanted {
        let bytes = random_bytes(&mut random);
        let mut decoder =
            iced_x86::Decoder::with_ip(64, &bytes, bench.code_addr().0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() || !is_own(&instruction) || is_excluded(&instruction) {
            continue;
        }
        let code = &bytes[..instruction.len()];
        for _ in 0..3 {
            let mut cpu = random_state(&bench, &mut random);
            if !aim(&instruction, &mut cpu, &bench, &mut random) {
                break;
            }
            let case = compared;
            let name = || format!("seed {seed} case {case}: {:?}", instruction.code());
            match compare(&mut bench, code, &cpu) {
                Verdict::Agree => compared += 1,
                Verdict::Trapped(GuestTrap::DivideError | GuestTrap::Memory(_)) => trapped += 1,
                Verdict::Trapped(trap) => panic!("{}: {trap:?}", name()),
                Verdict::Differ(text) => {
                    compared += 1;
                    failures
                        .entry(instruction.code() as u32)
                        .or_insert_with(|| format!("{} {text}", name()));
                }
            }
            seen.insert(instruction.mnemonic());
        }
    }
    println!(
        "{compared} cases of {} mnemonics, {trapped} more trapped",
        seen.len()
    );
    assert!(
        trapped < compared / 4,
        "too few cases reached the comparison"
    );
}

/// Instructions of user code that neither the interpreter nor a stub runs.
#[test]
#[ignore = "a listing"]
fn what_is_unsupported() {
    use crate::native::StubCache;
    let mut stubs = StubCache::new().expect("stubs");
    let mut random = Random::new(77);
    let mut names = std::collections::BTreeMap::new();
    for _ in 0..600_000u32 {
        let bytes = random_bytes(&mut random);
        let instruction =
            iced_x86::Decoder::with_ip(64, &bytes, 0x1000, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            continue;
        }
        if !is_own(&instruction)
            && let Err(refusal) = stubs.stub(&instruction)
        {
            names.insert(format!("{:?}", refusal.code), (bytes, refusal.why));
        }
    }
    println!("{names:#x?}");
}
