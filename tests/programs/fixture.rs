//! The folder that programs run in: generated, the same bytes on every host. Also finds
//! and builds programs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// Every file under a folder: its path to its contents (of links: their target).
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// A scratch folder of cargo's, kept between runs.
pub fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A deterministic stream of numbers (Steele, Lea and Flood's SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

const WORDS: &[&str] = &[
    "river", "stone", "a", "the", "of", "under", "lantern", "seven", "Amber", "quick", "violet",
    "house", "and", "walks", "sings", "north", "window", "paper", "iron", "slowly", "green", "to",
];

fn words(bytes: usize) -> String {
    let mut numbers = Numbers(7);
    let mut text = String::with_capacity(bytes + 16);
    let mut column = 0;
    while text.len() < bytes {
        // The product of two draws prefers the first words, as language does.
        let count = WORDS.len() as u64;
        let word = WORDS[(numbers.below(count) * numbers.below(count) / count) as usize];
        text.push_str(word);
        column += word.len() + 1;
        if column > 60 || numbers.below(11) == 0 {
            text.push('\n');
            column = 0;
        } else {
            text.push(' ');
        }
    }
    text.push('\n');
    text
}

fn write_fixture(folder: &Path) {
    let write = |name: &str, contents: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("inside")).expect("folder");
        fs::write(path, contents).expect("write");
    };
    let mut numbers = Numbers(42);
    write("text", words(40_000).as_bytes());
    write("short", words(600).as_bytes());
    write("empty", b"");
    let binary: Vec<u8> = (0..30_000)
        .map(|index| {
            if index % 1000 < 500 {
                (index / 7) as u8
            } else {
                numbers.next() as u8
            }
        })
        .collect();
    write("binary", &binary);
    let list: String = (0..500)
        .map(|_| format!("{}\n", numbers.below(10_000)))
        .collect();
    write("numbers", list.as_bytes());
    let table: String = (0..300)
        .map(|row| {
            format!(
                "{row},{},{:.2},{}\n",
                WORDS[numbers.below(WORDS.len() as u64) as usize],
                numbers.below(100_000) as f64 / 100.0,
                numbers.below(50)
            )
        })
        .collect();
    write("table.csv", table.as_bytes());
    for name in [
        "one.txt",
        "two.c",
        "deep/three.txt",
        "deep/down/four",
        ".hidden",
    ] {
        write(&format!("tree/{name}"), name.repeat(20).as_bytes());
    }
    symlink("one.txt", folder.join("tree/link")).expect("link");
    for (name, text) in GUESTS {
        write(name, text.as_bytes());
    }
    // One time for all, so that listings and archives agree.
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    set_times(folder, time);
}

/// Scripts and sources that the programs are given.
const GUESTS: &[(&str, &str)] = &[
    ("build.sh", include_str!("guests/build.sh")),
    ("children.pl", include_str!("guests/children.pl")),
    ("children.py", include_str!("guests/children.py")),
    ("repository.sh", include_str!("guests/repository.sh")),
    ("shell.sh", include_str!("guests/shell.sh")),
    ("signal_tests.py", include_str!("guests/signal_tests.py")),
    ("signals.pl", include_str!("guests/signals.pl")),
    ("signals.py", include_str!("guests/signals.py")),
    ("shell_sh.sh", include_str!("guests/shell_sh.sh")),
    ("script.awk", include_str!("guests/script.awk")),
    ("script.lua", include_str!("guests/script.lua")),
    ("script.pl", include_str!("guests/script.pl")),
    ("script.py", include_str!("guests/script.py")),
    ("script.sql", include_str!("guests/script.sql")),
    ("terminal.py", include_str!("guests/terminal.py")),
    ("threads.py", include_str!("guests/threads.py")),
    ("writers.py", include_str!("guests/writers.py")),
    ("writers.sh", include_str!("guests/writers.sh")),
    ("unit.c", include_str!("guests/unit.c")),
    ("unit.s", include_str!("guests/unit.s")),
];

fn set_times(path: &Path, time: SystemTime) {
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("folder") {
            set_times(&entry.expect("entry").path(), time);
        }
    }
    if !path.is_symlink() {
        let file = fs::File::open(path).expect("open");
        file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))
            .expect("times");
    }
}

/// A new folder with the fixture's files in it.
pub fn fresh_copy() -> TempDir {
    let folder = tempfile::Builder::new()
        .prefix("case-")
        .tempdir_in(scratch())
        .expect("temporary folder");
    write_fixture(folder.path());
    folder
}

/// All files under `folder`.
pub fn read_tree(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(current) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&current) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let contents = if path.is_symlink() {
                fs::read_link(&path)
                    .map(|target| target.into_os_string().into_encoded_bytes())
                    .unwrap_or_default()
            } else if path.is_dir() {
                waiting.push(path.clone());
                b"(folder)".to_vec()
            } else {
                fs::read(&path).unwrap_or_else(|_| b"(unreadable)".to_vec())
            };
            let name = path.strip_prefix(folder).expect("inside").to_owned();
            tree.insert(name, contents);
        }
    }
    tree
}

/// An installed program: a path, or a name in /usr/bin or /bin.
pub fn installed(name: &str) -> Result<PathBuf, String> {
    let candidates = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        vec![
            Path::new("/usr/bin").join(name),
            Path::new("/bin").join(name),
        ]
    };
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{name} is not installed; .ci/setup installs it"))
}

/// A part of the C compiler that `gcc` runs (cc1, as, ld).
pub fn compiler_part(name: &str) -> Result<PathBuf, String> {
    let output = Command::new("gcc")
        .arg(format!("-print-prog-name={name}"))
        .output()
        .map_err(|error| format!("gcc can't be asked for {name}: {error}"))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    installed(&path)
}

/// Builds `source` by `compiler` into the scratch folder, unless it is there already.
pub fn built(compiler: &str, flags: &[&str], source: &Path) -> Result<PathBuf, String> {
    // Two cases may want the same program at once.
    static BUILDING: Mutex<()> = Mutex::new(());
    let text = fs::read(source).map_err(|error| format!("{}: {error}", source.display()))?;
    let mut hasher = DefaultHasher::new();
    (compiler, flags, &text).hash(&mut hasher);
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let folder = scratch().join("built");
    let target = folder.join(format!("{stem}-{:016x}", hasher.finish()));
    let _guard = BUILDING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if target.is_file() {
        return Ok(target);
    }
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let partial = target.with_extension("partial");
    let (libraries, flags): (Vec<&str>, Vec<&str>) =
        flags.iter().partition(|flag| flag.starts_with("-l"));
    let args: Vec<OsString> = flags
        .iter()
        .map(OsString::from)
        .chain([source.into(), "-o".into(), partial.clone().into()])
        .chain(libraries.iter().map(OsString::from))
        .collect();
    let output = Command::new(compiler)
        .args(&args)
        .output()
        .map_err(|error| format!("{compiler} is not installed ({error})"))?;
    if !output.status.success() {
        return Err(format!(
            "{compiler} can't build {} here: {}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    fs::rename(&partial, &target).map_err(|error| error.to_string())?;
    Ok(target)
}
