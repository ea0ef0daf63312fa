//! Which paths lead to /proc files about this process: through /proc/self,
//! /proc/thread-self, the process's own number, their task folders, absolute or relative to
//! a folder.

use std::ffi::CStr;

use crate::addr::GuestAddr;
use crate::guest::GuestMemory;
use crate::process::address_space::descriptor_path;
use crate::process::memory::read_c_string;

/// A file whose original would show Temper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcFile {
    Exe,
    Maps,
    Smaps,
    Cmdline,
    Environ,
    Auxv,
    Status,
}

impl ProcFile {
    const ALL: [ProcFile; 7] = [
        ProcFile::Exe,
        ProcFile::Maps,
        ProcFile::Smaps,
        ProcFile::Cmdline,
        ProcFile::Environ,
        ProcFile::Auxv,
        ProcFile::Status,
    ];

    /// Its name in the process's folder.
    pub fn name(self) -> &'static CStr {
        match self {
            ProcFile::Exe => c"exe",
            ProcFile::Maps => c"maps",
            ProcFile::Smaps => c"smaps",
            ProcFile::Cmdline => c"cmdline",
            ProcFile::Environ => c"environ",
            ProcFile::Auxv => c"auxv",
            ProcFile::Status => c"status",
        }
    }

    fn named(name: &[u8]) -> Option<ProcFile> {
        ProcFile::ALL
            .into_iter()
            .find(|file| file.name().to_bytes() == name)
    }
}

/// Longer paths can't be one of these files.
const LONGEST: usize = 256;

/// The file that the path at `path` leads to, from `folder` (a descriptor or AT_FDCWD).
pub fn recognize(memory: &mut impl GuestMemory, folder: i32, path: GuestAddr) -> Option<ProcFile> {
    let mut start = [0; 6];
    let long = memory.read_bytes(path, &mut start).is_ok();
    if start[0] == b'/' {
        if !long || &start != b"/proc/" {
            // Something like "//proc": rare, and worth a full look only then.
            if start[1] != b'/' && start[1] != b'.' {
                return None;
            }
        }
        return absolute(&read_c_string(memory, path, LONGEST)?);
    }
    let relative = read_c_string(memory, path, LONGEST)?;
    let name = relative.rsplit(|b| *b == b'/').next()?;
    ProcFile::named(name)?;
    let mut whole = folder_path(folder)?;
    whole.push(b'/');
    whole.extend_from_slice(&relative);
    absolute(&whole)
}

fn folder_path(folder: i32) -> Option<Vec<u8>> {
    if folder == libc::AT_FDCWD {
        use std::os::unix::ffi::OsStringExt;
        return std::env::current_dir()
            .ok()
            .map(|path| path.into_os_string().into_vec());
    }
    descriptor_path(folder as u64).map(|path| path.into_bytes())
}

fn absolute(path: &[u8]) -> Option<ProcFile> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let rest = match parts.as_slice() {
        [b"proc", who, rest @ ..] if is_this_process(who) => rest,
        _ => return None,
    };
    match rest {
        [name] => ProcFile::named(name),
        // Another thread's status is its own; all else is the same for all threads.
        [b"task", thread, name] if is_this_thread(thread) => {
            ProcFile::named(name).filter(|file| *file != ProcFile::Status)
        }
        _ => None,
    }
}

fn is_this_process(who: &[u8]) -> bool {
    matches!(who, b"self" | b"thread-self") || who == std::process::id().to_string().as_bytes()
}

/// A task folder of the process exists only for its threads.
fn is_this_thread(thread: &[u8]) -> bool {
    let Ok(number) = std::str::from_utf8(thread) else {
        return false;
    };
    number.parse::<u32>().is_ok()
        && std::path::Path::new("/proc/self/task")
            .join(number)
            .exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{IdentityMemory, install_test_handler};
    use std::ffi::CString;
    use std::os::fd::AsRawFd;

    fn look(folder: i32, path: &str) -> Option<ProcFile> {
        install_test_handler();
        let text = CString::new(path).expect("a C string");
        let at = GuestAddr(text.as_ptr() as u64);
        recognize(&mut IdentityMemory, folder, at)
    }

    #[test]
    fn every_form_of_path_to_ones_own_files_is_recognized() {
        let pid = std::process::id();
        let forms = [
            "/proc/self/exe".to_string(),
            "/proc/thread-self/exe".to_string(),
            "/proc//self/./exe".to_string(),
            "//proc/self/exe".to_string(),
            format!("/proc/{pid}/exe"),
            format!("/proc/self/task/{pid}/exe"),
            format!("/proc/{pid}/task/{pid}/exe"),
        ];
        for path in forms {
            assert_eq!(look(libc::AT_FDCWD, &path), Some(ProcFile::Exe), "{path}");
        }
        let folder = std::fs::File::open("/proc/self").expect("a folder");
        assert_eq!(look(folder.as_raw_fd(), "maps"), Some(ProcFile::Maps));
        assert_eq!(look(folder.as_raw_fd(), "./maps"), Some(ProcFile::Maps));
    }

    #[test]
    fn other_paths_are_not() {
        for path in [
            "/proc/1/task/1/maps",
            "/proc/self/statm",
            "/proc/selfish/maps",
            "/bin/true",
            "maps",
            "",
            "/",
            "/proc/self/fd/3/maps",
        ] {
            assert_eq!(look(libc::AT_FDCWD, path), None, "{path}");
        }
    }
}
