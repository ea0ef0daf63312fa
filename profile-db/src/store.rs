//! The profile directory: one file a module, `<id>.profile`, replaced atomically by rename,
//! so readers never block and never see half a file. Writers take the lock file `lock`,
//! read, merge, write a temporary file and rename it. Files that can't be trusted are
//! refused, or set aside as `<id>.damaged`.

mod code;
mod files;
mod prune;

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::code::{Code, NoCode};
use crate::error::Error;
use crate::format::{self, Decision, ProfileFile, Refusal, Totals};
use crate::merge::Limits;
use crate::record::{ModuleId, ModuleProfile, ModuleRecord};
use crate::stale;
use crate::trial::Trials;

pub use code::{CodePiece, KeptCode, Maker, NewPiece, VerifiedCode};
use files::{create_private, read_file, trust};
pub use prune::{Dropped, Keep, Why};

/// From this count on it is worth knowing what a block looks like, so that its records
/// outlive a rebuild; most blocks of a program's start run but once.
const WORTH_LIKENESS: u64 = 4;
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
    /// The earlier build whose records were taken over first.
    pub ancestor: Option<ModuleId>,
    /// Other modules' profiles that were dropped because the directory was full.
    pub dropped: Vec<Dropped>,
}

/// A module as `list` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    pub module: ModuleRecord,
    pub totals: Totals,
    /// The profile file and its size in bytes.
    pub file: PathBuf,
    pub bytes: u64,
    /// The size of the translated code that is kept beside it.
    pub code_bytes: u64,
}

/// What earlier runs know of a module at the start of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    pub module: ModuleRecord,
    pub totals: Totals,
    /// Sorted by offset.
    pub decisions: Vec<Decision>,
    /// On all machines, see [`Trials::of`].
    pub trials: Trials,
}

/// A profile file, and its profile or what is wrong with it.
pub type Verified = (PathBuf, Result<ModuleProfile, Error>);

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
        // A link of the user's own is fine, one that somebody else put there isn't.
        let metadata = std::fs::symlink_metadata(&self.dir).and_then(|link| {
            if link.is_symlink() && link.uid() != rustix::process::geteuid().as_raw() {
                return Ok(link);
            }
            std::fs::metadata(&self.dir)
        });
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("read", &self.dir)(error)),
        };
        if metadata.is_symlink() {
            let why = "it is another user's symbolic link";
            let path = self.dir.clone();
            return Err(Error::Untrusted { path, why });
        }
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
                trials: file.trials()?,
            })
        })
    }

    /// All that is known of a module; `None` when it is unknown.
    ///
    /// # Errors
    /// Any [`Error`]; a damaged file has been set aside.
    pub fn load(&self, id: &ModuleId) -> Result<Option<ModuleProfile>, Error> {
        self.read(id, |file| file.profile())
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
        for path in self.profile_files()? {
            let summary = read_file(&path, None, |file| file.module());
            modules.push(match summary {
                Ok(Some((module, totals))) => Ok(Summary {
                    bytes: std::fs::symlink_metadata(&path).map_or(0, |m| m.len()),
                    code_bytes: std::fs::symlink_metadata(path.with_extension(code::EXTENSION))
                        .map_or(0, |m| m.len()),
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

    /// Reads all profiles whole, in no particular order. Sets nothing aside.
    ///
    /// # Errors
    /// As [`list`](Store::list).
    pub fn verify(&self) -> Result<Vec<Verified>, Error> {
        if !self.check_dir()? {
            return Ok(Vec::new());
        }
        let read = |path: PathBuf| {
            let whole = read_file(&path, None, |file| {
                file.decisions()?;
                file.profile()
            });
            Some((path, whole.transpose()?))
        };
        Ok(self.profile_files()?.into_iter().filter_map(read).collect())
    }

    fn profile_files(&self) -> Result<Vec<PathBuf>, Error> {
        self.files_with("profile")
    }

    fn files_with(&self, wanted: &str) -> Result<Vec<PathBuf>, Error> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            let path = entry.map_err(Error::io("read", &self.dir))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == wanted)
            {
                files.push(path);
            }
        }
        Ok(files)
    }

    /// Merges what a run learned into the module's profile. `code` is that module's, and is
    /// asked what hot blocks look like that are new. When there is no profile yet, the
    /// records of an earlier build of the module are [taken over](crate::take_over) first.
    ///
    /// # Errors
    /// Any [`Error`]; the profile is then as it was. A damaged profile is set aside and
    /// replaced, see [`Written::replaced`].
    pub fn merge(
        &self,
        run: RunProfile,
        code: &mut dyn Code,
        durability: Durability,
    ) -> Result<Written, Error> {
        let RunProfile {
            mut profile,
            spared,
        } = run;
        profile.counts.normalize();
        let path = self.path(&profile.module.id, "profile");
        let exists = std::fs::symlink_metadata(&path).is_ok();
        // Before the lock is taken, because it may take a while.
        let ancestor = if exists {
            None
        } else {
            self.ancestor(&profile.module, code)
        };
        let age = |old: &mut ModuleProfile, new: &ModuleProfile| {
            if new.module.runs > 0 {
                old.counts.age(&spared, old.module.runs);
            }
        };
        self.update(profile, ancestor, age, code, durability)
    }

    /// Merges a profile from elsewhere into the module's, without ageing what is there.
    ///
    /// # Errors
    /// As [`merge`](Store::merge).
    pub fn absorb(
        &self,
        mut profile: ModuleProfile,
        durability: Durability,
    ) -> Result<Written, Error> {
        profile.counts.normalize();
        self.update(profile, None, |_, _| (), &mut NoCode, durability)
    }

    /// `new` becomes part of the module's profile, or of `ancestor` where there is none.
    fn update(
        &self,
        new: ModuleProfile,
        ancestor: Option<ModuleProfile>,
        age: impl Fn(&mut ModuleProfile, &ModuleProfile),
        code: &mut dyn Code,
        durability: Durability,
    ) -> Result<Written, Error> {
        let lock = self.lock()?;
        let mut replaced = None;
        let id = new.module.id.clone();
        let known = match self.read_locked(&id, |file| file.profile()) {
            Ok(known) => known,
            Err(error @ Error::Damaged { aside: Some(_), .. }) => {
                replaced = Some(error);
                None
            }
            Err(error) => return Err(error),
        };
        let is_new = known.is_none();
        let taken_from = ancestor.as_ref().filter(|_| is_new);
        let taken_from = taken_from.and_then(|ancestor| ancestor.module.ancestor.clone());
        let mut profile = match known.or(ancestor) {
            Some(mut old) => {
                age(&mut old, &new);
                old.merge(new);
                old
            }
            None => new,
        };
        profile.counts.bound(&self.limits);
        profile.trials.bound(self.limits.trials);
        for block in &mut profile.counts.blocks {
            if block.count >= WORTH_LIKENESS
                && !block.likeness.is_known()
                && let Some(likeness) = code.likeness(block.offset, block.len, block.hash)
            {
                block.likeness = likeness;
            }
        }
        let records = profile.counts.len() + profile.trials.trials.len();
        let path = self.path(&id, "profile");
        let bytes = format::encode(profile, &self.limits);
        self.replace(&path, &bytes, durability)?;
        let mut written = Written {
            records,
            bytes: bytes.len(),
            replaced,
            ancestor: taken_from,
            dropped: Vec::new(),
        };
        // One module's file is bounded, so the directory grows by new files.
        if is_new {
            let keep = Keep {
                bytes: self.limits.directory_bytes,
                ..Keep::everything()
            };
            // What can't be dropped now will be tried again by the next new file.
            written.dropped = self
                .prune_locked(&keep, Some(&id), &lock)
                .unwrap_or_default();
        }
        Ok(written)
    }

    /// What the latest earlier build of a module knew, where the module's code is now.
    fn ancestor(&self, module: &ModuleRecord, code: &mut dyn Code) -> Option<ModuleProfile> {
        let earlier = self.list().ok()?.into_iter().flatten();
        let (_, id) = earlier
            .filter(|known| known.module.id != module.id)
            .filter_map(|known| Some((kinship(&known.module, module)?, known.module)))
            .map(|(kinship, known)| ((kinship, known.last_seen), known.id))
            .max()?;
        let old = self.load(&id).ok()??;
        let blocks = code.blocks();
        if blocks.is_empty() {
            return None;
        }
        let takeover = stale::take_over(&old.counts, &blocks);
        takeover.is_plausible().then(|| ModuleProfile {
            module: ModuleRecord {
                runs: 0,
                ancestor: Some(id),
                ..module.clone()
            },
            counts: takeover.counts,
            // What was measured holds for that code alone.
            trials: Trials::default(),
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

/// How likely a module is an earlier build of another, by their names alone: in the same
/// place, or with the same name elsewhere.
fn kinship(earlier: &ModuleRecord, module: &ModuleRecord) -> Option<u8> {
    let name = |path: &[u8]| path.rsplit(|&byte| byte == b'/').next().map(<[u8]>::to_vec);
    if earlier.path == module.path {
        return Some(2);
    }
    (name(&earlier.path) == name(&module.path)).then_some(1)
}

/// Reads a profile file that somebody names, wherever it lies and whatever it is called.
///
/// # Errors
/// Any [`Error`]; a damaged file stays where it is.
pub fn read_profile(path: &Path) -> Result<ModuleProfile, Error> {
    files::read_named(path)
}

#[cfg(test)]
mod tests;
