//! Transfers: where RIP goes, and what they leave on the stack.

use iced_x86::code_asm::*;

use crate::addr::GuestAddr;
use crate::guest::{CpuState, Gpr, flags};
use crate::interp::far::has_wide_far_pointers;

use super::native_run::Bench;
use super::{Random, agree, run_block};

/// Each condition, taken and not, by what it adds to a sum.
#[test]
fn conditional_jumps_follow_the_flags() {
    for number in 0..16u8 {
        agree(200, |a| {
            // jcc +3; inc rax (3 bytes); lea rdx, [rdx + 1]
            a.db(&[0x70 | number, 3])?;
            a.inc(rax)?;
            a.lea(rdx, rdx + 1)
        });
    }
}

#[test]
fn loops_count_in_the_address_size_and_leave_flags_alone() {
    for prefix in [&[][..], &[0x67][..]] {
        for opcode in [0xe0, 0xe1, 0xe2, 0xe3] {
            agree(100, |a| {
                a.movzx(ecx, cl)?;
                a.or(rcx, r8)?;
                a.db(prefix)?;
                a.db(&[opcode, 3])?;
                a.inc(rax)?;
                a.lea(rdx, rdx + 1)
            });
        }
    }
}

#[test]
fn a_loop_runs_to_its_end() {
    agree(20, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 37)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.rol(rax, 5)?;
        a.loop_(top)
    });
}

#[test]
fn calls_push_the_address_behind_them_and_returns_drop_arguments() {
    agree(20, |a| {
        let mut function = a.create_label();
        let mut end = a.create_label();
        a.push(rax)?;
        a.call(function)?;
        a.lea(rdx, ptr(function))?;
        a.push(rax)?;
        a.call(rdx)?;
        a.push(rax)?;
        a.mov(qword_ptr(r14), rdx)?;
        a.call(qword_ptr(r14))?;
        a.lea(rdx, ptr(end))?;
        a.jmp(rdx)?;
        a.set_label(&mut function)?;
        a.add(rbx, qword_ptr(rsp + 8))?;
        a.ret_1(8)?;
        a.set_label(&mut end)?;
        a.nop()
    });
}

/// Stores the far pointer AX:RDX at R14, as this CPU reads it with REX.W.
fn far_pointer(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    if has_wide_far_pointers() {
        a.mov(qword_ptr(r14), rdx)?;
        a.mov(word_ptr(r14 + 8), ax)
    } else {
        a.mov(dword_ptr(r14), edx)?;
        a.mov(word_ptr(r14 + 4), ax)
    }
}

#[test]
fn far_transfers_to_the_same_code_segment_work() {
    agree(20, |a| {
        let mut first = a.create_label();
        let mut second = a.create_label();
        let mut third = a.create_label();
        a.mov(eax, cs)?;
        a.push(rax)?;
        a.lea(rdx, ptr(first))?;
        a.push(rdx)?;
        a.db(&[0x48, 0xcb])?;
        a.inc(rbx)?;
        a.set_label(&mut first)?;
        // iretq: rip, cs, flags, rsp, ss
        a.mov(rdi, rsp)?;
        a.mov(ecx, ss)?;
        a.push(rcx)?;
        a.push(rdi)?;
        a.pushfq()?;
        a.push(rax)?;
        a.lea(rdx, ptr(second))?;
        a.push(rdx)?;
        a.iretq()?;
        a.inc(rbx)?;
        a.set_label(&mut second)?;
        a.lea(rdx, ptr(third))?;
        far_pointer(a)?;
        // jmp far [r14] with REX.W
        a.db(&[0x49, 0xff, 0x2e])?;
        a.inc(rbx)?;
        a.set_label(&mut third)?;
        a.nop()
    });
}

#[test]
fn a_far_call_returns() {
    agree(20, |a| {
        let mut function = a.create_label();
        let mut end = a.create_label();
        a.mov(eax, cs)?;
        a.lea(rdx, ptr(function))?;
        far_pointer(a)?;
        a.db(&[0x49, 0xff, 0x1e])?;
        a.inc(rbx)?;
        a.jmp(end)?;
        a.set_label(&mut function)?;
        a.mov(rsi, qword_ptr(rsp + 8))?;
        a.db(&[0x48, 0xcb])?;
        a.set_label(&mut end)?;
        a.nop()
    });
}

#[test]
fn a_block_leaves_rip_at_its_successor() {
    let mut bench = Bench::new();
    // test eax, eax; jz +0x10
    let code = [0x85, 0xc0, 0x74, 0x10];
    let mut cpu = CpuState::default();
    let (at, result) = run_block(&mut bench, &code, &mut cpu);
    assert_eq!((result, cpu.pc()), (Ok(()), at.offset(4 + 0x10)));
    cpu.set(Gpr::Rax, 1);
    let (at, result) = run_block(&mut bench, &code, &mut cpu);
    assert_eq!((result, cpu.pc()), (Ok(()), at.offset(4)));
}

#[test]
fn a_block_stops_before_a_system_call() {
    let mut bench = Bench::new();
    // mov eax, 39; syscall
    let code = [0xb8, 39, 0, 0, 0, 0x0f, 0x05];
    let mut cpu = CpuState::default();
    let (at, result) = run_block(&mut bench, &code, &mut cpu);
    assert_eq!((result, cpu.pc()), (Ok(()), at.offset(5)));
    assert_eq!(cpu.get(Gpr::Rax), 39);
    // ud2 alone
    let (at, result) = run_block(&mut bench, &[0x0f, 0x0b], &mut cpu);
    assert_eq!((result, cpu.pc()), (Ok(()), at));
}

#[test]
fn indirect_jumps_take_their_target_from_memory() {
    let mut bench = Bench::new();
    let mut random = Random::new(5);
    let target = random.next() >> 17;
    bench.data_mut()[64..72].copy_from_slice(&target.to_le_bytes());
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rbx, bench.data_addr().0);
    cpu.rflags |= flags::CF;
    // jmp [rbx + 64]
    let (_, result) = run_block(&mut bench, &[0xff, 0x63, 0x40], &mut cpu);
    assert_eq!((result, cpu.pc()), (Ok(()), GuestAddr(target)));
}
