//! Lets the kernel build a signal frame for a known state and copies it.

use std::arch::global_asm;
use std::sync::Mutex;

use syscalls::{Sysno, syscall};

use super::super::frame;
use super::super::*;
use crate::host::{Features, XsaveLayout};

pub const MXCSR: u32 = 0x9fc0;
const MAX_COPY: usize = 8192;

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Entry {
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rax: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub mxcsr: u64,
    pub x87_control: u64,
}

unsafe extern "C" {
    fn temper_test_handler();
    fn temper_test_restorer();
    fn temper_test_load_x87();
    /// Loads every register, makes the system call tgkill(pid, tid, signo), comes back.
    fn temper_test_raise(pid: u64, tid: u64, signo: u64, vectors: *const u8, zmm: u64);
    static mut temper_test_entry: Entry;
    static mut temper_test_frame: [u8; MAX_COPY];
    static mut temper_test_copied: u64;
}

global_asm!(
    ".bss",
    ".balign 64",
    "temper_test_entry: .zero 64",
    "temper_test_copied: .zero 8",
    "temper_test_frame: .zero 8192",
    ".text",
    "temper_test_handler:",
    "pushfq",
    "pop qword ptr [rip + temper_test_entry + 40]",
    "mov [rip + temper_test_entry], rdi",
    "mov [rip + temper_test_entry + 8], rsi",
    "mov [rip + temper_test_entry + 16], rdx",
    "mov [rip + temper_test_entry + 24], rax",
    "mov [rip + temper_test_entry + 32], rsp",
    "stmxcsr [rip + temper_test_entry + 48]",
    "fnstcw [rip + temper_test_entry + 56]",
    // The frame, up to the end of its floating-point area (extended_size is in it).
    "mov rcx, [rdx + 40 + 23*8]",
    "mov eax, [rcx + 468]",
    "add rcx, rax",
    "sub rcx, rsp",
    "mov [rip + temper_test_copied], rcx",
    "lea rdi, [rip + temper_test_frame]",
    "mov rsi, rsp",
    "rep movsb",
    "ret",
    "temper_test_restorer:",
    "mov eax, 15",
    "syscall",
    "temper_test_load_x87:",
    "fninit",
    "fld1",
    "fldpi",
    "ret",
    "temper_test_raise:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "stmxcsr [rsp]",
    "mov dword ptr [rsp + 4], 0x9fc0",
    "ldmxcsr [rsp + 4]",
    "call temper_test_load_x87",
    "test r8, r8",
    "jnz 2f",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\i, [rcx + \\i * 64]",
    ".endr",
    "jmp 3f",
    "2:",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovdqu64 zmm\\i, [rcx + \\i * 64]",
    ".endr",
    ".irp i, 0,1,2,3,4,5,6,7",
    "kmovq k\\i, [rcx + 2048 + \\i * 8]",
    ".endr",
    "3:",
    "mov rbx, 0x1111111111111111",
    "mov rbp, 0x2222222222222222",
    "mov r8, 0x3333333333333333",
    "mov r9, 0x4444444444444444",
    "mov r10, 0x5555555555555555",
    "mov r12, 0x6666666666666666",
    "mov r13, 0x7777777777777777",
    "mov r14, 0x8888888888888888",
    "mov r15, 0x9999999999999999",
    "std",
    "mov eax, 234",
    "syscall",
    "cld",
    "fninit",
    "ldmxcsr [rsp]",
    "vzeroupper",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

/// A frame of the kernel's and what goes with it.
pub struct Capture {
    pub bytes: Vec<u8>,
    pub copied: usize,
    pub entry: Entry,
    pub handler: u64,
    pub restorer: u64,
    pub alt_stack: AltStack,
    pub mask_in_handler: SigSet,
}

impl Capture {
    pub fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("8 bytes"))
    }

    /// A register by its index in libc's `gregs`.
    pub fn register(&self, index: i32) -> u64 {
        self.word(frame::MC + index as usize * 8)
    }

    pub fn info(&self) -> SigInfo {
        let mut words = [0; 16];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.word(frame::INFO + i * 8);
        }
        SigInfo(words)
    }
}

/// What each vector register holds, as far as the CPU has it.
pub fn vector_patterns() -> [[u8; 64]; 32] {
    let layout = XsaveLayout::get();
    std::array::from_fn(|index| {
        let mut value = [0; 64];
        for (_, bytes) in layout.register_parts(index) {
            for at in bytes {
                value[at] = (index * 64 + at) as u8 | 1;
            }
        }
        value
    })
}

pub fn mask_pattern(index: usize) -> u64 {
    match Features::get().avx512 {
        true => 0x0123_4567_89ab_cdef ^ index as u64,
        false => 0,
    }
}

/// Leaves 1 and pi on the x87 stack, as [`capture`] has them.
pub fn load_x87() {
    // SAFETY: touches x87 registers alone, which Rust doesn't use.
    unsafe { temper_test_load_x87() }
}

/// The two topmost x87 values; leaves x87 initial.
pub fn take_x87() -> (f64, f64) {
    let (mut first, mut second) = (0f64, 0f64);
    // SAFETY: stores to two live doubles.
    unsafe {
        std::arch::asm!(
            "fstp qword ptr [{}]",
            "fstp qword ptr [{}]",
            "fninit",
            in(reg) &raw mut first,
            in(reg) &raw mut second,
        );
    }
    (first, second)
}

fn sigaction(signo: i32, action: Action) -> Action {
    let new = action.to_bytes();
    let mut old = [0u8; 32];
    // SAFETY: both are 32 bytes; handlers installed are this file's own.
    unsafe {
        syscall!(
            Sysno::rt_sigaction,
            signo,
            new.as_ptr(),
            old.as_mut_ptr(),
            8
        )
    }
    .expect("rt_sigaction");
    Action::from_bytes(&old)
}

/// What the kernel reports after `action` was set (for a signal that isn't sent here).
pub fn kernel_echo(action: Action) -> Action {
    let before = sigaction(50, action);
    sigaction(50, before)
}

/// Sends SIGUSR2 to this thread in a known state and returns the frame.
pub fn capture(on_stack: bool) -> Capture {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    assert!(Features::get().avx, "the test needs AVX");
    let action = Action {
        handler: temper_test_handler as *const () as u64,
        flags: sa::SIGINFO | sa::RESTORER | if on_stack { sa::ONSTACK } else { 0 },
        restorer: temper_test_restorer as *const () as u64,
        mask: SigSet::of(&[libc::SIGHUP]),
    };
    let before = sigaction(libc::SIGUSR2, action);
    let mut stack = [0u8; 24];
    let mut vectors = vec![0u8; 2048 + 64];
    for (index, value) in vector_patterns().iter().enumerate() {
        vectors[index * 64..][..64].copy_from_slice(value);
    }
    for index in 0..8 {
        vectors[2048 + index * 8..][..8].copy_from_slice(&mask_pattern(index).to_le_bytes());
    }
    // SAFETY: the routine keeps what the ABI demands; the statics are guarded by the lock.
    let (bytes, copied, entry) = unsafe {
        syscall!(Sysno::sigaltstack, 0, stack.as_mut_ptr()).expect("sigaltstack");
        let tid = libc::syscall(libc::SYS_gettid) as u64;
        temper_test_raise(
            u64::from(std::process::id()),
            tid,
            libc::SIGUSR2 as u64,
            vectors.as_ptr(),
            u64::from(Features::get().avx512),
        );
        let copied = temper_test_copied as usize;
        let bytes = (&raw const temper_test_frame).cast::<u8>();
        (
            std::slice::from_raw_parts(bytes, copied).to_vec(),
            copied,
            temper_test_entry,
        )
    };
    sigaction(libc::SIGUSR2, before);
    let alt_stack = AltStack::from_bytes(&stack);
    Capture {
        bytes,
        copied: copied + 4096,
        entry,
        handler: action.handler,
        restorer: action.restorer,
        alt_stack: AltStack {
            flags: 0,
            ..alt_stack
        },
        mask_in_handler: host::mask().with(libc::SIGHUP).with(libc::SIGUSR2),
    }
}
