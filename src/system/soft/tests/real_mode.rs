use iced_x86::code_asm::*;

use super::*;

#[test]
fn segments_and_ports_work_in_real_mode() {
    let mut guest = Guest::real();
    guest.code(16, |a| {
        a.mov(ax, 0x1234)?;
        a.mov(ds, ax)?;
        a.mov(byte_ptr(0x10), 0x5a)?;
        a.mov(bx, 0xfff0)?;
        a.mov(es, bx)?;
        a.mov(ax, 7)?;
        a.push(ax)?;
        a.pop(cx)?;
        a.mov(dx, 0x3f8)?;
        a.out(dx, al)?;
        a.in_(al, 0x60)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.word(0x12350) & 0xff, 0x5a);
    assert_eq!(guest.devices.written, [(0x3f8, 7)]);
    assert_eq!(guest.state.gpr[0] & 0xff, 0x61);
    assert_eq!(guest.state.gpr[1], 7);
    assert_eq!(guest.state.segment(SegmentRegister::Es).base, 0xfff00);
}

#[test]
fn an_interrupt_goes_through_the_vector_table_and_returns() {
    let mut guest = Guest::real();
    guest.bytes(0x21 * 4, &[0x00, 0x05, 0x20, 0x00]); // 0020:0500
    guest.bytes(0x700, &[0x40, 0xcf]); // inc ax; iret
    guest.code(16, |a| {
        a.xor(ax, ax)?;
        a.sti()?;
        a.int(0x21)?;
        a.int(0x21)?;
        a.cli()?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 2);
    assert_eq!(guest.state.gpr[4] & 0xffff, 0x7000);
    assert_eq!(guest.state.rflags & 0x200, 0);
}

#[test]
fn a_guest_that_switches_to_protected_and_long_mode_gets_there() {
    let mut guest = Guest::long();
    // The tables are in place; start over in real mode.
    let tables = guest.state.clone();
    let mut state = VcpuState::default();
    *state.segment_mut(SegmentRegister::Cs) = Segment::real_mode(0);
    state.rip = 0x7c00;
    state.gdtr = tables.gdtr;
    state.idtr = tables.idtr;
    guest.state = state;
    guest.code(16, |a| {
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea, 0x00, 0x7d, 0x18, 0x00]) // ljmp 0x18:0x7d00
    });
    guest.state.rip = 0x7d00;
    guest.code(32, |a| {
        a.mov(eax, 0x10)?;
        a.mov(ds, ax)?;
        a.mov(ss, ax)?;
        a.mov(esp, STACK as u32)?;
        a.push(0x1234_5678)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea, 0x00, 0x7e, 0x00, 0x00, 0x08, 0x00]) // ljmp 8:0x7e00
    });
    guest.state.rip = 0x7e00;
    guest.code(64, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(qword_ptr(0x50_0000), rax)?;
        a.mov(r15, qword_ptr(STACK - 4))?;
        a.hlt()
    });
    guest.state.rip = 0x7c00;
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 0x1122_3344_5566_7788);
    assert_eq!(guest.state.gpr[15] as u32, 0x1234_5678);
    assert_eq!(guest.state.efer & efer::LMA, efer::LMA);
}
