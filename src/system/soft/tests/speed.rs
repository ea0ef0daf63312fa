//! A measurement, run by name:
//! `cargo test --release system::soft::tests::speed -- --ignored --nocapture`.

use std::time::Instant;

use iced_x86::code_asm::*;

use super::*;

#[test]
#[ignore = "a measurement"]
fn loops_behind_the_mmu() {
    let mut guest = Guest::long();
    guest.code(64, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 20_000_000)?;
        a.mov(esi, 0x30_0000)?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rsi + 8))?;
        a.add(rax, qword_ptr(rsi + 16))?;
        a.mov(qword_ptr(rsi + 24), rax)?;
        a.movzx(edx, byte_ptr(rsi + rdx))?;
        a.and(edx, 63)?;
        a.add(dword_ptr(rsi + 32), 1)?;
        a.push(rax)?;
        a.pop(rax)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    });
    guest.vcpu.set_state(&guest.state).expect("a state");
    let before = Instant::now();
    let exit = guest.vcpu.run(&mut guest.devices).expect("no refusal");
    assert_eq!(exit, VcpuExit::HaltedForever);
    let rate = guest.vcpu.executed() as f64 / before.elapsed().as_secs_f64() / 1e6;
    println!("memory: {rate:.0} M instructions/s");
}
