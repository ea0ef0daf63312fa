//! Runs a few instructions on the bare CPU with a given integer state.

use std::arch::naked_asm;

use crate::addr::{GuestAddr, HostAddr};
use crate::guest::CpuState;
use crate::host::DualMap;
use crate::native::StubCache;

use super::Random;

/// Guest data that tests work on.
pub const DATA_BYTES: usize = 16384;

const CODE_BYTES: usize = 8192;

/// Where the code under test starts, behind the prologue.
const CODE_AT: usize = 256;

/// What the entry code and the generated epilogue share. In the low 4 GiB, so that it can be
/// reached without a register.
#[repr(C)]
struct Transfer {
    gpr: [u64; 16],
    rflags: u64,
    host_rsp: u64,
}

/// Code, data and transfer area in the low 4 GiB.
pub struct Bench {
    code: DualMap,
    data: *mut u8,
    transfer: *mut Transfer,
    placed: Vec<u8>,
    pub stubs: Option<StubCache>,
}

impl Bench {
    pub fn new() -> Bench {
        let low = |bytes: usize| {
            // SAFETY: a fresh anonymous mapping.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                    -1,
                    0,
                )
            };
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>()
        };
        // Faults that run off the data meet unmapped pages.
        let region = low(DATA_BYTES + 2 * 65536);
        // SAFETY: within the mapping just made.
        let data = unsafe {
            libc::munmap(region.cast(), 65536);
            libc::munmap(region.add(65536 + DATA_BYTES).cast(), 65536);
            region.add(65536)
        };
        let spot = low(CODE_BYTES);
        // SAFETY: our own mapping, made to find a free low address.
        unsafe { libc::munmap(spot.cast(), CODE_BYTES) };
        let code = DualMap::new(CODE_BYTES, Some(HostAddr(spot as u64)))
            .or_else(|_| DualMap::new(CODE_BYTES, None))
            .expect("executable memory");
        Bench {
            code,
            data,
            transfer: low(4096).cast(),
            placed: Vec::new(),
            stubs: None,
        }
    }

    pub fn code_addr(&self) -> GuestAddr {
        GuestAddr(self.code.exec_addr(CODE_AT).0)
    }

    pub fn data_addr(&self) -> GuestAddr {
        GuestAddr(self.data as u64)
    }

    pub fn data(&self) -> &[u8] {
        // SAFETY: our own mapping; nothing runs on it meanwhile.
        unsafe { std::slice::from_raw_parts(self.data, DATA_BYTES) }
    }

    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.data, DATA_BYTES) }
    }

    pub fn fill(&mut self, random: &mut Random) {
        for word in self.data_mut().as_chunks_mut::<8>().0 {
            *word = random.operand().to_le_bytes();
        }
    }

    /// Writes `code` with an epilogue behind it; returns where it runs.
    pub fn place(&mut self, code: &[u8]) -> GuestAddr {
        if self.placed != code {
            let mut bytes = self.prologue();
            bytes.resize(CODE_AT, 0x90);
            bytes.extend(code);
            bytes.extend(self.epilogue());
            self.code.write_at(0, &bytes);
            self.placed = code.to_vec();
        }
        self.code_addr()
    }

    /// Loads flags and registers by absolute address.
    fn prologue(&self) -> Vec<u8> {
        let base = self.transfer_addr();
        // push [rflags]; popfq
        let mut bytes = vec![0xff, 0x34, 0x25];
        bytes.extend((base + 16 * 8).to_le_bytes());
        bytes.push(0x9d);
        for register in 0..16 {
            // mov r64, [disp32]
            bytes.extend(Self::absolute(
                0x8b,
                register,
                base + u32::from(register) * 8,
            ));
        }
        bytes
    }

    fn transfer_addr(&self) -> u32 {
        u32::try_from(self.transfer as u64).expect("mapped low")
    }

    fn absolute(opcode: u8, register: u8, at: u32) -> [u8; 8] {
        let [a, b, c, d] = at.to_le_bytes();
        let rex = 0x48 | (register >> 3) << 2;
        [rex, opcode, 0x04 | (register & 7) << 3, 0x25, a, b, c, d]
    }

    /// Stores all registers by absolute address, then leaves through the host's stack.
    fn epilogue(&self) -> Vec<u8> {
        let base = self.transfer_addr();
        let mut bytes = Vec::new();
        for register in 0..16 {
            // mov [disp32], r64
            bytes.extend(Self::absolute(
                0x89,
                register,
                base + u32::from(register) * 8,
            ));
        }
        bytes.extend(Self::absolute(0x8b, 4, base + 17 * 8));
        // pushfq; pop [rflags]; cld; ret
        bytes.extend([0x9c, 0x8f, 0x04, 0x25]);
        bytes.extend((base + 16 * 8).to_le_bytes());
        bytes.extend([0xfc, 0xc3]);
        bytes
    }

    /// Runs `code` on the CPU from `cpu`'s registers and flags.
    pub fn run_natively(&mut self, code: &[u8], cpu: &CpuState) -> ([u64; 16], u64) {
        self.place(code);
        // SAFETY: the transfer area is ours; the code ends in the epilogue, which returns to
        // `enter` with the host's stack and direction flag restored.
        unsafe {
            (*self.transfer).gpr = cpu.gpr;
            (*self.transfer).rflags = cpu.rflags;
            enter(self.transfer, self.code.exec_addr(0).0);
            ((*self.transfer).gpr, (*self.transfer).rflags)
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: our own mappings.
        unsafe {
            libc::munmap(self.data.cast(), DATA_BYTES);
            libc::munmap(self.transfer.cast(), 4096);
        }
    }
}

/// Calls generated code that keeps none of the host's registers but RSP.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(transfer: *mut Transfer, prologue: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "lea rax, [rip + 2f]",
        "push rax",
        "mov [rdi + 17*8], rsp",
        "jmp rsi",
        "2:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
