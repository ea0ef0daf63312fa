//! Code that changes, and code that crosses pages; vector state through the MMU.

use iced_x86::code_asm::*;

use super::*;

#[test]
fn a_store_to_the_next_instruction_is_executed_as_stored() {
    let mut guest = Guest::long();
    guest.code(64, |a| {
        a.mov(byte_ptr(CODE + 9), 7)?; // 8 bytes; the immediate of the next one
        a.mov(eax, 1)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 7);
}

#[test]
fn a_function_that_is_rewritten_between_calls_changes() {
    let mut guest = Guest::long();
    let function = CODE + 0x1000;
    guest.bytes(function, &[0xb8, 1, 0, 0, 0, 0xc3]); // mov eax, 1; ret
    guest.code(64, |a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 100)?;
        a.mov(esi, function as u32)?;
        a.set_label(&mut again)?;
        a.call(function)?;
        a.add(ebx, eax)?;
        a.inc(dword_ptr(rsi + 1))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[3], 5050);
}

#[test]
fn a_device_that_writes_code_is_noticed() {
    let mut guest = Guest::long();
    guest.code(64, |a| {
        a.mov(eax, 1)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 1);
    guest.bytes(CODE + 1, &[2]);
    guest.state.rip = CODE;
    guest.state.halted = false;
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 2);
}

#[test]
fn the_same_page_at_two_addresses_is_two_programs() {
    let mut guest = Guest::long();
    // 0x80_0000 maps to 0x10_0000 too.
    guest.write(PML4 + 0x2000 + 4 * 8, &[0x83]);
    guest.code(64, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.lea(rax, ptr(here))?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], CODE);
    guest.state.rip = 0x80_0000 + CODE;
    guest.state.halted = false;
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 0x80_0000 + CODE);
}

#[test]
fn an_instruction_across_two_pages_follows_both() {
    let mut guest = Guest::long();
    // The second page is one of two.
    guest.write(PML4 + 0x2000 + 2 * 8, &[0x7003]);
    guest.write(0x7000, &[0x30_0003, 0x31_0003]);
    guest.bytes(0x30_0ffd, &[0xb8, 1, 0]); // mov eax, ...
    guest.bytes(0x31_0000, &[0, 0, 0xf4]);
    guest.bytes(0x32_0000, &[5, 0, 0xf4]);
    guest.state.rip = 0x40_0ffd;
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 1);
    guest.write(0x7008, &[0x32_0003]);
    guest.state.rip = 0x40_0ffd;
    guest.state.halted = false;
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0], 0x50001);
}

#[test]
fn vector_operands_work_within_a_page_and_across() {
    let mut guest = Guest::long();
    guest.write(0x30_0ff8, &[1, 2, 3]);
    guest.code(64, |a| {
        a.movups(xmm1, xmmword_ptr(0x30_0ff8))?;
        a.paddq(xmm1, xmm1)?;
        a.movups(xmmword_ptr(0x31_0ff8), xmm1)?;
        a.fild(qword_ptr(0x30_0ff8))?;
        a.fild(qword_ptr(0x30_1000))?;
        a.faddp(st1, st0)?;
        a.fistp(qword_ptr(0x31_2ffc))?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!((guest.word(0x31_0ff8), guest.word(0x31_1000)), (2, 4));
    assert_eq!(guest.word(0x31_2ffc), 3);
}

#[test]
fn a_store_that_faults_leaves_the_x87_stack() {
    let mut guest = Guest::long();
    guest.write(PML4 + 0x2000 + 2 * 8, &[0x7003]);
    guest.write(0x7000, &[0x30_0003, 0]);
    guest.code(64, |a| {
        a.fld1()?;
        a.fistp(qword_ptr(0x40_0ffc))
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (14, 2));
    // The tag word still has one register in use.
    assert_eq!(guest.state.xsave.0[4], 0x80);
}

#[test]
fn xsave_writes_what_the_guests_xcr0_allows() {
    let mut guest = Guest::long();
    guest.state.cr4 |= cr4::OSXSAVE;
    guest.bytes(0x30_0000 + 576, &[0xaa; 512]);
    guest.code(64, |a| {
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 3)?;
        a.xsetbv()?;
        a.mov(eax, 0x1234)?;
        a.movd(xmm3, eax)?;
        a.or(eax, -1)?;
        a.or(edx, -1)?;
        a.xsave(ptr(0x30_0000))?;
        a.pxor(xmm3, xmm3)?;
        a.xrstor(ptr(0x30_0000))?;
        a.movd(ebx, xmm3)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.word(0x30_0000 + 160 + 3 * 16), 0x1234);
    assert_eq!(guest.word(0x30_0000 + 512) & !3, 0, "x87 and SSE at most");
    assert_eq!(guest.word(0x30_0000 + 576), 0xaaaa_aaaa_aaaa_aaaa);
    assert_eq!(guest.state.gpr[3], 0x1234);
    assert_eq!(
        guest.state.gpr[0], 0xffff_ffff,
        "the mask is the guest's own"
    );
}

#[test]
fn gathers_load_what_their_mask_says() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        println!("skipped: no AVX2");
        return;
    }
    let mut guest = Guest::long();
    guest.state.cr4 |= cr4::OSXSAVE;
    guest.state.xcr0 = 7;
    guest.write(0x30_0000, &[10, 11, 12, 13, 14]);
    // Indices 3 and 1; the mask takes the first only.
    guest.write(0x31_0000, &[3 | 1 << 32, 0, 1 << 63, 0]);
    guest.code(64, |a| {
        a.movups(xmm2, xmmword_ptr(0x31_0000))?;
        a.movups(xmm3, xmmword_ptr(0x31_0010))?;
        a.mov(eax, 77)?;
        a.movq(xmm1, rax)?;
        a.punpcklqdq(xmm1, xmm1)?;
        a.mov(ebx, 0x30_0000)?;
        a.db(&[0xc4, 0xe2, 0xe1, 0x90, 0x0c, 0xd3])?; // vpgatherdq xmm1, [rbx+xmm2*8], xmm3
        a.movups(xmmword_ptr(0x32_0000), xmm1)?;
        a.movups(xmmword_ptr(0x32_0010), xmm3)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!((guest.word(0x32_0000), guest.word(0x32_0008)), (13, 77));
    assert_eq!((guest.word(0x32_0010), guest.word(0x32_0018)), (0, 0));
}
