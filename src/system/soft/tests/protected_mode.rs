//! 32-bit code: segments with bases and limits, gates between rings, both kinds of paging.

use iced_x86::code_asm::*;

use super::*;

#[test]
fn a_segments_base_is_added_and_its_limit_holds() {
    let mut guest = protected();
    // 0x38: data at 3 MiB, 0x100 bytes.
    guest.write(GDT + 0x38, &[0x0040_9330_0000_00ff]);
    guest.write(0x30_0010, &[0x1234]);
    guest.code(32, |a| {
        a.mov(eax, 0x38)?;
        a.mov(fs, ax)?;
        a.mov(eax, dword_ptr(0x10).fs())?;
        a.mov(dword_ptr(0xfc).fs(), eax)?;
        a.mov(dword_ptr(0xfd).fs(), eax)
    });
    let (vector, frame) = guest.run_to_handler32();
    assert_eq!((vector, frame[0]), (13, 0));
    assert_eq!(u64::from(frame[1]), CODE + 5 + 2 + 6 + 6);
    assert_eq!(guest.word(0x30_00fc) as u32, 0x1234);
}

#[test]
fn expand_down_and_read_only_segments_refuse_the_other_side() {
    // 0x38: expand-down data with limit 0xfff.
    for (offset, descriptor, write, fine) in [
        (0x1000u32, 0x0040_9700_0000_0fff_u64, true, true),
        (0xfff, 0x0040_9700_0000_0fff, true, false),
        (0x2000, 0x00cf_9100_0000_ffff, false, true),
        (0x2000, 0x00cf_9100_0000_ffff, true, false),
        // Execute-only code can't be read.
        (0x2000, 0x00cf_9900_0000_ffff, false, false),
    ] {
        let mut guest = protected();
        guest.write(GDT + 0x38, &[descriptor]);
        guest.code(32, |a| {
            a.mov(eax, 0x38)?;
            a.mov(ds, ax)?;
            a.mov(ecx, offset)?;
            if write {
                a.mov(dword_ptr(ecx), eax)?;
            } else {
                a.mov(eax, dword_ptr(ecx))?;
            }
            a.hlt()
        });
        assert_eq!(guest.run(), VcpuExit::HaltedForever);
        let raised = guest.state.rip < CODE;
        assert_eq!(raised, !fine, "{offset:#x} {descriptor:#x} {write}");
    }
}

#[test]
fn a_call_gate_leads_inward_with_its_parameters_and_retf_back() {
    let mut guest = protected();
    // 0x38: a gate for ring 3 to CODE + 0x1000 with two parameters.
    let target = CODE + 0x1000;
    let gate = target & 0xffff | 0x18 << 16 | 0xec02 << 32 | target >> 16 << 48;
    guest.write(GDT + 0x38, &[gate]);
    guest.bytes(TSS + 4, &(STACK as u32 + 0x8000).to_le_bytes());
    guest.bytes(TSS + 8, &0x10u32.to_le_bytes());
    guest.code(32, |a| {
        // To ring 3 first.
        a.push(0x2b)?;
        a.push(STACK as i32 + 0x1000)?;
        a.pushfd()?;
        a.push(0x23)?;
        a.push(CODE as i32 + 0x800)?;
        a.iretd()
    });
    let start = guest.state.rip;
    guest.state.rip = CODE + 0x800;
    guest.code(32, |a| {
        a.mov(eax, 0x2b)?;
        a.mov(ds, ax)?;
        a.push(0x111)?;
        a.push(0x222)?;
        a.db(&[0x9a, 0, 0, 0, 0, 0x3b, 0])?; // lcall 0x3b:0
        a.mov(ebx, esp)?;
        a.hlt()
    });
    guest.state.rip = target;
    guest.code(32, |a| {
        a.mov(esi, dword_ptr(esp + 8))?;
        a.mov(edi, dword_ptr(esp + 12))?;
        a.mov(ebp, esp)?;
        a.mov(ecx, cs)?;
        a.db(&[0xca, 8, 0]) // retf 8
    });
    guest.state.rip = start;
    let (vector, frame) = guest.run_to_handler32();
    assert_eq!((vector, frame[0]), (13, 0), "ring 3 halts at last");
    assert_eq!(frame[2], 0x23);
    assert_eq!((guest.state.gpr[6], guest.state.gpr[7]), (0x222, 0x111));
    assert_eq!(guest.state.gpr[5], STACK + 0x8000 - 24);
    assert_eq!(guest.state.gpr[1], 0x18);
    assert_eq!(guest.state.gpr[3], STACK + 0x1000);
}

#[test]
fn page_directories_of_32_bits_and_pae_translate() {
    let mut guest = protected();
    // 4 MiB pages: 0 to itself, 0x40_0000 to 0x80_0000.
    guest.bytes(0x6000, &0x83u32.to_le_bytes());
    guest.bytes(0x6004, &0x0080_0083u32.to_le_bytes());
    guest.bytes(0x6008, &0x0000_7003u32.to_le_bytes());
    guest.bytes(0x7000, &0x0090_1003u32.to_le_bytes());
    guest.write(0x80_0010, &[0x55]);
    guest.write(0x90_1010, &[0x66]);
    guest.state.cr3 = 0x6000;
    guest.state.cr4 = cr4::PSE;
    guest.state.cr0 |= cr0::PG;
    guest.code(32, |a| {
        a.mov(eax, dword_ptr(0x40_0010))?;
        a.mov(ebx, dword_ptr(0x80_0010))?;
        a.mov(dword_ptr(0xc0_0000), eax)
    });
    let (vector, frame) = guest.run_to_handler32();
    assert_eq!((vector, frame[0]), (14, 2));
    assert_eq!(guest.state.cr2, 0xc0_0000);
    assert_eq!((guest.state.gpr[0], guest.state.gpr[3]), (0x55, 0x66));

    let mut guest = protected();
    guest.write(0x6000, &[0x7001, 0, 0, 0]);
    guest.write(0x7000, &[0x83, 0x20_0083, 0x80_0083]);
    guest.write(0x80_0010, &[0x77]);
    guest.code(32, |a| {
        a.mov(eax, 0x6000)?;
        a.mov(cr3, eax)?;
        a.mov(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, i32::MIN)?;
        a.mov(cr0, eax)?;
        a.mov(ecx, dword_ptr(0x40_0010))?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[1], 0x77);
}

#[test]
fn bound_into_and_decimal_adjustments_work_as_in_the_manual() {
    let mut guest = protected();
    guest.write(0x30_0000, &[5 | 10 << 32]);
    guest.code(32, |a| {
        a.mov(eax, 0x29)?;
        a.add(al, 0x18)?;
        a.daa()?;
        a.mov(ebx, eax)?;
        a.mov(eax, 10)?;
        a.db(&[0x62, 0x05, 0, 0, 0x30, 0])?; // bound eax, [0x300000]
        a.inc(eax)?;
        a.db(&[0x62, 0x05, 0, 0, 0x30, 0])
    });
    let (vector, _) = guest.run_to_handler32();
    assert_eq!(vector, 5);
    assert_eq!(guest.state.gpr[3], 0x47);
    assert_eq!(guest.state.gpr[0], 11);
}

#[test]
fn a_sixteen_bit_stack_wraps_at_64_kilobytes() {
    let mut guest = protected();
    // 0x38: 16-bit data.
    guest.write(GDT + 0x38, &[0x0000_9300_0000_ffff]);
    guest.code(32, |a| {
        a.mov(eax, 0x38)?;
        a.mov(ss, ax)?;
        a.mov(esp, 0x1234_0000u32 as i32)?;
        a.push(0x7f)?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[4], 0x1234_fffc);
    assert_eq!(guest.word(0xfffc) as u32, 0x7f);
}
