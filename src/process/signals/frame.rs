//! The memory image of x86-64's `struct rt_sigframe` and where on the stack it goes
//! (linux/arch/x86/kernel/signal.c and signal_64.c, include/asm/sigframe.h,
//! uapi/asm/sigcontext.h). Pure layout: decides nothing about signals.

use super::action::{Action, sa};
use super::fpstate::FrameLayout;
use super::info::{FaultCodes, SIGINFO_BYTES, SigInfo};
use super::set::SigSet;
use super::thread::{AltStack, STACK_T_BYTES};
use crate::guest::{CpuState, Gpr, flags};

/// Offsets from the frame's start. `uc` is the ucontext, `mc` the sigcontext inside it.
pub const UC: usize = 8;
pub const UC_STACK: usize = UC + 16;
pub const MC: usize = UC + 40;
const MC_FLAGS: usize = MC + 17 * 8;
const MC_SEGMENTS: usize = MC + 18 * 8;
const MC_ERR: usize = MC + 19 * 8;
const MC_FPSTATE: usize = MC + 23 * 8;
const MC_RESERVED: usize = MC + 24 * 8;
pub const UC_SIGMASK: usize = MC + 256;
pub const INFO: usize = UC_SIGMASK + 8;
pub const FRAME_BYTES: usize = INFO + SIGINFO_BYTES;

/// `gregs` order of the sigcontext: r8 to r15, then these; rip follows.
const REGISTER_ORDER: [Gpr; 16] = [
    Gpr::R8,
    Gpr::R9,
    Gpr::R10,
    Gpr::R11,
    Gpr::R12,
    Gpr::R13,
    Gpr::R14,
    Gpr::R15,
    Gpr::Rdi,
    Gpr::Rsi,
    Gpr::Rbp,
    Gpr::Rbx,
    Gpr::Rdx,
    Gpr::Rax,
    Gpr::Rcx,
    Gpr::Rsp,
];

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

/// Selectors of 64-bit user code and of its stack.
pub const USER_CS: u16 = 0x33;
pub const USER_SS: u16 = 0x2b;
/// The selector of 32-bit user code.
pub const USER32_CS: u16 = 0x23;

/// RFLAGS.RF, which exists in pushed images only.
pub const RESUME_FLAG: u64 = 1 << 16;
/// What rt_sigreturn takes from the frame's flags (`FIX_EFLAGS`).
const RESTORED_FLAGS: u64 = flags::ARITHMETIC | flags::TF | flags::DF | flags::AC;

const RED_ZONE: u64 = 128;

/// Where the parts of a frame go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    pub frame: u64,
    pub fpstate: u64,
}

/// Finds the frame's place for a thread at `sp`. `None`: it would leave the alternate stack.
pub fn place(sp: u64, action: &Action, alt_stack: &AltStack) -> Option<Placement> {
    let nested = alt_stack.in_use(sp);
    let mut top = sp.wrapping_sub(RED_ZONE);
    let mut entering = false;
    // The red zone is taken off first: near the stack's base the kernel, too, starts over.
    if action.flags & sa::ONSTACK != 0 && alt_stack.size != 0 && !alt_stack.in_use(top) {
        top = alt_stack.base.wrapping_add(alt_stack.size);
        entering = true;
    }
    let fpstate = top.wrapping_sub(FrameLayout::get().frame_bytes() as u64) & !63;
    // As after a call: 8 below a multiple of 16, the return address on top.
    let frame = (fpstate.wrapping_sub(FRAME_BYTES as u64) & !15).wrapping_sub(8);
    if (nested || entering) && !alt_stack.holds(frame) {
        return None;
    }
    Some(Placement { frame, fpstate })
}

/// What a frame tells.
#[derive(Clone, Debug)]
pub struct FrameContents<'a> {
    pub restorer: u64,
    pub cpu: &'a CpuState,
    /// Further bits of the flags image.
    pub resume_flag: bool,
    pub fault: FaultCodes,
    pub mask: SigSet,
    pub alt_stack: AltStack,
    pub fpstate: u64,
    /// SA_SIGINFO handlers alone get one.
    pub info: Option<SigInfo>,
}

impl FrameContents<'_> {
    /// The frame's bytes. The eight reserved words of the sigcontext are zero here; the kernel leaves
    /// what was on the stack.
    pub fn to_bytes(&self) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        let mut put = |at: usize, value: u64| {
            frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        let xstate = if FrameLayout::get().is_xsave() {
            UC_FP_XSTATE
        } else {
            0
        };
        put(0, self.restorer);
        put(UC, xstate | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
        for (i, register) in REGISTER_ORDER.into_iter().enumerate() {
            put(MC + i * 8, self.cpu.get(register));
        }
        put(MC + 16 * 8, self.cpu.rip);
        let resume = if self.resume_flag { RESUME_FLAG } else { 0 };
        put(
            MC_FLAGS,
            self.cpu.rflags | flags::FIXED | flags::IF | resume,
        );
        put(MC_SEGMENTS, u64::from(USER_CS) | u64::from(USER_SS) << 48);
        put(MC_ERR, self.fault.error_code);
        put(MC_ERR + 8, self.fault.trap_number);
        put(MC_ERR + 16, self.mask.0);
        put(MC_ERR + 24, self.fault.cr2);
        put(MC_FPSTATE, self.fpstate);
        put(UC_SIGMASK, self.mask.0);
        frame[UC_STACK..UC_STACK + STACK_T_BYTES].copy_from_slice(&self.alt_stack.to_bytes());
        if let Some(info) = self.info {
            frame[INFO..].copy_from_slice(&info.to_bytes());
        }
        frame
    }
}

/// The registers of a frame that a handler returns through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedContext {
    pub cpu: CpuState,
    pub cs: u16,
    pub ss: u16,
    pub fpstate: u64,
}

/// Bytes of the frame that [`SavedContext::from_bytes`] reads, from [`MC`] on.
pub const SAVED_CONTEXT_BYTES: usize = MC_RESERVED - MC;

impl SavedContext {
    /// Reads the sigcontext. Flags that user code can't set this way, and the segment
    /// bases, stay as `current` has them. `uc_flags` says whether SS is to be trusted.
    pub fn from_bytes(
        bytes: &[u8; SAVED_CONTEXT_BYTES],
        uc_flags: u64,
        current: &CpuState,
    ) -> SavedContext {
        let get = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let mut cpu = current.clone();
        for (i, register) in REGISTER_ORDER.into_iter().enumerate() {
            cpu.set(register, get(i * 8));
        }
        cpu.rip = get(16 * 8);
        let saved_flags = get(MC_FLAGS - MC);
        cpu.rflags = current.rflags & !RESTORED_FLAGS | saved_flags & RESTORED_FLAGS;
        let segments = get(MC_SEGMENTS - MC);
        // The kernel forces privilege level 3.
        let cs = segments as u16 | 3;
        let mut ss = (segments >> 48) as u16 | 3;
        if uc_flags & UC_STRICT_RESTORE_SS == 0 && cs == USER_CS {
            ss = USER_SS;
        }
        SavedContext {
            cpu,
            cs,
            ss,
            fpstate: get(MC_FPSTATE - MC),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::signals::thread::SS_AUTODISARM;

    const ALT: AltStack = AltStack {
        base: 0x7000_0000,
        size: 0x4000,
        flags: 0,
    };

    fn on_stack() -> Action {
        Action {
            handler: 0x1000,
            flags: sa::ONSTACK | sa::RESTORER,
            ..Action::default()
        }
    }

    #[test]
    fn a_frame_is_aligned_as_after_a_call_and_spares_the_red_zone() {
        for sp in 0x8000_0000u64..0x8000_0040 {
            let at = place(sp, &Action::default(), &ALT).expect("fits");
            assert_eq!((at.frame + 8) % 16, 0);
            assert_eq!(at.fpstate % 64, 0);
            let end = at.fpstate + FrameLayout::get().frame_bytes() as u64;
            assert!(end <= sp - 128 && at.frame + FRAME_BYTES as u64 <= at.fpstate);
        }
    }

    #[test]
    fn an_alternate_stack_is_entered_once_and_its_overflow_is_noticed() {
        let first = place(0x8000_0000, &on_stack(), &ALT).expect("fits");
        assert!(ALT.holds(first.frame));
        let second = place(first.frame - 0x100, &on_stack(), &ALT).expect("fits");
        assert!(second.frame < first.frame);
        assert_eq!(place(ALT.base + 0x200, &on_stack(), &ALT), None);
    }

    #[test]
    fn a_self_disarming_stack_is_entered_from_its_top_again() {
        let stack = AltStack {
            flags: SS_AUTODISARM,
            ..ALT
        };
        let inside = place(ALT.base + 0x3000, &on_stack(), &stack);
        assert_eq!(inside, place(0x8000_0000, &on_stack(), &stack));
    }
}
