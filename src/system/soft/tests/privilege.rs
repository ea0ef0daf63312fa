//! Who may do what: each privileged instruction in ring 3, and the rules of IOPL.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::*;

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The vector that `build` raises in ring 3, and that its frame says so of its own address.
fn raises(build: Build) -> u64 {
    let mut guest = Guest::user();
    guest.code(64, |a| build(a));
    let (vector, frame) = guest.run_to_handler();
    let at = if matches!(vector, 8 | 10..=14 | 17) {
        1
    } else {
        0
    };
    assert_eq!(frame[at], CODE, "the fault is at the instruction");
    vector
}

#[test]
fn ring_3_is_refused_what_is_ring_0s() {
    let privileged: [(&str, Build); 20] = [
        ("hlt", |a| a.hlt()),
        ("cli", |a| a.cli()),
        ("sti", |a| a.sti()),
        ("mov cr0", |a| a.mov(cr0, rax)),
        ("mov from cr0", |a| a.mov(rax, cr0)),
        ("mov cr3", |a| a.mov(cr3, rax)),
        ("mov cr8", |a| a.mov(cr8, rax)),
        ("mov dr7", |a| a.mov(dr7, rax)),
        ("clts", |a| a.clts()),
        ("lmsw", |a| a.lmsw(ax)),
        ("lgdt", |a| a.lgdt(ptr(STACK))),
        ("lidt", |a| a.lidt(ptr(STACK))),
        ("lldt", |a| a.lldt(ax)),
        ("ltr", |a| a.ltr(ax)),
        ("rdmsr", |a| a.rdmsr()),
        ("wrmsr", |a| a.wrmsr()),
        ("invlpg", |a| a.invlpg(ptr(STACK))),
        ("wbinvd", |a| a.wbinvd()),
        ("swapgs", |a| a.swapgs()),
        ("sysretq", |a| a.sysretq()),
    ];
    for (name, build) in privileged {
        assert_eq!(raises(build), 13, "{name}");
    }
    assert_eq!(raises(|a| a.in_(al, 0x60)), 13);
    assert_eq!(raises(|a| a.out(0x60, al)), 13);
    assert_eq!(raises(|a| a.outsb()), 13);
}

#[test]
fn what_does_not_exist_is_invalid_in_every_ring() {
    for build in [
        (|a| a.ud2()) as Build,
        |a| a.vmcall(),
        |a| a.monitor(),
        |a| a.mwait(),
        |a| a.stac(),
        |a| a.xgetbv(),
        |a| a.rdfsbase(rax),
    ] {
        assert_eq!(raises(build), 6);
    }
}

#[test]
fn iopl_3_lets_ring_3_reach_ports_and_interrupts() {
    let mut guest = Guest::user();
    guest.state.rflags |= 3 << 12;
    guest.code(64, |a| {
        a.cli()?;
        a.in_(al, 0x60)?;
        a.sti()?;
        a.pushfq()?;
        a.pop(rbx)?;
        a.hlt()
    });
    assert_eq!(guest.run_to_handler().0, 13, "HLT alone is refused");
    assert_eq!(guest.state.gpr[0] & 0xff, 0x61);
    assert_eq!(guest.state.gpr[3] & 0x3200, 0x3200);
}

#[test]
fn the_task_states_bitmap_opens_single_ports() {
    let mut guest = Guest::user();
    guest.state.tr.limit = 0x67 + 0x40;
    guest.bytes(TSS + 0x66, &0x68u16.to_le_bytes());
    guest.bytes(TSS + 0x68, &[0xff; 0x40]);
    // Ports 0x60 and 0x61.
    guest.bytes(TSS + 0x68 + 0x60 / 8, &[!3]);
    guest.code(64, |a| {
        a.in_(al, 0x60)?;
        a.mov(ebx, eax)?;
        a.in_(ax, 0x60)?;
        a.in_(ax, 0x61)
    });
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0]), (13, 0));
    assert_eq!(frame[1], CODE + 6);
    assert_eq!(guest.state.gpr[3] & 0xff, 0x61);
}

#[test]
fn popf_in_ring_3_leaves_if_and_iopl_alone() {
    let mut guest = Guest::user();
    guest.state.rflags = 0x202;
    guest.code(64, |a| {
        a.push(0x3001)?;
        a.popfq()?;
        a.pushfq()?;
        a.pop(rax)?;
        a.hlt()
    });
    assert_eq!(guest.run_to_handler().0, 13);
    assert_eq!(guest.state.gpr[0], 0x203);
}

#[test]
fn a_software_interrupt_needs_the_gates_privilege() {
    let mut guest = Guest::user();
    guest.code(64, |a| a.int(0x80));
    let (vector, frame) = guest.run_to_handler();
    assert_eq!(vector, 0x80);
    assert_eq!(frame[0], CODE + 2, "behind the instruction");
    // The same through a gate of ring 0.
    let mut guest = Guest::user();
    let low = guest.word(IDT + 0x80 * 16) & !(3 << 45);
    guest.write(IDT + 0x80 * 16, &[low]);
    guest.code(64, |a| a.int(0x80));
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[0], frame[1]), (13, 0x80 * 8 + 2, CODE));
}

#[test]
fn umip_hides_the_tables_from_ring_3() {
    let mut guest = Guest::user();
    guest.code(64, |a| {
        a.sgdt(ptr(STACK - 0x100))?;
        a.str(eax)?;
        a.hlt()
    });
    assert_eq!(guest.run_to_handler().0, 13);
    assert_eq!(guest.state.gpr[0], u64::from(TASK));
    assert_eq!(guest.word(STACK - 0x100) & 0xffff, 0x4f);
    let mut guest = Guest::user();
    guest.state.cr4 |= cr4::UMIP;
    guest.code(64, |a| a.sgdt(ptr(STACK - 0x100)));
    let (vector, frame) = guest.run_to_handler();
    assert_eq!((vector, frame[1]), (13, CODE));
}

#[test]
fn syscall_and_sysret_change_rings_without_memory() {
    let mut guest = Guest::user();
    guest.state.star = 0x20u64 << 48 | u64::from(KERNEL_CS) << 32;
    guest.state.lstar = CODE + 0x1000;
    guest.state.sfmask = 0x200;
    guest.state.rflags = 0x202;
    guest.code(64, |a| {
        a.syscall()?;
        a.mov(ebx, 1)?;
        a.hlt()
    });
    let user = guest.state.rip;
    guest.state.rip = CODE + 0x1000;
    guest.code(64, |a| {
        a.pushfq()?;
        a.pop(r8)?;
        a.mov(r9, rcx)?;
        a.sysretq()
    });
    guest.state.rip = user;
    let (vector, frame) = guest.run_to_handler();
    assert_eq!(vector, 13);
    assert_eq!(frame[2], u64::from(USER_CS), "back in ring 3");
    assert_eq!(guest.state.gpr[3], 1);
    assert_eq!(guest.state.gpr[8] & 0x200, 0, "masked");
    assert_eq!(guest.state.gpr[9], CODE + 2);
    assert_eq!(frame[3] & 0x200, 0x200, "restored");
}

#[test]
fn swapgs_and_the_base_registers_agree() {
    let mut guest = Guest::long();
    guest.state.kernel_gs_base = 0x30_0000;
    guest.state.cr4 |= cr4::FSGSBASE;
    guest.write(0x30_0010, &[0x77]);
    guest.code(64, |a| {
        a.swapgs()?;
        a.mov(rax, qword_ptr(0x10).gs())?;
        a.rdgsbase(rbx)?;
        a.mov(rcx, 0x40_0000u64)?;
        a.wrfsbase(rcx)?;
        a.mov(qword_ptr(8).fs(), rax)?;
        a.mov(ecx, 0xc000_0100u32)?;
        a.rdmsr()?;
        a.hlt()
    });
    assert_eq!(guest.run(), VcpuExit::HaltedForever);
    assert_eq!(guest.state.gpr[3], 0x30_0000);
    assert_eq!(guest.word(0x40_0008), 0x77);
    assert_eq!(guest.state.gpr[0], 0x40_0000);
    assert_eq!(guest.state.kernel_gs_base, 0);
    assert_eq!(guest.state.segment(SegmentRegister::Gs).base, 0x30_0000);
}
