//! What one Temper tells the Temper that it executes itself as. All of it is in a few
//! arguments in front of the guest's, which the guest never sees: its own are on a stack that
//! Temper makes, and /proc shows those once the process has told the kernel where they are.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use ::syscalls::Sysno;
use serde::{Deserialize, Serialize};

use crate::host::syscall::call as host_call;
use crate::process::elf::Executable;
use crate::process::seccomp::{Carried, Seccomp};
use crate::process::signals::SigSet;
use crate::process::syscalls::MemoryLimits;

/// The second argument of a Temper that takes over; no command has this name.
const MARK: &str = "(exec)";

/// Bytes that one argument holds; the kernel takes 128 KiB.
const ARGUMENT_BYTES: usize = 100 << 10;

/// What is known only to Temper, and stays true over an exec.
#[derive(Serialize, Deserialize, Debug)]
pub struct Handover {
    /// An [`Executable`]'s parts.
    pub name: Vec<u8>,
    pub file: i32,
    pub unreachable: bool,
    pub nameless: bool,
    /// What the guest blocks; the host blocks everything until the new Temper can take signals.
    pub mask: u64,
    pub memory_limits: MemoryLimits,
    pub seccomp: Carried,
    /// Temper's own descriptor.
    pub console: Option<u32>,
}

/// How to run Temper again: its own options, as the command line wants them.
#[derive(Clone, Default, Debug)]
pub struct Relaunch {
    /// For this process's next program.
    pub options: String,
    /// For what its children execute.
    pub options_of_children: String,
}

/// A Temper that takes over.
#[derive(Debug)]
pub struct Resumed {
    pub options: String,
    pub arguments: Vec<OsString>,
    pub executable: Executable,
    pub console: Option<OwnedFd>,
    pub kept: Kept,
}

/// What the new process continues with.
#[derive(Clone, Debug)]
pub struct Kept {
    pub mask: SigSet,
    pub memory_limits: MemoryLimits,
    pub seccomp: Seccomp,
}

impl Handover {
    /// Temper's arguments, in front of the guest's.
    pub fn arguments(&self, relaunch: &Relaunch) -> Vec<CString> {
        let own = serde_json::to_string(self).expect("plain data");
        let (pieces, count) = in_pieces(&own);
        ["temper", MARK, &relaunch.options, &count]
            .into_iter()
            .chain(pieces)
            .map(|text| CString::new(text).expect("JSON has no NUL"))
            .collect()
    }
}

/// A text that is pure ASCII in as many arguments as it takes, and their number.
fn in_pieces(text: &str) -> (Vec<&str>, String) {
    let pieces = text.as_bytes().chunks(ARGUMENT_BYTES);
    let pieces: Vec<&str> = pieces
        .map(|piece| std::str::from_utf8(piece).expect("ASCII"))
        .collect();
    let count = pieces.len().to_string();
    (pieces, count)
}

impl Resumed {
    /// Reads this process's arguments; `None` if it was started by a person or a program.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Option<Resumed> {
        let mut arguments = arguments.into_iter().skip(1);
        if arguments.next()? != MARK {
            return None;
        }
        let options = arguments.next()?.into_string().ok()?;
        let pieces: usize = arguments.next()?.to_str()?.parse().ok()?;
        let mut own = String::new();
        for _ in 0..pieces {
            own.push_str(arguments.next()?.to_str()?);
        }
        let handover: Handover = serde_json::from_str(&own).ok()?;
        let seccomp = Seccomp::restored(&handover.seccomp).ok()?;
        // SAFETY: the descriptors were left open for this process, which looks at them here
        // and once.
        let file = unsafe { File::from_raw_fd(handover.file) };
        let console = handover.console.map(|fd| {
            let fd = fd as i32;
            let args = [
                fd as u64,
                libc::F_SETFD as u64,
                libc::FD_CLOEXEC as u64,
                0,
                0,
                0,
            ];
            // SAFETY: as above.
            unsafe {
                let _ = host_call(Sysno::fcntl, args);
                OwnedFd::from_raw_fd(fd)
            }
        });
        Some(Resumed {
            options,
            arguments: arguments.collect(),
            executable: Executable {
                name: OsString::from_vec(handover.name).into(),
                file,
                unreachable: handover.unreachable,
                nameless: handover.nameless,
            },
            console,
            kept: Kept {
                mask: SigSet(handover.mask),
                memory_limits: handover.memory_limits,
                seccomp,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::seccomp::{Program, RawInstruction, action};
    use std::os::fd::IntoRawFd;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn what_is_handed_over_arrives() {
        let file = File::open("/dev/null").expect("/dev/null").into_raw_fd();
        let mut seccomp = Seccomp::Off;
        let allow = RawInstruction {
            code: 6,
            jt: 0,
            jf: 0,
            k: action::ALLOW,
        };
        // More than one argument holds.
        for _ in 0..3 {
            let program = Program::new(vec![allow; 4096]).expect("valid");
            seccomp.attach(program).expect("room");
        }
        let handover = Handover {
            name: b"odd \xff name".to_vec(),
            file,
            unreachable: true,
            nameless: false,
            mask: 1 << 63,
            memory_limits: MemoryLimits::default(),
            seccomp: seccomp.carried(),
            console: None,
        };
        let relaunch = Relaunch {
            options: "{\"all\":1}".into(),
            ..Relaunch::default()
        };
        let sent = handover.arguments(&relaunch);
        let sent = sent.iter().map(|text| text.to_bytes());
        let sent = sent.chain([&b"first"[..], b"", b"\xff"]);
        let arguments = sent.map(|bytes| OsString::from_vec(bytes.to_vec()));
        let resumed = Resumed::read(arguments).expect("a handover");
        assert_eq!(resumed.options, relaunch.options);
        assert_eq!(
            resumed.executable.name.as_os_str().as_bytes(),
            b"odd \xff name"
        );
        assert!(resumed.executable.unreachable);
        assert_eq!(resumed.kept.mask, SigSet(1 << 63));
        assert_eq!(resumed.kept.seccomp.carried(), seccomp.carried());
        let arguments: Vec<&[u8]> = resumed.arguments.iter().map(|a| a.as_bytes()).collect();
        assert_eq!(arguments, [&b"first"[..], b"", b"\xff"]);
    }

    #[test]
    fn a_persons_command_is_no_handover() {
        for command in [&["temper"][..], &["temper", "run", "true"]] {
            assert!(Resumed::read(command.iter().map(OsString::from)).is_none());
        }
    }
}
