//! Why a program can't be run.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::privilege::Privilege;
use crate::addr::GuestAddr;
use crate::host::syscall::Errno;

/// What is wrong with a file that should be an x86-64 ELF program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ElfError {
    NotElf,
    /// The file ends before the named part.
    Truncated(&'static str),
    /// The named part contradicts itself.
    Malformed(&'static str),
    /// Neither ET_EXEC nor ET_DYN.
    NotExecutable {
        elf_type: u16,
    },
    I386,
    X32,
    /// `machine` as in e_machine.
    OtherArchitecture {
        machine: u16,
    },
}

/// Why a program can't be loaded. [`LoadError::exit_status`] is what a shell would exit with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadError {
    NotFound(PathBuf),
    /// No permission to execute it, or no regular file.
    NotPermitted(PathBuf),
    /// The kernel has another reason not to execute it (ELOOP, ETXTBSY).
    Refused {
        path: PathBuf,
        errno: Errno,
    },
    /// It would run with rights that Temper doesn't have.
    Privileged {
        path: PathBuf,
        privilege: Privilege,
    },
    /// It could be executed but not read (which Temper must).
    Unreadable {
        path: PathBuf,
        errno: Errno,
    },
    Elf {
        path: PathBuf,
        error: ElfError,
    },
    /// A `#!` line that names no interpreter.
    BadScript(PathBuf),
    /// Scripts run by scripts, deeper than the kernel goes.
    ScriptsTooDeep(PathBuf),
    /// What a script's first line names can't be executed.
    ScriptInterpreter {
        of: PathBuf,
        error: Box<LoadError>,
    },
    /// The loader that a program names can't be loaded.
    Interpreter {
        of: PathBuf,
        error: Box<LoadError>,
    },
    /// A fixed image wants addresses that are Temper's or the host's.
    AddressTaken {
        path: PathBuf,
        range: Range<GuestAddr>,
    },
    /// No room among low addresses for an image of so many bytes.
    NoRoom {
        path: PathBuf,
        bytes: u64,
    },
    /// Arguments and environment don't fit the stack.
    ArgumentsTooLong,
    /// The host refused what loading needs.
    Host {
        what: &'static str,
        errno: Errno,
    },
}

impl LoadError {
    /// 127: not found; 126: found but not runnable; 125: Temper's own failure.
    pub fn exit_status(&self) -> u8 {
        match self {
            LoadError::NotFound(_) => 127,
            LoadError::Refused {
                errno: Errno(libc::ENOTDIR),
                ..
            } => 127,
            LoadError::NotPermitted(_)
            | LoadError::Refused { .. }
            | LoadError::Privileged { .. }
            | LoadError::Unreadable { .. }
            | LoadError::Elf { .. }
            | LoadError::BadScript(_)
            | LoadError::ScriptsTooDeep(_)
            | LoadError::ArgumentsTooLong => 126,
            // A shell reports a missing interpreter as it reports a missing program.
            LoadError::ScriptInterpreter { error, .. } | LoadError::Interpreter { error, .. } => {
                error.exit_status()
            }
            LoadError::AddressTaken { .. } | LoadError::NoRoom { .. } | LoadError::Host { .. } => {
                125
            }
        }
    }

    /// What execve(2) fails with (fs/exec.c, fs/binfmt_elf.c, fs/binfmt_script.c).
    pub fn errno(&self) -> Errno {
        Errno(match self {
            LoadError::NotFound(_) => libc::ENOENT,
            LoadError::NotPermitted(_) | LoadError::Unreadable { .. } => libc::EACCES,
            LoadError::Refused { errno, .. } | LoadError::Host { errno, .. } => return *errno,
            LoadError::Privileged { .. } => libc::EPERM,
            LoadError::Elf { .. } | LoadError::BadScript(_) => libc::ENOEXEC,
            LoadError::ScriptsTooDeep(_) => libc::ELOOP,
            LoadError::ScriptInterpreter { error, .. } => return error.errno(),
            LoadError::Interpreter { error, .. } => match &**error {
                LoadError::Elf { .. } => libc::ELIBBAD,
                error => return error.errno(),
            },
            LoadError::ArgumentsTooLong => libc::E2BIG,
            LoadError::AddressTaken { .. } | LoadError::NoRoom { .. } => libc::ENOMEM,
        })
    }

    /// Whether the kernel alone would run it.
    pub fn is_tempers(&self) -> bool {
        match self {
            LoadError::Privileged { .. }
            | LoadError::Unreadable { .. }
            | LoadError::Elf {
                error: ElfError::I386,
                ..
            } => true,
            LoadError::ScriptInterpreter { error, .. } | LoadError::Interpreter { error, .. } => {
                error.is_tempers()
            }
            LoadError::NotFound(_)
            | LoadError::NotPermitted(_)
            | LoadError::Refused { .. }
            | LoadError::Elf { .. }
            | LoadError::BadScript(_)
            | LoadError::ScriptsTooDeep(_)
            | LoadError::AddressTaken { .. }
            | LoadError::NoRoom { .. }
            | LoadError::ArgumentsTooLong
            | LoadError::Host { .. } => false,
        }
    }
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElfError::NotElf => f.write_str("not an ELF program or #! script"),
            ElfError::Truncated(part) => write!(f, "the file is truncated: it ends before {part}"),
            ElfError::Malformed(part) => write!(f, "a damaged ELF file: {part}"),
            ElfError::NotExecutable { elf_type } => {
                write!(f, "an ELF file of type {elf_type}, not a program")
            }
            ElfError::I386 => f.write_str("an i386 (32-bit) program, which isn't supported yet"),
            ElfError::X32 => f.write_str("an x32 program, which isn't supported"),
            ElfError::OtherArchitecture { machine } => match machine_name(*machine) {
                Some(name) => write!(f, "a program for {name}, not for x86-64"),
                None => write!(f, "a program for ELF machine {machine}, not for x86-64"),
            },
        }
    }
}

fn machine_name(machine: u16) -> Option<&'static str> {
    Some(match machine {
        2 | 18 | 43 => "SPARC",
        4 => "Motorola 68000",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "ARM",
        50 => "Itanium",
        183 => "AArch64",
        243 => "RISC-V",
        247 => "BPF",
        258 => "LoongArch",
        _ => return None,
    })
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::NotFound(path) => write!(f, "{}: not found", path.display()),
            LoadError::NotPermitted(path) => write!(f, "{}: not executable", path.display()),
            LoadError::Refused { path, errno } => write!(f, "{}: {errno}", path.display()),
            LoadError::Privileged { path, privilege } => {
                let path = path.display();
                match privilege {
                    Privilege::User(user) => {
                        write!(f, "{path}: a set-user-ID program (user {user})")
                    }
                    Privilege::Group(group) => {
                        write!(f, "{path}: a set-group-ID program (group {group})")
                    }
                    Privilege::Capabilities => write!(f, "{path}: a program with capabilities"),
                }?;
                f.write_str(", which Temper can't give; run it as who it becomes, or natively")
            }
            LoadError::Unreadable { path, errno } => {
                write!(f, "{}: it can't be read: {errno}", path.display())
            }
            LoadError::Elf { path, error } => write!(f, "{}: {error}", path.display()),
            LoadError::BadScript(path) => {
                write!(f, "{}: its #! line names no interpreter", path.display())
            }
            LoadError::ScriptsTooDeep(path) => {
                write!(f, "{}: too many levels of #! scripts", path.display())
            }
            LoadError::ScriptInterpreter { of, error } | LoadError::Interpreter { of, error } => {
                write!(f, "{}: its interpreter can't be run: {error}", of.display())
            }
            LoadError::AddressTaken { path, range } => write!(
                f,
                "{}: its fixed addresses {} to {} aren't free",
                path.display(),
                range.start,
                range.end
            ),
            LoadError::NoRoom { path, bytes } => write!(
                f,
                "{}: no room for {bytes} bytes of code below 2 GiB",
                path.display()
            ),
            LoadError::ArgumentsTooLong => f.write_str("the arguments are too long"),
            LoadError::Host { what, errno } => write!(f, "{what}: {errno}"),
        }
    }
}

impl std::error::Error for LoadError {}
