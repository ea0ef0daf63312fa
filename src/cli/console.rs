//! Standard error as it was before the guest ran. Many programs close theirs at exit
//! (every one of coreutils does), but what was asked for must still be shown.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Resource, getrlimit};

/// The kept descriptor has the highest number that costs no larger table in the kernel, so
/// that the guest gets the numbers that it would get natively.
const HIGHEST: u64 = 1023;

/// A copy of standard error; `None` when there is none (it is closed).
pub fn keep() -> Option<OwnedFd> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let number = limit.saturating_sub(1).min(HIGHEST) as i32;
    rustix::io::fcntl_dupfd_cloexec(io::stderr(), number).ok()
}

/// Writes a line to the copy; without one, to today's standard error.
pub fn line(kept: Option<BorrowedFd<'_>>, text: &str) {
    let Some(fd) = kept else {
        eprintln!("{text}");
        return;
    };
    let line = format!("{text}\n");
    let mut rest = line.as_bytes();
    // A reader that has gone is no failure.
    while !rest.is_empty()
        && let Ok(written) = rustix::io::write(fd, rest)
    {
        rest = &rest[written..];
    }
}
