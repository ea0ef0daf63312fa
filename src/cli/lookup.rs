//! Finds a program as a shell does: a name with a slash is a path, any other is looked for
//! in PATH. Whether the file is a program that Temper can run is the loader's to say.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::failure::Failure;

/// What a shell assumes when PATH is unset (execvp(3), without the current folder).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The path of the program called `name`.
///
/// # Errors
/// Not found (127); found but a folder, or without permission to execute it (126).
pub fn program(name: &OsStr) -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from(DEFAULT_PATH));
    search(name, &path)
}

fn search(name: &OsStr, path: &OsStr) -> Result<PathBuf, Failure> {
    let shown = Path::new(name).display();
    if name.is_empty() {
        return Err(Failure::not_found(
            "the program's name is empty; say `temper run PROGRAM [ARGS]`",
        ));
    }
    if name.as_bytes().contains(&b'/') {
        return match check(Path::new(name)) {
            Check::Fine => Ok(PathBuf::from(name)),
            Check::Missing => Err(Failure::not_found(format!(
                "{shown}: there is no such file; check the path"
            ))),
            Check::Refused(why) => Err(Failure::not_executable(format!("{shown}: {why}"))),
        };
    }
    let mut refused = None;
    for dir in std::env::split_paths(path) {
        // An empty element means the current folder.
        let candidate = if dir.as_os_str().is_empty() {
            Path::new(".").join(name)
        } else {
            dir.join(name)
        };
        match check(&candidate) {
            Check::Fine => return Ok(candidate),
            Check::Missing => {}
            Check::Refused(why) => {
                refused.get_or_insert_with(|| format!("{}: {why}", candidate.display()));
            }
        }
    }
    Err(match refused {
        Some(why) => Failure::not_executable(why),
        None => Failure::not_found(format!(
            "{shown}: not found in PATH; check the name or give a path"
        )),
    })
}

enum Check {
    Fine,
    Missing,
    Refused(String),
}

fn check(path: &Path) -> Check {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Check::Missing,
                _ => Check::Refused(format!("can't be looked at ({error}); check its folders")),
            };
        }
    };
    if metadata.is_dir() {
        Check::Refused("is a folder, not a program".into())
    } else if !metadata.is_file() {
        Check::Refused("is not a regular file, so it can't be run".into())
    } else if metadata.permissions().mode() & 0o111 == 0 {
        // For others than root the kernel may refuse more; the loader reports that.
        Check::Refused("no permission to execute it; `chmod +x` it if it is a program".into())
    } else {
        Check::Fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str, path: &str) -> Result<PathBuf, u8> {
        search(OsStr::new(name), OsStr::new(path)).map_err(|failure| failure.status)
    }

    #[test]
    fn a_plain_name_is_looked_for_in_path_only() {
        assert_eq!(
            status("true", "/nonexistent:/usr/bin"),
            Ok("/usr/bin/true".into())
        );
        assert_eq!(status("true", "/nonexistent"), Err(127));
        assert_eq!(status("", "/usr/bin"), Err(127));
    }

    #[test]
    fn a_path_must_exist_and_be_an_executable_file() {
        assert_eq!(status("/usr/bin/true", ""), Ok("/usr/bin/true".into()));
        assert_eq!(status("/nonexistent/true", ""), Err(127));
        assert_eq!(status("/etc/passwd/true", ""), Err(127));
        assert_eq!(status("/usr/bin", ""), Err(126));
        assert_eq!(status("/etc/passwd", ""), Err(126));
        assert_eq!(status("/dev/null", ""), Err(126));
    }

    #[test]
    fn a_later_folder_wins_over_a_file_that_cannot_be_executed() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("true"), "no program").expect("write");
        let first = dir.path().to_str().expect("UTF-8");
        assert_eq!(
            status("true", &format!("{first}:/usr/bin")),
            Ok("/usr/bin/true".into())
        );
        assert_eq!(status("true", first), Err(126));
    }
}
