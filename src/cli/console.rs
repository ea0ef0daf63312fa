//! Standard error as it was before the guest ran. Many programs close theirs at exit
//! (every one of coreutils does), but what was asked for must still be shown.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;

use rustix::fs::{Stat, fstat};
use rustix::process::{Resource, getrlimit};

/// The kept descriptor has the highest number that costs no larger table in the kernel, so
/// that the guest gets the numbers that it would get natively.
const HIGHEST: u64 = 1023;

/// A copy of standard error, with what it was a copy of: the guest may close it, as it may
/// close any number, and even open something else there.
///
/// Never closed by Temper: at the end the number may be the guest's.
#[derive(Debug, Default)]
pub struct Console {
    kept: Option<(ManuallyDrop<OwnedFd>, Stat)>,
}

impl Console {
    /// Copies standard error; without one (it is closed), nothing is kept.
    pub fn keep() -> Console {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let number = limit.saturating_sub(1).min(HIGHEST) as i32;
        let kept = rustix::io::fcntl_dupfd_cloexec(io::stderr(), number)
            .ok()
            .and_then(|fd| {
                let stat = fstat(&fd).ok()?;
                Some((ManuallyDrop::new(fd), stat))
            });
        Console { kept }
    }

    /// Writes a line; to today's standard error when the copy is gone.
    pub fn line(&self, text: &str) {
        match &self.kept {
            Some((fd, stat)) if is_still(fd, stat) => {
                let line = format!("{text}\n");
                let mut rest = line.as_bytes();
                // A reader that has gone is no failure.
                while !rest.is_empty()
                    && let Ok(written) = rustix::io::write(&**fd, rest)
                {
                    rest = &rest[written..];
                }
            }
            Some(_) | None => eprintln!("{text}"),
        }
    }
}

fn is_still(fd: &OwnedFd, stat: &Stat) -> bool {
    fstat(fd).is_ok_and(|now| {
        (now.st_dev, now.st_ino, now.st_rdev) == (stat.st_dev, stat.st_ino, stat.st_rdev)
    })
}
