//! Sentences about single families, beyond what random bytes reach often.

use iced_x86::code_asm::*;

use crate::guest::{CpuState, Gpr, flags};

use super::native_run::Bench;
use super::{adjust, agree, interpret};

const CASES: usize = 300;

#[test]
fn inc_leaves_carry_alone() {
    agree(CASES, |a| {
        a.stc()?;
        a.inc(eax)?;
        a.clc()?;
        a.dec(byte_ptr(r14))
    });
}

#[test]
fn adc_and_sbb_chain_through_carry() {
    agree(CASES, |a| {
        a.add(rax, rdx)?;
        a.adc(rbx, qword_ptr(r14))?;
        a.adc(byte_ptr(r15), 0x7f)?;
        a.sbb(rcx, rsi)?;
        a.sbb(cx, di)
    });
}

#[test]
fn a_shift_by_zero_leaves_the_flags() {
    agree(CASES, |a| {
        a.and(cl, 0x20)?;
        a.cmp(r8, r9)?;
        a.shl(eax, cl)?;
        a.shrd(edx, eax, cl)?;
        a.rcl(byte_ptr(r14), cl)
    });
}

#[test]
fn rotates_through_carry_take_every_count() {
    agree(2000, |a| {
        a.rcl(al, cl)?;
        a.rcr(dx, cl)?;
        a.rcl(ebx, cl)?;
        a.rcr(rsi, cl)?;
        a.rol(word_ptr(r14), cl)?;
        a.ror(ah, cl)
    });
}

#[test]
fn double_shifts_agree_for_undefined_counts_too() {
    agree(2000, |a| {
        a.shld(ax, dx, cl)?;
        a.shrd(word_ptr(r14), bx, cl)?;
        a.shld(esi, edi, cl)?;
        a.shrd(qword_ptr(r15), r8, 33)
    });
}

#[test]
fn multiplications_agree_in_every_width() {
    agree(CASES, |a| {
        a.mul(byte_ptr(r14))?;
        a.imul(bl)?;
        a.mul(cx)?;
        a.imul(esi)?;
        a.mul(rdi)?;
        a.imul(qword_ptr(r15))?;
        a.imul_3(rbx, r8, -12345)?;
        a.imul_2(r9w, word_ptr(r14))?;
        a.mulx(r10, r11, r12)?;
        a.mulx(eax, eax, r12d)
    });
}

#[test]
fn divisions_that_fit_agree() {
    agree(2000, |a| {
        a.mov(rdi, rax)?;
        a.or(bl, 1)?;
        a.movzx(eax, al)?;
        a.div(bl)?;
        a.or(rsi, 1)?;
        a.cqo()?;
        a.idiv(rsi)?;
        a.mov(rax, rdi)?;
        a.cdq()?;
        a.or(r8d, 0x10)?;
        a.idiv(r8d)?;
        a.mov(ax, di)?;
        a.cwd()?;
        a.or(r9w, 2)?;
        a.idiv(r9w)?;
        a.xor(edx, edx)?;
        a.div(rsi)
    });
}

#[test]
fn wide_dividends_agree_where_the_quotient_fits() {
    agree(4000, |a| a.idiv(rbx));
    agree(4000, |a| a.idiv(ebx));
    agree(4000, |a| a.idiv(bx));
    agree(4000, |a| a.idiv(bl));
    agree(4000, |a| a.div(rbx));
    agree(4000, |a| a.div(bh));
}

#[test]
fn bit_strings_reach_below_and_above_their_address() {
    agree(2000, |a| {
        a.lea(rbx, r14 + 4096)?;
        a.movsx(rax, cx)?;
        a.bts(qword_ptr(rbx), rax)?;
        a.movsx(esi, cx)?;
        a.btr(dword_ptr(rbx), esi)?;
        a.btc(word_ptr(rbx), ax)?;
        a.bt(word_ptr(rbx), cx)?;
        a.lock().bts(qword_ptr(rbx), rax)?;
        a.lock().btc(dword_ptr(rbx), 37)
    });
}

#[test]
fn scans_of_zero_keep_their_destination() {
    agree(CASES, |a| {
        a.xor(ecx, ecx)?;
        a.bsf(rax, rcx)?;
        a.bsr(edx, ecx)?;
        a.bsf(bx, cx)?;
        a.mov(qword_ptr(r14), rcx)?;
        a.bsr(rsi, qword_ptr(r14))?;
        a.lzcnt(rdi, rcx)?;
        a.tzcnt(r8w, cx)?;
        a.popcnt(r9d, dword_ptr(r15))
    });
}

#[test]
fn bit_manipulation_extensions_agree() {
    agree(CASES, |a| {
        a.andn(rax, rbx, qword_ptr(r14))?;
        a.bextr(ebx, dword_ptr(r15), eax)?;
        a.blsi(rcx, rdx)?;
        a.blsmsk(edx, dword_ptr(r14))?;
        a.blsr(rsi, rdi)?;
        a.bzhi(rdi, r8, rbx)?;
        a.pdep(r9, r10, qword_ptr(r15))?;
        a.pext(r10d, r11d, r12d)?;
        a.rorx(rbp, qword_ptr(r14), 75)?;
        a.sarx(r11, r12, rcx)?;
        a.shlx(r12d, dword_ptr(r14), esi)?;
        a.shrx(r13, r13, r13)?;
        a.adcx(rax, rbx)?;
        a.adox(ecx, dword_ptr(r15))?;
        a.crc32(rax, qword_ptr(r14))?;
        a.crc32(edx, cl)
    });
}

#[test]
fn conditional_moves_clear_the_upper_half_even_when_not_taken() {
    agree(CASES, |a| {
        a.cmovo(eax, ebx)?;
        a.cmovno(ecx, dword_ptr(r14))?;
        a.cmovbe(dx, si)?;
        a.cmovle(rdi, qword_ptr(r15))?;
        a.setp(ah)?;
        a.setg(byte_ptr(r14))
    });
}

#[test]
fn compare_and_exchange_agrees_on_match_and_mismatch() {
    agree(CASES, |a| {
        a.cmpxchg(ecx, edx)?;
        a.mov(rax, qword_ptr(r14))?;
        a.lock().cmpxchg(qword_ptr(r14), rbx)?;
        a.cmpxchg(byte_ptr(r15), cl)?;
        a.lock().xadd(dword_ptr(r14), esi)?;
        a.xadd(dil, dl)?;
        a.xadd(r8, r8)?;
        a.xchg(word_ptr(r15), r9w)?;
        a.xchg(ah, bl)?;
        a.mov(rdi, r14)?;
        a.and(rdi, -16)?;
        a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
        a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
        a.cmpxchg8b(qword_ptr(r15))?;
        a.cmpxchg8b(qword_ptr(r15))
    });
}

#[test]
fn locked_arithmetic_agrees() {
    agree(CASES, |a| {
        a.lock().add(qword_ptr(r14), rax)?;
        a.lock().adc(word_ptr(r15), 7)?;
        a.lock().sub(byte_ptr(r14 + 3), cl)?;
        a.lock().xor(dword_ptr(r15), edx)?;
        a.lock().neg(qword_ptr(r14))?;
        a.lock().not(byte_ptr(r15))?;
        a.lock().dec(dword_ptr(r14 + 1))
    });
}

#[test]
fn the_stack_pointer_itself_is_pushed_and_popped_rightly() {
    agree(CASES, |a| {
        a.push(rsp)?;
        a.push(qword_ptr(rsp))?;
        a.pop(qword_ptr(rsp + 16))?;
        a.push(ax)?;
        a.pop(bx)?;
        a.push(-5)?;
        a.lea(rcx, rsp - 64)?;
        a.push(rcx)?;
        a.pop(rsp)?;
        a.lea(rbp, rsp + 256)?;
        a.enter(24, 0)?;
        a.leave()?;
        a.enter(16, 3)?;
        a.pushfq()?;
        a.pop(rdx)?;
        a.push(r8)?;
        a.and(qword_ptr(rsp), 0xcd5)?;
        a.popfq()?;
        a.cld()
    });
}

#[test]
fn big_endian_moves_and_swaps_agree() {
    agree(CASES, |a| {
        a.movbe(rax, qword_ptr(r14))?;
        a.movbe(word_ptr(r15), bx)?;
        a.movbe(ecx, dword_ptr(r15))?;
        a.bswap(edx)?;
        a.bswap(rsi)?;
        a.mov(rbx, r14)?;
        a.xlatb()
            .and_then(|()| a.cwde())
            .and_then(|()| a.cdqe())
            .and_then(|()| a.sahf())
            .and_then(|()| a.lahf())
    });
}

#[test]
fn thread_local_accesses_use_the_guest_bases() {
    let mut bench = Bench::new();
    bench.data_mut()[128..136].copy_from_slice(&77u64.to_le_bytes());
    bench.data_mut()[256..264].copy_from_slice(&88u64.to_le_bytes());
    let mut cpu = CpuState {
        fs_base: bench.data_addr().0,
        gs_base: bench.data_addr().0 + 128,
        ..CpuState::default()
    };
    let code = [
        0x64, 0x48, 0x8b, 0x04, 0x25, 128, 0, 0, 0, // mov rax, fs:[128]
        0x65, 0x48, 0x8b, 0x1c, 0x25, 128, 0, 0, 0, // mov rbx, gs:[128]
        0xf3, 0x48, 0x0f, 0xae, 0xc1, // rdfsbase rcx
        0xf3, 0x48, 0x0f, 0xae, 0xd9, // wrgsbase rcx
        0xf3, 0x48, 0x0f, 0xae, 0xca, // rdgsbase rdx
        0x65, 0x48, 0x8b, 0x34, 0x25, 128, 0, 0, 0, // mov rsi, gs:[128]
        0x64, 0x48, 0x8d, 0x79, 0x01, // lea rdi, fs:[rcx + 1]
    ];
    interpret(&mut bench, &code, &mut cpu).expect("no trap");
    let base = bench.data_addr().0;
    assert_eq!((cpu.get(Gpr::Rax), cpu.get(Gpr::Rbx)), (77, 88));
    assert_eq!((cpu.get(Gpr::Rcx), cpu.get(Gpr::Rdx)), (base, base));
    assert_eq!((cpu.gs_base, cpu.get(Gpr::Rsi)), (base, 77));
    assert_eq!(cpu.get(Gpr::Rdi), base + 1);
}

#[test]
fn segment_selectors_read_as_natively() {
    agree(5, |a| {
        a.mov(eax, cs)?;
        a.mov(word_ptr(r14), ss)?;
        a.mov(rcx, ds)?;
        a.mov(dx, fs)?;
        a.push(gs)?;
        a.pop(rbx)?;
        a.mov(es, ecx)?;
        a.mov(ss, word_ptr(r14))
    });
}

#[test]
fn user_code_may_not_change_the_interrupt_flag() {
    let mut bench = Bench::new();
    let mut cpu = CpuState::default();
    cpu.set(Gpr::Rsp, bench.data_addr().0 + 4096);
    // push 0; popfq; pushfq; pop rax
    interpret(&mut bench, &[0x6a, 0x00, 0x9d, 0x9c, 0x58], &mut cpu).expect("no trap");
    assert_eq!(cpu.get(Gpr::Rax), flags::IF | flags::FIXED);
}

#[test]
fn decimal_adjustments_follow_the_manual() {
    // AL = 79H + 35H = AEH; DAA gives 14H with carry (Intel SDM volume 2, DAA).
    let (low, flags_after) = adjust(0x27, 0xae, flags::PF | flags::SF);
    assert_eq!((low & 0xff, flags_after & flags::CF), (0x14, flags::CF));
    // AL = 35H - 47H = EEH with both borrows; DAS gives 88H with carry (DAS).
    let (low, flags_after) = adjust(0x2f, 0xee, flags::CF | flags::AF);
    assert_eq!((low & 0xff, flags_after & flags::CF), (0x88, flags::CF));
    // AAA: 0x000f becomes 0x0105. AAS: 0x0203 with a borrow becomes 0x000d.
    assert_eq!(adjust(0x37, 0x000f, 0).0, 0x0105);
    assert_eq!(adjust(0x3f, 0x0203, flags::AF).0, 0x000d);
}
