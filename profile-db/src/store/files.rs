//! Opening what may have been tampered with: nothing is trusted that another user could
//! have put in its place.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Damage, Error};
use crate::format::{ProfileFile, Refusal, Source};
use crate::record::{ModuleId, ModuleProfile};

/// No profile file is larger; [`Limits`](crate::Limits) keep what is written far below.
const MAX_FILE_LEN: u64 = 80 << 20;

/// Opens a file of ours for writing, whatever the umask; `new` refuses an existing one.
pub fn create_private(path: &Path, new: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(0o600))?;
            Ok(file)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists && !new => options.open(path),
        Err(error) => Err(error),
    }
}

/// Refuses what another user owns or anybody may write to.
pub fn trust(path: &Path, metadata: &std::fs::Metadata) -> Result<(), Error> {
    let why = if metadata.uid() != rustix::process::geteuid().as_raw() {
        "it belongs to another user"
    } else if metadata.mode() & 0o002 != 0 {
        "everyone may write to it"
    } else {
        return Ok(());
    };
    Err(Error::Untrusted {
        path: path.into(),
        why,
    })
}

/// Opens and parses one profile file. `None` when there is no such file.
pub fn read_file<T>(
    path: &Path,
    id: Option<&ModuleId>,
    parse: impl Fn(&ProfileFile) -> Result<T, Refusal>,
) -> Result<Option<T>, Error> {
    let Some((file, _)) = open_trusted(path)? else {
        return Ok(None);
    };
    parse_open(path, &file, |file| {
        let (module, _) = file.module()?;
        let stem = path.file_stem().unwrap_or_default();
        if id.is_some_and(|id| module.id != *id)
            || stem.as_bytes() != module.id.file_stem().as_bytes()
        {
            return Err(Refusal::Damage(Damage::WrongModule));
        }
        parse(file)
    })
    .map(Some)
}

/// Opens a regular file that nobody else can have put there. `None` when there is none.
pub fn open_trusted(path: &Path) -> Result<Option<(File, Metadata)>, Error> {
    let opened = OpenOptions::new()
        .read(true)
        // NONBLOCK: a FIFO in the file's place must not hang the run.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(Error::Untrusted {
                path: path.into(),
                why: "it is a symbolic link",
            });
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::Untrusted {
            path: path.into(),
            why: "it isn't a regular file",
        });
    }
    trust(path, &metadata)?;
    Ok(Some((file, metadata)))
}

/// Reads a whole file, whoever owns it and whatever its name: the user asked for it.
pub fn read_named(path: &Path) -> Result<ModuleProfile, Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    parse_open(path, &file, |file| {
        // A start reads these; what is handed on must be whole.
        file.decisions()?;
        file.profile()
    })
}

fn parse_open<T>(
    path: &Path,
    file: &File,
    parse: impl Fn(&ProfileFile) -> Result<T, Refusal>,
) -> Result<T, Error> {
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    let parsed = if metadata.len() > MAX_FILE_LEN {
        Err(Refusal::Damage(Damage::Length))
    } else {
        ProfileFile::open(Source::File(file), metadata.len()).and_then(|file| parse(&file))
    };
    match parsed {
        Ok(value) => Ok(value),
        Err(Refusal::Io(error)) => Err(Error::io("read", path)(error)),
        Err(Refusal::Newer(writer)) => Err(Error::Newer {
            path: path.into(),
            writer,
        }),
        Err(Refusal::Damage(damage)) => Err(Error::Damaged {
            path: path.into(),
            damage,
            aside: None,
        }),
    }
}
