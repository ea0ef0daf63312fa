//! Standard input as the guest's keyboard. On a terminal every key goes to the guest, but
//! for Ctrl-A and the key after it. Signals that end programs arrive here too, so that the
//! terminal is put back before Temper goes.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::control::{Control, Stop};

/// The key that begins a command to Temper: Ctrl-A, as QEMU has it.
const ESCAPE: u8 = 1;

/// Puts the terminal back when it goes.
pub struct Terminal {
    before: Option<Termios>,
}

impl Terminal {
    /// Standard input belongs to the guest from now on. Call before other threads start:
    /// the signals are blocked in those that come after.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(control: &Arc<Control>) -> io::Result<Terminal> {
        let stdin = rustix::stdio::stdin();
        let before = if isatty(stdin) {
            let before = tcgetattr(stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin, OptionalActions::Now, &raw)?;
            Some(before)
        } else {
            None
        };
        let terminal = Terminal { before };
        let signals = ending_signals()?;
        let control = Arc::clone(control);
        let is_terminal = terminal.before.is_some();
        thread::spawn(move || listen(&control, &signals, is_terminal));
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// A descriptor that reads the signals that would end Temper.
fn ending_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialized by sigemptyset before its use; the descriptor is new
    // and nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            libc::sigaddset(&raw mut set, signal);
        }
        let result = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Carries keys and signals to the machine until the program ends.
fn listen(control: &Control, signals: &OwnedFd, is_terminal: bool) {
    let stdin = rustix::stdio::stdin();
    let mut keys = Keys::default();
    let mut typing = true;
    loop {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        if typing {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            if let Ok(len) = rustix::io::read(signals.as_fd(), &mut info)
                && len >= 4
            {
                let number = i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
                control.stop(Stop::Signal(number));
            }
        }
        if ready.get(1) == Some(&true) {
            let mut bytes = [0; 256];
            match rustix::io::read(stdin, &mut bytes) {
                Ok(0) | Err(_) => {
                    typing = false;
                    control.end_typing();
                }
                Ok(len) if is_terminal => keys.take(&bytes[..len], control),
                Ok(len) => control.type_in(&bytes[..len]),
            }
        }
    }
}

/// Keys on a terminal.
#[derive(Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn take(&mut self, bytes: &[u8], control: &Control) {
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => control.stop(Stop::Quit),
                (true, b's') => control.stop(Stop::Snapshot),
                (true, b'h' | b'?') => {
                    eprint!(
                        "\r\nCtrl-A x quits, Ctrl-A s saves (in `temper vm snapshot`), \
                         Ctrl-A Ctrl-A sends Ctrl-A\r\n"
                    );
                }
                (_, byte) => control.type_in(&[byte]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_after_the_escape_are_commands() {
        let control = Control::new();
        let mut keys = Keys::default();
        keys.take(b"a\x01", &control);
        keys.take(b"\x01b\x01x", &control);
        assert_eq!(control.take_typed(), b"a\x01b");
        assert_eq!(control.take_stop(), Some(Stop::Quit));
    }
}
