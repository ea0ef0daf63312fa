//! Opens a program, following `#!` lines and PT_INTERP, and reads the headers of all files
//! involved before anything is mapped.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::header::{self, Image};
use super::script::{self, LINE_BYTES};
use super::{ElfError, Executable, LoadError, privilege};
use crate::host::syscall::Errno;
use crate::process::address_space::descriptor_path;

/// The kernel's limit: a script, its interpreter, and so on (fs/exec.c, exec_binprm).
const MAX_SCRIPT_DEPTH: usize = 5;

/// An ELF file that is open and whose headers are sound.
#[derive(Debug)]
pub struct OpenProgram {
    pub path: PathBuf,
    /// The path as /proc shows it.
    pub real_path: CString,
    pub file: File,
    pub file_bytes: u64,
    pub image: Image,
}

/// All that is to be mapped, and the arguments after scripts were followed. `exec_name` of
/// the auxiliary vector is the path that was asked for, script or not.
#[derive(Debug)]
pub struct Program {
    pub main: OpenProgram,
    pub interpreter: Option<OpenProgram>,
    pub args: Vec<OsString>,
}

/// Opens whatever it takes to run `executable`. `args` are the program's, from argv[0] on.
///
/// # Errors
/// What is wrong with which file.
pub fn open_program(executable: Executable, args: Vec<OsString>) -> Result<Program, LoadError> {
    let mut args = args;
    if args.is_empty() {
        // The kernel's (since 5.18) and for the same reason: programs rely on argv[0].
        args.push(OsString::new());
    }
    let mut executable = executable;
    let mut scripts: Vec<PathBuf> = Vec::new();
    loop {
        let blamed = |error| blame(&scripts, error);
        let path = executable.name.clone();
        let start = read_start(&executable.file, &path).map_err(blamed)?;
        if !script::is_script(&start) {
            let main = examine(&path, executable.file).map_err(blamed)?;
            if let Some(privilege) = privilege::gained_by(&main.file) {
                return Err(blamed(LoadError::Privileged { path, privilege }));
            }
            let interpreter = open_interpreter(&main).map_err(|error| LoadError::Interpreter {
                of: path,
                error: Box::new(error),
            })?;
            return Ok(Program {
                main,
                interpreter,
                args,
            });
        }
        let shebang =
            script::parse(&start).ok_or_else(|| blamed(LoadError::BadScript(path.clone())))?;
        if executable.unreachable {
            return Err(LoadError::NotFound(path));
        }
        if scripts.len() >= MAX_SCRIPT_DEPTH {
            return Err(LoadError::ScriptsTooDeep(path));
        }
        let mut front = vec![shebang.interpreter.clone()];
        front.extend(shebang.argument);
        front.push(path.clone().into_os_string());
        args.splice(0..1, front);
        scripts.push(path);
        executable = Executable::open(Path::new(&shebang.interpreter))
            .map_err(|error| blame(&scripts, error))?;
    }
}

/// Errors of a script's interpreter name the script too.
fn blame(scripts: &[PathBuf], error: LoadError) -> LoadError {
    match scripts.last() {
        Some(script) => LoadError::ScriptInterpreter {
            of: script.clone(),
            error: Box::new(error),
        },
        None => error,
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> LoadError {
    LoadError::Unreadable {
        path: path.into(),
        errno: Errno(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

fn read_start(file: &File, path: &Path) -> Result<Vec<u8>, LoadError> {
    let mut start = vec![0; LINE_BYTES];
    let mut len = 0;
    while len < start.len() {
        match file.read_at(&mut start[len..], len as u64) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    start.truncate(len);
    Ok(start)
}

fn examine(path: &Path, file: File) -> Result<OpenProgram, LoadError> {
    let file_bytes = file
        .metadata()
        .map_err(|error| unreadable(path, &error))?
        .len();
    let read = |at: u64, len: usize| read_exact(&file, at, len);
    let image = header::parse(&read, file_bytes).map_err(|error| LoadError::Elf {
        path: path.into(),
        error,
    })?;
    let real_path = descriptor_path(file.as_raw_fd() as u64)
        .or_else(|| CString::new(path.as_os_str().as_bytes()).ok())
        .unwrap_or_default();
    Ok(OpenProgram {
        path: path.into(),
        real_path,
        file,
        file_bytes,
        image,
    })
}

fn read_exact(file: &File, at: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn open_interpreter(main: &OpenProgram) -> Result<Option<OpenProgram>, LoadError> {
    let Some(range) = main.image.interpreter.clone() else {
        return Ok(None);
    };
    let malformed = |part| LoadError::Elf {
        path: main.path.clone(),
        error: ElfError::Malformed(part),
    };
    let bytes = read_exact(&main.file, range.start, (range.end - range.start) as usize)
        .filter(|bytes| bytes.last() == Some(&0))
        .ok_or_else(|| malformed("the interpreter's name"))?;
    let name: Vec<u8> = bytes.into_iter().take_while(|b| *b != 0).collect();
    let path = PathBuf::from(OsString::from_vec(name));
    let file = Executable::open(&path)?.file;
    examine(&path, file).map(Some)
}

/// The last part of a path, as the kernel names threads after it.
pub fn base_name(path: &Path) -> &OsStr {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes
        .iter()
        .rposition(|b| *b == b'/')
        .map_or(0, |at| at + 1);
    OsStr::from_bytes(&bytes[start..])
}
