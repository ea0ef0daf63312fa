//! The world that every case runs in: one page of code and a few pages of data, at the same
//! addresses in the bare-CPU process and in the one that holds Temper's executors.

use std::sync::Once;

use temper::guest::{CpuState, GuestTrap, VectorState};

/// One page, filled with INT3; the instruction lies in its middle.
pub const CODE: u64 = 0x2000_0000;
pub const INSTRUCTION_AT: u64 = CODE + 0x800;
pub const PAGE: u64 = 0x1000;

/// Two writable pages between one without access and a read-only one, then none again.
pub const WRITABLE: u64 = 0x2010_1000;
pub const WRITABLE_BYTES: usize = 0x2000;
pub const READ_ONLY: u64 = WRITABLE + WRITABLE_BYTES as u64;
pub const NO_ACCESS: u64 = READ_ONLY + PAGE;

pub type Memory = [u8; WRITABLE_BYTES];

/// Everything that an instruction may read or write in registers. The first 160 bytes of the
/// vector area hold x87 state, in the layout of FXSAVE.
#[derive(Clone, Default)]
#[repr(C)]
pub struct State {
    pub cpu: CpuState,
    pub vector: VectorState,
}

/// One instruction with all that it starts from.
#[derive(Clone)]
pub struct Case {
    pub instruction: iced_x86::Instruction,
    pub bytes: Vec<u8>,
    pub state: State,
    pub memory: Box<Memory>,
}

/// Where an instruction left everything.
#[derive(Clone)]
pub struct Outcome {
    pub state: State,
    pub memory: Box<Memory>,
    /// `None`: completed; `state.cpu.rip` says where control went.
    pub trap: Option<GuestTrap>,
}

/// Maps the pages, once in a process; forked children share them.
pub fn map() {
    static MAPPED: Once = Once::new();
    MAPPED.call_once(|| {
        let shared = |at: u64, len: usize, prot| {
            // SAFETY: fixed addresses that nothing else uses; NOREPLACE makes sure.
            let got = unsafe {
                libc::mmap(
                    at as *mut _,
                    len,
                    prot,
                    libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            assert_eq!(got as u64, at, "the test's addresses are taken");
        };
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        shared(CODE, PAGE as usize, writable | libc::PROT_EXEC);
        shared(WRITABLE - PAGE, PAGE as usize, libc::PROT_NONE);
        shared(WRITABLE, WRITABLE_BYTES, writable);
        shared(READ_ONLY, PAGE as usize, writable);
        shared(NO_ACCESS, PAGE as usize, libc::PROT_NONE);
        // SAFETY: just mapped.
        unsafe {
            for i in 0..PAGE {
                ((READ_ONLY + i) as *mut u8).write((i * 7 + i / 256) as u8);
            }
            libc::mprotect(READ_ONLY as *mut _, PAGE as usize, libc::PROT_READ);
        }
    });
}

/// Whether the bare CPU faulted where the engine keeps its code cache and its map of indirect
/// branches, which random addresses may hit: mapped memory for the executors.
pub fn in_the_engines_memory(trap: Option<GuestTrap>) -> bool {
    const RESERVED: std::ops::Range<u64> = 0x7000_0000..0x4_8000_1000;
    matches!(trap, Some(GuestTrap::Memory(fault)) if RESERVED.contains(&fault.addr.0))
}

/// Puts a case's code and data in place. Used by both sides; no allocation, no TLS.
///
/// # Safety
/// [`map`] was called, and nobody else uses the pages now.
pub unsafe fn place(bytes: &[u8], memory: &Memory) {
    // SAFETY: by contract.
    unsafe {
        std::ptr::write_bytes(CODE as *mut u8, 0xcc, PAGE as usize);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), INSTRUCTION_AT as *mut u8, bytes.len());
        std::ptr::copy_nonoverlapping(memory.as_ptr(), WRITABLE as *mut u8, WRITABLE_BYTES);
    }
}

/// The writable pages as they are now.
///
/// # Safety
/// As for [`place`].
pub unsafe fn take_memory(memory: &mut Memory) {
    // SAFETY: by contract.
    unsafe {
        std::ptr::copy_nonoverlapping(WRITABLE as *const u8, memory.as_mut_ptr(), WRITABLE_BYTES);
    }
}
