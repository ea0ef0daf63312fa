//! Interrupts come between instructions, and only when they may.

use iced_x86::code_asm::*;

use super::*;

#[test]
fn a_pending_interrupt_waits_for_if_and_the_shadow_of_sti() {
    let mut guest = Guest::long();
    guest.devices.vectors.push(0x40);
    guest.code(64, |a| {
        a.mov(eax, 1)?;
        a.sti()?;
        a.mov(eax, 2)?;
        a.mov(eax, 3)?;
        a.hlt()
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!(vector, 0x40);
    assert_eq!(guest.state.gpr[0], 2, "one instruction behind STI");
    assert_eq!(frame[0], CODE + 5 + 1 + 5);
    assert_eq!(frame[2] & 0x200, 0x200);
    assert_eq!(guest.state.rflags & 0x200, 0);
}

#[test]
fn an_interrupt_ends_halt_and_returns_behind_it() {
    let mut guest = Guest::long();
    guest.code(64, |a| {
        a.sti()?;
        a.hlt()?;
        a.mov(ebx, 5)?;
        a.cli()?;
        a.hlt()
    });
    guest.bytes(HANDLERS + 0x41 * 16, &[0xff, 0xc1, 0x48, 0xcf]); // inc ecx; iretq
    assert_eq!(guest.run(), VcpuExit::Halted);
    assert!(guest.state.halted);
    assert_eq!(guest.go_on(), VcpuExit::Halted, "nothing came");
    guest.devices.vectors.push(0x41);
    assert_eq!(guest.go_on(), VcpuExit::HaltedForever);
    assert_eq!((guest.state.gpr[1], guest.state.gpr[3]), (1, 5));
}

#[test]
fn a_kick_ends_an_endless_loop() {
    let mut guest = Guest::long();
    guest.code(64, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    });
    guest.vcpu.set_state(&guest.state).expect("a state");
    let kicker = guest.vcpu.kicker();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kicker.kick();
    });
    let exit = guest.vcpu.run(&mut guest.devices).expect("no refusal");
    assert_eq!(exit, VcpuExit::Interrupted);
    thread.join().expect("the thread");
}

#[test]
fn an_nmi_comes_through_vector_2_and_blocks_the_next_until_iret() {
    let mut guest = Guest::long();
    guest.bytes(HANDLERS + 2 * 16, &[0xff, 0xc1, 0x48, 0xcf]); // inc ecx; iretq
    guest.code(64, |a| {
        a.nop()?;
        a.hlt()
    });
    guest.vcpu.set_state(&guest.state).expect("a state");
    guest.vcpu.inject_nmi().expect("taken");
    assert_eq!(guest.go_on(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[1], 1);
    assert!(!guest.state.nmi_blocked);
}

#[test]
fn the_limit_stops_at_exactly_so_many_instructions() {
    for limit in [1, 2, 63, 64, 65, 66, 500, 1001] {
        let mut guest = Guest::long();
        guest.code(64, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            for _ in 0..10 {
                a.inc(rax)?;
            }
            a.jmp(again)
        });
        guest.vcpu.set_state(&guest.state).expect("a state");
        guest.vcpu.set_limit(Some(limit));
        let exit = guest.vcpu.run(&mut guest.devices).expect("no refusal");
        assert_eq!(exit, VcpuExit::LimitReached);
        let state = guest.vcpu.state().expect("a state");
        assert_eq!(state.gpr[0], limit - limit / 11, "after {limit}");
    }
}

#[test]
fn string_ports_move_all_elements() {
    let mut guest = Guest::long();
    guest.bytes(0x30_0000, b"hello");
    guest.code(64, |a| {
        a.mov(edx, 0x3f8)?;
        a.mov(esi, 0x30_0000)?;
        a.mov(ecx, 5)?;
        a.rep().outsb()?;
        a.mov(edi, 0x31_0000)?;
        a.mov(ecx, 3)?;
        a.rep().insw()?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    let text: Vec<u8> = guest.devices.written.iter().map(|w| w.1 as u8).collect();
    assert_eq!(text, b"hello");
    assert_eq!(guest.word(0x31_0000), 0x0000_03f9_03f9_03f9);
    assert_eq!(guest.state.gpr[6], 0x30_0005);
    assert_eq!((guest.state.gpr[1], guest.state.gpr[7]), (0, 0x31_0006));
}
