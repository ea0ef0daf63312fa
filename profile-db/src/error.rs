//! What can go wrong with a profile directory. Each error is a value that names the file;
//! its text is one line.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a profile file isn't one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// Not a profile at all.
    Magic,
    /// Ends too early, or is larger than a profile can be.
    Length,
    /// The header or its section table contradicts itself.
    Header,
    /// A checksum doesn't match.
    Checksum,
    /// A section that every profile has is missing.
    MissingSection,
    /// A section's content doesn't decode.
    Encoding,
    /// Records are out of order, out of range, or name what isn't there.
    Records,
    /// The file holds another module's profile than its name says.
    WrongModule,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Damage::Magic => "it isn't a profile",
            Damage::Length => "its length is wrong",
            Damage::Header => "its header is inconsistent",
            Damage::Checksum => "a checksum doesn't match",
            Damage::MissingSection => "a section is missing",
            Damage::Encoding => "a section doesn't decode",
            Damage::Records => "its records are inconsistent",
            Damage::WrongModule => "it belongs to another module",
        })
    }
}

/// What can go wrong with a profile directory.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused `action` (a verb: "read", "create", ...).
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The file or directory belongs to somebody else, or anybody may write to it.
    Untrusted { path: PathBuf, why: &'static str },
    /// The file can't be trusted. `aside` is where it was put, if it could be.
    Damaged {
        path: PathBuf,
        damage: Damage,
        aside: Option<PathBuf>,
    },
    /// A later Temper wrote the file; it is left alone.
    Newer { path: PathBuf, writer: [u16; 3] },
    /// Another process held the lock too long.
    Busy { path: PathBuf },
    /// This process has another root folder than when it opened the directory.
    OutOfReach { path: PathBuf },
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io {
                action,
                path,
                source,
            } => write!(f, "can't {action} {}: {source}", path.display()),
            Error::Untrusted { path, why } => {
                write!(f, "{} isn't trusted: {why}", path.display())
            }
            Error::Damaged {
                path,
                damage,
                aside: Some(aside),
            } => write!(
                f,
                "profile {} is damaged ({damage}); set aside as {}",
                path.display(),
                aside.display()
            ),
            Error::Damaged {
                path,
                damage,
                aside: None,
            } => write!(f, "profile {} is damaged ({damage})", path.display()),
            Error::Newer {
                path,
                writer: [major, minor, patch],
            } => write!(
                f,
                "profile {} was written by Temper {major}.{minor}.{patch}: use that version or a later one",
                path.display()
            ),
            Error::Busy { path } => {
                write!(f, "{} is locked by another process", path.display())
            }
            Error::OutOfReach { path } => write!(
                f,
                "{} is out of reach since the root folder was changed",
                path.display()
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            Error::Untrusted { .. }
            | Error::Damaged { .. }
            | Error::Newer { .. }
            | Error::Busy { .. }
            | Error::OutOfReach { .. } => None,
        }
    }
}
