//! Bounded growth: what a profile directory drops, and in which order.

use std::fs::File;
use std::path::PathBuf;

use super::{Store, Summary, code};
use crate::error::Error;
use crate::record::ModuleId;

/// What stays when a directory is pruned; everything else goes.
pub struct Keep<'k> {
    /// So many bytes of files at most: those of the modules seen last.
    pub bytes: u64,
    /// Modules seen since then (seconds since 1970).
    pub seen_since: u64,
    /// Modules of which this is true.
    pub chosen: &'k dyn Fn(&Summary) -> bool,
    /// Only tell what would go.
    pub dry_run: bool,
}

impl Keep<'_> {
    pub fn everything() -> Keep<'static> {
        Keep {
            bytes: u64::MAX,
            seen_since: 0,
            chosen: &|_| true,
            dry_run: false,
        }
    }
}

/// Why a file went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// The directory holds too much, and this module wasn't seen for longest.
    Full,
    /// Not seen for too long.
    Old,
    /// The caller said so.
    Unwanted,
    /// A damaged profile that had been set aside, or what a killed writer left.
    Leftover,
}

/// A file that went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dropped {
    pub file: PathBuf,
    /// Where the module's file was; `None` of a leftover.
    pub module: Option<Vec<u8>>,
    pub bytes: u64,
    pub why: Why,
}

impl Store {
    /// Drops what isn't to be kept, and all leftovers.
    ///
    /// # Errors
    /// The directory can't be locked, read or written.
    pub fn prune(&self, keep: &Keep) -> Result<Vec<Dropped>, Error> {
        if !self.check_dir()? {
            return Ok(Vec::new());
        }
        let lock = self.lock()?;
        let mut dropped = self.prune_locked(keep, None, &lock)?;
        for entry in std::fs::read_dir(self.dir()).map_err(Error::io("read", self.dir()))? {
            let entry = entry.map_err(Error::io("read", self.dir()))?;
            let file = entry.path();
            let extension = file.extension().and_then(|extension| extension.to_str());
            let is_leftover = match extension {
                Some("damaged" | "tmp") => true,
                Some(code::EXTENSION) => !file.with_extension("profile").exists(),
                Some(_) | None => false,
            };
            if is_leftover {
                let dead = Dropped {
                    bytes: entry.metadata().map_or(0, |metadata| metadata.len()),
                    file,
                    module: None,
                    why: Why::Leftover,
                };
                remove(&dead, keep)?;
                dropped.push(dead);
            }
        }
        Ok(dropped)
    }

    /// As [`prune`](Store::prune), but for leftovers; the caller holds the lock. `spared` stays.
    pub(super) fn prune_locked(
        &self,
        keep: &Keep,
        spared: Option<&ModuleId>,
        _lock: &File,
    ) -> Result<Vec<Dropped>, Error> {
        let mut modules: Vec<Summary> = self.list()?.into_iter().flatten().collect();
        // Of two last seen together, the one that ran less is worth less.
        modules.sort_by_key(|known| {
            let usefulness = (known.module.last_seen, known.totals.executions);
            (spared == Some(&known.module.id), usefulness)
        });
        modules.reverse();
        let mut dropped = Vec::new();
        let mut kept = 0u64;
        for known in modules {
            let bytes = known.bytes + known.code_bytes;
            let sum = kept.saturating_add(bytes);
            let why = if spared == Some(&known.module.id) {
                None
            } else if !(keep.chosen)(&known) {
                Some(Why::Unwanted)
            } else if known.module.last_seen < keep.seen_since {
                Some(Why::Old)
            } else {
                (sum > keep.bytes).then_some(Why::Full)
            };
            let Some(why) = why else {
                kept = sum;
                continue;
            };
            let dead = Dropped {
                file: known.file,
                module: Some(known.module.path),
                bytes,
                why,
            };
            remove(&dead, keep)?;
            dropped.push(dead);
        }
        Ok(dropped)
    }
}

fn remove(dead: &Dropped, keep: &Keep) -> Result<(), Error> {
    if keep.dry_run {
        return Ok(());
    }
    // The code goes first: alone it is of no use.
    let code = dead.file.with_extension(code::EXTENSION);
    if dead.module.is_some() && code.exists() {
        std::fs::remove_file(&code).map_err(Error::io("remove", &code))?;
    }
    std::fs::remove_file(&dead.file).map_err(Error::io("remove", &dead.file))
}
