//! Measurements, run by name: `cargo test --release interp::tests::speed -- --ignored --nocapture`.

use std::time::Duration;

use iced_x86::code_asm::*;

use crate::decode::Decoder;
use crate::guest::{CpuMode, CpuState, VectorState};
use crate::interp::{Machine, PredecodedBlock};
use crate::native::{IdentityMemory, StubCache};

use super::native_run::Bench;

/// Time that this thread has run: other work on the machine doesn't count.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to our own value.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs a loop made of one block; million guest instructions a second.
fn loop_speed(
    name: &str,
    assemble: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> f64 {
    let mut bench = Bench::new();
    let mut a = CodeAssembler::new(64).expect("assembler");
    let mut top = a.create_label();
    a.set_label(&mut top).expect("label");
    assemble(&mut a).expect("a valid snippet");
    a.dec(rcx).expect("dec");
    a.jnz(top).expect("jnz");
    let code = a.assemble(bench.code_addr().0).expect("encodable");
    let at = bench.place(&code);
    let mut memory = IdentityMemory;
    let mut stubs = StubCache::new().expect("stubs");
    let block = Decoder::new(CpuMode::Bits64)
        .block(&mut memory, at)
        .expect("block");
    let block = PredecodedBlock::new(&block, &mut stubs);
    let mut cpu = CpuState::default();
    cpu.gpr[1] = 5_000_000;
    cpu.gpr[4] = bench.data_addr().0 + 4096;
    cpu.gpr[6] = bench.data_addr().0;
    let mut vector = VectorState::default();
    let mut machine = Machine::new(&mut cpu, &mut vector, &mut memory, &mut stubs);
    let start = thread_time();
    let mut blocks = 0u64;
    loop {
        block.run(&mut machine).expect("no trap");
        blocks += 1;
        if machine.cpu.pc() != at {
            break;
        }
    }
    let rate = (blocks * block.len() as u64) as f64 / (thread_time() - start).as_secs_f64() / 1e6;
    println!("{name}: {rate:.0} M instructions/s");
    rate
}

#[test]
#[ignore = "a measurement"]
fn loops_run_fast_enough() {
    let compute = loop_speed("compute", |a| {
        a.mov(rax, rdx)?;
        a.shl(rax, 13)?;
        a.xor(rdx, rax)?;
        a.mov(eax, edx)?;
        a.imul_2(rax, rdx)?;
        a.add(r8, rax)?;
        a.lea(r9, r8 + rdx * 4 + 7)?;
        a.and(r9d, 0xff)?;
        a.cmp(r9, r8)?;
        a.cmovb(r10, r9)
    });
    loop_speed("memory", |a| {
        a.mov(rax, qword_ptr(rsi + 8))?;
        a.add(rax, qword_ptr(rsi + 16))?;
        a.mov(qword_ptr(rsi + 24), rax)?;
        a.movzx(edx, byte_ptr(rsi + rdx))?;
        a.and(edx, 63)?;
        a.add(dword_ptr(rsi + 32), 1)?;
        a.push(rax).and_then(|()| a.pop(rax))
    });
    loop_speed("vector", |a| {
        a.movaps(xmm0, xmmword_ptr(rsi))?;
        a.paddd(xmm1, xmm0)?;
        a.mulsd(xmm2, xmm3)
    });
    assert!(compute >= 50.0, "{compute:.0}");
}

/// What it costs to predecode, beyond decoding.
#[test]
#[ignore = "a measurement"]
fn predecoding_is_cheap() {
    let mut a = CodeAssembler::new(64).expect("assembler");
    let mut assemble = || -> Result<(), iced_x86::IcedError> {
        for _ in 0..4 {
            a.mov(rax, qword_ptr(rsi + 8))?;
            a.test(rax, rax)?;
            a.add(rax, 16)?;
            a.mov(dword_ptr(rsi + rax * 8 + 64), edx)?;
            a.push(rbx)?;
            a.movzx(eax, byte_ptr(rsi + 1))?;
            a.lea(rdi, rsi + 24)?;
            a.sub(rsp, 40)?;
            a.shr(edx, 3)?;
            a.xor(ecx, ecx)?;
            a.cmp(byte_ptr(rdi), 0)?;
            a.sete(al)?;
        }
        a.jmp(rax)
    };
    assemble().expect("a valid snippet");
    let mut bench = Bench::new();
    let code = a.assemble(bench.code_addr().0).expect("encodable");
    let at = bench.place(&code);
    let mut memory = IdentityMemory;
    let mut stubs = StubCache::new().expect("stubs");
    let decoder = Decoder::new(CpuMode::Bits64);
    let rounds = 20_000;
    let start = thread_time();
    let mut block = decoder.block(&mut memory, at).expect("block");
    for _ in 1..rounds {
        block = decoder.block(&mut memory, at).expect("block");
    }
    let decoding = thread_time() - start;
    let start = thread_time();
    let mut bytes = 0;
    for _ in 0..rounds {
        let predecoded: PredecodedBlock<IdentityMemory> = PredecodedBlock::new(&block, &mut stubs);
        bytes = predecoded.heap_bytes();
    }
    let predecoding = thread_time() - start;
    let count = block.instructions.len() as u32 * rounds;
    println!(
        "decoding {} ns, predecoding {} ns an instruction, {} bytes each",
        decoding.as_nanos() / u128::from(count),
        predecoding.as_nanos() / u128::from(count),
        bytes / block.instructions.len()
    );
}
