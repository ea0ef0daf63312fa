//! Translation, its rights, its bits, and what becomes stale when.

use iced_x86::code_asm::*;

use super::*;

const PD: u64 = PML4 + 0x2000;
/// A page table that maps 4 MiB upwards.
const TABLE: u64 = 0x7000;
const AT: u64 = 0x40_0000;
const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const NX: u64 = 1 << 63;

/// Long mode with 4 KiB pages at [`AT`], all of them absent but what `entries` say.
fn with_pages(mut guest: Guest, entries: &[u64]) -> Guest {
    guest.write(PD + AT / (2 << 20) * 8, &[TABLE | 7]);
    guest.write(TABLE, entries);
    guest
}

fn reads(mut guest: Guest) -> (u64, [u64; 6]) {
    guest.code(64, |a| {
        a.mov(rax, qword_ptr(AT))?;
        a.hlt()
    });
    fault_or_halt(guest)
}

fn writes(mut guest: Guest) -> (u64, [u64; 6]) {
    guest.code(64, |a| {
        a.mov(qword_ptr(AT), rax)?;
        a.hlt()
    });
    fault_or_halt(guest)
}

/// Vector 999: nothing was raised. (Ring 3's HLT counts as nothing.)
fn fault_or_halt(mut guest: Guest) -> (u64, [u64; 6]) {
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    if guest.state.rip >= CODE {
        return (999, [0; 6]);
    }
    let top = guest.state.gpr[4];
    let frame = std::array::from_fn(|i| guest.word(top + i as u64 * 8));
    match (guest.state.rip - HANDLERS) / 16 {
        13 => (999, frame),
        vector => (vector, frame),
    }
}

#[test]
fn error_codes_tell_absence_writing_and_ring_apart() {
    let fault = |guest, write: bool| {
        let (vector, frame) = if write { writes(guest) } else { reads(guest) };
        assert_eq!(vector, 14);
        frame[0]
    };
    assert_eq!(fault(with_pages(Guest::long(), &[0]), false), 0);
    assert_eq!(fault(with_pages(Guest::long(), &[0]), true), 2);
    assert_eq!(fault(with_pages(Guest::user(), &[0]), false), 4);
    assert_eq!(
        fault(with_pages(Guest::user(), &[0x30_0000 | P | RW]), false),
        5
    );
    assert_eq!(
        fault(with_pages(Guest::user(), &[0x30_0000 | P | US]), true),
        7
    );
    assert_eq!(fault(with_pages(Guest::long(), &[0x30_0000 | P]), true), 3);
    let reserved = 1 << 45 | 0x30_0000 | P | RW;
    assert_eq!(fault(with_pages(Guest::long(), &[reserved]), false), 9);
    // Without EFER.NXE the bit is reserved.
    let mut guest = with_pages(Guest::long(), &[0x30_0000 | P | NX]);
    guest.state.efer &= !efer::NXE;
    assert_eq!(fault(guest, false), 9);
}

#[test]
fn without_wp_the_supervisor_writes_read_only_pages() {
    let mut guest = with_pages(Guest::long(), &[0x30_0000 | P]);
    guest.state.cr0 &= !cr0::WP;
    assert_eq!(writes(guest).0, 999);
}

#[test]
fn smap_keeps_the_supervisor_from_user_pages_unless_ac_is_set() {
    let user_page = [0x30_0000 | P | RW | US];
    let mut guest = with_pages(Guest::long(), &user_page);
    // Code, stack and tables must be the supervisor's then.
    for page in 0..8 {
        let entry = guest.word(PD + page * 8);
        if page != 2 {
            guest.write(PD + page * 8, &[entry & !US]);
        }
    }
    guest.state.cr4 |= cr4::SMAP;
    guest.code(64, |a| {
        a.stac()?;
        a.mov(rax, qword_ptr(AT))?;
        a.clac()?;
        a.mov(rbx, qword_ptr(AT))?;
        a.hlt()
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (14, 1));
    assert_eq!(frame[1], CODE + 3 + 8 + 3);
}

#[test]
fn smep_and_nx_keep_code_from_running() {
    let mut guest = with_pages(Guest::long(), &[0x30_0000 | P | RW | US]);
    for page in 0..8 {
        let entry = guest.word(PD + page * 8);
        if page != 2 {
            guest.write(PD + page * 8, &[entry & !US]);
        }
    }
    guest.state.cr4 |= cr4::SMEP;
    guest.code(64, |a| {
        a.mov(eax, AT as u32)?;
        a.jmp(rax)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0], frame[1]), (14, 0x11, AT));
    assert_eq!(guest.state.cr2, AT);
    let mut guest = with_pages(Guest::user(), &[0x30_0000 | P | US | NX]);
    guest.code(64, |a| {
        a.mov(eax, AT as u32)?;
        a.jmp(rax)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0], frame[1]), (14, 0x15, AT));
}

#[test]
fn accessed_and_dirty_bits_are_set_when_a_page_is_used() {
    let mut guest = with_pages(
        Guest::long(),
        &[0x30_0000 | P | RW, 0x30_1000 | P | RW, 0x30_2000 | P | RW],
    );
    guest.code(64, |a| {
        a.mov(rax, qword_ptr(AT))?;
        a.mov(rax, qword_ptr(AT + 0x1000))?;
        a.mov(qword_ptr(AT + 0x1000), rax)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.word(TABLE) & (A | D), A);
    assert_eq!(guest.word(TABLE + 8) & (A | D), A | D);
    assert_eq!(guest.word(TABLE + 16) & (A | D), 0);
    assert_eq!(guest.word(PD + AT / (2 << 20) * 8) & (A | D), A);
    assert_eq!(guest.word(PD) & D, 0, "the code's page was only read");
}

#[test]
fn a_translation_stays_until_invlpg_or_cr3_and_global_ones_longer() {
    const GLOBAL: u64 = 0x100;
    let mut guest = with_pages(
        Guest::long(),
        &[0x30_0000 | P | RW, 0x30_0000 | P | RW | GLOBAL],
    );
    guest.write(0x30_0000, &[1]);
    guest.write(0x31_0000, &[2]);
    guest.code(64, |a| {
        a.mov(rax, qword_ptr(AT))?;
        a.mov(rax, qword_ptr(AT + 0x1000))?;
        a.mov(qword_ptr(TABLE), 0x31_0003)?;
        a.mov(qword_ptr(TABLE + 8), 0x31_0103)?;
        a.invlpg(ptr(AT))?;
        a.mov(r8, qword_ptr(AT))?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(r9, qword_ptr(AT + 0x1000))?;
        a.invlpg(ptr(AT + 0x1000))?;
        a.mov(r10, qword_ptr(AT + 0x1000))?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[8], 2);
    assert_eq!(guest.state.gpr[9], 1, "global: CR3 doesn't touch it");
    assert_eq!(guest.state.gpr[10], 2);
}

#[test]
fn an_access_across_two_pages_faults_on_the_second_and_writes_nothing() {
    let mut guest = with_pages(Guest::long(), &[0x30_0000 | P | RW, 0x32_0000 | P]);
    guest.write(0x30_0ff8, &[0x1111_1111_1111_1111]);
    guest.write(0x32_0000, &[0x2222_2222_2222_2222]);
    guest.code(64, |a| {
        a.mov(rax, qword_ptr(AT + 0xffc))?;
        a.mov(qword_ptr(AT + 0xffc), rsp)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (14, 3));
    assert_eq!(guest.state.cr2, AT + 0x1000);
    assert_eq!(guest.state.gpr[0], 0x2222_2222_1111_1111);
    assert_eq!(guest.word(0x30_0ff8), 0x1111_1111_1111_1111);
}

#[test]
fn what_is_no_memory_is_a_devices() {
    let mut guest = Guest::long();
    // 1 GiB at 4 GiB down to 3 GiB, as one page.
    guest.write(PML4 + 0x1000 + 3 * 8, &[0xc000_0000 | 0x83]);
    guest.code(64, |a| {
        a.mov(ecx, 0xfee0_0020u32)?;
        a.mov(eax, dword_ptr(rcx))?;
        a.mov(dword_ptr(rcx), 0x55)?;
        a.or(byte_ptr(rcx + 1), 1)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[0] as u32, 0xfee0_0020u32.wrapping_mul(3));
    let byte = 0xfee0_0021u64.wrapping_mul(3) & 0xff | 1;
    assert_eq!(
        guest.devices.mmio,
        [(0xfee0_0020, 0x55), (0xfee0_0021, byte)]
    );
}
