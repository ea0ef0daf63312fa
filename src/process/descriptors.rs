//! Temper's own descriptor: at most one is held open while a guest runs, and the guest's
//! calls treat its number as closed. Calls that would take the number for the guest get it,
//! and Temper's descriptor moves elsewhere. /proc/self/fd lists it nevertheless, and calls
//! that use a descriptor without managing it (read, fstat) find it open.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use ::syscalls::Sysno;

use crate::host::syscall::{Errno, call as host_call};

/// The lowest number that Temper's descriptor moves to: standard descriptors aren't its.
const LOWEST: i32 = 3;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct OwnDescriptor {
    fd: Option<OwnedFd>,
}

impl OwnDescriptor {
    pub fn new(fd: Option<OwnedFd>) -> OwnDescriptor {
        OwnDescriptor { fd }
    }

    pub fn is_held(&self) -> bool {
        self.fd.is_some()
    }

    /// To the guest, this descriptor isn't open.
    pub fn is(&self, number: u64) -> bool {
        self.number() == Some(number as u32)
    }

    pub fn number(&self) -> Option<u32> {
        self.fd.as_ref().map(|fd| fd.as_raw_fd() as u32)
    }

    pub fn borrow(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// Closes it for good; with `shared`, leaves it to the other process whose table of
    /// descriptors this is.
    pub fn give_up(&mut self, shared: bool) {
        let fd = self.fd.take();
        if shared {
            // Its number stays open, which only this guest can see.
            std::mem::forget(fd);
        }
    }

    /// Frees the number for the guest: the descriptor moves to the highest free number below,
    /// else to any; if there is none it is given up.
    pub fn make_way(&mut self) {
        let Some(fd) = self.fd.take() else {
            return;
        };
        let number = fd.as_raw_fd();
        self.fd = (LOWEST..number)
            .rev()
            .chain([number + 1])
            .find_map(|lowest| duplicate(number, lowest).ok());
    }
}

fn duplicate(fd: i32, lowest: i32) -> Result<OwnedFd, Errno> {
    let command = libc::F_DUPFD_CLOEXEC as u64;
    let args = [fd as u64, command, lowest as u64, 0, 0, 0];
    // SAFETY: makes a descriptor and changes none.
    let new = unsafe { host_call(Sysno::fcntl, args) }?;
    // SAFETY: just made, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(new as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_null() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null").into()
    }

    #[test]
    fn it_makes_way_and_stays_open() {
        let high = duplicate(open_null().as_raw_fd(), 700).expect("a free number");
        let number = high.as_raw_fd() as u64;
        let mut own = OwnDescriptor::new(Some(high));
        assert!(own.is(number) && own.is(number | 0xffff_ffff_0000_0000));
        own.make_way();
        assert!(own.is_held() && !own.is(number));
        assert!(own.number().is_some_and(|new| u64::from(new) < number));
    }

    #[test]
    fn without_one_nothing_is_hidden() {
        let mut own = OwnDescriptor::default();
        assert!(!own.is(0) && !own.is(u64::MAX));
        own.make_way();
        assert!(!own.is_held());
    }
}
