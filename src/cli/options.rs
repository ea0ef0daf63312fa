//! What `temper run` was asked to do, as plain data: the command line and the environment
//! are read once, here, and everything below sees only [`RunOptions`].

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::lookup;
use crate::profile::default_profile_dir;

/// The code cache's bound when none is given, in MiB.
pub const DEFAULT_CACHE_MIB: u32 = 64;
/// The largest bound: the address range that is kept for the code cache.
pub const MAX_CACHE_MIB: u32 = 128;

/// The highest tier that guest code may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
pub enum MaxTier {
    /// Everything is interpreted
    Interpreter,
    /// Hot code becomes translation blocks
    Block,
    /// Hot paths become superblocks, where those are faster
    Superblock,
}

/// A stage whose products `--dump` prints on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
pub enum DumpStage {
    /// Guest blocks as decoded, with how each one ends
    Decode,
    /// Blocks as the interpreter keeps them
    Blocks,
    /// Generated code as installed in the code cache, with its exits
    Fragments,
    /// Hot regions: their blocks, and the code that they became
    Superblocks,
}

/// Where profiles live.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProfileStore {
    /// Nothing is gathered, loaded or saved.
    Off,
    /// Nothing is loaded or saved, because no folder could be named (no HOME): not an
    /// error, but said once when statistics are asked for.
    Homeless,
    Dir(#[serde(with = "exact_path")] PathBuf),
}

/// What developers turn by environment variables, to find faults in Temper itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Developer {
    /// TEMPER_FLUSH_EVERY: empty the code cache at every Nth entry of generated code.
    pub flush_every: Option<NonZeroU64>,
    /// TEMPER_HOT: treat everything as hot at its first execution.
    pub everything_hot: bool,
    /// TEMPER_PROMOTE_AFTER: translate a block after this many executions.
    pub promote_after: Option<u64>,
    /// TEMPER_STOP_AFTER: translate nothing more after this many fragments.
    pub stop_after: Option<u64>,
    /// TEMPER_FORCE_SUPERBLOCKS: keep all superblocks, without trials.
    pub superblocks_forced: bool,
    /// TEMPER_STOP_SUPERBLOCKS_AFTER: make no superblocks after so many.
    pub stop_superblocks_after: Option<u64>,
    /// TEMPER_REWRITE_SUPERBLOCKS: make superblocks after so many without any rewriting step.
    pub rewrite_superblocks: Option<u64>,
    /// TEMPER_SUPERBLOCK_STEPS: rewriting steps, a bit each: 1 slots to general registers, 2 to
    /// vector registers, 4 folding.
    pub superblock_steps: Option<u64>,
    /// TEMPER_SAVE_EVERY: milliseconds between saves of the profile while the program runs.
    pub save_every: Option<u64>,
}

/// What is to be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The file to run: found in PATH already, otherwise as it was given.
    pub program: PathBuf,
    /// The guest's whole argument vector; the first is the program as it was given.
    pub argv: Vec<OsString>,
}

/// How it is run. The same for all that it executes and for its children, whatever happens to
/// the environment; see [`RunOptions::of_children`] for the exceptions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunOptions {
    pub profile: ProfileStore,
    pub max_tier: MaxTier,
    /// Bytes that generated code may occupy.
    pub cache_bytes: u64,
    /// Large private memory of the guest is to be in huge pages.
    pub huge_pages: bool,
    pub stats: bool,
    #[serde(with = "exact_path::optional")]
    pub stats_json: Option<PathBuf>,
    pub verify: bool,
    /// Use translated code of earlier runs, and keep this run's.
    pub reuse: bool,
    pub dump: Vec<DumpStage>,
    pub developer: Developer,
}

impl RunOptions {
    /// Statistics are the first process's, of the last program that it executes.
    pub fn of_children(&self) -> RunOptions {
        RunOptions {
            stats: false,
            stats_json: None,
            ..self.clone()
        }
    }

    /// As one argument for the Temper that takes over.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// # Errors
    /// The text isn't [`RunOptions::to_text`]'s.
    pub fn from_text(text: &str) -> Result<RunOptions, Failure> {
        serde_json::from_str(text)
            .map_err(|error| Failure::own(format!("these options can't be taken over: {error}")))
    }
}

/// The arguments of `temper run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub profile_dir: ProfileDirArg,

    /// Neither gather, load nor save a profile
    #[arg(long, conflicts_with = "profile_dir")]
    pub no_profile: bool,

    /// Neither use nor keep translated code beside the profile
    #[arg(long)]
    pub no_kept_code: bool,

    /// The highest tier that code may reach
    #[arg(long, value_name = "TIER", value_enum, default_value = "superblock")]
    pub max_tier: MaxTier,

    /// Print what happened on standard error at the end
    #[arg(long)]
    pub stats: bool,

    /// Write what happened to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub stats_json: Option<PathBuf>,

    /// Run everything in both tiers and compare the states; very slow
    #[arg(long)]
    pub verify: bool,

    /// Print what these stages made on standard error
    #[arg(long, value_name = "STAGES", value_enum, value_delimiter = ',')]
    pub dump: Vec<DumpStage>,

    /// The most memory that generated code may use
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_CACHE_MIB,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CACHE_MIB)))]
    pub cache_size: u32,

    /// Ask for no huge pages for the program's large memory
    #[arg(long)]
    pub no_huge_pages: bool,

    /// The program and its arguments; a name without a slash is looked for in PATH
    #[arg(required = true, value_names = ["PROGRAM", "ARGS"], trailing_var_arg = true,
          value_hint = clap::ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// `--profile-dir`, the same for every command that has it.
#[derive(Args, Clone, Debug, Default)]
pub struct ProfileDirArg {
    /// Where profiles are kept [default: TEMPER_PROFILE_DIR, else temper/profiles in the XDG data folder]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub profile_dir: Option<PathBuf>,
}

impl ProfileDirArg {
    /// The folder: the option, the environment, or the XDG default. `None` when the
    /// default can't be told because there is no home.
    pub fn resolve(&self) -> Option<PathBuf> {
        self.profile_dir
            .clone()
            .filter(|dir| !dir.as_os_str().is_empty())
            .or_else(default_profile_dir)
    }
}

impl RunArgs {
    /// Reads what is left to read: PATH and the developer's variables.
    ///
    /// # Errors
    /// The program isn't there (127) or can't be executed (126); a variable isn't a number.
    pub fn into_options(self) -> Result<(Target, RunOptions), Failure> {
        let developer = Developer::from_environment()?;
        let name = self.command.first().cloned().unwrap_or_default();
        let profile = if self.no_profile {
            ProfileStore::Off
        } else {
            match self.profile_dir.resolve() {
                // The guest may change its working folder.
                Some(dir) => ProfileStore::Dir(absolute(dir)),
                None => ProfileStore::Homeless,
            }
        };
        let target = Target {
            program: lookup::program(&name)?,
            argv: self.command,
        };
        let options = RunOptions {
            profile,
            max_tier: self.max_tier,
            cache_bytes: u64::from(self.cache_size) << 20,
            huge_pages: !self.no_huge_pages,
            stats: self.stats,
            stats_json: self.stats_json.map(absolute),
            verify: self.verify,
            reuse: !self.no_kept_code,
            dump: self.dump,
            developer,
        };
        Ok((target, options))
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Paths as the bytes that they are, UTF-8 or not.
mod exact_path {
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().serialize(serializer)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<PathBuf, D::Error> {
        OsString::deserialize(deserializer).map(PathBuf::from)
    }

    pub mod optional {
        use super::{Deserialize, Deserializer, OsString, PathBuf, Serialize, Serializer};

        pub fn serialize<S: Serializer>(
            path: &Option<PathBuf>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            let text = path.as_ref().map(|path| path.as_os_str());
            text.serialize(serializer)
        }

        pub fn deserialize<'a, D: Deserializer<'a>>(
            deserializer: D,
        ) -> Result<Option<PathBuf>, D::Error> {
            let text = Option::<OsString>::deserialize(deserializer)?;
            Ok(text.map(PathBuf::from))
        }
    }
}

impl Developer {
    fn from_environment() -> Result<Developer, Failure> {
        Ok(Developer {
            flush_every: number("TEMPER_FLUSH_EVERY")?.and_then(NonZeroU64::new),
            promote_after: number("TEMPER_PROMOTE_AFTER")?,
            everything_hot: number("TEMPER_HOT")?.is_some_and(|value| value != 0),
            stop_after: number("TEMPER_STOP_AFTER")?,
            superblocks_forced: number("TEMPER_FORCE_SUPERBLOCKS")?.is_some_and(|value| value != 0),
            stop_superblocks_after: number("TEMPER_STOP_SUPERBLOCKS_AFTER")?,
            rewrite_superblocks: number("TEMPER_REWRITE_SUPERBLOCKS")?,
            superblock_steps: number("TEMPER_SUPERBLOCK_STEPS")?,
            save_every: number("TEMPER_SAVE_EVERY")?,
        })
    }
}

fn number(name: &str) -> Result<Option<u64>, Failure> {
    let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| {
        Failure::usage(format!(
            "{name} must be a whole number, not {value:?}; unset it or give a number"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn options_survive_as_text_and_children_show_no_statistics() {
        let odd = PathBuf::from(OsString::from_vec(b"/odd \xff/\"dir".to_vec()));
        let options = RunOptions {
            profile: ProfileStore::Dir(odd.clone()),
            max_tier: MaxTier::Interpreter,
            cache_bytes: 1 << 20,
            huge_pages: true,
            stats: true,
            stats_json: Some(odd),
            verify: false,
            reuse: true,
            dump: vec![DumpStage::Blocks],
            developer: Developer {
                flush_every: NonZeroU64::new(7),
                ..Developer::default()
            },
        };
        assert_eq!(
            RunOptions::from_text(&options.to_text()),
            Ok(options.clone())
        );
        let children = options.of_children();
        assert!(!children.stats && children.stats_json.is_none());
        assert_eq!(children.profile, options.profile);
        assert!(RunOptions::from_text("{}").is_err());
    }
}
