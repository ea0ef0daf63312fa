//! Finds the program that a command names, as execvp(3) does.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::LoadError;

/// What the C library uses when PATH is unset (confstr _CS_PATH).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The file to run for `name`: itself if it has a slash, else the first in `path` that can
/// be executed.
///
/// # Errors
/// `NotFound`; `NotPermitted` if all that was found can't be executed.
pub fn find_program(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, LoadError> {
    if name.is_empty() {
        return Err(LoadError::NotFound(PathBuf::new()));
    }
    if name.as_bytes().contains(&b'/') {
        return check(Path::new(name)).map(|()| PathBuf::from(name));
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut denied = None;
    for folder in path.as_bytes().split(|b| *b == b':') {
        // An empty element is the working directory.
        let candidate = match folder {
            [] => PathBuf::from(".").join(name),
            folder => Path::new(OsStr::from_bytes(folder)).join(name),
        };
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error @ LoadError::NotPermitted(_)) => denied = denied.or(Some(error)),
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| LoadError::NotFound(PathBuf::from(name))))
}

/// Whether execve would find a file that it may execute.
pub fn check(path: &Path) -> Result<(), LoadError> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.raw_os_error() {
        Some(libc::EACCES) => LoadError::NotPermitted(path.into()),
        Some(libc::ENOENT | libc::ENOTDIR) | None => LoadError::NotFound(path.into()),
        Some(errno) => LoadError::Unreadable {
            path: path.into(),
            errno: crate::host::syscall::Errno(errno),
        },
    })?;
    let text =
        CString::new(path.as_os_str().as_bytes()).map_err(|_| LoadError::NotFound(path.into()))?;
    // SAFETY: a valid C string.
    let executable =
        unsafe { libc::faccessat(libc::AT_FDCWD, text.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    if !metadata.is_file() || executable != 0 {
        return Err(LoadError::NotPermitted(path.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_name_is_looked_up_along_the_path_and_an_unusable_file_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let plain = folder.path().join("true");
        std::fs::write(&plain, "no program").expect("a file");
        std::fs::set_permissions(&plain, PermissionsExt::from_mode(0o644)).expect("mode");
        let mut path = folder.path().as_os_str().to_owned();
        assert_eq!(
            find_program(OsStr::new("true"), Some(&path)),
            Err(LoadError::NotPermitted(plain))
        );
        path.push(":/nowhere:/bin");
        assert_eq!(
            find_program(OsStr::new("true"), Some(&path)),
            Ok(PathBuf::from("/bin/true"))
        );
        assert_eq!(
            find_program(OsStr::new("no-such-program"), Some(&path)),
            Err(LoadError::NotFound("no-such-program".into()))
        );
        assert_eq!(
            find_program(OsStr::new("/bin"), None),
            Err(LoadError::NotPermitted("/bin".into()))
        );
    }
}
