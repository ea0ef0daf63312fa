//! Which instruction codes can be compared at all, and why the others can't.

use iced_x86::{Code, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind as Kind};

/// Why no case is made for `code`; `None` if there are cases.
pub fn left_out(code: Code) -> Option<&'static str> {
    let info = code.op_code();
    if !info.is_instruction() || !info.mode64() {
        return Some("no 64-bit instruction");
    }
    if info.fwait() {
        return Some("two instructions");
    }
    if info.encoding() == EncodingKind::MVEX {
        return Some("Knights Corner only");
    }
    match code.mnemonic() {
        Mnemonic::Syscall
        | Mnemonic::Sysenter
        | Mnemonic::Sysexit
        | Mnemonic::Sysret
        | Mnemonic::Sysexitq
        | Mnemonic::Sysretq
        | Mnemonic::Int => Some("enters the kernel"),
        Mnemonic::Xbegin | Mnemonic::Xend | Mnemonic::Xabort => Some("transactions"),
        Mnemonic::Mwaitx | Mnemonic::Mwait | Mnemonic::Umwait | Mnemonic::Tpause => Some("waits"),
        Mnemonic::Rdtsc
        | Mnemonic::Rdtscp
        | Mnemonic::Rdrand
        | Mnemonic::Rdseed
        | Mnemonic::Rdpid
        | Mnemonic::Rdpmc
        | Mnemonic::Rdpru
        | Mnemonic::Cpuid => Some("differs from run to run or CPU to CPU"),
        Mnemonic::Sgdt | Mnemonic::Sidt | Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Smsw => {
            Some("the kernel makes up the result (UMIP)")
        }
        Mnemonic::Int1 => Some("hypervisors report it in different places"),
        Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => Some("loads a segment register"),
        Mnemonic::Wrpkru => Some("would lock the test out of its own memory"),
        Mnemonic::Vmcall
        | Mnemonic::Vmmcall
        | Mnemonic::Vmgexit
        | Mnemonic::Vmfunc
        | Mnemonic::Tdcall
        | Mnemonic::Seamcall
        | Mnemonic::Enclu
        | Mnemonic::Enclv
        | Mnemonic::Encls
        | Mnemonic::Getsec => Some("may leave to a hypervisor or firmware"),
        Mnemonic::Mov | Mnemonic::Pop | Mnemonic::Push
            if info
                .op_kinds()
                .iter()
                .any(|kind| matches!(kind, Kind::seg_reg | Kind::fs | Kind::gs)) =>
        {
            Some("segment registers")
        }
        _ if matches!(
            info.op_kinds().first(),
            Some(
                Kind::br16_1
                    | Kind::br16_2
                    | Kind::br32_1
                    | Kind::br32_4
                    | Kind::brdisp_2
                    | Kind::brdisp_4
            )
        ) =>
        {
            Some("branches with 16-bit operands differ by vendor")
        }
        _ if info.op_kinds().iter().any(|k| {
            matches!(
                k,
                Kind::sibmem | Kind::tmm_reg | Kind::tmm_rm | Kind::tmm_vvvv
            )
        }) =>
        {
            Some("AMX tiles, which a process must ask for")
        }
        _ => far_transfer(code),
    }
}

fn far_transfer(code: Code) -> Option<&'static str> {
    let far = matches!(
        code,
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    );
    let far_return = code.flow_control() == FlowControl::Return && code.mnemonic() != Mnemonic::Ret;
    // Near ones with 16-bit operands jump out of the test's code.
    let narrow = matches!(
        code,
        Code::Retnw | Code::Retnw_imm16 | Code::Jmp_rm16 | Code::Call_rm16
    );
    (far || far_return || narrow).then_some("far or 16-bit transfers")
}
