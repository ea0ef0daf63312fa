//! The profile directory: one file a module, `<id>.profile`, replaced atomically by rename,
//! so readers never block and never see half a file. Writers take the lock file `lock`,
//! read, merge, write a temporary file and rename it. Files that can't be trusted are
//! refused, or set aside as `<id>.damaged`.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Damage, Error};
use crate::format::{self, Decision, ProfileFile, Refusal, Totals};
use crate::merge::Limits;
use crate::record::{ModuleId, ModuleProfile, ModuleRecord};

/// No profile file is larger; [`Limits`] keep what is written far below.
const MAX_FILE_LEN: u64 = 80 << 20;
/// How long a writer waits for others. Each holds the lock for milliseconds, but one may
/// have been stopped by a debugger.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The user's profile directory: `$TEMPER_PROFILE_DIR`, else `temper/profiles` in the XDG
/// data folder. `None` without a home directory.
pub fn default_profile_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("TEMPER_PROFILE_DIR").filter(|dir| !dir.is_empty());
    if let Some(dir) = dir {
        return Some(dir.into());
    }
    // XDG Base Directory Specification: relative paths are invalid and to be ignored.
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))?;
    Some(data.join("temper/profiles"))
}

/// Whether a save waits until the data is on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Atomic, but a power cut may lose the save.
    Routine,
    /// On the disk when the save returns.
    Synced,
}

/// What one run learned about one module.
#[derive(Clone, Debug)]
pub struct RunProfile {
    /// `module.runs` is 1 for a run's first save and 0 for its further ones; only the first
    /// ages what is there.
    pub profile: ModuleProfile,
    /// Offsets (sorted) of blocks that ran without being counted, because their profile
    /// had them translated at once: ageing spares their records.
    pub spared: Vec<u64>,
}

/// What a save wrote.
#[derive(Debug)]
pub struct Written {
    pub records: usize,
    pub bytes: usize,
    /// The damaged profile that was set aside for it.
    pub replaced: Option<Error>,
}

/// A module as `list` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    pub module: ModuleRecord,
    pub totals: Totals,
    /// The profile file and its size in bytes.
    pub file: PathBuf,
    pub bytes: u64,
}

/// What earlier runs know of a module at the start of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    pub module: ModuleRecord,
    pub totals: Totals,
    /// Sorted by offset.
    pub decisions: Vec<Decision>,
}

/// A profile directory. Opening one creates nothing; the first save does.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    limits: Limits,
    /// The root folder that `dir` is below: a process may change its root while it runs.
    root: Option<FolderIdentity>,
}

/// Device and inode.
type FolderIdentity = (u64, u64);

impl Store {
    /// The store in `dir`, which need not exist yet.
    ///
    /// # Errors
    /// `Untrusted` when the directory is another user's or everyone may write to it; `Io`
    /// when it can't be looked at.
    pub fn open(dir: &Path) -> Result<Store, Error> {
        // Absolute, because the guest may change its working directory.
        let dir = std::path::absolute(dir).map_err(Error::io("find", dir))?;
        let store = Store {
            dir,
            limits: Limits::default(),
            root: root_identity(),
        };
        store.check_dir()?;
        Ok(store)
    }

    /// As [`open`](Store::open), with other bounds.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_with(dir: &Path, limits: Limits) -> Result<Store, Error> {
        Ok(Store {
            limits,
            ..Store::open(dir)?
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether its path still leads to it.
    fn is_within_reach(&self) -> bool {
        self.root == root_identity()
    }

    /// True when it exists.
    fn check_dir(&self) -> Result<bool, Error> {
        let metadata = match std::fs::metadata(&self.dir) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("read", &self.dir)(error)),
        };
        if !metadata.is_dir() {
            return Err(Error::io("read", &self.dir)(
                ErrorKind::NotADirectory.into(),
            ));
        }
        trust(&self.dir, &metadata)?;
        Ok(true)
    }

    fn path(&self, id: &ModuleId, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", id.file_stem()))
    }

    /// What a run needs at its start; `None` when the module is unknown.
    ///
    /// # Errors
    /// Any [`Error`]; a damaged file has been set aside.
    pub fn known(&self, id: &ModuleId) -> Result<Option<Known>, Error> {
        self.read(id, |file| {
            let (module, totals) = file.module()?;
            Ok(Known {
                module,
                totals,
                decisions: file.decisions()?,
            })
        })
    }

    /// All that is known of a module; `None` when it is unknown.
    ///
    /// # Errors
    /// Any [`Error`]; a damaged file has been set aside.
    pub fn load(&self, id: &ModuleId) -> Result<Option<ModuleProfile>, Error> {
        self.read(id, read_all)
    }

    fn read<T>(
        &self,
        id: &ModuleId,
        parse: impl Fn(&ProfileFile) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Error> {
        if !self.is_within_reach() {
            return Ok(None);
        }
        let path = self.path(id, "profile");
        match read_file(&path, Some(id), &parse) {
            Err(damaged @ Error::Damaged { .. }) => {
                // Set aside under the lock, and only if it is still damaged: meanwhile a
                // writer may have replaced it.
                let Ok(_lock) = self.lock() else {
                    return Err(damaged);
                };
                self.read_locked(id, parse)
            }
            result => result,
        }
    }

    /// As `read`; the caller holds the lock.
    fn read_locked<T>(
        &self,
        id: &ModuleId,
        parse: impl Fn(&ProfileFile) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Error> {
        let path = self.path(id, "profile");
        read_file(&path, Some(id), parse).map_err(|error| match error {
            Error::Damaged { path, damage, .. } => {
                let aside = path.with_extension("damaged");
                let aside = std::fs::rename(&path, &aside).is_ok().then_some(aside);
                Error::Damaged {
                    path,
                    damage,
                    aside,
                }
            }
            other => other,
        })
    }

    /// All modules, in no particular order; a file that can't be used is an error in its
    /// place. Sets nothing aside.
    ///
    /// # Errors
    /// When the directory can't be read; one that doesn't exist is empty.
    pub fn list(&self) -> Result<Vec<Result<Summary, Error>>, Error> {
        if !self.check_dir()? {
            return Ok(Vec::new());
        }
        let mut modules = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            let path = entry.map_err(Error::io("read", &self.dir))?.path();
            if path
                .extension()
                .is_none_or(|extension| extension != "profile")
            {
                continue;
            }
            let summary = read_file(&path, None, |file| file.module());
            modules.push(match summary {
                Ok(Some((module, totals))) => Ok(Summary {
                    bytes: std::fs::symlink_metadata(&path).map_or(0, |m| m.len()),
                    module,
                    totals,
                    file: path,
                }),
                // Pruned since the directory was read.
                Ok(None) => continue,
                Err(error) => Err(error),
            });
        }
        Ok(modules)
    }

    /// Merges what a run learned into the module's profile.
    ///
    /// # Errors
    /// Any [`Error`]; the profile is then as it was. A damaged profile is set aside and
    /// replaced, see [`Written::replaced`].
    pub fn merge(&self, run: RunProfile, durability: Durability) -> Result<Written, Error> {
        let _lock = self.lock()?;
        let mut replaced = None;
        let RunProfile {
            mut profile,
            spared,
        } = run;
        profile.counts.normalize();
        match self.read_locked(&profile.module.id, read_all) {
            Ok(Some(mut old)) => {
                if profile.module.runs > 0 {
                    old.counts.age(&spared, old.module.runs);
                }
                old.merge(profile);
                profile = old;
            }
            Ok(None) => {}
            Err(error @ Error::Damaged { aside: Some(_), .. }) => replaced = Some(error),
            Err(error) => return Err(error),
        }
        profile.counts.bound(&self.limits);
        let records = profile.counts.len();
        let path = self.path(&profile.module.id, "profile");
        let bytes = format::encode(profile, &self.limits);
        self.replace(&path, &bytes, durability)?;
        Ok(Written {
            records,
            bytes: bytes.len(),
            replaced,
        })
    }

    /// Writes a file under another name, then renames it. The caller holds the lock, so the
    /// temporary name is ours, and one left by a killed writer goes.
    fn replace(&self, path: &Path, bytes: &[u8], durability: Durability) -> Result<(), Error> {
        let temporary = path.with_extension("tmp");
        let result = (|| {
            match std::fs::remove_file(&temporary) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file = create_private(&temporary, true)?;
            file.write_all(bytes)?;
            if durability == Durability::Synced {
                file.sync_all()?;
            }
            std::fs::rename(&temporary, path)?;
            if durability == Durability::Synced {
                File::open(&self.dir)?.sync_all()?;
            }
            Ok(())
        })();
        result.map_err(|error| {
            // Best effort: the error that matters is the first.
            let _ = std::fs::remove_file(&temporary);
            Error::io("write", path)(error)
        })
    }

    /// Takes the directory's lock; dropping the file releases it. Creates the directory if
    /// there is none.
    fn lock(&self) -> Result<File, Error> {
        if !self.is_within_reach() {
            return Err(Error::OutOfReach {
                path: self.dir.clone(),
            });
        }
        let path = self.dir.join("lock");
        let file = match create_private(&path, false) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.dir)
                    .map_err(Error::io("create", &self.dir))?;
                self.check_dir()?;
                create_private(&path, false)
            }
            result => result,
        }
        .map_err(Error::io("lock", &path))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_micros(300));
                }
                Err(TryLockError::WouldBlock) => return Err(Error::Busy { path }),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
            }
        }
    }
}

fn root_identity() -> Option<FolderIdentity> {
    let root = std::fs::metadata("/").ok()?;
    Some((root.dev(), root.ino()))
}

/// Opens a file of ours for writing, whatever the umask; `new` refuses an existing one.
fn create_private(path: &Path, new: bool) -> std::io::Result<File> {
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
fn trust(path: &Path, metadata: &std::fs::Metadata) -> Result<(), Error> {
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
fn read_file<T>(
    path: &Path,
    id: Option<&ModuleId>,
    parse: impl Fn(&ProfileFile) -> Result<T, Refusal>,
) -> Result<Option<T>, Error> {
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
    let parsed = if metadata.len() > MAX_FILE_LEN {
        Err(Refusal::Damage(Damage::Length))
    } else {
        ProfileFile::open(&file, metadata.len()).and_then(|file| {
            let (module, _) = file.module()?;
            let stem = path.file_stem().unwrap_or_default();
            if id.is_some_and(|id| module.id != *id)
                || stem.as_bytes() != module.id.file_stem().as_bytes()
            {
                return Err(Refusal::Damage(Damage::WrongModule));
            }
            parse(&file)
        })
    };
    match parsed {
        Ok(value) => Ok(Some(value)),
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

fn read_all(file: &ProfileFile) -> Result<ModuleProfile, Refusal> {
    let (module, _) = file.module()?;
    Ok(ModuleProfile {
        module,
        counts: file.counts()?,
    })
}

#[cfg(test)]
mod tests;
