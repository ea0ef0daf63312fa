//! Each exception with its error code, what happens when its delivery fails, and debugging.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::*;

fn in_ring_0(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (u64, [u64; 6]) {
    let mut guest = Guest::long();
    guest.code(64, build);
    guest.run_to_handler()
}

#[test]
fn arithmetic_and_traps_reach_their_vectors() {
    let divide = in_ring_0(|a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    });
    assert_eq!((divide.0, divide.1[0]), (0, CODE + 2));
    let breakpoint = in_ring_0(|a| a.int3());
    assert_eq!((breakpoint.0, breakpoint.1[0]), (3, CODE + 1));
    let step = in_ring_0(|a| a.int1());
    assert_eq!((step.0, step.1[0]), (1, CODE + 1));
}

#[test]
fn general_protection_has_the_selector_as_its_code() {
    let missing = in_ring_0(|a| {
        a.mov(eax, 0x58)?;
        a.mov(ds, ax)
    });
    assert_eq!((missing.0, missing.1[0]), (13, 0x58));
    // A code segment that can't be read would do; the task state does.
    let system = in_ring_0(|a| {
        a.mov(eax, u32::from(TASK))?;
        a.mov(es, ax)
    });
    assert_eq!((system.0, system.1[0]), (13, u64::from(TASK)));
    let canonical = in_ring_0(|a| {
        a.mov(rax, 0x8000_0000_0000u64)?;
        a.mov(rcx, qword_ptr(rax))
    });
    assert_eq!((canonical.0, canonical.1[0]), (13, 0));
    let stack = in_ring_0(|a| {
        a.mov(rbp, 0x8000_0000_0000u64)?;
        a.mov(rcx, qword_ptr(rbp))
    });
    assert_eq!((stack.0, stack.1[0]), (12, 0));
}

#[test]
fn a_segment_that_is_not_present_says_so() {
    let mut guest = Guest::long();
    let absent = guest.word(GDT + 0x10) & !(1 << 47);
    guest.write(GDT + 0x38, &[absent]);
    guest.code(64, |a| {
        a.mov(eax, 0x38)?;
        a.mov(ds, ax)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (11, 0x38));
    guest = Guest::long();
    guest.write(GDT + 0x38, &[absent]);
    guest.code(64, |a| {
        a.mov(eax, 0x38)?;
        a.mov(ss, ax)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (12, 0x38));
}

#[test]
fn control_registers_refuse_what_the_manual_forbids() {
    for (name, value) in [
        ("paging without protection", 0x8000_0010u64),
        ("NW without CD", 0xa000_0011),
        ("upper half", 0x1_8000_0011),
    ] {
        let raised = in_ring_0(|a| {
            a.mov(rax, value)?;
            a.mov(cr0, rax)
        });
        assert_eq!((raised.0, raised.1[0]), (13, 0), "{name}");
    }
    let raised = in_ring_0(|a| {
        a.mov(rax, cr4)?;
        a.and(rax, !0x20)?;
        a.mov(cr4, rax)
    });
    assert_eq!(raised.0, 13, "PAE can't go in long mode");
    let raised = in_ring_0(|a| {
        a.mov(rax, cr4)?;
        a.bts(rax, 12)?;
        a.mov(cr4, rax)
    });
    assert_eq!(raised.0, 13, "LA57 isn't there");
    let raised = in_ring_0(|a| {
        a.mov(ecx, 0x1234_5678)?;
        a.rdmsr()
    });
    assert_eq!(raised.0, 13, "an MSR that isn't there");
}

#[test]
fn units_that_are_off_raise_device_not_available_or_invalid_opcode() {
    for (set_ts, vector) in [(true, 7), (false, 16)] {
        let mut guest = Guest::long();
        if set_ts {
            guest.state.cr0 |= cr0::TS;
        }
        guest.code(64, |a| {
            // Divides by zero with the exception unmasked; the next instruction reports it.
            a.push(0x37b)?;
            a.fldcw(word_ptr(rsp))?;
            a.fldz()?;
            a.fld1()?;
            a.fdivrp(st1, st0)?;
            a.wait()?;
            a.hlt()
        });
        assert_eq!(guest.run_to_handler().0, vector);
    }
    let mut guest = Guest::long();
    guest.state.cr4 &= !cr4::OSFXSR;
    guest.code(64, |a| a.movaps(xmm0, xmm1));
    assert_eq!(guest.run_to_handler().0, 6);
    let mut guest = Guest::long();
    guest.code(64, |a| a.vaddps(xmm0, xmm1, xmm2));
    assert_eq!(guest.run_to_handler().0, 6, "AVX before XCR0 allows it");
}

#[test]
fn an_alignment_check_needs_ring_3_and_both_flags() {
    for (user, expected) in [(true, Some(17)), (false, None)] {
        let mut guest = if user { Guest::user() } else { Guest::long() };
        guest.state.rflags |= 1 << 18;
        guest.code(64, |a| {
            a.mov(rax, qword_ptr(STACK - 0x101))?;
            a.hlt()
        });
        match expected {
            Some(vector) => assert_eq!(guest.run_to_handler().0, vector),
            None => assert_eq!(guest.run(), VcpuExit::HaltedForever),
        }
    }
}

#[test]
fn a_fault_in_a_fault_is_a_double_and_then_a_triple_one() {
    let mut guest = Guest::long();
    // The page fault's gate is gone.
    guest.write(IDT + 14 * 16, &[0]);
    guest.code(64, |a| a.mov(rax, qword_ptr(0x4000_0000)));
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0], frame[1]), (8, 0, CODE));
    guest = Guest::long();
    guest.write(IDT + 14 * 16, &[0]);
    guest.write(IDT + 8 * 16, &[0]);
    guest.code(64, |a| a.mov(rax, qword_ptr(0x4000_0000)));
    assert_eq!(guest.run(), VcpuExit::Shutdown);
    assert_eq!(guest.state.rip, CODE);
}

#[test]
fn a_missing_gate_alone_is_general_protection() {
    let mut guest = Guest::long();
    guest.write(IDT + 6 * 16, &[0]);
    guest.code(64, |a| a.ud2());
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (13, 6 * 8 + 2 + 1));
}

#[test]
fn the_interrupt_stack_table_replaces_the_stack() {
    let mut guest = Guest::long();
    let gate = guest.word(IDT + 3 * 16) | 1 << 32;
    guest.write(IDT + 3 * 16, &[gate]);
    guest.state.gpr[4] = 0xdead_0001;
    guest.code(64, |a| a.int3());
    let (vector, frame) = guest.run_to_handler();
    assert_eq!(vector, 3);
    assert_eq!(guest.state.gpr[4], STACK + 0x9000 - 40);
    assert_eq!(frame[3], 0xdead_0001);
}

#[test]
fn an_exception_aligns_the_stack_and_iretq_restores_it() {
    let mut guest = Guest::long();
    guest.state.gpr[4] = STACK - 3;
    guest.code(64, |a| {
        a.int(0x50)?;
        a.mov(ebx, 9)?;
        a.hlt()
    });
    guest.bytes(HANDLERS + 0x50 * 16, &[0x48, 0x89, 0xe0, 0x48, 0xcf]); // mov rax, rsp; iretq
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], (STACK & !15) - 16 - 40);
    assert_eq!(guest.state.gpr[4], STACK - 3);
    assert_eq!(guest.state.gpr[3], 9);
}

#[test]
fn single_step_traps_behind_each_instruction() {
    let mut guest = Guest::long();
    guest.state.rflags |= 0x100;
    guest.code(64, |a| {
        a.mov(eax, 1)?;
        a.mov(eax, 2)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (1, CODE + 5));
    assert_eq!(guest.state.gpr[0], 1);
    assert_eq!(guest.state.dr6 & 0x4000, 0x4000);
    assert_eq!(frame[2] & 0x100, 0x100);
    assert_eq!(guest.state.rflags & 0x100, 0);
}

#[test]
fn breakpoint_registers_hit_code_before_and_data_behind() {
    let mut guest = Guest::long();
    guest.state.breakpoints[1] = CODE + 5;
    guest.state.dr7 = 0x400 | 1 << 2;
    guest.code(64, |a| {
        a.mov(eax, 1)?;
        a.mov(eax, 2)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (1, CODE + 5));
    assert_eq!(guest.state.dr6 & 15, 2);
    assert_eq!(frame[2] & 1 << 16, 1 << 16, "RF lets it resume");
    // A write of four bytes.
    let mut guest = Guest::long();
    guest.state.breakpoints[0] = 0x30_0004;
    guest.state.dr7 = 0x400 | 1 | 0b1101 << 16;
    guest.code(64, |a| {
        a.mov(rax, qword_ptr(0x30_0000))?;
        a.mov(qword_ptr(0x30_0000), rax)?;
        a.hlt()
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!(vector, 1);
    assert_eq!(frame[0], CODE + 16);
    assert_eq!(guest.state.dr6 & 15, 1);
}

#[test]
fn a_task_gate_is_refused_in_words() {
    let mut guest = protected();
    guest.write(IDT + 3 * 8, &[0x0000_8500_0040_0000]);
    guest.code(32, |a| a.int3());
    guest.vcpu.set_state(&guest.state).expect("a state");
    let refused = guest.vcpu.run(&mut guest.devices).expect_err("refused");
    assert!(refused.to_string().contains("task"), "{refused}");
}
