//! Programs as old builds are: `workloads/legacy.json` says of what sources they are made,
//! with which options, and what is to be reached. Crates ship some of the sources; cargo
//! knows where those lie.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::suite::Workload;

#[derive(Debug, Deserialize)]
struct File {
    builds: BTreeMap<String, Build>,
    sets: Vec<Set>,
    programs: Vec<Program>,
}

#[derive(Debug, Deserialize)]
struct Build {
    flags: Vec<String>,
    scale: u64,
}

/// Rows that share a geometric mean.
#[derive(Debug, Deserialize)]
struct Set {
    name: String,
    must: f64,
    goal: f64,
    builds: Vec<String>,
    programs: Vec<String>,
    /// Options of Temper whose effect is measured, too.
    #[serde(default)]
    also: Vec<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Program {
    name: String,
    sources: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    runs: Vec<Run>,
}

#[derive(Debug, Deserialize)]
struct Run {
    name: String,
    args: Vec<String>,
    #[serde(default)]
    rounds: u64,
}

/// What is measured, not yet built.
pub struct Row {
    pub workload: Workload,
    /// Its place in the file.
    program: usize,
    build: String,
}

/// All rows, and what they are made of.
pub struct Legacy {
    pub rows: Vec<Row>,
    file: File,
    cache: PathBuf,
    /// What placeholders stand for.
    places: Vec<(String, String)>,
}

impl Legacy {
    /// Reads the list. `cache` is the workloads' own, with their inputs.
    pub fn load(cache: &Path) -> Result<Legacy, Box<dyn Error>> {
        let workloads = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let file: File = serde_json::from_str(&fs::read_to_string(workloads.join("legacy.json"))?)?;
        let known = [
            ("{legacy}", workloads.join("legacy")),
            ("{text}", cache.join("text-3m")),
            ("{workloads}", workloads),
        ];
        let mut legacy = Legacy {
            rows: Vec::new(),
            cache: cache.join("legacy"),
            places: known
                .iter()
                .map(|(name, path)| (name.to_string(), path.to_string_lossy().into_owned()))
                .collect(),
            file,
        };
        for set in &legacy.file.sets {
            for build in &set.builds {
                for name in &set.programs {
                    let row = legacy.rows_of(set, build, name)?;
                    legacy.rows.extend(row);
                }
            }
        }
        Ok(legacy)
    }

    fn rows_of(&self, set: &Set, build: &str, name: &str) -> Result<Vec<Row>, Box<dyn Error>> {
        let unknown = || format!("legacy.json: {} names what isn't there", set.name);
        let programs = &self.file.programs;
        let index = programs.iter().position(|program| program.name == name);
        let index = index.ok_or_else(unknown)?;
        let scale = self.file.builds.get(build).ok_or_else(unknown)?.scale;
        let rows = programs[index].runs.iter().map(|run| {
            let rounds = (run.rounds * scale).to_string();
            let words = run.args.iter();
            let words = words.map(|word| self.filled(&word.replace("{rounds}", &rounds)));
            let binary = self.binary(name, build).to_string_lossy().into_owned();
            let block = vec!["--max-tier".to_owned(), "block".to_owned()];
            let workload = Workload {
                name: format!("{} {build}", run.name),
                group: format!("{} (must {}, goal {})", set.name, set.must, set.goal),
                command: [binary].into_iter().chain(words).collect(),
                also: [block].into_iter().chain(set.also.clone()).collect(),
                ..Workload::default()
            };
            Row {
                workload,
                program: index,
                build: build.to_owned(),
            }
        });
        Ok(rows.collect())
    }

    fn binary(&self, program: &str, build: &str) -> PathBuf {
        self.cache
            .join(format!("{program}-{}", build.replace(' ', "-")))
    }

    fn filled(&self, word: &str) -> String {
        self.places
            .iter()
            .fold(word.to_owned(), |word, (name, is)| word.replace(name, is))
    }

    /// Builds what a row needs, stripped, unless an earlier bench did.
    pub fn build(&mut self, row: &Row) -> Result<(), Box<dyn Error>> {
        let (program, build) = (row.program, &row.build[..]);
        let target = self.binary(&self.file.programs[program].name, build);
        if target.exists() {
            return Ok(());
        }
        if !self.places.iter().any(|(name, _)| name == "{lua-src}") {
            self.places.extend(crates()?);
        }
        eprintln!("making {}", target.display());
        fs::create_dir_all(&self.cache)?;
        let partial = target.with_extension("partial");
        let program = &self.file.programs[program];
        let mut command = Command::new("gcc");
        command.args(&self.file.builds[build].flags);
        for source in &program.sources {
            let source = self.filled(source);
            match source.strip_suffix("/*.c") {
                Some(folder) => command.args(c_files(folder)?),
                None => command.arg(source),
            };
        }
        command.args(program.flags.iter().map(|flag| self.filled(flag)));
        command.args(["-s", "-o"]).arg(&partial);
        let status = command.status()?;
        if !status.success() {
            return Err(format!("making {} failed: {status}", program.name).into());
        }
        fs::rename(&partial, &target)?;
        Ok(())
    }
}

fn c_files(folder: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = entries.collect::<Result<Vec<_>, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    files.sort();
    Ok(files)
}

/// Where the crates that ship sources lie: from the network only when they aren't here yet.
fn crates() -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/sources/Cargo.toml");
    let metadata = |more: &[&str]| {
        Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked"])
            .args(["--manifest-path", manifest])
            .args(more)
            .output()
    };
    let mut said = metadata(&["--offline"])?;
    if !said.status.success() {
        said = metadata(&[])?;
    }
    if !said.status.success() {
        return Err(String::from_utf8_lossy(&said.stderr).into());
    }
    let listed: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    let packages = listed["packages"].as_array().ok_or("no packages")?;
    let places = packages.iter().filter_map(|package| {
        let folder = Path::new(package["manifest_path"].as_str()?).parent()?;
        let name = format!("{{{}}}", package["name"].as_str()?);
        Some((name, folder.to_string_lossy().into_owned()))
    });
    Ok(places.collect())
}
