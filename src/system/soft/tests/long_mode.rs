use iced_x86::code_asm::*;

use super::*;

#[test]
fn a_loop_computes_what_it_should() {
    let mut guest = Guest::long();
    guest.code(64, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.add(rax, rcx)?;
        a.mov(qword_ptr(0x30_0000), rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 500_500);
    assert_eq!(guest.word(0x30_0000), 500_500);
}

#[test]
fn a_page_fault_reports_address_code_and_instruction() {
    let mut guest = Guest::long();
    guest.code(64, |a| {
        a.nop()?;
        a.mov(rax, qword_ptr(0x4000_0010))
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!(vector, 14);
    assert_eq!(frame[0], 0, "error code");
    assert_eq!(frame[1], CODE + 1);
    assert_eq!(frame[2], u64::from(KERNEL_CS));
    assert_eq!(guest.state.cr2, 0x4000_0010);
}

#[test]
fn ring_3_may_not_halt_and_comes_in_over_the_task_states_stack() {
    let mut guest = Guest::user();
    guest.code(64, |a| a.hlt());
    let (vector, frame) = guest.run_to_handler();
    assert_eq!(vector, 13);
    assert_eq!(frame[0], 0);
    assert_eq!(frame[1], CODE);
    assert_eq!(frame[2], u64::from(USER_CS));
    assert_eq!(frame[4], STACK);
    assert_eq!(frame[5], u64::from(USER_SS));
    assert_eq!(guest.state.gpr[4], STACK + 0x8000 - 48);
    assert_eq!(guest.state.segment(SegmentRegister::Cs).selector & 3, 0);
}
