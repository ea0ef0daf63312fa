//! `siginfo_t`, and what the kernel would put into it for each trap. The values follow
//! linux/arch/x86/kernel/traps.c and were checked against real faults
//! (tests/programs/c/fault_kinds.c prints them).

use crate::guest::{GuestMemory, GuestTrap, ThreadContext, flags};

use super::fpstate;

/// The kernel's 128-byte `siginfo_t` (linux/include/uapi/asm-generic/siginfo.h).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct SigInfo(pub [u64; 16]);

/// Bytes of a [`SigInfo`].
pub const SIGINFO_BYTES: usize = 128;

/// `si_code` of a signal that the kernel sends without particulars.
pub const SI_KERNEL: i32 = 0x80;

const FPE_INTDIV: i32 = 1;
const FPE_FLTDIV: i32 = 3;
const FPE_FLTOVF: i32 = 4;
const FPE_FLTUND: i32 = 5;
const FPE_FLTRES: i32 = 6;
const FPE_FLTINV: i32 = 7;
const ILL_ILLOPN: i32 = 2;
const TRAP_BRKPT: i32 = 1;
const TRAP_TRACE: i32 = 2;
const SYS_SECCOMP: i32 = 1;
const BUS_ADRALN: i32 = 1;

impl SigInfo {
    /// The layout that `_sigfault` signals use: number, code, address.
    pub fn fault(signo: i32, code: i32, addr: u64) -> SigInfo {
        let mut words = [0; 16];
        words[0] = signo as u32 as u64;
        words[1] = code as u32 as u64;
        words[2] = addr;
        SigInfo(words)
    }

    /// What a seccomp filter's SECCOMP_RET_TRAP sends (the layout of `_sigsys`): `data` is the
    /// filter's, `call_addr` where the call was made, `number` which.
    pub fn trapped_call(data: u16, call_addr: u64, number: u32, arch: u32) -> SigInfo {
        let mut words = [0; 16];
        words[0] = libc::SIGSYS as u64 | u64::from(data) << 32;
        words[1] = SYS_SECCOMP as u64;
        words[2] = call_addr;
        words[3] = u64::from(number) | u64::from(arch) << 32;
        SigInfo(words)
    }

    /// What `force_sig` sends.
    pub fn forced(signo: i32) -> SigInfo {
        SigInfo::fault(signo, SI_KERNEL, 0)
    }

    pub fn signo(&self) -> i32 {
        self.0[0] as i32
    }

    pub fn code(&self) -> i32 {
        self.0[1] as i32
    }

    /// `si_addr`; meaningful for faults only.
    pub fn addr(&self) -> u64 {
        self.0[2]
    }

    pub fn to_bytes(self) -> [u8; SIGINFO_BYTES] {
        let mut bytes = [0; SIGINFO_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// What the CPU told about a thread's latest fault. The kernel keeps it and shows it in
/// every later frame, for asynchronous signals too.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultCodes {
    pub trap_number: u64,
    pub error_code: u64,
    /// Written by page faults alone.
    pub cr2: u64,
}

/// A trap as a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrapSignal {
    pub info: SigInfo,
    pub trap_number: u8,
    pub error_code: u32,
    /// The new CR2, for page faults.
    pub cr2: Option<u64>,
    /// Fault-class exceptions push RFLAGS with RF set (Intel SDM volume 3, section 18.3.1.1);
    /// traps (INT3, INT 4, single step) don't.
    pub resume_flag: bool,
}

/// The signal that the kernel sends for `trap` at `ctx.cpu.rip`. `None`: none at all (a
/// spurious floating-point exception, which the kernel retries, or a trap that Temper
/// can't express: [`GuestTrap::Unsupported`]).
pub fn signal_for(
    trap: &GuestTrap,
    ctx: &mut ThreadContext,
    memory: &mut impl GuestMemory,
) -> Option<TrapSignal> {
    let pc = ctx.cpu.rip;
    let fault = |signo, code, addr, trap_number, error_code| TrapSignal {
        info: SigInfo::fault(signo, code, addr),
        trap_number,
        error_code,
        cr2: None,
        resume_flag: true,
    };
    let after = |signal: TrapSignal| TrapSignal {
        resume_flag: false,
        ..signal
    };
    let signal = match *trap {
        GuestTrap::DivideError => fault(libc::SIGFPE, FPE_INTDIV, pc, 0, 0),
        GuestTrap::Debug => {
            let code = if stepped(ctx, memory) {
                TRAP_TRACE
            } else {
                TRAP_BRKPT
            };
            after(fault(libc::SIGTRAP, code, pc, 1, 0))
        }
        GuestTrap::Breakpoint => after(fault(libc::SIGTRAP, SI_KERNEL, 0, 3, 0)),
        GuestTrap::Overflow => after(fault(libc::SIGSEGV, SI_KERNEL, 0, 4, 0)),
        GuestTrap::BoundRange => fault(libc::SIGSEGV, SI_KERNEL, 0, 5, 0),
        GuestTrap::InvalidOpcode => fault(libc::SIGILL, ILL_ILLOPN, pc, 6, 0),
        GuestTrap::GeneralProtection => fault(libc::SIGSEGV, SI_KERNEL, 0, 13, 0),
        // The gate's privilege level refuses it: the error code names the vector (bit 1: IDT).
        GuestTrap::SoftwareInterrupt(vector) => {
            fault(libc::SIGSEGV, SI_KERNEL, 0, 13, u32::from(vector) * 8 + 2)
        }
        GuestTrap::X87FloatingPoint => {
            let (control, status) = fpstate::x87_control_and_status();
            let code = floating_point_code(u32::from(status & !control))?;
            fault(libc::SIGFPE, code, pc, 16, 0)
        }
        GuestTrap::SimdFloatingPoint => {
            let mxcsr = ctx.vector.mxcsr();
            let code = floating_point_code(!(mxcsr >> 7) & mxcsr)?;
            fault(libc::SIGFPE, code, pc, 19, 0)
        }
        // Unlike elsewhere, the kernel reports no address here.
        GuestTrap::AlignmentCheck => fault(libc::SIGBUS, BUS_ADRALN, 0, 17, 0),
        GuestTrap::Memory(memory_fault) => TrapSignal {
            info: SigInfo::fault(
                i32::from(memory_fault.signal),
                memory_fault.si_code,
                if memory_fault.trap_number == 14 {
                    memory_fault.addr.0
                } else {
                    0
                },
            ),
            trap_number: memory_fault.trap_number,
            error_code: memory_fault.error_code,
            cr2: (memory_fault.trap_number == 14).then_some(memory_fault.addr.0),
            resume_flag: true,
        },
        GuestTrap::Unsupported => return None,
    };
    Some(signal)
}

/// Whether a debug trap came from RFLAGS.TF rather than from INT1.
fn stepped(ctx: &ThreadContext, memory: &mut impl GuestMemory) -> bool {
    if ctx.cpu.rflags & flags::TF != 0 {
        return true;
    }
    // TF is clear after a stepped POPF or SYSCALL too; then INT1 (F1) isn't what lies before.
    let mut before = [0];
    memory
        .read_bytes(ctx.cpu.pc().offset(-1), &mut before)
        .is_err()
        || before != [0xf1]
}

/// `si_code` from unmasked exception bits, in the kernel's order of precedence
/// (fpu__exception_code).
fn floating_point_code(unmasked: u32) -> Option<i32> {
    Some(if unmasked & 0x01 != 0 {
        FPE_FLTINV
    } else if unmasked & 0x04 != 0 {
        FPE_FLTDIV
    } else if unmasked & 0x08 != 0 {
        FPE_FLTOVF
    } else if unmasked & 0x12 != 0 {
        FPE_FLTUND
    } else if unmasked & 0x20 != 0 {
        FPE_FLTRES
    } else {
        return None;
    })
}
