//! What Temper tells the user while a guest runs: only that something the guest asked for
//! isn't supported, once for each thing. Written straight to descriptor 2, in one write.

use std::collections::BTreeSet;

use syscalls::Sysno;

use crate::addr::GuestAddr;
use crate::host::syscall::{Errno, raw};

/// Something worth a line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Notice {
    /// A call that isn't supported yet fails with this error.
    Unsupported { call: &'static str, errno: i32 },
    /// A program that the kernel would execute and Temper can't; the error names it.
    Refused(String),
    /// Temper can't find its own program to execute.
    ProgramLost,
    /// INT 0x80, the 32-bit system call instruction.
    Interrupt80 { at: u64 },
    /// An instruction that no tier can execute.
    Instruction { at: u64 },
}

/// Which notices were given.
#[derive(Default, Debug)]
pub struct Notices {
    given: BTreeSet<Notice>,
}

impl Notices {
    /// Says it, the first time.
    pub fn give(&mut self, notice: Notice) {
        if !self.given.contains(&notice) {
            write_line(&text(&notice));
            self.given.insert(notice);
        }
    }
}

fn text(notice: &Notice) -> String {
    match notice {
        Notice::Unsupported { call, errno } => format!(
            "temper: {call} is not supported yet (the call fails with {:?})",
            Errno(*errno)
        ),
        Notice::Refused(error) => format!("temper: {error}"),
        Notice::ProgramLost => {
            "temper: execve needs /proc/self/exe, which isn't here (in a chroot, mount /proc)"
                .into()
        }
        Notice::Interrupt80 { at } => {
            let at = GuestAddr(*at);
            format!("temper: int 0x80 (32-bit system calls) at {at} is not supported")
        }
        Notice::Instruction { at } => {
            format!(
                "temper: the instruction at {} is not supported",
                GuestAddr(*at)
            )
        }
    }
}

fn write_line(text: &str) {
    let line = format!("{text}\n");
    let args = [2, line.as_ptr() as u64, line.len() as u64, 0, 0, 0];
    // SAFETY: writes from our own buffer; a closed descriptor is an error that nobody needs.
    unsafe { raw(Sysno::write.id() as u64, args) };
}
