//! A CPU's state between Temper's form and KVM's.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs, kvm_dtable,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use crate::system::state::{
    PendingEvent, Segment, TableRegister, VcpuState, XSAVE_BYTES, XsaveArea,
};
use crate::system::vcpu::VcpuError;

const TSC: u32 = 0x10;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const PAT: u32 = 0x277;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// Memory types and IA32_MISC_ENABLE: what a guest writes beside the named ones.
const OTHER: [u32; 30] = [
    0x1a0, 0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c,
    0x20d, 0x20e, 0x20f, 0x1d9,
];

/// An error number of an ioctl with what was tried.
pub fn failed(what: &str, error: kvm_ioctls::Error) -> VcpuError {
    VcpuError::Io(std::io::Error::other(format!(
        "KVM refuses {what}: {}",
        std::io::Error::from(error)
    )))
}

/// The MSRs that have a field of their own.
fn named(state: &mut VcpuState) -> [(u32, &mut u64); 11] {
    [
        (SYSENTER_CS, &mut state.sysenter_cs),
        (SYSENTER_ESP, &mut state.sysenter_esp),
        (SYSENTER_EIP, &mut state.sysenter_eip),
        (PAT, &mut state.pat),
        (STAR, &mut state.star),
        (LSTAR, &mut state.lstar),
        (CSTAR, &mut state.cstar),
        (SFMASK, &mut state.sfmask),
        (KERNEL_GS_BASE, &mut state.kernel_gs_base),
        (TSC_AUX, &mut state.tsc_aux),
        (TSC, &mut state.tsc),
    ]
}

fn from_segment(segment: &kvm_segment) -> Segment {
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes: u16::from(segment.type_ & 15)
            | u16::from(segment.s & 1) << 4
            | u16::from(segment.dpl & 3) << 5
            | u16::from(segment.present & 1) << 7
            | u16::from(segment.avl & 1) << 12
            | u16::from(segment.l & 1) << 13
            | u16::from(segment.db & 1) << 14
            | u16::from(segment.g & 1) << 15,
        unusable: segment.unusable != 0,
    }
}

fn to_segment(segment: &Segment) -> kvm_segment {
    let bit = |at: u32| (segment.attributes >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind() as u8,
        present: bit(7),
        dpl: segment.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: u8::from(segment.unusable),
        padding: 0,
    }
}

fn from_table(table: &kvm_dtable) -> TableRegister {
    TableRegister {
        base: table.base,
        limit: table.limit,
    }
}

fn to_table(table: &TableRegister) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..kvm_dtable::default()
    }
}

/// General registers in the order of [`crate::guest::Gpr`].
fn from_regs(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
        regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

fn to_regs(state: &VcpuState) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

/// Reads MSRs; those that this host's KVM doesn't know are left out.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut found = Vec::new();
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<kvm_msr_entry> = rest
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| VcpuError::InvalidState("MSRs".into()))?;
        let count = fd
            .get_msrs(&mut msrs)
            .map_err(|error| failed("to read MSRs", error))?;
        let read = &msrs.as_slice()[..count];
        found.extend(read.iter().map(|entry| (entry.index, entry.data)));
        // It stops at the first that it doesn't know.
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(found)
}

fn write_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), VcpuError> {
    let entries: Vec<kvm_msr_entry> = values
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        })
        .collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| VcpuError::InvalidState("MSRs".into()))?;
    let count = fd
        .set_msrs(&msrs)
        .map_err(|error| failed("to write MSRs", error))?;
    match values.get(count) {
        None => Ok(()),
        // A zero is what an MSR that isn't there holds anyway.
        Some((_, 0)) => write_msrs(fd, &values[count + 1..]),
        Some((index, value)) => Err(VcpuError::Unsupported(format!(
            "this host's KVM can't hold {value:#x} in MSR {index:#x}"
        ))),
    }
}

fn get_xsave(fd: &VcpuFd) -> Result<Box<XsaveArea>, VcpuError> {
    let xsave = fd
        .get_xsave()
        .map_err(|error| failed("to read vector registers", error))?;
    let mut area = Box::<XsaveArea>::default();
    for (bytes, word) in area.0.chunks_exact_mut(4).zip(xsave.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(area)
}

fn set_xsave(fd: &VcpuFd, area: &XsaveArea) -> Result<(), VcpuError> {
    let mut xsave = kvm_xsave::default();
    const { assert!(XSAVE_BYTES == 4 * 1024) };
    for (word, bytes) in xsave.region.iter_mut().zip(area.0.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // SAFETY: KVM reads more than the 4096 bytes only where a dynamic feature (AMX) was
    // enabled by arch_prctl, which Temper never does.
    unsafe { fd.set_xsave(&xsave) }.map_err(|error| failed("these vector registers", error))
}

/// The whole state but for whether the CPU is halted.
pub fn get(fd: &VcpuFd) -> Result<VcpuState, VcpuError> {
    let regs = fd
        .get_regs()
        .map_err(|error| failed("to read registers", error))?;
    let sregs = fd
        .get_sregs()
        .map_err(|error| failed("to read system registers", error))?;
    let debug = fd
        .get_debug_regs()
        .map_err(|error| failed("to read debug registers", error))?;
    let events = fd
        .get_vcpu_events()
        .map_err(|error| failed("to read pending events", error))?;
    let xcrs = fd
        .get_xcrs()
        .map_err(|error| failed("to read XCR0", error))?;
    let segments = [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs];
    let mut state = VcpuState {
        gpr: from_regs(&regs),
        rip: regs.rip,
        rflags: regs.rflags,
        segments: segments.each_ref().map(from_segment),
        ldtr: from_segment(&sregs.ldt),
        tr: from_segment(&sregs.tr),
        gdtr: from_table(&sregs.gdt),
        idtr: from_table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        xcr0: xcrs.xcrs[..xcrs.nr_xcrs as usize]
            .iter()
            .find(|entry| entry.xcr == 0)
            .map_or(1, |entry| entry.value),
        breakpoints: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
        xsave: get_xsave(fd)?,
        interrupt_shadow: events.interrupt.shadow != 0,
        nmi_pending: events.nmi.pending != 0,
        nmi_blocked: events.nmi.masked != 0,
        pending: pending_event(&events),
        ..VcpuState::default()
    };
    let indices = named(&mut state).map(|(index, _)| index);
    for (index, value) in read_msrs(fd, &indices)? {
        for (named, field) in named(&mut state) {
            if named == index {
                *field = value;
            }
        }
    }
    state.other_msrs = read_msrs(fd, &OTHER)?
        .into_iter()
        .filter(|&(_, value)| value != 0)
        .collect();
    Ok(state)
}

fn pending_event(events: &kvm_vcpu_events) -> Option<PendingEvent> {
    let exception = &events.exception;
    if exception.injected != 0 || exception.pending != 0 {
        return Some(PendingEvent::Exception {
            vector: exception.nr,
            error_code: (exception.has_error_code != 0).then_some(exception.error_code),
        });
    }
    (events.interrupt.injected != 0).then_some(PendingEvent::Interrupt(events.interrupt.nr))
}

/// Replaces the whole state.
pub fn set(fd: &VcpuFd, state: &VcpuState) -> Result<(), VcpuError> {
    let segment = |index: usize| to_segment(&state.segments[index]);
    let sregs = kvm_sregs {
        es: segment(0),
        cs: segment(1),
        ss: segment(2),
        ds: segment(3),
        fs: segment(4),
        gs: segment(5),
        tr: to_segment(&state.tr),
        ldt: to_segment(&state.ldtr),
        gdt: to_table(&state.gdtr),
        idt: to_table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic_base,
        interrupt_bitmap: [0; 4],
    };
    fd.set_sregs(&sregs)
        .map_err(|error| failed("these system registers", error))?;
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    xcrs.xcrs[0].value = state.xcr0;
    fd.set_xcrs(&xcrs)
        .map_err(|error| failed("this XCR0", error))?;
    set_xsave(fd, &state.xsave)?;
    fd.set_regs(&to_regs(state))
        .map_err(|error| failed("these registers", error))?;
    let debug = kvm_debugregs {
        db: state.breakpoints,
        dr6: state.dr6,
        dr7: state.dr7,
        ..kvm_debugregs::default()
    };
    fd.set_debug_regs(&debug)
        .map_err(|error| failed("these debug registers", error))?;
    let mut values: Vec<(u32, u64)> = named(&mut state.clone())
        .iter()
        .map(|(index, value)| (*index, **value))
        .collect();
    values.extend(
        state
            .other_msrs
            .iter()
            .map(|(&index, &value)| (index, value)),
    );
    write_msrs(fd, &values)?;
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    // Bit 0 is the shadow of a load of SS, bit 1 that of STI; STI's can be entered anywhere.
    events.interrupt.shadow = u8::from(state.interrupt_shadow) << 1;
    events.nmi.pending = u8::from(state.nmi_pending);
    events.nmi.masked = u8::from(state.nmi_blocked);
    match state.pending {
        None => {}
        Some(PendingEvent::Interrupt(vector)) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        Some(PendingEvent::Exception { vector, error_code }) => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = u8::from(error_code.is_some());
            events.exception.error_code = error_code.unwrap_or(0);
        }
    }
    fd.set_vcpu_events(&events)
        .map_err(|error| failed("these pending events", error))
}
