//! Which profile the user means: a file, a program, a name or an identity.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use clap::Args;
use profile_db::{Error, ModuleId, ModuleProfile, Store, Summary, read_profile};

use super::dump::DumpFile;
use super::image;
use crate::cli::failure::Failure;
use crate::cli::lookup;
use crate::cli::options::ProfileDirArg;

/// The arguments that choose modules.
#[derive(Args, Debug)]
pub(super) struct Selection {
    /// A program or library, the name or identity of one that has a profile, or a file with
    /// a profile or a dump
    #[arg(value_hint = clap::ValueHint::FilePath)]
    program: String,

    #[command(flatten)]
    pub profile_dir: ProfileDirArg,

    /// The modules with this in their name that PROGRAM's code leads to, instead of
    /// PROGRAM's own
    #[arg(long, value_name = "NAME")]
    module: Option<String>,
}

impl Selection {
    /// The profiles chosen; `known` are the modules on record.
    pub fn load(&self, store: &Store, known: &[Summary]) -> Result<Vec<ModuleProfile>, Failure> {
        let program = load(store, known, &self.program)?;
        match &self.module {
            None => Ok(vec![program]),
            Some(wanted) => related(store, known, program, wanted),
        }
    }
}

/// The profile that `wanted` means.
pub(super) fn load(
    store: &Store,
    known: &[Summary],
    wanted: &str,
) -> Result<ModuleProfile, Failure> {
    match from_file(Path::new(wanted)) {
        Some(Ok(mut profiles)) if profiles.len() == 1 => Ok(profiles.remove(0)),
        Some(Ok(profiles)) => Err(Failure::own(format!(
            "{wanted}: holds {} modules where one is wanted; `temper profile import` takes it",
            profiles.len()
        ))),
        Some(Err(failure)) => Err(failure),
        None => load_known(store, find(wanted, known)?),
    }
}

/// The profiles in a file that is a profile or a dump; `None` when it is neither.
pub(super) fn from_file(path: &Path) -> Option<Result<Vec<ModuleProfile>, Failure>> {
    let mut start = Vec::new();
    let file = File::open(path).ok()?;
    file.take(64).read_to_end(&mut start).ok()?;
    if start.starts_with(b"TEMPERDB") {
        let profile = read_profile(path).map_err(|error| Failure::own(error.to_string()));
        return Some(profile.map(|profile| vec![profile]));
    }
    let is_json = start.trim_ascii_start().starts_with(b"{");
    is_json.then(|| {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::own(format!("{}: {error}", path.display())))?;
        DumpFile::parse(&text, &path.display().to_string())
    })
}

fn load_known(store: &Store, id: &ModuleId) -> Result<ModuleProfile, Failure> {
    match store.load(id) {
        Ok(Some(profile)) => Ok(profile),
        Ok(None) => Err(Failure::own(format!("the profile of {id} is gone"))),
        Err(error) => Err(own(error)),
    }
}

/// A profile directory's error as the command's.
pub(super) fn own(error: Error) -> Failure {
    Failure::own(error.to_string())
}

/// The name of a module's file.
pub(super) fn file_name(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let name = Path::new(path.as_ref()).file_name();
    name.map_or_else(|| path.to_string(), |name| name.to_string_lossy().into())
}

/// The module that `wanted` means: a file by its content, else a name or an identity on
/// record, of several the last seen.
fn find<'k>(wanted: &str, known: &'k [Summary]) -> Result<&'k ModuleId, Failure> {
    let file = lookup::program(wanted.as_ref()).ok().or_else(|| {
        // Libraries needn't be executable.
        let path = Path::new(wanted);
        path.is_file().then(|| path.to_path_buf())
    });
    let identity = file.as_deref().and_then(|path| image::identify(path).ok());
    if let Some(identity) = &identity
        && let Some(found) = known.iter().find(|k| k.module.id == *identity)
    {
        return Ok(&found.module.id);
    }
    let by_name = known
        .iter()
        .find(|k| file_name(&k.module.path) == file_name(wanted.as_bytes()));
    let hex = wanted.rsplit(':').next().unwrap_or(wanted);
    let by_identity = known
        .iter()
        .find(|k| hex.len() >= 4 && k.module.id.file_stem()[1..].starts_with(hex));
    match (identity, by_name, by_identity) {
        (None, Some(found), _) if !wanted.contains('/') => Ok(&found.module.id),
        (_, _, Some(found)) => Ok(&found.module.id),
        (Some(_), Some(other), _) => Err(Failure::own(format!(
            "{wanted}: has no profile; there is one of another build, `temper profile show {}`",
            &other.module.id.file_stem()[1..13]
        ))),
        (Some(_), None, None) => Err(Failure::own(format!(
            "{wanted}: has no profile yet; `temper run {wanted}` makes one"
        ))),
        (None, _, None) => Err(Failure::own(format!(
            "{wanted}: is neither a file nor a module with a profile; `temper profile list` \
             shows those"
        ))),
    }
}

/// The modules with `wanted` in their name among `program`'s own and those that its edges
/// lead to.
fn related(
    store: &Store,
    known: &[Summary],
    program: ModuleProfile,
    wanted: &str,
) -> Result<Vec<ModuleProfile>, Failure> {
    let mut ids = vec![program.module.id.clone()];
    ids.extend(program.counts.others.iter().cloned());
    let chosen = known.iter().filter(|k| {
        ids.contains(&k.module.id)
            && (file_name(&k.module.path).contains(wanted)
                || k.module.id.to_string().contains(wanted))
    });
    let profiles = chosen
        .map(|k| load_known(store, &k.module.id))
        .collect::<Result<Vec<_>, _>>()?;
    if profiles.is_empty() {
        return Err(Failure::own(format!(
            "{} leads to no module `{wanted}` that has a profile; `temper profile list` shows \
             those",
            file_name(&program.module.path)
        )));
    }
    Ok(profiles)
}
