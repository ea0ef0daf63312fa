//! Opens what execve(2) is given, with the kernel's own verdict: the kernel is asked to
//! execute the file with arguments that can't be read, which it finds out after it has
//! looked at the file (Linux 6.8; older kernels find out before, and Temper looks itself).

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use syscalls::Sysno;

use super::LoadError;
use crate::host::syscall::{Errno, call};

/// An address that is never a user's: reading there is EFAULT.
const UNREADABLE: u64 = !4095;

/// A file that may be executed, open for reading.
#[derive(Debug)]
pub struct Executable {
    /// What it is executed as: AT_EXECFN, and a script's name to its interpreter.
    pub name: PathBuf,
    pub file: File,
    /// Named by a descriptor that is closed on exec: no interpreter could open that name.
    pub unreachable: bool,
    /// Named by a descriptor alone: the thread is named after the file (Linux 6.14).
    pub nameless: bool,
}

impl Executable {
    /// # Errors
    /// Why it can't be executed, or not be read.
    pub fn open(path: &Path) -> Result<Executable, LoadError> {
        let text = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| LoadError::NotFound(path.into()))?;
        Executable::open_at(libc::AT_FDCWD, &text, 0)
    }

    /// As execveat(2) names it.
    ///
    /// # Errors
    /// As [`Executable::open`].
    pub fn open_at(folder: i32, path: &CStr, flags: u32) -> Result<Executable, LoadError> {
        let name = name_of(folder, path);
        let refused = |Errno(errno)| match errno {
            libc::ENOENT => LoadError::NotFound(name.clone()),
            libc::EACCES => LoadError::NotPermitted(name.clone()),
            errno => LoadError::Refused {
                path: name.clone(),
                errno: Errno(errno),
            },
        };
        ask_kernel(folder, path, flags).map_err(refused)?;
        let unreadable = |errno| LoadError::Unreadable {
            path: name.clone(),
            errno,
        };
        let file = open_for_reading(folder, path, flags).map_err(unreadable)?;
        let is_file = file
            .metadata()
            .map_err(|error| unreadable(errno_of(&error)))?
            .is_file();
        if !is_file {
            return Err(LoadError::NotPermitted(name));
        }
        may_execute(&file).map_err(refused)?;
        let unreachable = folder != libc::AT_FDCWD
            && !path.to_bytes().starts_with(b"/")
            && closes_on_exec(folder);
        Ok(Executable {
            name,
            file,
            unreachable,
            nameless: path.is_empty(),
        })
    }
}

/// The kernel's name for it (`bprm->filename`).
fn name_of(folder: i32, path: &CStr) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    if folder == libc::AT_FDCWD || path.is_absolute() {
        return path.into();
    }
    let folder = format!("/dev/fd/{folder}");
    if path.as_os_str().is_empty() {
        folder.into()
    } else {
        Path::new(&folder).join(path)
    }
}

fn ask_kernel(folder: i32, path: &CStr, flags: u32) -> Result<(), Errno> {
    let args = [
        folder as u64,
        path.as_ptr() as u64,
        UNREADABLE,
        UNREADABLE,
        u64::from(flags),
        0,
    ];
    // SAFETY: nothing is executed, because the arguments can't be read.
    match unsafe { call(Sysno::execveat, args) } {
        Err(Errno(libc::EFAULT)) => Ok(()),
        Err(errno) => Err(errno),
        Ok(_) => unreachable!("execveat without arguments"),
    }
}

fn open_for_reading(folder: i32, path: &CStr, flags: u32) -> Result<File, Errno> {
    let empty = path.is_empty();
    let link = CString::new(format!("/proc/self/fd/{folder}")).unwrap_or_default();
    let (folder, path) = if empty {
        (libc::AT_FDCWD, &*link)
    } else {
        (folder, path)
    };
    // Not blocking: without the kernel's verdict it may be a FIFO.
    let mut open_flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    if !empty && flags & libc::AT_SYMLINK_NOFOLLOW as u32 != 0 {
        open_flags |= libc::O_NOFOLLOW;
    }
    let args = [
        folder as u64,
        path.as_ptr() as u64,
        open_flags as u64,
        0,
        0,
        0,
    ];
    // SAFETY: a C string; the new descriptor is nobody else's.
    unsafe { call(Sysno::openat, args).map(|fd| File::from_raw_fd(fd as i32)) }
}

fn may_execute(file: &File) -> Result<(), Errno> {
    let args = [
        file.as_raw_fd() as u64,
        c"".as_ptr() as u64,
        libc::X_OK as u64,
        (libc::AT_EMPTY_PATH | libc::AT_EACCESS) as u64,
        0,
        0,
    ];
    // SAFETY: asks only.
    unsafe { call(Sysno::faccessat2, args) }.map(drop)
}

fn closes_on_exec(fd: i32) -> bool {
    // SAFETY: asks only.
    let flags = unsafe { call(Sysno::fcntl, [fd as u64, libc::F_GETFD as u64, 0, 0, 0, 0]) };
    flags.is_ok_and(|flags| flags & libc::FD_CLOEXEC as u64 != 0)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn errno(path: &Path) -> Result<(), Errno> {
        Executable::open(path).map(drop).map_err(|e| e.errno())
    }

    #[test]
    fn the_verdict_is_the_kernels() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "no program").expect("a file");
        let set_mode = |mode| {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("mode");
        };
        set_mode(0o644);
        assert_eq!(errno(&file), Err(Errno(libc::EACCES)));
        set_mode(0o755);
        assert_eq!(errno(&file), Ok(()));
        assert_eq!(errno(folder.path()), Err(Errno(libc::EACCES)));
        assert_eq!(errno(&file.join("x")), Err(Errno(libc::ENOTDIR)));
        assert_eq!(errno(&folder.path().join("x")), Err(Errno(libc::ENOENT)));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("link", &link).expect("a link");
        assert_eq!(errno(&link), Err(Errno(libc::ELOOP)));
    }

    #[test]
    fn a_name_relative_to_a_descriptor_is_below_dev_fd() {
        assert_eq!(name_of(libc::AT_FDCWD, c"a/b"), Path::new("a/b"));
        assert_eq!(name_of(7, c"/a"), Path::new("/a"));
        assert_eq!(name_of(7, c"a"), Path::new("/dev/fd/7/a"));
        assert_eq!(name_of(7, c""), Path::new("/dev/fd/7"));
    }
}
