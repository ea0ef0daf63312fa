//! Identification, hints, random numbers, and memories that grant no pointers.

use iced_x86::code_asm::*;

use crate::addr::GuestAddr;
use crate::decode::Decoder;
use crate::guest::{
    Access, CpuMode, CpuState, Gpr, GuestMemory, GuestTrap, VectorState, Width, flags,
};
use crate::interp::{Machine, step_one};
use crate::native::{IdentityMemory, StubCache, install_test_handler};

use super::native_run::Bench;
use super::{agree, interpret};

#[test]
fn identification_is_the_hosts() {
    agree(10, |a| {
        for leaf in [0, 7, 0xd, 0x8000_0001u32, 0x8000_0002] {
            a.mov(eax, leaf)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            a.add(r8, rax)?;
            a.add(r9, rbx)?;
            a.add(r10, rcx)?;
            a.add(r11, rdx)?;
        }
        a.xor(ecx, ecx)?;
        a.xgetbv()
    });
}

#[test]
fn hints_and_fences_change_nothing() {
    agree(20, |a| {
        a.nop_1(dword_ptr(rax))?;
        a.endbr64()?;
        a.pause()?;
        a.prefetchnta(byte_ptr(rax))?;
        a.prefetcht0(byte_ptr(r14))?;
        a.prefetchw(byte_ptr(r14))?;
        a.mfence()?;
        a.lfence()?;
        a.sfence()?;
        a.clflush(byte_ptr(r14))?;
        a.rdsspq(rbx)?;
        a.movnti(dword_ptr(r14), ecx)
    });
}

#[test]
fn random_numbers_come_with_carry_alone() {
    if !is_x86_feature_detected!("rdrand") || !is_x86_feature_detected!("rdseed") {
        println!("skipped: no RDRAND or RDSEED");
        return;
    }
    let mut bench = Bench::new();
    let mut distinct = std::collections::HashSet::new();
    for code in [&[0x48, 0x0f, 0xc7, 0xf0][..], &[0x48, 0x0f, 0xc7, 0xf8]] {
        for _ in 0..20 {
            let mut cpu = CpuState::default();
            cpu.rflags |= flags::ARITHMETIC;
            interpret(&mut bench, code, &mut cpu).expect("no trap");
            let carry = cpu.rflags & flags::ARITHMETIC;
            if carry == flags::CF {
                distinct.insert(cpu.get(Gpr::Rax));
            } else {
                assert_eq!((carry, cpu.get(Gpr::Rax)), (0, 0));
            }
        }
    }
    assert!(distinct.len() > 10);
}

#[test]
fn time_goes_on() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    let mut last = 0;
    for _ in 0..3 {
        interpret(&mut bench, &[0x0f, 0x31], &mut cpu).expect("rdtsc");
        let now = cpu.get(Gpr::Rdx) << 32 | cpu.get(Gpr::Rax);
        assert!(now > last);
        last = now;
    }
}

/// Identity mapped memory that grants no pointers, as an MMU or a write buffer may.
struct Bounced(IdentityMemory);

impl GuestMemory for Bounced {
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        self.0.load(addr, width)
    }

    fn store(&mut self, addr: GuestAddr, width: Width, value: u64) -> Result<(), GuestTrap> {
        self.0.store(addr, width, value)
    }

    fn compare_exchange(
        &mut self,
        addr: GuestAddr,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, GuestTrap> {
        self.0.compare_exchange(addr, width, expected, new)
    }

    fn compare_exchange_16(
        &mut self,
        addr: GuestAddr,
        expected: u128,
        new: u128,
    ) -> Result<u128, GuestTrap> {
        self.0.compare_exchange_16(addr, expected, new)
    }

    fn read_bytes(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<(), GuestTrap> {
        self.0.read_bytes(addr, buffer)
    }

    fn write_bytes(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestTrap> {
        self.0.write_bytes(addr, bytes)
    }

    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        self.0.fetch(addr, buffer)
    }

    fn direct(&mut self, _: GuestAddr, _: usize, _: Access) -> Option<*mut u8> {
        None
    }
}

/// Runs `code`, instruction by instruction, over memory that grants no pointers.
fn bounce(bench: &mut Bench, code: &[u8], cpu: &mut CpuState) -> Result<(), GuestTrap> {
    install_test_handler();
    let at = bench.place(code);
    let (mut vector, mut memory) = (VectorState::default(), Bounced(IdentityMemory));
    let mut stubs = StubCache::new().expect("stubs");
    let mut machine = Machine::new(cpu, &mut vector, &mut memory, &mut stubs);
    let decoder = Decoder::new(CpuMode::Bits64);
    let mut next = at;
    while next != at.offset(code.len() as i64) {
        step_one(&mut machine, &decoder, next)?;
        next = machine.cpu.pc();
    }
    Ok(())
}

#[test]
fn vector_code_runs_over_memory_that_grants_no_pointers() {
    let mut bench = Bench::new();
    for (at, byte) in bench.data_mut()[..64].iter_mut().enumerate() {
        *byte = at as u8;
    }
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rbx, bench.data_addr().0);
    let code = [
        0x0f, 0x28, 0x03, // movaps xmm0, [rbx]
        0x66, 0x0f, 0xfc, 0x43, 0x10, // paddb xmm0, [rbx + 16]
        0x0f, 0x11, 0x43, 0x21, // movups [rbx + 33], xmm0
        0x0f, 0xae, 0x5b, 0x50, // stmxcsr [rbx + 80]
    ];
    bounce(&mut bench, &code, &mut cpu).expect("no trap");
    let sums: Vec<u8> = (0..16).map(|i| i * 2 + 16).collect();
    assert_eq!(bench.data()[33..49], sums);
    assert_eq!(bench.data()[80..84], 0x1f80u32.to_le_bytes());
    // movaps xmm0, [rbx + 1] faults in the buffer as in place
    let fault = bounce(&mut bench, &[0x0f, 0x28, 0x43, 0x01], &mut cpu);
    assert!(
        matches!(
            fault,
            Err(GuestTrap::GeneralProtection) | Err(GuestTrap::Memory(_))
        ),
        "{fault:?}"
    );
}

#[test]
fn a_segment_prefix_without_memory_means_nothing() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    // gs fwait; fs pshufd xmm0, xmm1, 3
    let code = [0x65, 0x9b, 0x64, 0x66, 0x0f, 0x70, 0xc1, 3];
    interpret(&mut bench, &code, &mut cpu).expect("no trap");
}

#[test]
fn a_gather_over_translated_memory_says_that_it_is_unsupported() {
    if !is_x86_feature_detected!("avx2") {
        println!("skipped: no AVX2");
        return;
    }
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rbx, bench.data_addr().0);
    // vpgatherdd xmm0, [rbx + xmm1], xmm2
    let code = [0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0b];
    assert_eq!(
        bounce(&mut bench, &code, &mut cpu),
        Err(GuestTrap::Unsupported)
    );
    interpret(&mut bench, &code, &mut cpu).expect("identity mapped memory takes it");
}

#[test]
fn repeated_strings_run_over_memory_that_grants_no_pointers() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rdi, bench.data_addr().0 + 5);
    cpu.set(Gpr::Rcx, 1000);
    cpu.set(Gpr::Rax, 0x41);
    bounce(&mut bench, &[0xf3, 0xaa], &mut cpu).expect("no trap");
    assert!(bench.data()[5..1005].iter().all(|&byte| byte == 0x41));
    assert_eq!((bench.data()[4], bench.data()[1005]), (0, 0));
}

#[test]
fn locked_increments_of_two_threads_all_count() {
    const ROUNDS: u64 = 20_000;
    install_test_handler();
    let counter = Box::leak(Box::new(0u64)) as *mut u64 as u64;
    let run = move || {
        let mut bench = Bench::new();
        let mut a = CodeAssembler::new(64).expect("assembler");
        a.lock().add(qword_ptr(rbx), 1).expect("add");
        a.lock().xadd(qword_ptr(rbx), rax).expect("xadd");
        let code = a.assemble(bench.code_addr().0).expect("encodable");
        let mut cpu = CpuState::default();
        cpu.set(Gpr::Rbx, counter);
        for _ in 0..ROUNDS {
            cpu.set(Gpr::Rax, 1);
            interpret(&mut bench, &code, &mut cpu).expect("no trap");
        }
    };
    let threads = [std::thread::spawn(run), std::thread::spawn(run)];
    for thread in threads {
        thread.join().expect("no panic");
    }
    // SAFETY: leaked above, and the threads are done.
    assert_eq!(unsafe { *(counter as *const u64) }, 4 * ROUNDS);
}
