//! What traps, and that a trap changes nothing else.

use crate::decode::Decoder;
use crate::guest::{CpuMode, CpuState, Gpr, GuestTrap, MemoryFault, VectorState, flags};
use crate::interp::{Machine, PredecodedBlock, step_one};
use crate::native::{IdentityMemory, StubCache, install_test_handler};

use super::native_run::Bench;
use super::run_block;

/// Steps over the one instruction `code` from `cpu`.
fn step(bench: &mut Bench, code: &[u8], cpu: &mut CpuState) -> Result<(), GuestTrap> {
    install_test_handler();
    let at = bench.place(code);
    let (mut vector, mut memory) = (VectorState::default(), IdentityMemory);
    let stubs = bench
        .stubs
        .get_or_insert_with(|| StubCache::new().expect("stubs"));
    let mut machine = Machine::new(cpu, &mut vector, &mut memory, stubs);
    step_one(&mut machine, &Decoder::new(CpuMode::Bits64), at)
}

/// Expects `code` to trap with the state as before and RIP at the instruction.
fn traps(code: &[u8], trap: GuestTrap) {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rsp, bench.data_addr().0 + 4096);
    let mut expected = cpu.clone();
    expected.rip = bench.code_addr().0;
    assert_eq!(step(&mut bench, code, &mut cpu), Err(trap), "{code:02x?}");
    assert_eq!(cpu, expected, "{code:02x?}");
}

#[test]
fn instructions_of_the_kernel_are_refused() {
    for code in [
        &[0xf4][..],         // hlt
        &[0xfa],             // cli
        &[0xe4, 0x60],       // in al, 0x60
        &[0xee],             // out dx, al
        &[0x6c],             // insb
        &[0x0f, 0x20, 0xc0], // mov rax, cr0
        &[0x0f, 0x32],       // rdmsr
        &[0x0f, 0x33],       // rdpmc
        &[0x0f, 0x01, 0xf8], // swapgs
    ] {
        traps(code, GuestTrap::GeneralProtection);
    }
}

#[test]
fn software_interrupts_are_told_apart() {
    traps(&[0xcc], GuestTrap::Breakpoint);
    traps(&[0xcd, 3], GuestTrap::Breakpoint);
    traps(&[0xcd, 4], GuestTrap::Overflow);
    traps(&[0xcd, 0x80], GuestTrap::SoftwareInterrupt(0x80));
    traps(&[0x0f, 0x0b], GuestTrap::InvalidOpcode);
    traps(&[0x0f, 0xff, 0xc0], GuestTrap::InvalidOpcode);
    traps(&[0x06], GuestTrap::InvalidOpcode);
}

#[test]
fn division_by_zero_and_overflow_trap() {
    for code in [
        &[0xf6, 0xf1][..],   // div cl
        &[0x48, 0xf7, 0xf9], // idiv rcx
        &[0x66, 0xf7, 0xf1], // div cx
    ] {
        traps(code, GuestTrap::DivideError);
    }
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rax, 1 << 63);
    cpu.set(Gpr::Rdx, u64::MAX);
    cpu.set(Gpr::Rcx, u64::MAX);
    // idiv rcx
    let result = step(&mut bench, &[0x48, 0xf7, 0xf9], &mut cpu);
    assert_eq!(result, Err(GuestTrap::DivideError));
    cpu.set(Gpr::Rdx, 1);
    // div rcx with 1:8000... still fits
    let result = step(&mut bench, &[0x48, 0xf7, 0xf1], &mut cpu);
    assert_eq!((result, cpu.get(Gpr::Rax)), (Ok(()), 1));
}

fn memory_fault(result: Result<(), GuestTrap>) -> MemoryFault {
    match result {
        Err(GuestTrap::Memory(fault)) => fault,
        other => panic!("expected a memory fault, got {other:?}"),
    }
}

#[test]
fn a_faulting_store_leaves_flags_and_registers_alone() {
    let mut bench = Bench::new();
    let hole = bench.data_addr().0 - 64;
    for (code, writes) in [
        (&[0x48, 0x01, 0x03][..], true),   // add [rbx], rax
        (&[0xf0, 0x48, 0x01, 0x03], true), // lock add [rbx], rax
        (&[0x48, 0x03, 0x03], false),      // add rax, [rbx]
        (&[0xd3, 0x23], true),             // shl dword [rbx], cl
        (&[0x48, 0x0f, 0xb1, 0x0b], true), // cmpxchg [rbx], rcx
        (&[0x0f, 0xc1, 0x03], true),       // xadd [rbx], eax
        (&[0x48, 0x87, 0x03], true),       // xchg [rbx], rax
        (&[0x8f, 0x03], true),             // pop [rbx]
        (&[0xff, 0x33], false),            // push [rbx]
        (&[0x0f, 0x94, 0x03], true),       // sete [rbx]
        (&[0x0f, 0x28, 0x03], false),      // movaps xmm0, [rbx]
        (&[0x0f, 0x29, 0x03], true),       // movaps [rbx], xmm0
    ] {
        let mut cpu = CpuState::default();
        cpu.set(Gpr::Rax, 5);
        cpu.set(Gpr::Rbx, hole);
        cpu.set(Gpr::Rsp, bench.data_addr().0 + 512);
        cpu.rflags |= flags::CF | flags::OF;
        let mut expected = cpu.clone();
        expected.rip = bench.code_addr().0;
        let fault = memory_fault(step(&mut bench, code, &mut cpu));
        assert_eq!(cpu, expected, "{code:02x?}");
        assert_eq!((fault.addr.0, fault.trap_number), (hole, 14), "{code:02x?}");
        assert_eq!(fault.error_code & 2 != 0, writes, "{code:02x?}");
    }
}

#[test]
fn a_non_canonical_address_by_the_stack_pointer_is_a_stack_fault() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rsp, 1 << 62);
    cpu.set(Gpr::Rbx, 1 << 62);
    for (code, number) in [
        (&[0x50][..], 12),               // push rax
        (&[0x48, 0x8b, 0x04, 0x24], 12), // mov rax, [rsp]
        (&[0x48, 0x8b, 0x03], 13),       // mov rax, [rbx]
        (&[0x0f, 0x10, 0x04, 0x24], 12), // movups xmm0, [rsp]
    ] {
        let fault = memory_fault(step(&mut bench, code, &mut cpu));
        assert_eq!(fault.trap_number, number, "{code:02x?}");
        let signal = if number == 12 {
            libc::SIGBUS
        } else {
            libc::SIGSEGV
        };
        assert_eq!(i32::from(fault.signal), signal, "{code:02x?}");
    }
}

#[test]
fn a_fault_in_the_middle_of_a_block_keeps_what_came_before() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    // inc rax; mov rbx, [rcx]; inc rdx; ret
    let code = [0x48, 0xff, 0xc0, 0x48, 0x8b, 0x19, 0x48, 0xff, 0xc2, 0xc3];
    let (at, result) = run_block(&mut bench, &code, &mut cpu);
    memory_fault(result);
    assert_eq!(cpu.pc(), at.offset(3));
    assert_eq!((cpu.get(Gpr::Rax), cpu.get(Gpr::Rdx)), (1, 0));
}

#[test]
fn the_trap_flag_steps_from_the_instruction_after_popf_on() {
    install_test_handler();
    let mut bench = Bench::new();
    // popfq; inc rax; inc rdx; ret
    let code = [0x9d, 0x48, 0xff, 0xc0, 0x48, 0xff, 0xc2, 0xc3];
    let at = bench.place(&code);
    bench.data_mut()[..8].copy_from_slice(&(flags::TF | flags::CF).to_le_bytes());
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rsp, bench.data_addr().0);
    let (mut vector, mut memory) = (VectorState::default(), IdentityMemory);
    let mut stubs = StubCache::new().expect("stubs");
    let decoder = Decoder::new(CpuMode::Bits64);
    let whole = decoder.block(&mut memory, at).expect("block");
    let rest = decoder.block(&mut memory, at.offset(1)).expect("block");
    let whole = PredecodedBlock::new(&whole, &mut stubs);
    let rest = PredecodedBlock::new(&rest, &mut stubs);
    let mut machine = Machine::new(&mut cpu, &mut vector, &mut memory, &mut stubs);
    assert_eq!(whole.run(&mut machine), Ok(()));
    assert_eq!(machine.cpu.pc(), at, "popf is no part of a block");
    assert_eq!(step_one(&mut machine, &decoder, at), Ok(()));
    assert_eq!(machine.cpu.pc(), at.offset(1));
    assert_eq!(rest.run(&mut machine), Err(GuestTrap::Debug));
    assert_eq!(machine.cpu.pc(), at.offset(4));
    assert_eq!(
        (machine.cpu.get(Gpr::Rax), machine.cpu.get(Gpr::Rdx)),
        (1, 0)
    );
    let stepped = step_one(&mut machine, &decoder, at.offset(4));
    assert_eq!(stepped, Err(GuestTrap::Debug));
    assert_eq!(
        (machine.cpu.pc(), machine.cpu.get(Gpr::Rdx)),
        (at.offset(7), 1)
    );
}

#[test]
fn a_repeated_string_instruction_steps_by_iterations() {
    let mut bench = Bench::new();
    let mut cpu = CpuState {
        rflags: flags::FIXED | flags::TF,
        ..CpuState::default()
    };
    cpu.set(Gpr::Rcx, 2);
    cpu.set(Gpr::Rdi, bench.data_addr().0);
    // rep stosb
    let at = bench.code_addr();
    assert_eq!(
        step(&mut bench, &[0xf3, 0xaa], &mut cpu),
        Err(GuestTrap::Debug)
    );
    assert_eq!((cpu.pc(), cpu.get(Gpr::Rcx)), (at, 1));
    assert_eq!(
        step(&mut bench, &[0xf3, 0xaa], &mut cpu),
        Err(GuestTrap::Debug)
    );
    assert_eq!((cpu.pc(), cpu.get(Gpr::Rcx)), (at.offset(2), 0));
}

#[test]
fn the_alignment_check_traps_misaligned_accesses_alone() {
    let mut bench = Bench::new();
    let mut cpu = CpuState {
        rflags: flags::FIXED | flags::AC,
        ..CpuState::default()
    };
    // mov eax, [rcx]; movups xmm0, [rcx]
    for code in [&[0x8b, 0x01][..], &[0x0f, 0x10, 0x01]] {
        cpu.set(Gpr::Rcx, bench.data_addr().0);
        assert_eq!(step(&mut bench, code, &mut cpu), Ok(()));
        cpu.set(Gpr::Rcx, bench.data_addr().0 + 2);
        assert_eq!(
            step(&mut bench, code, &mut cpu),
            Err(GuestTrap::AlignmentCheck)
        );
        assert_eq!(cpu.pc(), bench.code_addr());
    }
}

#[test]
fn int1_reports_the_address_behind_it() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    assert_eq!(step(&mut bench, &[0xf1], &mut cpu), Err(GuestTrap::Debug));
    assert_eq!(cpu.pc(), bench.code_addr().offset(1));
}

#[test]
fn a_branch_out_of_the_address_space_faults_at_the_branch() {
    let mut bench = Bench::new();
    let top = bench.data_addr().0 + 4096;
    bench.data_mut()[4096..4104].copy_from_slice(&(1u64 << 47).to_le_bytes());
    // ret; jmp rax; call rax; ret 8
    for code in [&[0xc3][..], &[0xff, 0xe0], &[0xff, 0xd0], &[0xc2, 8, 0]] {
        let before = bench.data().to_vec();
        let mut cpu = CpuState::default();
        cpu.set(Gpr::Rax, 1 << 47);
        cpu.set(Gpr::Rsp, top);
        let (at, result) = run_block(&mut bench, code, &mut cpu);
        assert_eq!(result, Err(GuestTrap::GeneralProtection), "{code:02x?}");
        assert_eq!((cpu.pc(), cpu.get(Gpr::Rsp)), (at, top), "{code:02x?}");
        assert_eq!(bench.data(), before, "{code:02x?}");
    }
}

#[test]
fn a_misaligned_exchange_of_sixteen_bytes_is_a_protection_fault() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rsp, bench.data_addr().0 + 8);
    // cmpxchg16b [rsp]
    let result = step(&mut bench, &[0x48, 0x0f, 0xc7, 0x0c, 0x24], &mut cpu);
    assert_eq!(result, Err(GuestTrap::GeneralProtection));
}
