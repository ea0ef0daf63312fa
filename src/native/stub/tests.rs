use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, IcedError};

use super::*;
use crate::guest::{Gpr, flags};
use crate::native::install_test_handler;

/// A guest at rest and a cache, for one instruction after the other.
struct Bench {
    cache: StubCache,
    cpu: CpuState,
    vector: VectorState,
}

impl Bench {
    fn new() -> Bench {
        install_test_handler();
        Bench {
            cache: StubCache::new().expect("executable memory"),
            cpu: CpuState::default(),
            vector: VectorState::default(),
        }
    }

    fn run(
        &mut self,
        assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
        memory: *mut u8,
    ) -> Result<(), GuestTrap> {
        let id = self.id(assemble);
        // SAFETY: the tests pass memory of the operand's size, or mean to fault.
        unsafe { self.cache.run(id, &mut self.cpu, &mut self.vector, memory) }
    }

    fn id(&mut self, assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> StubId {
        let instruction = one_instruction(assemble);
        self.cache.stub(&instruction).expect("stub")
    }

    fn floats(&self, index: usize) -> [f32; 16] {
        let bytes = self.vector.register(index);
        std::array::from_fn(|i| {
            f32::from_le_bytes(bytes[i * 4..i * 4 + 4].try_into().expect("4 bytes"))
        })
    }

    fn set_floats(&mut self, index: usize, value: f32) {
        let mut bytes = [0; 64];
        for lane in bytes.chunks_mut(4) {
            lane.copy_from_slice(&value.to_le_bytes());
        }
        self.vector.set_register(index, &bytes);
    }
}

fn one_instruction(
    assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Instruction {
    let mut assembler = CodeAssembler::new(64).expect("assembler");
    assemble(&mut assembler).expect("operands");
    let bytes = assembler.assemble(0x1000).expect("encodable");
    Decoder::with_ip(64, &bytes, 0x1000, DecoderOptions::NONE).decode()
}

const NO_MEMORY: *mut u8 = std::ptr::null_mut();

#[test]
fn a_legacy_instruction_keeps_the_upper_part_and_a_vex_one_clears_it() {
    if !Features::get().avx {
        println!("skipped: no AVX");
        return;
    }
    let mut bench = Bench::new();
    bench.set_floats(1, 1.5);
    bench.set_floats(2, 2.0);
    bench.run(|a| a.addps(xmm1, xmm2), NO_MEMORY).expect("runs");
    assert_eq!(bench.floats(1)[..5], [3.5, 3.5, 3.5, 3.5, 1.5]);
    bench
        .run(|a| a.vaddps(xmm2, xmm1, xmm1), NO_MEMORY)
        .expect("runs");
    assert_eq!(bench.floats(2)[..5], [7.0, 7.0, 7.0, 7.0, 0.0]);
    bench
        .run(|a| a.vaddps(ymm2, ymm1, ymm1), NO_MEMORY)
        .expect("runs");
    assert_eq!(bench.floats(2)[3..9], [7.0, 3.0, 3.0, 3.0, 3.0, 0.0]);
}

#[test]
fn masks_and_high_registers_take_part() {
    if !Features::get().avx512 {
        println!("skipped: no AVX-512");
        return;
    }
    let mut bench = Bench::new();
    bench.set_floats(17, 1.0);
    bench.set_floats(30, 4.0);
    bench.vector.set_mask(3, 0b101);
    bench
        .run(|a| a.vaddps(zmm30.k3(), zmm17, zmm17), NO_MEMORY)
        .expect("runs");
    assert_eq!(bench.floats(30)[..4], [2.0, 4.0, 2.0, 4.0]);
    bench.run(|a| a.kaddw(k4, k3, k3), NO_MEMORY).expect("runs");
    assert_eq!(bench.vector.mask(4), 0b1010);
}

#[test]
fn the_stack_pointer_is_an_operand_like_any_other() {
    let mut bench = Bench::new();
    bench.cpu.set(Gpr::Rsp, 0x1122_3344_5566_7788);
    bench.run(|a| a.movq(xmm5, rsp), NO_MEMORY).expect("runs");
    assert_eq!(
        bench.vector.register(5)[..8],
        0x1122_3344_5566_7788u64.to_le_bytes()
    );
    bench.run(|a| a.movq(rbp, xmm5), NO_MEMORY).expect("runs");
    assert_eq!(bench.cpu.get(Gpr::Rbp), 0x1122_3344_5566_7788);
    bench.cpu.set(Gpr::Rsp, u64::MAX);
    bench.run(|a| a.movd(esp, xmm5), NO_MEMORY).expect("runs");
    assert_eq!(bench.cpu.get(Gpr::Rsp), 0x5566_7788);
}

#[test]
fn comparisons_set_their_flags_and_keep_the_others() {
    let mut bench = Bench::new();
    bench.set_floats(1, f32::NAN);
    bench.cpu.rflags = flags::FIXED | flags::DF | flags::OF | flags::ID;
    bench
        .run(|a| a.ucomiss(xmm1, xmm1), NO_MEMORY)
        .expect("runs");
    assert_eq!(
        bench.cpu.rflags,
        flags::FIXED | flags::DF | flags::ID | flags::ZF | flags::PF | flags::CF
    );
}

#[test]
fn instructions_differing_only_in_addressing_share_a_stub() {
    let mut bench = Bench::new();
    let plain = bench.id(|a| a.movups(xmm3, xmmword_ptr(rax)));
    assert_eq!(
        plain,
        bench.id(|a| a.movups(xmm3, xmmword_ptr(r9 + rcx * 8 + 1234)))
    );
    assert_eq!(plain, bench.id(|a| a.movups(xmm3, xmmword_ptr(rax).fs())));
    assert_ne!(plain, bench.id(|a| a.movups(xmm4, xmmword_ptr(rax))));
    assert_eq!(
        bench.cache.memory_operand(plain),
        Some(StubMemory {
            bytes: 16,
            access: Access::Read,
            addressing: Addressing::Pointer
        })
    );
}

#[test]
fn a_memory_fault_leaves_the_state_as_it_was() {
    let mut bench = Bench::new();
    bench.set_floats(3, 5.0);
    let before = bench.vector.clone();
    let trap = bench.run(|a| a.movups(xmm3, xmmword_ptr(rax)), 0x10 as *mut u8);
    let Err(GuestTrap::Memory(fault)) = trap else {
        panic!("{trap:?}")
    };
    assert_eq!((fault.addr.0, fault.trap_number), (0x10, 14));
    assert!(bench.vector.area[..] == before.area[..]);
    let mut odd = [0u64; 4];
    let at = (odd.as_mut_ptr() as usize | 8) as *mut u8;
    let trap = bench.run(|a| a.movaps(xmm3, xmmword_ptr(rax)), at);
    let Err(GuestTrap::Memory(fault)) = trap else {
        panic!("{trap:?}")
    };
    assert_eq!(fault.trap_number, 13);
    // In the stack segment a non-canonical address is a stack fault, a bus error.
    let wild = (1u64 << 63) as *mut u8;
    let trap = bench.run(|a| a.movups(xmm3, xmmword_ptr(rsp)), wild);
    let Err(GuestTrap::Memory(fault)) = trap else {
        panic!("{trap:?}")
    };
    assert_eq!((fault.trap_number, fault.signal), (12, libc::SIGBUS as u8));
}

#[test]
fn an_unmasked_simd_exception_traps_and_names_itself_in_mxcsr() {
    let mut bench = Bench::new();
    bench.set_floats(1, 1.0);
    bench.vector.set_mxcsr(0x1f80 & !(1 << 9));
    let trap = bench.run(|a| a.divss(xmm1, xmm2), NO_MEMORY);
    assert_eq!(trap, Err(GuestTrap::SimdFloatingPoint));
    assert_eq!(bench.vector.mxcsr(), 0x1f80 & !(1 << 9) | 4);
    assert_eq!(bench.floats(1)[0], 1.0);
    let mut mxcsr = 0u32;
    // SAFETY: stores the host's MXCSR.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr) };
    assert_eq!(mxcsr & !0x3f, 0x1f80, "the host's is back");
}

#[test]
fn rounding_follows_the_guests_mxcsr() {
    let mut bench = Bench::new();
    bench.set_floats(1, 2.5);
    bench.vector.set_mxcsr(0x1f80 | 0x4000);
    bench
        .run(|a| a.cvtss2si(rax, xmm1), NO_MEMORY)
        .expect("runs");
    assert_eq!(bench.cpu.get(Gpr::Rax), 3);
    assert_eq!(bench.vector.mxcsr(), 0x1f80 | 0x4000 | 0x20);
    let mut word = 0x9f80u32;
    bench
        .run(|a| a.ldmxcsr(dword_ptr(rax)), (&raw mut word).cast())
        .expect("runs");
    assert_eq!(bench.vector.mxcsr(), 0x9f80);
}

#[test]
fn a_gather_uses_the_guests_addresses_and_segment() {
    if !Features::get().avx {
        println!("skipped: no AVX");
        return;
    }
    let mut bench = Bench::new();
    let table = [10.0f32, 11.0, 12.0, 13.0];
    bench.cpu.set(Gpr::Rsp, table.as_ptr() as u64 - 0x100);
    bench.cpu.fs_base = 0x100;
    let mut indices = [0u8; 64];
    for (i, index) in [3u32, 0, 2, 1].into_iter().enumerate() {
        indices[i * 4..i * 4 + 4].copy_from_slice(&index.to_le_bytes());
    }
    bench.vector.set_register(2, &indices);
    bench.set_floats(3, -1.0);
    bench
        .run(
            |a| a.vgatherdps_3(xmm1, dword_ptr(rsp + xmm2 * 4).fs(), xmm3),
            NO_MEMORY,
        )
        .expect("runs");
    assert_eq!(bench.floats(1)[..4], [13.0, 10.0, 12.0, 11.0]);
    assert_eq!(bench.vector.register(3), [0; 64]);
}

#[test]
fn saving_and_restoring_the_whole_state_round_trips() {
    let mut bench = Bench::new();
    bench.set_floats(9, 9.0);
    bench.vector.set_mxcsr(0x3f80);
    #[repr(align(64))]
    struct Area([u8; 4096]);
    let mut area = Area([0; 4096]);
    bench.cpu.set(Gpr::Rax, 6);
    let at = area.0.as_mut_ptr();
    bench.run(|a| a.xsave(ptr(rsi)), at).expect("runs");
    let saved = bench.floats(9);
    bench.set_floats(9, 1.0);
    bench.set_floats(8, 1.0);
    bench.vector.set_mxcsr(0x1f80);
    bench.run(|a| a.xrstor(ptr(rsi)), at).expect("runs");
    assert_eq!(bench.floats(9)[..8], saved[..8]);
    assert_eq!(bench.floats(8)[..8], [0.0; 8]);
    assert_eq!(bench.vector.mxcsr(), 0x3f80);
    bench.run(|a| a.fxsave(ptr(rsi)), at).expect("runs");
    assert_eq!(area.0[160 + 9 * 16..][..4], 9.0f32.to_le_bytes());
    assert_eq!(area.0[24..28], 0x3f80u32.to_le_bytes());
}

#[test]
fn zeroing_and_segment_bases_need_no_cpu() {
    if !Features::get().avx {
        println!("skipped: no AVX");
        return;
    }
    let mut bench = Bench::new();
    bench.set_floats(9, 9.0);
    bench.run(|a| a.vzeroupper(), NO_MEMORY).expect("runs");
    assert_eq!(bench.floats(9)[3..5], [9.0, 0.0]);
    bench.run(|a| a.vzeroall(), NO_MEMORY).expect("runs");
    assert_eq!(bench.floats(9)[0], 0.0);
    if !Features::get().fsgsbase {
        println!("skipped: no FSGSBASE");
        return;
    }
    bench.cpu.set(Gpr::Rcx, 0x7fff_1234_5678);
    bench.run(|a| a.wrfsbase(rcx), NO_MEMORY).expect("runs");
    assert_eq!(bench.cpu.fs_base, 0x7fff_1234_5678);
    bench.run(|a| a.rdfsbase(edx), NO_MEMORY).expect("runs");
    assert_eq!(bench.cpu.get(Gpr::Rdx), 0x1234_5678);
    bench.cpu.set(Gpr::Rcx, 1 << 63);
    let trap = bench.run(|a| a.wrfsbase(rcx), NO_MEMORY);
    assert_eq!(trap, Err(GuestTrap::GeneralProtection));
}

#[test]
fn what_no_stub_can_run_is_named() {
    let mut bench = Bench::new();
    let mut why = |assemble: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        bench
            .cache
            .stub(&one_instruction(assemble))
            .expect_err("no stub")
            .why
    };
    assert_eq!(why(|a| a.push(rax)), WhyUnsupported::Stack);
    assert_eq!(why(|a| a.ret()), WhyUnsupported::ControlTransfer);
    assert_eq!(why(|a| a.movsb()), WhyUnsupported::Addressing);
    assert_eq!(why(|a| a.mov(rax, cr3)), WhyUnsupported::Privileged);
}

/// Not a benchmark: prints what building and running cost, for whoever changes either.
#[test]
fn building_and_running_cost_little() {
    let mut bench = Bench::new();
    let instructions = [
        ("paddd", one_instruction(|a| a.paddd(xmm1, xmm2))),
        (
            "movups",
            one_instruction(|a| a.movups(xmm1, xmmword_ptr(rax))),
        ),
        ("addps", one_instruction(|a| a.addps(xmm1, xmm2))),
        ("fadd", one_instruction(|a| a.fadd_2(st0, st1))),
    ];
    let mut memory = [0u8; 64];
    for (name, instruction) in &instructions {
        let id = bench.cache.stub(instruction).expect("stub");
        let start = std::time::Instant::now();
        const RUNS: u32 = 100_000;
        for _ in 0..RUNS {
            // SAFETY: 64 bytes are more than any of these touches.
            let result = unsafe {
                bench
                    .cache
                    .run(id, &mut bench.cpu, &mut bench.vector, memory.as_mut_ptr())
            };
            assert_eq!(result, Ok(()));
        }
        println!("{name}: {:?} a run", start.elapsed() / RUNS);
    }
    let forms: Vec<Instruction> = (0..256)
        .flat_map(|shift| {
            [
                one_instruction(|a| a.pshufd(xmm1, xmm2, shift)),
                one_instruction(|a| a.roundps(xmm1, xmm9, shift)),
            ]
        })
        .collect();
    let start = std::time::Instant::now();
    for form in &forms {
        bench.cache.stub(form).expect("stub");
    }
    println!("{:?} a build", start.elapsed() / forms.len() as u32);
}
