//! Programs that the kernel would run with other rights than their caller's: set-user-ID,
//! set-group-ID, file capabilities. Temper, which the kernel executes in their place, can't
//! give those.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// What a file's execution would change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    User(u32),
    Group(u32),
    Capabilities,
}

/// The privilege that executing `file` gives beyond the caller's own; `None` if there is none,
/// or the kernel wouldn't give it (bprm_fill_uid and cap_bprm_creds_from_file of the kernel).
pub fn gained_by(file: &File) -> Option<Privilege> {
    let metadata = file.metadata().ok()?;
    let (mode, user, group) = (metadata.mode(), metadata.uid(), metadata.gid());
    // SAFETY: these only ask.
    let (own_user, own_group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let gained = if mode & libc::S_ISUID != 0 && user != own_user {
        Some(Privilege::User(user))
    } else if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP
        && group != own_group
    {
        Some(Privilege::Group(group))
    } else if own_user != 0 && has_capabilities(file) {
        Some(Privilege::Capabilities)
    } else {
        None
    };
    gained.filter(|_| !privileges_are_off(file))
}

fn has_capabilities(file: &File) -> bool {
    let name = c"security.capability".as_ptr();
    // SAFETY: asks for the size only.
    unsafe { libc::fgetxattr(file.as_raw_fd(), name, std::ptr::null_mut(), 0) > 0 }
}

fn privileges_are_off(file: &File) -> bool {
    // SAFETY: asks only.
    if unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1 {
        return true;
    }
    let mut about = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the C library fills the structure, of which all zeros is a value too.
    let about = unsafe {
        libc::fstatvfs(file.as_raw_fd(), about.as_mut_ptr());
        about.assume_init()
    };
    about.f_flag & libc::ST_NOSUID != 0
}
