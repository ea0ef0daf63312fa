//! Reads `workloads/suite.json` and makes its inputs.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::sessions::Step;

/// One command to measure. The program is an absolute path.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Workload {
    pub name: String,
    /// Rows of one group share a geometric mean.
    #[serde(default)]
    pub group: String,
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Options of Temper with which it is measured, too, with a profile.
    #[serde(default)]
    pub also: Vec<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Input {
    file: String,
    command: Vec<String>,
}

/// The file's contents, placeholders filled in.
#[derive(Debug, Deserialize)]
pub struct Suite {
    inputs: Vec<Input>,
    pub programs: Vec<Workload>,
    /// Measured as time beyond the native run's, not as a ratio.
    pub startups: Vec<Workload>,
    /// Names of programs whose run is compared with and without profiling.
    pub profiling: Vec<String>,
    /// Names of programs of which it is measured how soon they run generated code.
    pub settling: Vec<String>,
    /// The inputs' folder.
    #[serde(skip)]
    pub cache: PathBuf,
    /// What single steps of a session cost.
    pub sessions: Vec<Step>,
    /// What the interpreter's speed is measured with.
    pub interpreter: Workload,
}

impl Suite {
    /// Reads the suite and makes what inputs are missing in `cache`.
    pub fn load(cache: &Path) -> Result<Suite, Box<dyn Error>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let text = fs::read_to_string(folder.join("suite.json"))?;
        let mut suite: Suite = serde_json::from_str(&text)?;
        // A change to any workload makes all inputs anew.
        let cache = cache.join(format!("{:016x}", fingerprint(&folder)?));
        fs::create_dir_all(&cache)?;
        let cc1 = compiler_proper();
        let fill = |words: &mut Vec<String>, out: &Path| {
            for word in words {
                for (name, path) in [
                    ("{in}", folder.as_path()),
                    ("{cache}", &cache),
                    ("{out}", out),
                    ("{cc1}", &cc1),
                ] {
                    *word = word.replace(name, &path.to_string_lossy());
                }
            }
        };
        for mut input in std::mem::take(&mut suite.inputs) {
            let target = cache.join(&input.file);
            if !target.exists() {
                let partial = cache.join(format!("{}.partial", input.file));
                fill(&mut input.command, &partial);
                make(&input, &partial)?;
                fs::rename(&partial, &target)?;
            }
        }
        let workloads = suite.programs.iter_mut().chain(&mut suite.startups);
        for workload in workloads.chain([&mut suite.interpreter]) {
            fill(&mut workload.command, Path::new(""));
        }
        for step in &mut suite.sessions {
            fill(&mut step.command, Path::new(""));
        }
        suite.cache = cache;
        Ok(suite)
    }
}

fn make(input: &Input, partial: &Path) -> Result<(), Box<dyn Error>> {
    eprintln!("making {}", input.file);
    let names_output = input.command.iter().any(|word| Path::new(word) == partial);
    let mut command = Command::new(&input.command[0]);
    command.args(&input.command[1..]);
    if !names_output {
        command.stdout(File::create(partial)?);
    }
    let status = command
        .status()
        .map_err(|error| format!("{} can't be run: {error}", input.command[0]))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("making {} failed: {status}", input.file).into())
    }
}

/// Changes when a file in `folder` does.
fn fingerprint(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let mut paths = Vec::new();
    for folder in [
        folder.to_owned(),
        folder.join("legacy"),
        folder.join("sources"),
    ] {
        for entry in fs::read_dir(folder)? {
            paths.push(entry?.path());
        }
    }
    paths.sort();
    let mut hasher = DefaultHasher::new();
    for path in paths.iter().filter(|path| path.is_file()) {
        (path.file_name(), fs::read(path)?).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// The path of cc1; what gcc says when it isn't there ("cc1") makes its row be left out.
fn compiler_proper() -> PathBuf {
    Command::new("gcc")
        .arg("-print-prog-name=cc1")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().into())
        .unwrap_or_default()
}
