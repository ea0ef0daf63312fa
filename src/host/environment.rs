//! The environment as the kernel passed it, entries without `=` and doubled names included.

use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

unsafe extern "C" {
    /// The C library's (environ(7)).
    static environ: *const *const libc::c_char;
}

/// Every entry, in order.
pub fn environment() -> Vec<OsString> {
    let mut entries = Vec::new();
    // SAFETY: a vector of C strings ended by a null; nothing in Temper changes the environment.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            entries.push(OsStr::from_bytes(CStr::from_ptr(*at).to_bytes()).to_owned());
            at = at.add(1);
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_entries_are_the_standard_librarys() {
        let mut ours = environment();
        ours.retain(|entry| entry.as_bytes().iter().skip(1).any(|b| *b == b'='));
        let theirs: Vec<OsString> = std::env::vars_os()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                name
            })
            .collect();
        assert_eq!(ours, theirs);
    }
}
