//! What an execve or execveat asks for, read from guest memory in the kernel's order.

use std::ffi::CString;

use crate::addr::GuestAddr;
use crate::guest::{GuestMemory, Width};
use crate::host::syscall::Errno;
use crate::process::elf::Executable;
use crate::process::memory::read_c_string;

/// The longest string that the kernel takes, its end included (MAX_ARG_STRLEN).
const LONGEST_STRING: usize = 128 << 10;
/// More than that many strings fit no stack (the kernel allows 6 MiB for strings and pointers).
const MOST_STRINGS: usize = (6 << 20) / 8;

/// See the module documentation.
#[derive(Debug)]
pub struct Request {
    pub executable: Executable,
    pub arguments: Vec<CString>,
    pub environment: Vec<CString>,
}

/// The path argument of the call.
///
/// # Errors
/// EFAULT, ENAMETOOLONG.
pub fn read_path(memory: &mut impl GuestMemory, at: u64) -> Result<CString, Errno> {
    let limit = libc::PATH_MAX as usize;
    match read_string(memory, at, limit) {
        Err(Errno(libc::E2BIG)) => Err(Errno(libc::ENAMETOOLONG)),
        result => result,
    }
}

/// argv or envp; a null pointer is an empty one.
///
/// # Errors
/// EFAULT, E2BIG.
pub fn read_vector(memory: &mut impl GuestMemory, at: u64) -> Result<Vec<CString>, Errno> {
    let mut strings = Vec::new();
    if at == 0 {
        return Ok(strings);
    }
    for index in 0..MOST_STRINGS {
        let slot = GuestAddr(at.wrapping_add(index as u64 * 8));
        let text = memory
            .load(slot, Width::B8)
            .map_err(|_| Errno(libc::EFAULT))?;
        if text == 0 {
            return Ok(strings);
        }
        strings.push(read_string(memory, text, LONGEST_STRING)?);
    }
    Err(Errno(libc::E2BIG))
}

fn read_string(memory: &mut impl GuestMemory, at: u64, limit: usize) -> Result<CString, Errno> {
    let at = GuestAddr(at);
    if let Some(text) = read_c_string(memory, at, limit) {
        return Ok(CString::new(text).unwrap_or_default());
    }
    // Too long, or it ends where memory does.
    let mut all = vec![0; limit];
    match memory.read_bytes(at, &mut all) {
        Ok(()) => Err(Errno(libc::E2BIG)),
        Err(_) => Err(Errno(libc::EFAULT)),
    }
}

impl Executable {
    /// The same file and name with a descriptor of its own.
    ///
    /// # Errors
    /// Too many open files.
    pub fn try_clone(&self) -> Result<Executable, Errno> {
        let file = self
            .file
            .try_clone()
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EMFILE)))?;
        Ok(Executable {
            name: self.name.clone(),
            file,
            unreachable: self.unreachable,
            nameless: self.nameless,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{IdentityMemory, install_test_handler};

    fn vector(pointers: &[u64]) -> Result<Vec<CString>, Errno> {
        install_test_handler();
        read_vector(&mut IdentityMemory, pointers.as_ptr() as u64)
    }

    #[test]
    fn strings_are_read_up_to_the_null_and_what_cannot_be_read_is_an_error() {
        let (one, empty) = (c"one", c"");
        let at = |text: &std::ffi::CStr| text.as_ptr() as u64;
        assert_eq!(
            vector(&[at(one), at(empty), 0, 7]),
            Ok(vec![one.into(), empty.into()])
        );
        assert_eq!(vector(&[at(one), 7, 0]), Err(Errno(libc::EFAULT)));
        let long = vec![b'x'; LONGEST_STRING + 1];
        assert_eq!(vector(&[long.as_ptr() as u64, 0]), Err(Errno(libc::E2BIG)));
        install_test_handler();
        assert_eq!(read_vector(&mut IdentityMemory, 0), Ok(Vec::new()));
        assert_eq!(
            read_path(&mut IdentityMemory, long.as_ptr() as u64),
            Err(Errno(libc::ENAMETOOLONG))
        );
    }
}
