//! String instructions: every form, long runs, overlaps, and faults in the middle.

use crate::guest::{CpuState, Gpr, GuestTrap, flags};

use super::native_run::{Bench, DATA_BYTES};
use super::{Random, Verdict, compare, interpret};

const OPCODES: [u8; 10] = [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf];

#[test]
fn every_form_agrees_over_long_and_overlapping_runs() {
    let mut random = Random::new(0x57a1);
    let mut bench = Bench::new();
    let mut compared = 0;
    for case in 0..12_000 {
        if case % 100 == 0 {
            bench.fill(&mut random);
            // Long equal runs, so that comparisons go on for a while.
            if case % 200 == 0 {
                bench.data_mut().fill(0x5a);
                let at = random.below(DATA_BYTES as u64) as usize;
                bench.data_mut()[at] = 0;
            }
        }
        let mut code = Vec::new();
        if random.below(4) == 0 {
            code.push(0x67);
        }
        if random.below(4) == 0 {
            code.push(0x66);
        }
        match random.below(4) {
            0 => {}
            1 => code.push(0xf2),
            _ => code.push(0xf3),
        }
        if random.below(3) == 0 {
            code.push(0x48);
        }
        code.push(OPCODES[random.below(10) as usize]);
        let mut cpu = CpuState::default();
        let data = bench.data_addr().0;
        let middle = |random: &mut Random| data + 2048 + random.below(DATA_BYTES as u64 - 4096);
        cpu.set(Gpr::Rsi, middle(&mut random));
        cpu.set(Gpr::Rdi, middle(&mut random));
        if random.below(2) == 0 {
            let near = cpu
                .get(Gpr::Rsi)
                .wrapping_add(random.below(64))
                .wrapping_sub(32);
            cpu.set(Gpr::Rdi, near);
        }
        let longest = [4, 20, 250][random.below(3) as usize];
        cpu.set(Gpr::Rcx, random.below(longest));
        cpu.set(
            Gpr::Rax,
            if random.below(2) == 0 {
                0x5a5a_5a5a_5a5a_5a5a
            } else {
                random.operand()
            },
        );
        if random.below(3) == 0 {
            cpu.rflags |= flags::DF;
        }
        if random.below(2) == 0 {
            // The upper halves don't count with 32-bit addresses.
            if code[0] == 0x67 {
                for register in [Gpr::Rsi, Gpr::Rdi, Gpr::Rcx] {
                    cpu.set(register, cpu.get(register) | random.next() << 32);
                }
            }
        }
        cpu.rflags |= random.next() & flags::ARITHMETIC;
        match compare(&mut bench, &code, &cpu) {
            Verdict::Agree => compared += 1,
            Verdict::Trapped(GuestTrap::Memory(_)) => {}
            Verdict::Trapped(trap) => panic!("case {case}: {code:02x?} {trap:?}"),
            Verdict::Differ(text) => panic!("case {case}: {text}"),
        }
    }
    assert!(compared > 11_000, "{compared}");
}

/// Runs `code` until it faults at the end of the data; the elements left in RCX.
fn fault_at_end(code: &[u8], cpu: &mut CpuState, bench: &mut Bench) -> u64 {
    let at = bench.code_addr();
    let before = cpu.rflags;
    match interpret(bench, code, cpu) {
        Err(GuestTrap::Memory(fault)) => {
            assert_eq!(fault.addr, bench.data_addr().offset(DATA_BYTES as i64));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(cpu.pc(), at);
    assert_eq!(cpu.rflags, before);
    cpu.get(Gpr::Rcx)
}

#[test]
fn a_fault_in_the_middle_leaves_whole_iterations_done() {
    let mut bench = Bench::new();
    let end = bench.data_addr().0 + DATA_BYTES as u64;
    for (code, register, bytes) in [
        (&[0xf3, 0xa4][..], Gpr::Rdi, 1),
        (&[0xf3, 0x48, 0xa5][..], Gpr::Rdi, 8),
        (&[0xf3, 0xab][..], Gpr::Rdi, 4),
        (&[0xf3, 0xa6][..], Gpr::Rsi, 1),
        (&[0xf2, 0xae][..], Gpr::Rdi, 1),
    ] {
        for whole in [0, 3, 1000] {
            bench.data_mut().fill(7);
            let mut cpu = CpuState::default();
            cpu.set(Gpr::Rsi, bench.data_addr().0);
            cpu.set(Gpr::Rdi, bench.data_addr().0);
            cpu.set(Gpr::Rcx, 5000);
            cpu.rflags |= flags::CF | flags::OF;
            cpu.set(register, end - whole * bytes);
            let left = fault_at_end(code, &mut cpu, &mut bench);
            assert_eq!(left, 5000 - whole, "{code:02x?} {whole}");
            assert_eq!(cpu.get(register), end, "{code:02x?} {whole}");
        }
    }
}

#[test]
fn an_element_across_the_end_faults_before_it() {
    let mut bench = Bench::new();
    let end = bench.data_addr().0 + DATA_BYTES as u64;
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rdi, end - 83);
    cpu.set(Gpr::Rcx, 50);
    // rep stosq
    assert_eq!(fault_at_end(&[0xf3, 0x48, 0xab], &mut cpu, &mut bench), 40);
    assert_eq!(cpu.get(Gpr::Rdi), end - 3);
}
