//! What a filter looks at: struct seccomp_data of linux/seccomp.h.

/// AUDIT_ARCH_X86_64: EM_X86_64, 64 bits, little endian (linux/audit.h).
pub const ARCH: u32 = 0xc000_003e;

/// Bytes of the structure.
pub const DATA_BYTES: u32 = 64;

/// One system call, as a filter sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallData {
    pub number: u32,
    /// The address after the SYSCALL; the entry itself for calls into the vsyscall page.
    pub instruction_pointer: u64,
    pub args: [u64; 6],
}

impl CallData {
    /// The word at `offset` bytes, a multiple of 4 below [`DATA_BYTES`].
    pub fn word(&self, offset: u8) -> u32 {
        let half = |value: u64| match offset & 4 {
            0 => value as u32,
            _ => (value >> 32) as u32,
        };
        match offset {
            0 => self.number,
            4 => ARCH,
            8 | 12 => half(self.instruction_pointer),
            _ => half(self.args[usize::from(offset - 16) / 8]),
        }
    }
}

/// The word at `offset`, where it is the same for every call with this number.
pub fn word_of_number(number: u32, offset: u8) -> Option<u32> {
    match offset {
        0 => Some(number),
        4 => Some(ARCH),
        _ => None,
    }
}
