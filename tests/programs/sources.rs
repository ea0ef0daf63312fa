//! The small programs of `tests/programs/c`: each makes one thing happen that is hard to
//! get right, and prints what it saw. The first line of a source says how to build it:
//! `// flags: -O2 -static`. A second line `// heavy` keeps it out of the slow modes, and
//! `// args: ...` gives it arguments, and `// optional` lets it run only when asked for by
//! TEMPER_TEST_ALL=1.

use std::fs;
use std::path::{Path, PathBuf};

use crate::case::Case;
use crate::fixture;

pub fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Vec::new();
    };
    let mut sources: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    sources.sort();
    sources.into_iter().filter_map(case).collect()
}

fn case(source: PathBuf) -> Option<Case> {
    let compiler = match source.extension()?.to_str()? {
        "c" | "s" | "S" => "gcc",
        "cpp" => "g++",
        _ => return None,
    };
    let text = fs::read_to_string(&source).ok()?;
    let said = |key: &str| {
        text.lines().take(5).find_map(|line| {
            let line = line.trim_start_matches(['/', '#', '*', ' ']);
            let value = line.strip_prefix(key)?;
            Some(value.trim_end_matches("*/").trim().to_owned())
        })
    };
    let flags = said("flags:").unwrap_or_default();
    let args = said("args:").unwrap_or_default();
    let heavy = said("heavy").is_some();
    let optional = said("optional").is_some();
    let name = format!("c/{}", source.file_name()?.to_str()?);
    let find = Box::new(move || {
        if optional && std::env::var_os("TEMPER_TEST_ALL").is_none() {
            return Err("it takes long; TEMPER_TEST_ALL=1 runs it".to_owned());
        }
        let flags: Vec<&str> = flags.split_whitespace().collect();
        fixture::built(compiler, &flags, &source)
    });
    let args: Vec<&str> = args.split_whitespace().collect();
    let case = Case::of(&name, find, &args);
    Some(if heavy { case.heavy() } else { case })
}
