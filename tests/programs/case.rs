//! One command line, and what it takes to run it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::fixture::{self, Tree};
use crate::support::{self, Outcome};

/// Where the program comes from. `Err` says why it can't be had.
pub type Find = Box<dyn Fn() -> Result<PathBuf, String> + Send + Sync>;

/// A program with its arguments, run in a fresh copy of the fixture.
pub struct Case {
    pub name: String,
    find: Find,
    program: OnceLock<Result<PathBuf, String>>,
    args: Vec<OsString>,
    stdin: Vec<u8>,
    pub weight: Weight,
    native: OnceLock<Run>,
}

/// How much the program executes, which decides in which modes it is affordable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    /// Some million instructions: every mode.
    Light,
    /// Too much for the interpreter alone and for a cache that is flushed often.
    Heavy,
}

/// What a run left behind: what it said, and the files in its folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub outcome: Outcome,
    pub files: Tree,
}

impl Case {
    /// A case from a command line that is split at blanks, its program an installed one.
    pub fn new(line: &str) -> Case {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program").to_owned();
        let args: Vec<&str> = words.collect();
        let name = line.replace('/', "_");
        Case::of(&name, Box::new(move || fixture::installed(&program)), &args)
    }

    /// A case whose program is found by `find`.
    pub fn of(name: &str, find: Find, args: &[&str]) -> Case {
        Case {
            name: name.to_owned(),
            find,
            program: OnceLock::new(),
            args: args.iter().map(OsString::from).collect(),
            stdin: Vec::new(),
            weight: Weight::Light,
            native: OnceLock::new(),
        }
    }

    /// One more argument, taken as it is; it becomes part of the name if it is short.
    pub fn arg(mut self, arg: &str) -> Case {
        if arg.len() <= 24 && !arg.contains('\n') {
            self.name = format!("{} {}", self.name, arg.replace('/', "_"));
        }
        self.args.push(arg.into());
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Case {
        self.stdin = bytes.into();
        self
    }

    pub fn named(mut self, name: &str) -> Case {
        self.name = name.to_owned();
        self
    }

    pub fn heavy(mut self) -> Case {
        self.weight = Weight::Heavy;
        self
    }

    /// The program, or why it can't be had.
    pub fn program(&self) -> Result<&Path, String> {
        match self.program.get_or_init(|| (self.find)()) {
            Ok(path) => Ok(path),
            Err(why) => Err(why.clone()),
        }
    }

    /// The run on the bare CPU, made once.
    pub fn native(&self) -> Result<&Run, String> {
        let program = self.program()?;
        if self.native.get().is_none() {
            let run = self.run(Command::new(program), &[])?;
            // Another mode's thread may have been quicker: either run will do.
            let _ = self.native.set(run);
        }
        Ok(self.native.get().expect("just set"))
    }

    /// Runs under `temper` with these options and variables.
    pub fn under_temper(
        &self,
        options: &[OsString],
        variables: &[(&str, &str)],
    ) -> Result<Run, String> {
        let mut command = support::temper();
        command.arg("run").args(options).arg("--");
        command.arg(self.program()?);
        self.run(command, variables)
    }

    /// Completes the command and runs it in a fresh copy of the fixture.
    fn run(&self, mut command: Command, variables: &[(&str, &str)]) -> Result<Run, String> {
        let folder = fixture::fresh_copy();
        command
            .args(&self.args)
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC0")
            .env("HOME", "/nonexistent")
            .env("COLUMNS", "80")
            .envs(variables.iter().copied());
        let outcome = support::run(command, &self.stdin, self.limit())
            .map_err(|error| format!("can't be started: {error}"))?;
        let files = fixture::read_tree(folder.path());
        Ok(Run { outcome, files })
    }

    fn limit(&self) -> Duration {
        match self.weight {
            Weight::Light => Duration::from_secs(60),
            Weight::Heavy => Duration::from_secs(180),
        }
    }
}
